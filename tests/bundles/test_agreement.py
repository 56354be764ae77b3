"""What the bundles say alike: a difference is named here, or it is a mistake."""

import itertools
import json
from pathlib import Path

import pytest

BUNDLES = sorted(path.parents[1] for path in (Path(__file__).parents[2] / "bundles").glob("*/configs/metadata.json"))
PAIRS = list(itertools.combinations(BUNDLES, 2))
SAME_BYTES = (
    "LICENSE", "docs/data_license.txt", "configs/logging.conf", "configs/evaluate.json", "configs/multi_gpu_train.json",
    "configs/multi_gpu_pretrain.json",
)
METHOD = {"_desc_", "experiment_name", "network_def", "transfer"}
SUPERVISED = {  # of a bundle whose loss reads inner maps
    "loss", "taps", "monitor_interval", "pretrained", "train::inferer", "train::handlers",
}
PREPARED = {"intensity"}
BUDGET = {"batch_size", "steps", "learning_rate", "weight_decay", "warm_up", "clip"}
MAY_DIFFER = {
    "pretrain.json": METHOD | PREPARED | BUDGET | {
        "view_size", "sample_size", "views", "loss", "train::dataset", "parameters", "optimizer", "train::handlers",
        "coverage", "slabs", "train::sampler", "train::dataloader",
    },
    "train.json": METHOD | PREPARED | BUDGET | SUPERVISED | {
        "roi_size", "coverage", "encoder_prefixes", "carried_lr_scale", "output_layer", "validate::inferer",
        "parameters",
    },
    "inference.json": {"_desc_", "network_def", "intensity", "roi_size", "inferer"},
    "metadata.json": {
        "name", "task", "description", "references", "changelog", "network_data_format", "required_packages_version",
    },
}


def read(bundle, file):
    """A config; None for a bundle that pre-trains nothing and has no such file."""
    path = bundle / "configs" / file
    if not path.is_file():
        assert "pretrain" in file, path
        return None
    return json.loads(path.read_text(encoding="utf-8"))


def differing(first, second):
    """Ids in which two configs differ; of the sections one level deeper."""
    found = set()
    for key in set(first) | set(second):
        ours, theirs = first.get(key), second.get(key)
        if ours != theirs and key in ("train", "validate"):
            found |= {f"{key}::{name}" for name in set(ours) | set(theirs) if ours.get(name) != theirs.get(name)}
        elif ours != theirs:
            found.add(key)
    return found


def test_there_are_bundles_to_compare():
    assert len(BUNDLES) >= 2


@pytest.mark.parametrize(("first", "second"), PAIRS, ids=lambda bundle: bundle.name)
def test_copies_are_equal_byte_by_byte(first, second):
    for file in SAME_BYTES:
        pair = [bundle / file for bundle in (first, second)]
        if "pretrain" not in file or all(path.is_file() for path in pair):
            assert pair[0].read_bytes() == pair[1].read_bytes(), file


@pytest.mark.parametrize("file", MAY_DIFFER)
@pytest.mark.parametrize(("first", "second"), PAIRS, ids=lambda bundle: bundle.name)
def test_configs_differ_in_named_places_only(first, second, file):
    configs = [read(bundle, file) for bundle in (first, second)]
    if None not in configs:
        assert differing(*configs) <= MAY_DIFFER[file]


@pytest.mark.parametrize(("first", "second"), PAIRS, ids=lambda bundle: bundle.name)
def test_common_knobs_stand_in_one_order(first, second):
    for file in ("pretrain.json", "train.json", "inference.json"):
        ids = [list(read(bundle, file) or ()) for bundle in (first, second)]
        common = set(ids[0]) & set(ids[1])
        assert [key for key in ids[0] if key in common] == [key for key in ids[1] if key in common], file


HANDLERS = {"CollapseMonitor", "ViewsPicture", "PDCRFigures", "RestorationGain"}


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda bundle: bundle.name)
def test_what_no_bundle_may_leave_out(bundle):
    for file in ("pretrain.json", "train.json", "inference.json"):
        config = read(bundle, file)
        if config is None:
            continue
        assert config["initialize"][0] == {"_target_": "medcl_monai.check_command_line"}, file
        if file == "inference.json":
            continue
        assert config["parameters"]["loss"] == "@loss", file  # a projector of a loss would never move
        handlers = {handler["_target_"].split(".")[-1]: handler for handler in config["train"]["handlers"]}
        for name in HANDLERS & set(handlers):
            assert handlers[name]["interval"] == "@monitor_interval", name
        if file == "pretrain.json":
            assert set(handlers) >= {"CollapseMonitor", "ViewsPicture"}


def test_an_overlay_that_trains_something_else_writes_no_segmenter_into_models():
    overlays = [path for bundle in BUNDLES for path in bundle.glob("configs/linear_probe.json")]
    assert overlays
    for path in overlays:
        assert json.loads(path.read_text(encoding="utf-8"))["model_file"].startswith("$@output_dir + "), path
