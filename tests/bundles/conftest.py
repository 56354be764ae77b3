import json
import shutil
import sys
from pathlib import Path

import pytest

from medcl_monai.bundles import set_knobs

sys.path.insert(0, str(Path(__file__).parents[1] / "toys"))  # the toys are targets of a config
from bundle import NAME as TOY
from bundle import make_toy_bundle

BUNDLES = Path(__file__).parents[2] / "bundles"
FOUND = sorted(path.parents[1].name for path in BUNDLES.glob("*/configs/metadata.json"))
NAMES = [*FOUND, TOY]
TINY = {  # knobs of every config
    "pixel_spacing": 4.0, "steps": 4, "epochs": 2, "batch_size": 4, "checkpoint_interval": 2,
}
FEATURES = [4, 8, 16, 32, 64, 4]
GROUPED = [4, 8, 16, 16, 16, 4]  # of group norm with 4 groups
OF_CONFIG = {  # knobs that one config of a bundle has
    "jcl": {
        "pretrain.json": {"network_def::backbone::features": FEATURES},
        "train.json": {"network_def::features": FEATURES},
        "inference.json": {"network_def::features": FEATURES},
    },
    TOY: {
        "train.json": {"network_def::features": FEATURES},
        "inference.json": {"network_def::features": FEATURES},
    },
    "pdcr_uafs": {
        "train.json": {"network_def::network::features": [8, 8, 16, 16, 16, 8], "loss::boxes::number": 16},
        "inference.json": {"network_def::network::features": [8, 8, 16, 16, 16, 8]},
    },
    "regression_vs_contrastive": {
        "pretrain.json": {
            "network_def::backbone::features": GROUPED, "view_size": [32, 32], "views::corruption_patch": 4,
            "network_def::projector_width": 16,
        },
        "train.json": {"network_def::features": GROUPED},
        "inference.json": {"network_def::features": GROUPED},
    },
    "transformer_transfer": {
        "pretrain.json": {
            "sample_size": [64, 64], "network_def::backbone::embed_dim": 8, "network_def::projector_width": 16,
            "network_def::projection_dim": 8,
        },
        "train.json": {"network_def::embed_dim": 8},
        "inference.json": {"network_def::embed_dim": 8},
    },
    "decorrelated_moco": {
        "pretrain.json": {
            "sample_size": [64, 64], "view_size": [64, 64], "network_def::whiten::group_size": 4,
            "network_def::queue_size": 16,
        },
    },
}
ROI = {  # pixels
    "jcl": 48, "decorrelated_moco": 64, "transformer_transfer": 64, "pdcr_uafs": 48, "regression_vs_contrastive": 48,
    TOY: 48,
}
THREE = {  # knobs of a run in 3D
    TOY: ({}, {"roi_size": [32, 32, 32]}),
    "pdcr_uafs": ({}, {"roi_size": [32, 32, 32]}),
    "regression_vs_contrastive": (
        {"view_size": [32, 32, 32], "views::swaps": 4, "slabs": 2}, {"roi_size": [32, 32, 32]},
    ),
    "jcl": (
        {"view_size": [64, 64, 64], "network_def::stages": 1}, {"roi_size": [32, 32, 32], "coverage": 0.5},
    ),
    "transformer_transfer": (
        {
            "sample_size": [32, 32, 32], "view_size": [32, 32, 32], "network_def::backbone::window_size": 2,
        },
        {"roi_size": [64, 64, 64], "network_def::window_size": 2},
    ),
    "decorrelated_moco": (
        {"sample_size": [40, 40, 40], "view_size": [40, 40, 40], "network_def::key_splits": 1},
        {"roi_size": [64, 64, 64]},
    ),
}


@pytest.fixture(scope="session", params=NAMES)
def name(request):
    return request.param


@pytest.fixture(scope="session")
def source(name, tmp_path_factory):
    """The bundle as it stands in the repository, or the toy that pre-trains nothing."""
    if name == TOY:
        return make_toy_bundle(BUNDLES / "jcl", tmp_path_factory.mktemp("toy") / TOY)
    return BUNDLES / name


@pytest.fixture
def pre_trains(source):
    """Skips what is about pre-training for a bundle that has none."""
    if not (source / "configs" / "pretrain.json").is_file():
        pytest.skip("this bundle pre-trains nothing")


@pytest.fixture(scope="session")
def configs(source):
    return {path.name: json.loads(path.read_text(encoding="utf-8")) for path in source.glob("configs/*.json")}


@pytest.fixture(scope="session")
def run():
    """Runs a workflow of a bundle in this process; the workflow."""
    from monai.bundle import create_workflow

    def run(root, *files, workflow_type="train", only_parse=False, **overrides):
        paths = [str(root / "configs" / file) for file in files]
        workflow = create_workflow(
            config_file=paths[0] if len(paths) == 1 else paths, workflow_type=workflow_type, logging_file=False,
            bundle_root=str(root), **overrides,
        )
        if not only_parse:
            workflow.run()
            workflow.finalize()
        return workflow

    return run


def knobs_of(name, config, population):
    return {**TINY, **OF_CONFIG.get(name, {}).get(config, {}), "dataset_dir": str(population)}


@pytest.fixture(scope="session")
def tiny(name, population):
    """Knobs of a pre-training that takes seconds."""
    return knobs_of(name, "pretrain.json", population)


@pytest.fixture(scope="session")
def training_knobs(name, population):
    """Knobs of a training that takes seconds."""
    return {**knobs_of(name, "train.json", population), "roi_size": [ROI[name]] * 2, "val_interval": 2}


@pytest.fixture(scope="session")
def inference_knobs(name, training_knobs):
    own = OF_CONFIG.get(name, {}).get("inference.json", {})
    return {**own, **{knob: training_knobs[knob] for knob in ("pixel_spacing", "roi_size")}}


@pytest.fixture(scope="session")
def trained(source, tmp_path_factory, run, tiny, training_knobs):
    """A copy of the bundle, pre-trained (if it pre-trains) and fine-tuned for a few steps."""
    root = tmp_path_factory.mktemp("bundles") / source.name
    shutil.copytree(source, root, ignore=shutil.ignore_patterns("eval", "models"))
    if (root / "configs" / "pretrain.json").is_file():
        run(root, "pretrain.json", **tiny)
    run(root, "train.json", **training_knobs)
    return root


@pytest.fixture(scope="session")
def three_dimensional(name):
    """Knobs of pre-training and of training in 3D."""
    return THREE[name]


@pytest.fixture
def written(trained, tiny, training_knobs, inference_knobs, tmp_path):
    """A copy of the trained bundle whose configs hold the small knobs."""
    root = tmp_path / trained.name
    shutil.copytree(trained, root, ignore=shutil.ignore_patterns("eval"))
    knobs = {"pretrain.json": tiny, "train.json": training_knobs}
    knobs["inference.json"] = {**inference_knobs, "dataset_dir": tiny["dataset_dir"]}
    for file, values in knobs.items():
        path = root / "configs" / file
        if path.is_file():
            set_knobs(path, values)
    return root
