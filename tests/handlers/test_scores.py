import csv
import json
from types import SimpleNamespace

import pytest
import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor

from medcl_monai.handlers.scores import SegmentationScores


def case(name, label, prediction, spacing=(1.0, 1.0, 2.0)):
    affine = torch.diag(torch.tensor([*spacing, 1.0]))
    one_hot = [torch.nn.functional.one_hot(part, 3).movedim(-1, 0).float() for part in (label, prediction)]
    return {
        "image": MetaTensor(label[None].float(), affine=affine, meta={"filename_or_obj": name}),
        "label": MetaTensor(one_hot[0], affine=affine), "pred": MetaTensor(one_hot[1], affine=affine),
    }


@pytest.fixture
def cases():
    """The second structure is missing in the second label and in both predictions."""
    first, second = torch.zeros(2, 6, 6, 6, dtype=torch.int64), torch.zeros(2, 6, 6, 6, dtype=torch.int64)
    first[:, 1:3, 1:3, 1:3] = 1
    first[1, 1:3, 1:3, 4] = 1
    first[0, 5, 5, 5] = 2
    second[:, 2:4, 2:4, 2:4] = 1
    return [case("a.nii", *first), case("b.nii", *second)]


def scored(cases, folder, **knobs):
    engine = Engine(lambda _, batch: [batch])
    engine.state.metrics = {}
    handler = SegmentationScores(folder, {"1": "head", "2": "tail"}, **knobs)
    handler.attach(engine)
    engine.run(cases)
    rows = list(csv.DictReader((folder / "cases.csv").read_text(encoding="utf-8").splitlines()))
    return engine, rows, json.loads((folder / "scores.json").read_text(encoding="utf-8"))


def test_cases_and_means_and_what_is_missing(cases, tmp_path):
    engine, rows, summary = scored(cases, tmp_path / "new")
    assert [row["image"] for row in rows] == ["a.nii", "b.nii"]
    assert float(rows[0]["dice head"]) == pytest.approx(2 * 8 / (8 + 12), abs=1e-6)
    assert rows[0]["dice tail"] == "0.0"
    assert rows[1]["dice tail"] == "nan"
    assert float(rows[0]["hausdorff head (mm)"]) == 4.0  # two voxels of 2 mm
    assert rows[0]["hausdorff tail (mm)"] == "nan"
    assert summary["cases"] == 2
    assert summary["mean over cases"]["dice head"] == pytest.approx(0.9)
    assert summary["mean over cases"]["dice"] == pytest.approx((0.9 + 0.0) / 2)
    assert summary["mean over cases"]["hausdorff"] == 2.0
    assert summary["mean over cases"]["hausdorff tail (mm)"] is None
    assert summary["aggregated"]["dice head"] == pytest.approx(2 * 16 / (16 + 20))
    missing = summary["cases without the structure"]["tail"]
    assert missing == {"in the label": 1, "in the prediction": 2}
    assert engine.state.metrics["mean_iou"] == summary["mean over cases"]["mean_iou"]
    assert all(isinstance(value, float) for value in engine.state.metrics.values())


def test_another_run_starts_anew_and_distances_can_be_left_out(cases, tmp_path):
    engine = Engine(lambda _, batch: [batch])
    engine.state.metrics = {}
    SegmentationScores(tmp_path, {"1": "head", "2": "tail"}, distances=False).attach(engine)
    for _ in range(2):
        engine.run(cases)
    rows = list(csv.DictReader((tmp_path / "cases.csv").read_text(encoding="utf-8").splitlines()))
    assert len(rows) == 2
    assert not any("hausdorff" in name for name in rows[0])


def test_the_metrics_are_there_before_handlers_of_the_end(cases, tmp_path):
    seen = SimpleNamespace(metrics=None)
    engine = Engine(lambda _, batch: [batch])
    engine.state.metrics = {}
    engine.add_event_handler(Events.COMPLETED, lambda e: setattr(seen, "metrics", dict(e.state.metrics)))
    SegmentationScores(tmp_path, {"1": "head", "2": "tail"}).attach(engine)
    engine.run(cases)
    assert "overall_accuracy" in seen.metrics
