import numpy as np
import pytest


@pytest.fixture
def volume():
    """A ramp with noise on an anisotropic grid: (array (x, y, z), affine RAS)."""
    random = np.random.default_rng(0)
    x, y, z = np.meshgrid(np.arange(12), np.arange(16), np.arange(6), indexing="ij")
    array = (x + 10 * y + 100 * z + random.integers(0, 5, x.shape)).astype(np.int16)
    affine = np.diag([1.5, 1.0, 3.0, 1.0])
    affine[:3, 3] = [-20, 10, 5]
    return array, affine


@pytest.fixture
def labelled(save, volume, tmp_path):
    """Ten people with two labelled volumes each, in the Decathlon's layout without dataset.json."""
    array, affine = volume
    for number in range(20):
        label = (array > 300 + number).astype(np.uint8)
        save(tmp_path / "set/imagesTr" / f"scan_{number:02d}.nii.gz", array + number, affine)
        save(tmp_path / "set/labelsTr" / f"scan_{number:02d}.nii.gz", label, affine)
    return tmp_path / "set"
