"""Functions on bundles: find a bundle, run its workflows, read the plan of its demo, copy it for other data."""

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medcl_monai.data.inspection import SizeRule
from medcl_monai.files import write_atomically
from medcl_monai.overrides import check_overrides, merged

COMPLETE = ("pretrain.json", "train.json", "inference.json")  # configs that hold knobs; overlays keep their own values


def bundle_folder(bundle: str) -> Path:
    """Return the folder of a bundle, given by name or by path.

    A name is looked for in ``./bundles`` and in the repository of the package.

    Raises:
        FileNotFoundError: there is no such bundle.
    """
    here = [Path(bundle), Path("bundles") / bundle, Path(__file__).parents[1] / "bundles" / bundle]
    for folder in here:
        if (folder / "configs" / "metadata.json").is_file():
            return folder.resolve()
    raise FileNotFoundError(f"no bundle {bundle!r}: looked for configs/metadata.json in {[str(f) for f in here]}")


def run_bundle(config_files: list[Path], workflow_type: str = "train", **overrides: object) -> None:
    """Run one workflow of a bundle in this process, as ``python -m monai.bundle run`` does in a process of its own.

    Args:
        config_files: path of the config, or paths of a config and its overlays.
        workflow_type: "train" for pre-training, training and evaluation, "infer" for inference.
        overrides: values of ids of the config, by id; None becomes the word "none", because MONAI drops an override of
            None without a message.

    Raises:
        ValueError: an override is an id that no config has.
    """
    from monai.bundle import create_workflow

    check_overrides(merged(config_files), overrides)
    for module in ("scripts", "workflows"):  # their summary of every call would bury the demo's own lines
        logging.getLogger(f"monai.bundle.{module}").setLevel(logging.ERROR)
    overrides = {name: "none" if value is None else value for name, value in overrides.items()}
    files = [str(file) for file in config_files]
    workflow = create_workflow(
        config_file=files[0] if len(files) == 1 else files, workflow_type=workflow_type, logging_file=False, **overrides
    )
    workflow.run()
    workflow.finalize()


@dataclass(frozen=True)
class Run:
    """A run of a bundle: a config with its overlays, and knobs.

    Attributes:
        configs: names of the config and of its overlays.
        knobs: overrides by id.
    """

    configs: tuple[str, ...]
    knobs: dict[str, object]

    @property
    def name(self) -> str:
        """Name of the run: that of its last config."""
        return Path(self.configs[-1]).stem


@dataclass(frozen=True)
class Plan:
    """Describes what the demo of a bundle runs.

    Attributes:
        before: what runs before the arms, such as ``pretrain.json``.
        arms: overrides of ``train.json`` for each arm, by the arm's name; the segmenter of the first arm becomes
            ``models/model.pt``.
    """

    before: tuple[Run, ...]
    arms: dict[str, dict[str, object]]


def read_plan(root: Path) -> Plan:
    """Read the plan in ``configs/demo.json`` of a bundle.

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
    entries = [{"configs": [entry]} if isinstance(entry, str) else dict(entry) for entry in plan.get("before", ())]
    return Plan(tuple(Run(tuple(entry.pop("configs")), entry) for entry in entries), plan["arms"])


def adapt_bundle(bundle: str | Path, folder: str | Path, knobs: Mapping[str, object]) -> Path:
    """Copy a bundle without its weights, and write values of knobs into the copy's configs and metadata.

    Each config gets those of the knobs that it has. Weights that `folder` already holds stay until a training replaces
    them.

    Args:
        bundle: folder of the bundle.
        folder: folder of the copy, which is made or refreshed.
        knobs: values by name, such as ``structures``, ``pixel_spacing`` and ``roi_size`` as ``inspect`` suggests them.

    Returns:
        The folder of the copy.

    Raises:
        ValueError: no config has such a knob.
        FileNotFoundError: `bundle` holds no configs.
    """
    bundle, folder = Path(bundle), Path(folder)
    if not (bundle / "configs" / "metadata.json").is_file():
        raise FileNotFoundError(f"{bundle} is no bundle: it has no configs/metadata.json")
    shutil.copytree(bundle, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("eval", "models", "__pycache__"))
    (folder / "models").mkdir(exist_ok=True)
    paths = [path for path in (folder / "configs" / name for name in COMPLETE) if path.is_file()]
    texts = {path: path.read_text(encoding="utf-8") for path in paths}
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
    """Return what a bundle requires of its images: its sample or view size, and the multiple in its metadata."""
    configs = Path(bundle) / "configs"
    metadata = json.loads((configs / "metadata.json").read_text(encoding="utf-8"))
    shape = metadata["network_data_format"]["inputs"]["image"]["spatial_shape"]
    pretraining = configs / "pretrain.json"
    knobs = json.loads((pretraining if pretraining.is_file() else configs / "train.json").read_text(encoding="utf-8"))
    extent = knobs.get("sample_size") or knobs.get("view_size") or knobs["roi_size"]
    multiple = int(str(shape[0]).split("*")[0])
    return SizeRule(min(extent), multiple, sampled="sample_size" in knobs, pretrains=pretraining.is_file())


def set_knobs(path: Path, knobs: Mapping[str, object]) -> None:
    """Write values into a hand-formatted config; everything but these values stays as it is written.

    Args:
        path: path of the config.
        knobs: values by id, such as ``steps`` or ``network_def::stages``.

    Raises:
        ValueError: the config has no such id; then nothing is written.
    """
    text = path.read_text(encoding="utf-8")
    for name, value in knobs.items():
        span = value_span(text, name.split("::"))
        if span is None:
            raise ValueError(f"{path} has no {name!r}")
        text = text[: span[0]] + json.dumps(value, ensure_ascii=False) + text[span[1] :]
    write_atomically(path, lambda target: target.write_text(text, encoding="utf-8"))


def value_span(text: str, names: Sequence[str], start: int = 0) -> tuple[int, int] | None:
    """Return where the value under nested names stands in the text of a JSON object; None if a name is missing.

    Args:
        text: the JSON text.
        names: names of the nested members, outermost first.
        start: place in the text at which the object begins.

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
