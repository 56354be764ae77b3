"""MONAI Label on a bundle without its server; Label needs an environment of its own (numpy below 2)."""

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

pytest.importorskip("monailabel", reason="MONAI Label is not installed here: docs/get_started.md says how it is")
pytestmark = pytest.mark.filterwarnings("ignore")


class Store:
    """What a training asks of Label's datastore."""

    def __init__(self, folder):
        self.folder = Path(folder)

    def datalist(self):
        return [
            {"image": str(path), "label": str(self.folder / "labelsTr" / path.name)}
            for path in sorted(self.folder.glob("imagesTr/*.nii.gz"))
        ]


def test_the_served_mask_is_that_of_inference(written, run, tiny, inference_knobs, tmp_path):
    from monailabel.tasks.infer.bundle import BundleInferTask

    image = str(Path(tiny["dataset_dir"]) / "imagesTr" / "example_005.nii.gz")
    request = {"model": written.name, "image": image, "device": "cpu", "result_extension": ".nii.gz"}
    file, _ = BundleInferTask(str(written), {"preload": "false"})(request)
    served = nibabel.load(file)
    knobs = {**inference_knobs, "output_dir": str(tmp_path / "out"), "dataset::data": [{"image": image}]}
    run(written, "inference.json", workflow_type="infer", **knobs)
    ours = nibabel.load(next((tmp_path / "out").rglob("example_005_pred.nii.gz")))
    np.testing.assert_array_equal(np.asarray(served.dataobj), np.asarray(ours.dataobj))
    np.testing.assert_allclose(served.affine, ours.affine, atol=1e-4)


def test_a_training_from_label_saves_its_best_model(written, tiny):
    from monailabel.tasks.train.bundle import BundleTrainTask

    model = written / "models" / "model.pt"
    before = torch.load(model, weights_only=True)
    BundleTrainTask(str(written), {})(
        {"model": written.name, "max_epochs": 1, "device": "cpu", "val_split": 0.2}, Store(tiny["dataset_dir"])
    )
    after = torch.load(model, weights_only=True)
    assert any(not torch.equal(after[name], before[name]) for name in before)
    assert model.name in json.loads((written / "models" / "manifest.json").read_text(encoding="utf-8"))
