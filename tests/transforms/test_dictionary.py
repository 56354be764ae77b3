import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Spacingd as MonaiSpacingd

from medcl_monai.transforms.augmentation import augmentation
from medcl_monai.transforms.dictionary import Spacingd, pixdim


def test_a_string_under_image_path_passes_and_the_values_and_inverse_are_monai_s():
    image = MetaTensor(torch.randn(1, 6, 8, 4), affine=torch.diag(torch.tensor([2.0, 1.0, 3.0, 1.0])))
    ours, theirs = (cls("image", pixdim(2, 2, 0.5), mode="bilinear") for cls in (Spacingd, MonaiSpacingd))
    found = ours({"image": image.clone(), "image_path": "a/b.nii.gz"})
    expected = theirs({"image": image.clone()})["image"]
    assert found["image_path"] == "a/b.nii.gz"
    assert torch.equal(found["image"], expected)
    assert torch.equal(found["image"].affine, expected.affine)
    assert found["image"].shape[-1] == 4
    assert torch.equal(ours.inverse(found)["image"], theirs.inverse({"image": expected})["image"])


def test_a_spacing_that_is_not_above_0_is_named():
    assert pixdim(3, 2, 1.5) == [1.5, 1.5, 1.5]
    with pytest.raises(ValueError, match=r"pixel_spacing 0.0 \(mm\) must be above 0"):
        pixdim(2, 2, 0.0)


@pytest.mark.parametrize("size", [(32, 40), (16, 16, 16)])
def test_augmentation_moves_image_and_label_together_and_keeps_label_values(size):
    image = torch.zeros(1, *size)
    image[(0, *(slice(4, 12) for _ in size))] = 1
    transform = augmentation(size)
    transform.set_random_state(5)
    found = transform({"image": image, "label": image.clone()})
    inside = found["image"][found["label"] > 0.5].mean()
    assert set(found["label"].unique().tolist()) == {0.0, 1.0}
    assert float(inside) > float(found["image"][found["label"] < 0.5].mean()) + 0.4
