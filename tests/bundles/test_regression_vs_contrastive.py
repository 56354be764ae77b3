"""What this bundle alone has: arms by two weights, and one structure as a task."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser

from medcl_monai.bundles import run_bundle

NAME = "regression_vs_contrastive"
BUNDLE = Path(__file__).parents[2] / "bundles" / NAME
TINY = {"pixel_spacing": 4.0, "steps": 4, "epochs": 2, "batch_size": 4, "checkpoint_interval": 2}
FEATURES = [4, 8, 16, 16, 16, 4]


def parsed(files, **knobs):
    parser = ConfigParser()
    parser.read_config([str(file) for file in files])
    for knob, value in knobs.items():
        parser[knob] = value
    return parser


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("arms") / NAME
    shutil.copytree(BUNDLE, root, ignore=shutil.ignore_patterns("eval", "models"))
    return root


@pytest.fixture
def pretraining(population):
    return {
        **TINY, "dataset_dir": str(population), "network_def::backbone::features": FEATURES, "view_size": [32, 32],
        "views::corruption_patch": 4, "network_def::projector_width": 16,
    }


@pytest.mark.parametrize(("arm", "knobs", "names"), [
    ("contrast", {"loss::restoration_weight": 0.0}, 40),
    ("restoration", {"loss::contrast_weight": 0.0, "views::swaps": 0, "views::mask_ratio": 0.5}, 80),
])
def test_two_weights_choose_the_arm(root, pretraining, arm, knobs, names):
    root = root.with_name(arm)
    shutil.copytree(BUNDLE, root, ignore=shutil.ignore_patterns("eval", "models"))
    files = [root / "configs" / "pretrain.json"]
    run_bundle(files, bundle_root=str(root), **pretraining, **knobs)
    assert len(torch.load(root / "models" / "pretrained.pt", weights_only=True)) == names


def test_a_batch_that_slabs_do_not_divide_is_named(root, pretraining):
    knobs = {**pretraining, "batch_size": 6, "bundle_root": str(root)}
    parser = parsed([root / "configs" / "pretrain.json"], **knobs)
    with pytest.raises(RuntimeError) as failure:
        parser.get_parsed_content("train::dataloader")
    causes, error = [], failure.value
    while error is not None:
        causes.append(str(error))
        error = error.__cause__
    assert any("batch_size 6 must be a multiple of the number of slabs, 4" in cause for cause in causes)


@pytest.mark.parametrize("label", [1, 4])
def test_one_structure_is_a_task_of_its_own(root, population, label, tmp_path):
    files = [root / "configs" / name for name in ("train.json", "task.json")]
    knobs = {
        **TINY, "dataset_dir": str(population), "network_def::features": FEATURES, "roi_size": [48, 48],
        "pretrained": "none",
        "target_label": label, "target_name": "it", "val_interval": 2, "bundle_root": str(root),
        "output_dir": str(tmp_path), "model_file": str(tmp_path / "task.pt"),
    }
    run_bundle(files, **knobs)
    weights = torch.load(tmp_path / "task.pt", weights_only=True)
    assert len(weights["final_conv.bias"]) == 2
    run_bundle([*files, root / "configs" / "evaluate.json"], **knobs)
    scores = json.loads((tmp_path / "scores.json").read_text(encoding="utf-8"))
    assert "it" in json.dumps(scores)
    merged = parsed(files, **knobs).get_parsed_content("train::dataset")
    own = {knob: value for knob, value in knobs.items() if not knob.startswith("target")}
    whole = parsed(files[:1], **own).get_parsed_content("train::dataset")
    ours, theirs = (np.load(data.paths[0]["label"]) for data in (merged, whole))
    np.testing.assert_array_equal(ours, theirs == label)
    assert ours.any()


