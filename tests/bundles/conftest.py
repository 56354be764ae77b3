import json
import shutil
from pathlib import Path

import pytest

BUNDLES = Path(__file__).parents[2] / "bundles"
NAMES = sorted(path.parents[1].name for path in BUNDLES.glob("*/configs/metadata.json"))
TINY = {
    "jcl": {
        "features": [4, 8, 16, 32, 64, 4], "pixel_spacing": 4.0, "steps": 4, "epochs": 2, "batch_size": 4,
        "checkpoint_interval": 2,
    },
    "decorrelated_moco": {
        "sample_size": [64, 64], "view_size": [64, 64], "group_size": 4, "queue_size": 16, "pixel_spacing": 4.0,
        "steps": 4, "epochs": 2, "batch_size": 4, "checkpoint_interval": 2,
    },
}
ROI = {"jcl": 48, "decorrelated_moco": 64}  # pixels
THREE = {  # knobs of a run in 3D
    "jcl": ({"view_size": [64, 64, 64], "stages": 1}, {"roi_size": [32, 32, 32], "coverage": 0.5}),
    "decorrelated_moco": (
        {"sample_size": [40, 40, 40], "view_size": [40, 40, 40], "group_size": 4, "key_splits": 1},
        {"roi_size": [64, 64, 64]},
    ),
}


@pytest.fixture(scope="session", params=NAMES)
def name(request):
    return request.param


@pytest.fixture(scope="session")
def source(name):
    """The bundle as it stands in the repository."""
    return BUNDLES / name


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


@pytest.fixture(scope="session")
def tiny(name, population):
    """Knobs of a run that takes seconds."""
    return {**TINY[name], "dataset_dir": str(population)}


@pytest.fixture(scope="session")
def inference_knobs(tiny, configs, training_knobs):
    known = {name: value for name, value in tiny.items() if name in configs["inference.json"] and name != "dataset_dir"}
    return {**known, "roi_size": training_knobs["roi_size"]}


@pytest.fixture(scope="session")
def trained(source, tmp_path_factory, run, tiny, training_knobs):
    """A copy of the bundle, pre-trained and fine-tuned for a few steps."""
    root = tmp_path_factory.mktemp("bundles") / source.name
    shutil.copytree(source, root, ignore=shutil.ignore_patterns("eval", "models"))
    if (root / "configs" / "pretrain.json").is_file():
        run(root, "pretrain.json", **tiny)
    run(root, "train.json", **tiny, **training_knobs)
    return root


@pytest.fixture(scope="session")
def training_knobs(name):
    return {"roi_size": [ROI[name]] * 2, "val_interval": 2}


@pytest.fixture(scope="session")
def three_dimensional(name):
    """Knobs of pre-training and of training in 3D."""
    return THREE[name]


@pytest.fixture
def written(trained, tiny, training_knobs, inference_knobs, tmp_path):
    """A copy of the trained bundle whose configs hold the small knobs."""
    root = tmp_path / trained.name
    shutil.copytree(trained, root, ignore=shutil.ignore_patterns("eval"))
    knobs = {"pretrain.json": tiny, "train.json": {**tiny, **training_knobs}}
    knobs["inference.json"] = {**inference_knobs, "dataset_dir": tiny["dataset_dir"]}
    for file, values in knobs.items():
        path = root / "configs" / file
        if path.is_file():
            path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **values}), encoding="utf-8")
    return root
