"""A copy of a bundle whose knobs fit other data."""

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from medcl_monai.data.inspection import Grid
from medcl_monai.files import write_atomically

CONFIGS = ("pretrain.json", "train.json", "inference.json")


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
    written = set()
    for path in (folder / "configs" / name for name in CONFIGS):
        if path.is_file():
            written |= set_knobs(path, knobs)
    if missing := set(knobs) - written:
        raise ValueError(f"{bundle}: no config has the knobs {sorted(missing)}")
    if "structures" in knobs:
        _name_structures(folder / "configs" / "metadata.json", knobs["structures"])
    return folder


def grid_of(bundle: str | Path) -> Grid:
    """What a bundle asks of the pixels: its sample or view size, and the multiple in its metadata."""
    configs = Path(bundle) / "configs"
    metadata = json.loads((configs / "metadata.json").read_text(encoding="utf-8"))
    shape = metadata["network_data_format"]["inputs"]["image"]["spatial_shape"]
    pretraining = configs / "pretrain.json"
    knobs = json.loads((pretraining if pretraining.is_file() else configs / "train.json").read_text(encoding="utf-8"))
    extent = knobs.get("sample_size") or knobs.get("view_size") or knobs["roi_size"]
    return Grid(min(extent), multiple=int(str(shape[0]).split("*")[0]), sampled="sample_size" in knobs)


def set_knobs(path: Path, knobs: Mapping[str, object]) -> set[str]:
    """Write the values of top-level `knobs` into a hand-formatted config, one line each; the names that it has."""
    text, written = path.read_text(encoding="utf-8"), set()
    for name, value in knobs.items():
        line = f'    "{name}": {json.dumps(value, ensure_ascii=False)},'
        text, count = re.subn(rf'^    "{re.escape(name)}": .*,$', lambda _, line=line: line, text, count=1, flags=re.M)
        written |= {name} if count else set()
    json.loads(text)  # a knob that spans lines would leave a broken file
    write_atomically(path, lambda target: target.write_text(text, encoding="utf-8"))
    return written


def _name_structures(path: Path, structures: Mapping[str, str]) -> None:
    metadata = json.loads(path.read_text(encoding="utf-8"))
    output = metadata["network_data_format"]["outputs"]["pred"]
    output["channel_def"] = {"0": "background", **structures}
    output["num_channels"] = max(int(value) for value in structures) + 1
    text = json.dumps(metadata, indent=4, ensure_ascii=False) + "\n"
    write_atomically(path, lambda target: target.write_text(text, encoding="utf-8"))
