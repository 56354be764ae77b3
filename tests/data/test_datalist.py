import json

import numpy as np
import pytest
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, Orientationd

from medcl_monai.data.datalist import find_volumes, volumes_to_segment

LOAD = Compose([LoadImaged("image"), EnsureChannelFirstd("image"), Orientationd("image", "RAS", labels=None)])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", ["v.nii.gz", "v.nii", "v.nrrd", "v.mha", "series"])
def test_every_format_gives_the_array_and_the_place_of_the_nifti(save, volume, tmp_path, name):
    array, affine = volume
    save(tmp_path / "tree" / "deeper" / name, array, affine)
    (entry,) = find_volumes(tmp_path / "tree").training
    assert entry["subject"] == name.split(".")[0]
    loaded = LOAD({"image": entry["image"]})["image"]
    np.testing.assert_allclose(np.asarray(loaded)[0], array)
    np.testing.assert_allclose(np.asarray(loaded.affine), affine, atol=1e-4)


def test_two_series_in_a_folder_are_named(save, volume, tmp_path):
    for series in ("1.2.3.4", "1.2.3.5"):
        save.dicom(tmp_path / "mixed", *volume, series)
    with pytest.raises(ValueError, match=r"mixed holds 2 DICOM series, one is expected"):
        find_volumes(tmp_path)


def test_images_and_labels_are_paired_and_images_alone_stay_unlabelled(labelled, save, volume):
    save(labelled / "imagesTr" / "alone.nii.gz", *volume)
    entries = find_volumes(labelled).training
    assert len(entries) == 21
    assert [entry["subject"] for entry in entries if "label" not in entry] == ["alone"]
    (labelled / "imagesTr" / "scan_00.nii.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"labels without an image.*scan_00"):
        find_volumes(labelled)


def test_subjects_come_from_the_entry_the_table_the_pattern_or_the_name(labelled, tmp_path):
    table = tmp_path / "people.json"
    table.write_text(json.dumps({f"scan_{k:02d}.nii.gz": f"p{k // 2}" for k in range(20)}))
    assert len({entry["subject"] for entry in find_volumes(labelled, subjects=table).training}) == 10
    assert len({entry["subject"] for entry in find_volumes(labelled, subject_pattern=r"_(\d)").training}) == 2
    with pytest.raises(ValueError, match="finds no group 1 in scan_00"):
        find_volumes(labelled, subject_pattern="(nothing)")
    table.write_text("{}")
    with pytest.raises(ValueError, match="no row for scan_00"):
        find_volumes(labelled, subjects=table)


def test_names_that_repeat_are_told_apart_by_their_folder(save, volume, tmp_path):
    for person in ("a", "b"):
        save(tmp_path / person / "T1.nii.gz", *volume)
    assert [entry["subject"] for entry in find_volumes(tmp_path).training] == ["a/T1", "b/T1"]


def test_a_decathlon_folder_gives_its_lists_and_names_what_is_missing(labelled):
    entry = {"image": "imagesTr/scan_00.nii.gz", "label": "labelsTr/scan_00.nii.gz", "subject": "p"}
    content = {"labels": {"0": "background", "1": "thing"}, "training": [entry], "test": ["imagesTr/scan_01.nii.gz"]}
    (labelled / "dataset.json").write_text(json.dumps(content))
    listed = find_volumes(labelled)
    assert listed.structures == {"1": "thing"}
    assert [entry["subject"] for entry in listed.training] == ["p", "scan_01"]
    assert listed.test == ()
    assert len(volumes_to_segment(labelled)) == 2
    content["training"].append({"image": "imagesTr/gone.nii.gz"})
    (labelled / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(FileNotFoundError, match=r"1 files that do not exist.*gone"):
        find_volumes(labelled)
    (labelled / "dataset.json").write_text("{")
    with pytest.raises(ValueError, match=r"dataset.json is not JSON"):
        find_volumes(labelled)


def test_an_empty_and_a_missing_folder_are_told_apart(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no volume"):
        find_volumes(tmp_path)
    with pytest.raises(FileNotFoundError, match="is no folder"):
        find_volumes(tmp_path / "nowhere")


def test_an_absent_subject_is_the_file_s_name_and_links_keep_theirs(save, volume, tmp_path):
    place = tmp_path / "set"
    save(tmp_path / "store" / "MD5-data.nii.gz", *volume)
    (place / "imagesTr").mkdir(parents=True)
    for name in ("c0", "c1"):
        (place / "imagesTr" / f"{name}.nii.gz").symlink_to(tmp_path / "store" / "MD5-data.nii.gz")
    entries = [{"image": f"./imagesTr/{name}.nii.gz", "subject": None} for name in ("c0", "c1")]
    (place / "dataset.json").write_text(json.dumps({"training": entries}), encoding="utf-8")
    assert [entry["subject"] for entry in find_volumes(place).training] == ["c0", "c1"]


def test_a_further_channel_is_refused_by_its_name(labelled, save, volume):
    save(labelled / "imagesTr" / "scan_03_0001.nii.gz", *volume)
    with pytest.raises(ValueError, match=r"scan_03_0001.nii.gz is a further channel"):
        find_volumes(labelled)


def test_dicom_is_known_by_its_content_beside_whatever_else_lies_there(save, volume, tmp_path):
    """Names that are UIDs, a licence among the slices, a DICOMDIR above and beside them."""
    series = save.dicom(tmp_path / "disc" / "ser", *volume, "1.2.3.4")
    for number, path in enumerate(sorted(series.iterdir())):
        path.rename(series / f"1.2.840.113619.2.5000{number}")
    (series / "LICENSE").write_text("free")
    for place in (series, tmp_path / "disc"):
        (place / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    (entry,) = find_volumes(tmp_path).training
    assert entry == {"image": str(series), "subject": "ser"}
    np.testing.assert_allclose(np.asarray(LOAD({"image": entry["image"]})["image"])[0], volume[0])


def test_linked_folders_are_followed_once(save, volume, tmp_path):
    save(tmp_path / "store" / "a.nii.gz", *volume)
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "link").symlink_to(tmp_path / "store")
    (tmp_path / "store" / "loop").symlink_to(tmp_path / "set")
    assert [entry["subject"] for entry in find_volumes(tmp_path / "set").training] == ["a"]
