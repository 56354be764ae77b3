import re

import nibabel
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from medcl_monai.transforms.postprocessing import postprocessing
from medcl_monai.transforms.preprocessing import preprocessing


@pytest.fixture
def entry(tmp_path):
    """An anisotropic volume, stored left to right reversed, whose label is an off-centre box."""
    label = np.zeros((14, 10, 6), np.uint8)
    label[2:7, 5:9, 1:4] = 2
    affine = np.diag([-1.0, 1.5, 3.0, 1.0])
    for name, volume in (("image", label.astype(np.float32)), ("label", label)):
        nibabel.save(nibabel.Nifti1Image(volume, affine), tmp_path / f"{name}.nii.gz")
    return {name: str(tmp_path / f"{name}.nii.gz") for name in ("image", "label")}


def perfect(sample):
    """Logits that are right on the prepared grid."""
    wanted = (sample["image"].as_tensor() > 0).long() * 2
    logits = torch.nn.functional.one_hot(wanted[0], 3).movedim(-1, 0) * 20.0
    return {**sample, "pred": MetaTensor(logits, meta=sample["image"].meta)}


def test_a_prediction_comes_back_to_the_grid_of_the_file_as_class_values(entry):
    prepare = preprocessing("image", 1.0, spatial_dims=3)
    found = postprocessing(prepare)(perfect(prepare({"image": entry["image"]})))["pred"]
    label = torch.as_tensor(nibabel.load(entry["label"]).get_fdata())[None]
    assert found.shape == label.shape
    assert set(found.unique().tolist()) == {0, 2}
    dice = 2 * ((found == 2) & (label == 2)).sum() / ((found == 2).sum() + (label == 2).sum())
    assert dice > 0.8  # the grids differ, so borders are interpolated


def test_one_hot_gives_prediction_and_label_a_channel_per_class(entry):
    prepare = preprocessing(["image", "label"], 1.0, spatial_dims=3, keep_grid="label")
    found = postprocessing(prepare, one_hot=3)(perfect(prepare(entry)))
    assert found["pred"].shape == found["label"].shape == (3, 14, 10, 6)
    for key in ("pred", "label"):
        assert torch.equal(found[key].sum(0).as_tensor().float(), torch.ones(14, 10, 6))


def test_probabilities_and_not_classes_are_brought_back(entry):
    prepare = preprocessing("image", 1.0, spatial_dims=3)
    sample = perfect(prepare({"image": entry["image"]}))
    softmax, invert, _ = postprocessing(prepare).transforms
    soft = softmax({**sample, "pred": sample["pred"] / 10 + torch.rand_like(sample["pred"])})["pred"]
    torch.testing.assert_close(soft.sum(0).as_tensor(), torch.ones(soft.shape[1:]))
    back = invert({**sample, "pred": soft})["pred"]
    assert back.shape[1:] == (14, 10, 6)
    torch.testing.assert_close(back.sum(0).as_tensor(), torch.ones(back.shape[1:]))
    kept = torch.isin(back.as_tensor(), soft.as_tensor()).float().mean()
    assert float(kept) < 0.9  # the nearest values alone would all be values of the prepared grid


def test_a_label_value_above_the_classes_is_named_with_its_file(entry):
    prepare = preprocessing(["image", "label"], 1.0, spatial_dims=3, keep_grid="label")
    with pytest.raises(RuntimeError) as error:
        postprocessing(prepare, one_hot=2)(perfect(prepare(entry)))
    said = r"label.nii.gz holds the label value 2: 0 to 1 are expected \(structures\)"
    assert re.search(said, str(error.value.__cause__))
