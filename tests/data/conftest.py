import itk
import nibabel
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
def labelled(save, volume, tmp_path):
    """Ten people with two labelled volumes each, in the Decathlon's layout without dataset.json."""
    array, affine = volume
    for number in range(20):
        label = (array > 300 + number).astype(np.uint8)
        save(tmp_path / "set/imagesTr" / f"scan_{number:02d}.nii.gz", array + number, affine)
        save(tmp_path / "set/labelsTr" / f"scan_{number:02d}.nii.gz", label, affine)
    return tmp_path / "set"
