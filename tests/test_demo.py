import json
from pathlib import Path

import numpy as np
import pytest

from medcl_monai.adaptation import adapt_bundle, grid_of
from medcl_monai.data.inspection import Grid, inspect_dataset, suggest_spacing
from medcl_monai.data.splits import Split
from medcl_monai.demo import bundle_folder, demo
from medcl_monai.demo_report import subject_scores, t_interval

ROOT = Path(__file__).parents[1]


def test_a_copy_of_a_bundle_takes_the_knobs_and_keeps_its_weights(tmp_path):
    structures = {"1": "Anterior", "2": "Posterior"}
    knobs = {"structures": structures, "pixel_spacing": 0.5, "roi_size": [96, 128]}
    folder = adapt_bundle(ROOT / "bundles" / "jcl", tmp_path / "jcl", knobs)
    (folder / "models" / "model.pt").write_bytes(b"weights")
    adapt_bundle(ROOT / "bundles" / "jcl", folder, knobs)
    assert (folder / "models" / "model.pt").read_bytes() == b"weights"
    for file in ("train.json", "inference.json"):
        config = json.loads((folder / "configs" / file).read_text(encoding="utf-8"))
        assert {name: config[name] for name in knobs} == knobs
    assert json.loads((folder / "configs" / "pretrain.json").read_text(encoding="utf-8"))["pixel_spacing"] == 0.5
    metadata = json.loads((folder / "configs" / "metadata.json").read_text(encoding="utf-8"))
    output = metadata["network_data_format"]["outputs"]["pred"]
    assert output["channel_def"] == {"0": "background", **structures}
    assert output["num_channels"] == 3
    adapt_bundle(ROOT / "bundles" / "jcl", folder, {"structures": {"2": "a", "5": "b"}})
    metadata = json.loads((folder / "configs" / "metadata.json").read_text(encoding="utf-8"))
    assert metadata["network_data_format"]["outputs"]["pred"]["num_channels"] == 6
    with pytest.raises(ValueError, match=r"no config has the knobs \['odd'\]"):
        adapt_bundle(ROOT / "bundles" / "jcl", tmp_path / "jcl", {"odd": 1})
    with pytest.raises(FileNotFoundError, match="is no bundle"):
        adapt_bundle(tmp_path, tmp_path / "x", {})


def test_the_suggested_knobs_hold_the_slices(population, hippocampus):
    found = inspect_dataset(population)
    assert found.knobs["pixel_spacing"] == 2.0
    assert found.knobs["roi_size"] == [80, 96]
    assert (found.volumes, found.subjects, found.labelled) == (6, 6, 6)
    assert "cortical grey" in str(found)
    assert dict(inspect_dataset(hippocampus).knobs) == {
        "structures": {"1": "Anterior", "2": "Posterior"}, "pixel_spacing": 0.5, "roi_size": [96, 128],
    }
    assert [suggest_spacing(extent) for extent in (30.0, 32.0, 33.0, 64.0, 256.0)] == [0.25, 0.25, 0.5, 0.5, 2.0]


def test_a_bundle_s_own_grid_rules_the_suggestion(population, hippocampus):
    grid = grid_of(ROOT / "bundles" / "decorrelated_moco")
    assert (grid.extent, grid.multiple, grid.sampled) == (96, 32, True)
    knobs = inspect_dataset(hippocampus, grid=grid).knobs
    assert (knobs["pixel_spacing"], knobs["roi_size"], knobs["sample_size"]) == (1.0, [64, 64], [64, 64])
    assert '--sample_size "[96, 96]"' in str(inspect_dataset(population, grid=grid))
    assert grid_of(ROOT / "bundles" / "jcl") == Grid(128, 16)


def test_the_interval_is_student_s(tmp_path):
    mean, low, high = t_interval(np.array([1.0, 2.0, 3.0, 4.0]))
    assert (mean, low, high) == pytest.approx((2.5, 0.4457, 4.5543), abs=1e-4)
    assert t_interval(np.array([1.0]))[1] == -np.inf


def test_two_volumes_of_one_person_are_one_row(tmp_path):
    entries = [{"image": f"/x/{name}.nii.gz", "label": "", "subject": subject} for name, subject in ("ap", "bp", "cq")]
    rows = ["filename,class0,class1,mean", "/x/a.nii.gz,0.2,0.4,0.3", "/x/b.nii.gz,0.4,nan,0.4", "/x/c.nii.gz,1,1,1"]
    (tmp_path / "mean_dice_raw.csv").write_text("\n".join(rows))
    split = Split([], [], [], entries, {"1": "a", "2": "b"})
    np.testing.assert_allclose(subject_scores(tmp_path, split), [[0.3, 0.4], [1, 1]])


def test_what_the_demo_cannot_find_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no bundle 'nothing'"):
        bundle_folder("nothing")
    with pytest.raises(FileNotFoundError, match="is no folder"):
        demo(dataset=str(tmp_path / "nowhere"))


def test_a_label_of_another_size_is_named_by_inspect(labelled, save, volume):
    array, affine = volume
    save(labelled / "labelsTr" / "scan_03.nii.gz", (array > 300).astype(np.uint8)[:-2], affine)
    with pytest.raises(ValueError, match=r"scan_03.nii.gz is \(10, 16, 6\) voxels, \(12, 16, 6\) of .* are expected"):
        inspect_dataset(labelled)
