import json
from pathlib import Path

import numpy as np
import pytest

from medcl_monai.bundles import adapt_bundle, bundle_folder, set_knobs, size_rule
from medcl_monai.commands.bundle import bundle
from medcl_monai.commands.demo import demo
from medcl_monai.commands.demo_report import report, subject_scores, t_interval
from medcl_monai.data.inspection import SizeRule, inspect_dataset, suggest_spacing
from medcl_monai.data.splits import Split

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


def test_a_bundle_s_own_sizes_rule_the_suggestion(population, hippocampus):
    rule = size_rule(ROOT / "bundles" / "decorrelated_moco")
    assert (rule.extent, rule.multiple, rule.sampled) == (96, 32, True)
    knobs = inspect_dataset(hippocampus, rule=rule).knobs
    assert (knobs["pixel_spacing"], knobs["roi_size"], knobs["sample_size"]) == (1.0, [64, 64], [64, 64])
    assert '--sample_size "[96, 96]"' in str(inspect_dataset(population, rule=rule))
    assert size_rule(ROOT / "bundles" / "jcl") == SizeRule(128, 16)


def test_the_interval_is_student_s(tmp_path):
    mean, low, high = t_interval(np.array([1.0, 2.0, 3.0, 4.0]))
    assert (mean, low, high) == pytest.approx((2.5, 0.4457, 4.5543), abs=1e-4)
    assert t_interval(np.array([1.0]))[1] == -np.inf
    assert t_interval(np.array([0.07] * 3)) == pytest.approx((0.07, 0.07, 0.07))  # and without a warning of scipy


def scored(folder, rows):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "mean_dice_raw.csv").write_text("\n".join(["filename,class0,class1,mean", *rows]), encoding="utf-8")


def test_two_volumes_of_one_person_are_one_row(tmp_path):
    entries = [{"image": f"/x/{name}.nii.gz", "label": "", "subject": name[1]} for name in ("ap", "bp", "cq")]
    scored(tmp_path, ["/x/ap.nii.gz,0.2,0.4,0.3", "/x/bp.nii.gz,0.4,nan,0.4", "/x/cq.nii.gz,1,1,1"])
    np.testing.assert_allclose(subject_scores(tmp_path, entries), [[0.3, 0.4], [1, 1]])


def test_people_whose_files_share_a_name_are_several_rows(tmp_path):
    entries = [{"image": f"/x/{person}/t1.nii.gz", "label": "", "subject": person} for person in ("p", "q")]
    scored(tmp_path, ["/x/p/t1.nii.gz,0.2,0.4,0.3", "/x/q/t1.nii.gz,0.6,0.8,0.7"])
    np.testing.assert_allclose(subject_scores(tmp_path, entries), [[0.2, 0.4], [0.6, 0.8]])


def test_scores_of_other_volumes_are_refused(tmp_path):
    scored(tmp_path, ["/x/p.nii.gz,0.2,0.4,0.3"])
    with pytest.raises(ValueError, match=r"mean_dice_raw.csv does not fit the entries: \S*q.nii.gz is only in one"):
        subject_scores(tmp_path, [{"image": f"/x/{name}.nii.gz", "subject": name} for name in "pq"])


def test_the_report_names_the_difference_to_every_control(tmp_path, monkeypatch):
    monkeypatch.setattr("medcl_monai.commands.demo_report.draw", lambda *_: "demo.png")
    entries = [{"image": f"/x/{name}.nii.gz", "subject": name} for name in "pqr"]
    for place, arm in enumerate(("ours", "scratch", "other")):
        for moment in ("test", "half"):
            rows = [f"/x/{name}.nii.gz,{0.9 - 0.1 * place - 0.01 * k * place},0.8,0" for k, name in enumerate("pqr")]
            scored(tmp_path / arm / moment, rows)
    text = report(tmp_path, ["ours", "scratch", "other"], Split([], [], [], entries, {"1": "a", "2": "b"}), entries[0])
    assert "ours minus scratch, paired over 3 subjects: +0.055, 95 % t interval [+0.043, +0.067]" in text
    assert "ours minus other, paired over 3 subjects: +0.110" in text


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


def test_the_verb_bundle_writes_a_copy_for_the_data(labelled, tmp_path):
    text = bundle("jcl", str(tmp_path / "mine"), str(labelled))
    assert f"written: {tmp_path / 'mine'}" in text
    train = json.loads((tmp_path / "mine" / "configs" / "train.json").read_text(encoding="utf-8"))
    assert train["dataset_dir"] == str(labelled)
    assert train["structures"] == {"1": "structure 1"}
    assert (tmp_path / "mine" / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    bundle("jcl", str(tmp_path / "plain"))
    for file in ("train.json", "pretrain.json", "metadata.json"):
        ours, theirs = (folder / "configs" / file for folder in (tmp_path / "plain", ROOT / "bundles" / "jcl"))
        assert ours.read_bytes() == theirs.read_bytes()


def test_values_are_set_in_place_and_what_a_config_lacks_is_refused(tmp_path):
    path = tmp_path / "train.json"
    source = (ROOT / "bundles" / "jcl" / "configs" / "train.json").read_text(encoding="utf-8")
    path.write_text(source, encoding="utf-8")
    set_knobs(path, {"steps": 400, "network_def::features": [4, 8], "structures": {"1": "a, b: {c}"}})
    written = path.read_text(encoding="utf-8")
    changed = [line for line in written.splitlines() if line not in source.splitlines()]
    assert len(changed) == 3
    assert len(written.splitlines()) == len(source.splitlines())
    config = json.loads(written)
    assert (config["steps"], config["network_def"]["features"]) == (400, [4, 8])
    with pytest.raises(ValueError, match="has no 'network_def::feature'"):
        set_knobs(path, {"steps": 500, "network_def::feature": 1})
    assert path.read_text(encoding="utf-8") == written


def test_what_an_overlay_sets_is_left_to_the_overlay_and_knobs_of_the_plan_are_passed(tmp_path, monkeypatch):
    from medcl_monai.bundles import read_plan
    from medcl_monai.commands import demo

    (tmp_path / "configs").mkdir()
    for name, text in {
        "demo.json": '{"before": ["a.json", {"configs": ["a.json", "b.json"], "steps": 3}], "arms": {"x": {}}}',
        "a.json": '{"dataset_dir": null, "steps": 1}', "b.json": '{"dataset_dir": "own"}',
    }.items():
        (tmp_path / "configs" / name).write_text(text, encoding="utf-8")
    runs = []
    monkeypatch.setattr(demo, "run_bundle", lambda files, **knobs: runs.append(([file.name for file in files], knobs)))
    plan = read_plan(tmp_path)
    assert [run.name for run in plan.before] == ["a", "b"]
    for run in plan.before:
        demo.prepare(tmp_path, run, {"dataset_dir": "mine", "seed": 0})
    assert runs == [
        (["a.json"], {"dataset_dir": "mine", "seed": 0}), (["a.json", "b.json"], {"seed": 0, "steps": 3}),
    ]
