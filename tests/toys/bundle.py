"""The bundle of the toy that pre-trains nothing: that of JCL, with a loss and an inferer of the toy's own."""

import json
import shutil
from pathlib import Path

from medcl_monai.bundles import set_knobs

NAME = "toy_supervised"


def make_toy_bundle(source: Path, root: Path) -> Path:
    """A copy of the bundle `source` as step 3 of docs/adding_a_method.md makes one for a supervised method."""
    shutil.copytree(source, root, ignore=shutil.ignore_patterns("eval", "models", "*pretrain.json"))
    segmentation = json.loads((root / "configs" / "train.json").read_text(encoding="utf-8"))["loss"]
    set_knobs(root / "configs" / "train.json", {
        "experiment_name": NAME, "pretrained": None,
        "loss": {"_target_": "toys.TapLoss", "segmentation": segmentation, "width": "$@network_def::features[1]"},
        "train::inferer": {"_target_": "toys.Tap", "name": "down_1"},
    })
    set_knobs(root / "configs" / "metadata.json", {"name": NAME})
    plan = {"before": [], "arms": {"tapped": {}, "plain": {"pretrained": "none", "loss::weight": 0.0}}}
    (root / "configs" / "demo.json").write_text(json.dumps(plan, indent=4) + "\n", encoding="utf-8")
    return root
