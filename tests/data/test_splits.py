import json
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medcl_monai.data.splits import nearest, ordered, refuse_copies, split_dataset
from medcl_monai.files import volume_hash

PAIRS = r"scan_(\d)"  # ten volumes a digit


def people(entries):
    return {entry["subject"] for entry in entries}


def test_nobody_is_in_two_parts_and_pre_training_never_sees_the_held_out(labelled):
    split = split_dataset(labelled)
    assert [len(people(part)) for part in (split.training, split.validation, split.test)] == [12, 2, 6]
    held_out = people(split.validation) | people(split.test)
    assert not people(split.pretraining) & held_out
    assert not people(split.training) & held_out
    assert all("label" not in entry for entry in split.pretraining)


def test_two_volumes_of_one_person_stay_together(labelled, tmp_path):
    table = tmp_path / "people.json"
    table.write_text(json.dumps({f"scan_{k:02d}.nii.gz": f"p{k // 2}" for k in range(20)}))
    split = split_dataset(labelled, subjects=table)
    parts = [people(part) for part in (split.training, split.validation, split.test)]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 10
    assert len(split.training) == 2 * len(parts[0])


def test_fractions_are_nested_and_the_split_ignores_all_but_seed_and_names(labelled):
    parts = [people(split_dataset(labelled, label_fraction=share).training) for share in (0.01, 0.1, 0.25, 1.0)]
    assert [len(part) for part in parts] == [1, 1, 3, 12]
    assert parts[0] <= parts[1] <= parts[2] <= parts[3]
    assert people(split_dataset(labelled, split_seed=1).test) != people(split_dataset(labelled).test)
    assert len(split_dataset(labelled, label_fraction=0.01).pretraining) == 12


@settings(deadline=None, derandomize=True, max_examples=30)
@given(st.sets(st.text(min_size=1, max_size=5), min_size=2, max_size=20), st.integers(0, 5))
def test_the_order_is_of_names_alone(names, seed):
    assert ordered(names, seed) == ordered(sorted(names, reverse=True), seed)


def test_halves_are_rounded_up():
    assert [nearest(x) for x in (0.4, 0.5, 2.5, 3.49)] == [0, 1, 3, 3]


def test_given_lists_are_taken_and_a_subject_in_two_is_refused(population):
    split = split_dataset(population)
    assert [len(part) for part in (split.pretraining, split.training, split.validation, split.test)] == [4, 4, 1, 1]
    copy = population.parent / "twice"
    shutil.copytree(population, copy)
    content = json.loads((copy / "dataset.json").read_text())
    content["test"] = content["validation"]
    (copy / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="subjects in two lists"):
        split_dataset(copy)


def test_a_labelled_test_list_stays_the_test_set_where_validation_is_not_given(labelled):
    entries = [{key: f"{key}sTr/scan_{k:02d}.nii.gz" for key in ("image", "label")} for k in range(20)]
    (labelled / "dataset.json").write_text(json.dumps({"training": entries[:16], "test": entries[16:]}))
    split = split_dataset(labelled)
    assert people(split.test) == {f"scan_{k}" for k in range(16, 20)}
    assert [len(part) for part in (split.pretraining, split.training, split.validation)] == [14, 14, 2]
    (labelled / "dataset.json").write_text(json.dumps({"test": entries}))
    assert len(split_dataset(labelled).test) == 20


def test_a_held_out_image_under_another_name_is_found(labelled):
    split = split_dataset(labelled)
    shutil.copy(split.test[0]["image"], labelled / "imagesTr" / "unlabelled.nii.gz")
    with pytest.raises(ValueError, match=r"unlabelled.nii.gz is the held-out image .* \(sha256"):
        split_dataset(labelled)


def test_data_without_labels_are_for_pre_training_alone(labelled):
    shutil.rmtree(labelled / "labelsTr")
    split = split_dataset(labelled)
    assert len(split.pretraining) == 20
    assert split.training == split.validation == split.test == []


@pytest.mark.parametrize("fraction", [0.0, 1.5])
def test_an_impossible_fraction_is_named(labelled, fraction):
    with pytest.raises(ValueError, match="label_fraction must be above 0"):
        split_dataset(labelled, label_fraction=fraction)


def test_the_split_is_written_whole(labelled, tmp_path):
    split = split_dataset(labelled)
    split.write(tmp_path / "run" / "split.json")
    assert json.loads((tmp_path / "run" / "split.json").read_text())["test"] == split.test


def test_what_a_run_used_instead_stands_in_the_file(labelled, tmp_path):
    split = split_dataset(labelled)
    split.write(tmp_path / "split.json", training=split.training[:1], validation=())
    written = json.loads((tmp_path / "split.json").read_text())
    assert written["training"] == split.training[:1]
    assert written["validation"] == []
    assert written["test"] == split.test


def test_one_process_of_several_writes_the_split(labelled, tmp_path, monkeypatch):
    monkeypatch.setattr("medcl_monai.data.splits.rank", lambda: 1)
    split_dataset(labelled).write(tmp_path / "split.json")
    assert not (tmp_path / "split.json").exists()


def test_a_copied_series_and_a_header_with_other_data_are_told_apart(save, volume, tmp_path):
    """A volume is all its files: a held-out DICOM series copied is refused, equal MHD headers of other data are not."""
    array, affine = volume
    first = save(tmp_path / "a" / "series", array, affine)
    copy = shutil.copytree(first, tmp_path / "b" / "series")
    with pytest.raises(ValueError, match=r"is the held-out image"):
        refuse_copies([{"image": str(first)}], [{"image": str(copy)}])
    for name, values in (("c", array), ("d", array + 1)):
        (tmp_path / name).mkdir()
        values.T.tofile(tmp_path / name / "img.raw")
        (tmp_path / name / "img.mhd").write_text(
            "ObjectType = Image\nNDims = 3\nDimSize = 12 16 6\nElementType = MET_SHORT\nElementDataFile = img.raw\n"
        )
    refuse_copies([{"image": str(tmp_path / "c/img.mhd")}], [{"image": str(tmp_path / "d/img.mhd")}])
    assert volume_hash(tmp_path / "c/img.mhd") != volume_hash(tmp_path / "d/img.mhd")
