import nibabel
import numpy as np
import pytest
import torch

from medcl_monai.transforms.preprocessing import preprocessing


@pytest.fixture
def entry(tmp_path):
    """A volume of HU-like values with a label of two values, 2 mm voxels."""
    random = np.random.default_rng(0)
    image = random.uniform(-1000, 1500, (20, 16, 10)).astype(np.float32)
    label = np.zeros(image.shape, np.uint8)
    label[5:13, 4:12] = 3
    for name, volume in (("image", image), ("label", label)):
        nibabel.save(nibabel.Nifti1Image(volume, np.diag([2.0, 2, 2, 1])), tmp_path / f"{name}.nii.gz")
    return {name: str(tmp_path / f"{name}.nii.gz") for name in ("image", "label")}


def image_of(entry, intensity):
    return preprocessing("image", 2.0, intensity=intensity)({"image": entry["image"]})["image"].as_tensor()


def raw(entry):
    return torch.as_tensor(nibabel.load(entry["image"]).get_fdata(), dtype=torch.float32)[None]


def z(x):
    return (x - x.mean()) / x.std(correction=0)


def test_percentiles_and_z_score_are_the_default_and_what_they_say(entry):
    x = raw(entry)
    low, high = (float(np.percentile(x, q)) for q in (0.5, 99.5))
    expected = z(x.clamp(low, high))
    for intensity in (None, {"percentiles": [0.5, 99.5], "scale": "z-score"}):
        torch.testing.assert_close(image_of(entry, intensity), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("scale", ["z-score", "unit"])
def test_a_window_clips_in_the_units_of_the_image(entry, scale):
    clipped = raw(entry).clamp(-160, 240)
    expected = z(clipped) if scale == "z-score" else (clipped + 160) / 400
    found = image_of(entry, {"window": [-160, 240], "scale": scale})
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_percentiles_and_unit_range_clip_too(entry):
    found = image_of(entry, {"percentiles": [10, 90], "scale": "unit"})
    assert (float(found.min()), float(found.max())) == (0, 1)
    assert float((found == 0).float().mean()) == pytest.approx(0.1, abs=0.01)


def test_without_clipping_the_scale_alone_acts(entry):
    torch.testing.assert_close(image_of(entry, {"scale": "z-score"}), z(raw(entry)), atol=1e-4, rtol=1e-4)
    found = image_of(entry, {"scale": "unit"})
    assert (float(found.min()), float(found.max())) == (0, 1)


def test_labels_keep_their_values_and_may_keep_their_grid(entry):
    moved = preprocessing(["image", "label"], 1.3)(dict(entry))
    assert set(moved["label"].unique().tolist()) == {0, 3}
    assert moved["label"].shape == moved["image"].shape
    kept = preprocessing(["image", "label"], 1.3, keep_grid="label")(dict(entry))
    assert kept["label"].shape == (1, 20, 16, 10)
    assert kept["image"].shape == moved["image"].shape


def test_the_settings_say_what_decides_values_and_grid():
    settings = preprocessing("image", 1.5, spatial_dims=3, intensity={"scale": "unit"}).settings
    assert settings == {"pixel_spacing": 1.5, "spatial_dims": 3, "intensity": {"scale": "unit"}}
    assert preprocessing("image", 1.5, slice_axis=1).settings["slice_axis"] == 1


@pytest.mark.parametrize(
    "intensity",
    [
        {"percentiles": [0.5, 99.5]}, {"scale": "zscore"}, {"window": [0, 1], "percentiles": [0, 1], "scale": "unit"},
        {"window": [240, -160], "scale": "unit"}, {"window": [0, float("inf")], "scale": "unit"},
        {"percentiles": [0, 101], "scale": "unit"}, {"percentiles": ["a", "b"], "scale": "unit"},
        {"windwo": [0, 1], "scale": "unit"}, {"window": 5, "scale": "unit"},
    ],
)
def test_an_intensity_that_cannot_be_is_named(intensity):
    with pytest.raises(ValueError, match="intensity"):
        preprocessing("image", 1.0, intensity=intensity)
