"""What a bundle says of itself: metadata and knobs."""

import json
import re
from pathlib import Path

from monai.bundle import verify_metadata

import medcl_monai
from medcl_monai.bundles import read_plan
from medcl_monai.overrides import check_overrides, ids

ROOT = Path(__file__).parents[2]
SCHEMA = Path(__file__).parent / "schema" / "meta_schema_20240725.json"
COMMON = {
    "bundle_root", "dataset_dir", "output_dir", "device", "tracking_uri", "experiment_name", "run_name",
    "split_seed", "subjects", "subject_pattern", "seed", "resume", "spatial_dims", "slice_axis", "pixel_spacing",
    "intensity", "batch_size", "steps", "epochs", "learning_rate", "weight_decay", "warm_up", "clip", "accumulation",
    "amp", "num_workers", "checkpoint_interval",
}
SCHEMA_HASH = "cd64aa8a5904426f6fc6855dabe46af8c742d5bad644b4e9cfb78ebad09ad678"  # Apache-2.0, by Project MONAI
NEW_IDS = {  # of an overlay, that its base lacks
    "statistics", "train::preprocessing::label_steps", "validate::preprocessing::label_steps",
    "train::handlers::2::names", "validate::handlers::0::names",
}
ONLY_PRETRAIN = {"view_size", "initial_weights", "monitor_interval", "coverage"}
ONLY_TRAIN = {
    "structures", "roi_size", "label_fraction", "pretrained", "carry", "copy_pretrained", "coverage",
    "empty_slice_weight", "class_weight_power", "val_interval", "encoder_prefixes", "carried_lr_scale",
    "freeze_encoder_epochs", "model_file",
}


def pins():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return {line.split("==")[0].lower(): line.split("==")[1] for line in lines if "==" in line}


def test_the_files_are_those_that_clients_know(source):
    names = {path.name for path in (source / "configs").iterdir()} - {"monailabel_train.json"}
    known = {"metadata.json", "logging.conf", "train.json", "demo.json", "multi_gpu_train.json", "evaluate.json",
             "inference.json"}
    pretraining = {"pretrain.json", "multi_gpu_pretrain.json"}
    assert names >= known
    assert names & pretraining in (set(), pretraining)
    assert (source / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    assert (source / "docs" / "README.md").is_file()
    assert (source / "docs" / "data_license.txt").is_file()


def test_metadata_fit_the_schema_the_package_and_the_constraints(source, configs):
    meta = str(source / "configs" / "metadata.json")
    verify_metadata(meta_file=meta, filepath=str(SCHEMA), hash_val=SCHEMA_HASH, hash_type="sha256")
    metadata, known = configs["metadata.json"], pins()
    versions = metadata["required_packages_version"]
    assert versions.pop("medcl_monai") == medcl_monai.__version__
    assert {name: known[name.lower()] for name in versions} == versions
    core = {"monai": "monai_version", "torch": "pytorch_version", "numpy": "numpy_version"}
    assert {name: metadata[key] for name, key in core.items()} == {name: known[name] for name in core}
    assert metadata["version"] == max(metadata["changelog"])
    assert all(re.fullmatch(r"\d\.\d\.\d", version) for version in metadata["changelog"])


def test_the_structures_are_those_of_the_example_population(configs, population):
    from medcl_monai.data.example.population import STRUCTURES

    labels = json.loads((population / "dataset.json").read_text(encoding="utf-8"))["labels"]
    channels = configs["metadata.json"]["network_data_format"]["outputs"]["pred"]["channel_def"]
    assert channels == labels
    for file in ("train.json", "inference.json"):
        assert configs[file]["structures"] == STRUCTURES


def test_knobs_have_their_common_names_and_stand_first(configs):
    for file, own in (("pretrain.json", ONLY_PRETRAIN), ("train.json", ONLY_TRAIN)):
        if file in configs:
            ids = list(configs[file])
            assert (COMMON | own) <= set(ids)
            assert max(ids.index(knob) for knob in COMMON | own) < ids.index("network_def")
    for config in configs.values():
        assert set(config.get("_desc_", ())) <= {*config, "about"}


def test_what_two_configs_of_a_bundle_share_is_equal(configs):
    train, inference = configs["train.json"], configs["inference.json"]
    shared = (set(train) & set(inference)) - {"_desc_", "initialize", "run", "finalize", "network", "imports"}
    assert {"network_def", "pixel_spacing", "intensity", "roi_size", "structures"} <= shared
    assert {name: train[name] for name in shared} == {name: inference[name] for name in shared}
    ways = (train["train"]["preprocessing"], train["validate"]["preprocessing"], inference["preprocessing"])
    alike = [{name: value for name, value in way.items() if name not in ("keys", "keep_grid")} for way in ways]
    assert alike[0] == alike[1] == alike[2]
    assert train["validate"]["inferer"] == inference["inferer"]


def test_overlays_name_only_what_their_base_has(configs):
    """Whatever stands beside the configs that are complete alone is an overlay of train.json or of pretrain.json."""
    overlays = set(configs) - {"pretrain.json", "train.json", "inference.json", "metadata.json", "demo.json"}
    assert overlays >= {"multi_gpu_train.json", "evaluate.json"}
    for overlay in overlays:
        base = "pretrain.json" if "pretrain" in overlay else "train.json"
        known = set(ids(configs[base]))
        referred = set(re.findall(r"@([\w:]+)", json.dumps(configs[overlay])))  # what the overlay says and itself reads
        assert set(configs[overlay]) - NEW_IDS - referred <= known, overlay


def test_targets_are_public_or_short_names(configs):
    found = re.findall(r'"_target_": "(medcl_monai[^"]*)"', json.dumps(configs))
    assert len(found) > 20
    for target in found:
        assert target.removeprefix("medcl_monai.") in medcl_monai.__all__, target


def test_no_loader_stands_among_the_handlers_of_training(configs):
    handlers = configs["train.json"]["train"]["handlers"]
    assert all(isinstance(handler, dict) for handler in handlers)
    assert "CheckpointLoader" not in {handler["_target_"] for handler in handlers}


def test_the_demo_s_arms_turn_knobs_that_train_json_has(source, configs):
    plan = read_plan(source)
    for run in plan.before:
        assert set(run.configs) <= set(configs)
        check_overrides(configs[run.configs[0]], run.knobs)
    assert len(plan.arms) >= 2
    for knobs in plan.arms.values():
        check_overrides(configs["train.json"], knobs)
