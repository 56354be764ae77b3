import os
from pathlib import Path

import itk
import nibabel
import numpy as np
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
    from medcl_monai.data.example.population import example_population

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
    from medcl_monai.transforms.preprocessing import preprocessing as make

    def build(keys=("image",), spacing=4.0, dims=2):
        return make(keys, spacing, dims)

    return build


@pytest.fixture
def save():
    """Writes a volume as NIfTI, NRRD, MHA, or a folder of one DICOM series."""

    def nifti(path, array, affine):
        path.parent.mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(array, affine), path)
        return path

    def to_itk(array, affine):
        image = itk.image_from_array(np.ascontiguousarray(array.T))
        flip = np.diag([-1.0, -1.0, 1.0])  # RAS to LPS
        spacing = np.sqrt((affine[:3, :3] ** 2).sum(0))
        image.SetSpacing([float(value) for value in spacing])
        image.SetOrigin([float(value) for value in flip @ affine[:3, 3]])
        image.SetDirection(itk.matrix_from_array(np.ascontiguousarray(flip @ affine[:3, :3] / spacing)))
        return image

    def write(path, array, affine):
        if path.name.endswith((".nii", ".nii.gz")):
            return nifti(path, array, affine)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix in (".nrrd", ".mha"):
            itk.imwrite(to_itk(array, affine), str(path))
            return path
        return dicom(path, to_itk(array, affine), "1.2.3.4")

    def dicom(folder, image, series):
        folder.mkdir(parents=True, exist_ok=True)
        volume = itk.array_from_image(image)
        for number, plane in enumerate(volume):
            piece = itk.image_from_array(np.ascontiguousarray(plane[None]))
            piece.SetSpacing(image.GetSpacing())
            piece.SetDirection(image.GetDirection())
            origin = image.TransformIndexToPhysicalPoint([0, 0, number])
            piece.SetOrigin(origin)
            tags = piece.GetMetaDataDictionary()
            values = {
                "0008|0060": "MR", "0020|000e": series, "0020|000d": "1.2.3", "0020|0013": str(number + 1),
                "0008|0018": f"{series}.{number + 1}", "0018|0050": str(float(image.GetSpacing()[2])),
                "0018|0088": str(float(image.GetSpacing()[2])),
            }
            for tag, value in values.items():
                tags[tag] = value
            gdcm = itk.GDCMImageIO.New(KeepOriginalUID=True)
            writer = itk.ImageFileWriter.New(piece, FileName=str(folder / f"{series}_{number}.dcm"))
            writer.SetImageIO(gdcm)
            writer.Update()
        return folder

    write.dicom = lambda folder, array, affine, series: dicom(folder, to_itk(array, affine), series)
    return write


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
