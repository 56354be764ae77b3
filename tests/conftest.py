import os
from pathlib import Path

import pytest
import torch
from monai.networks.nets import BasicUNet

os.environ.setdefault("OMP_NUM_THREADS", "1")
ACT = ("LeakyReLU", {"negative_slope": 0.01, "inplace": True})
SMALL = (16, 32, 64, 128, 256, 16)


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """A cache folder of the tests' own: no volume is read from, or left in, the user's."""
    folder = tmp_path_factory.mktemp("cache")
    before = os.environ.get("MEDCL_MONAI_CACHE")
    os.environ["MEDCL_MONAI_CACHE"] = str(folder)
    yield folder
    if before is None:
        del os.environ["MEDCL_MONAI_CACHE"]
    else:
        os.environ["MEDCL_MONAI_CACHE"] = before


@pytest.fixture(autouse=True)
def _one_cache(cache):
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def population(cache):
    """Six small example subjects: 4 training, 1 validation, 1 test."""
    from medcl_monai.data.example import example_population

    return example_population(cache / "small", subjects=6, spacing=4.0)


@pytest.fixture(scope="session")
def hippocampus():
    """The real volumes, where they lie beside the checkout."""
    place = os.environ.get("MEDCL_MONAI_TEST_DATA") or Path(__file__).parents[2] / "shared" / "data"
    folder = Path(place) / "Task04_Hippocampus"
    if not folder.is_dir():
        pytest.skip("Task04_Hippocampus is not here: set MEDCL_MONAI_TEST_DATA to the folder that holds it")
    return folder


@pytest.fixture
def unet():
    """Builds the BasicUNet of the bundle."""

    def build(dims=2, features=SMALL, classes=3, norm="batch"):
        return BasicUNet(dims, 1, classes, features=features, act=ACT, norm=norm)

    return build


@pytest.fixture(scope="session")
def preprocessing():
    """Builds the bundles' preprocessing."""
    from monai.transforms import (
        ClipIntensityPercentilesd,
        Compose,
        EnsureChannelFirstd,
        LoadImaged,
        NormalizeIntensityd,
        Orientationd,
    )

    from medcl_monai.transforms.dictionary import Spacingd, pixdim

    def build(keys=("image",), spacing=4.0, dims=2):
        modes = ["bilinear", "nearest"][: len(keys)]
        return Compose([
            LoadImaged(keys),
            EnsureChannelFirstd(keys),
            Orientationd(keys, "RAS", labels=None),
            Spacingd(keys, pixdim(dims, 2, spacing), mode=modes),
            ClipIntensityPercentilesd("image", 0.5, 99.5),
            NormalizeIntensityd("image"),
        ])

    return build
