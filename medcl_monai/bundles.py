"""Bundles from Python: where they are, how one runs, what a demo runs, and a copy whose knobs fit other data."""

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medcl_monai.data.inspection import SizeRule
from medcl_monai.files import write_atomically
from medcl_monai.overrides import check_overrides, merged


def bundle_folder(bundle: str) -> Path:
    """The folder of a bundle given by name (in ./bundles or beside the package) or by path."""
    here = [Path(bundle), Path("bundles") / bundle, Path(__file__).parents[1] / "bundles" / bundle]
    for folder in here:
        if (folder / "configs" / "metadata.json").is_file():
            return folder.resolve()
    raise FileNotFoundError(f"demo: no bundle {bundle!r}: looked for configs/metadata.json in {[str(f) for f in here]}")


def run_bundle(config_files: list[Path], workflow_type: str = "train", **overrides: object) -> None:
    """One workflow of a bundle, in this process, as ``python -m monai.bundle run`` would.

    Args:
        config_files: the config, or a config and its overlays.
        workflow_type: "train" or "infer".
        overrides: id to value; an id that no config has is refused.

    Raises:
        ValueError: see `check_overrides`.
    """
    from monai.bundle import create_workflow

    check_overrides(merged(config_files), overrides)
    for module in ("scripts", "workflows"):  # their summary of every call would bury the demo's own lines
        logging.getLogger(f"monai.bundle.{module}").setLevel(logging.ERROR)
    files = [str(file) for file in config_files]
    workflow = create_workflow(
        config_file=files[0] if len(files) == 1 else files, workflow_type=workflow_type, logging_file=False, **overrides
    )
    workflow.run()
    workflow.finalize()


@dataclass(frozen=True)
class Plan:
    """What a bundle's demo runs.

    Attributes:
        before: configs that run first, as ``pretrain.json``.
        arms: name to overrides of ``train.json``; the first arm's segmenter becomes ``models/model.pt``.
    """

    before: tuple[str, ...]
    arms: dict[str, dict[str, object]]


def read_plan(root: Path) -> Plan:
    """The plan in ``configs/demo.json`` of a bundle.

    Raises:
        FileNotFoundError: the bundle has no such file.
        ValueError: the file names no arms.
    """
    path = root / "configs" / "demo.json"
    if not path.is_file():
        raise FileNotFoundError(f"demo: {path} does not exist: it says what the demo of a bundle runs")
    plan = json.loads(path.read_text(encoding="utf-8"))
    if not plan.get("arms"):
        raise ValueError(f"demo: {path} names no arms: an object of name to knobs of train.json is expected")
    return Plan(tuple(plan.get("before", ())), plan["arms"])


def adapt_bundle(bundle: str | Path, folder: str | Path, knobs: Mapping[str, object]) -> Path:
    """Copy `bundle` to `folder` (without weights) and write `knobs` into its configs and its metadata.

    A config gets the knobs that it has; weights that `folder` already holds stay until training replaces them.

    Args:
        bundle: the bundle's folder.
        folder: of the copy; made or refreshed.
        knobs: name to value, as ``inspect`` suggests them: structures, pixel_spacing, roi_size.

    Returns:
        The copy's folder.

    Raises:
        ValueError: no config has such a knob.
        FileNotFoundError: `bundle` holds no configs.
    """
    bundle, folder = Path(bundle), Path(folder)
    if not (bundle / "configs" / "metadata.json").is_file():
        raise FileNotFoundError(f"{bundle} is no bundle: it has no configs/metadata.json")
    shutil.copytree(bundle, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("eval", "models", "__pycache__"))
    (folder / "models").mkdir(exist_ok=True)
    texts = {path: path.read_text(encoding="utf-8") for path in (folder / "configs").glob("*.json")}
    known = {path: [name for name in knobs if value_span(text, name.split("::"))] for path, text in texts.items()}
    if missing := set(knobs) - {name for names in known.values() for name in names}:
        raise ValueError(f"{bundle}: no config has the knobs {sorted(missing)}")
    for path, names in known.items():
        if names:
            set_knobs(path, {name: knobs[name] for name in names})
    if "structures" in knobs:
        _name_structures(folder / "configs" / "metadata.json", knobs["structures"])
    return folder


def size_rule(bundle: str | Path) -> SizeRule:
    """What a bundle asks of the pixels: its sample or view size, and the multiple in its metadata."""
    configs = Path(bundle) / "configs"
    metadata = json.loads((configs / "metadata.json").read_text(encoding="utf-8"))
    shape = metadata["network_data_format"]["inputs"]["image"]["spatial_shape"]
    pretraining = configs / "pretrain.json"
    knobs = json.loads((pretraining if pretraining.is_file() else configs / "train.json").read_text(encoding="utf-8"))
    extent = knobs.get("sample_size") or knobs.get("view_size") or knobs["roi_size"]
    return SizeRule(min(extent), multiple=int(str(shape[0]).split("*")[0]), sampled="sample_size" in knobs)


def set_knobs(path: Path, knobs: Mapping[str, object]) -> None:
    """Write values into a hand-formatted config; everything but the values stays as it is written.

    Args:
        path: of the config.
        knobs: id to value, as ``steps`` or ``network_def::stages``.

    Raises:
        ValueError: the config has no such id; nothing is written.
    """
    text = path.read_text(encoding="utf-8")
    for name, value in knobs.items():
        span = value_span(text, name.split("::"))
        if span is None:
            raise ValueError(f"{path} has no {name!r}")
        text = text[: span[0]] + json.dumps(value, ensure_ascii=False) + text[span[1] :]
    write_atomically(path, lambda target: target.write_text(text, encoding="utf-8"))


def value_span(text: str, names: Sequence[str], start: int = 0) -> tuple[int, int] | None:
    """Where the value under nested names stands in the text of a JSON object; None if a name is missing.

    Args:
        text: of the JSON.
        names: of the members, outermost first.
        start: where the object begins.

    Example:
        >>> text = '{"a": 1, "b": {"c": [2, 3]}}'
        >>> text[slice(*value_span(text, ["b", "c"]))]
        '[2, 3]'
    """
    decoder, place = json.JSONDecoder(), text.index("{", start) + 1
    while (place := _skip(text, place, " \t\r\n,")) < len(text) and text[place] != "}":
        name, place = decoder.raw_decode(text, place)
        place = _skip(text, place, " \t\r\n:")
        value, end = decoder.raw_decode(text, place)
        if name == names[0]:
            if len(names) == 1:
                return place, end
            return value_span(text, names[1:], place) if isinstance(value, dict) else None
        place = end
    return None


def _skip(text: str, place: int, characters: str) -> int:
    while place < len(text) and text[place] in characters:
        place += 1
    return place


def _name_structures(path: Path, structures: Mapping[str, str]) -> None:
    metadata = json.loads(path.read_text(encoding="utf-8"))
    output = metadata["network_data_format"]["outputs"]["pred"]
    output["channel_def"] = {"0": "background", **structures}
    output["num_channels"] = max(int(value) for value in structures) + 1
    text = json.dumps(metadata, indent=4, ensure_ascii=False) + "\n"
    write_atomically(path, lambda target: target.write_text(text, encoding="utf-8"))
