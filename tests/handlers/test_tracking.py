import json
import logging
import math
import subprocess
import sys

import pytest
import torch
from ignite.engine import Events
from mlflow.tracking import MlflowClient
from monai.bundle import ConfigWorkflow
from monai.engines import SupervisedEvaluator
from monai.handlers import ValidationHandler
from torch import nn

from medcl_monai.engines.trainer import Trainer
from medcl_monai.handlers.checkpoint import Checkpoints
from medcl_monai.handlers.tracking import EvaluationTracker, TrainingTracker
from medcl_monai.tracking.replay import replay
from medcl_monai.tracking.store import prepare_store
from medcl_monai.tracking.tracker import Tracker

BATCHES = [{"image": torch.full((4, 8), float(k)), "label": torch.zeros(4, 1)} for k in range(4)]
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning"
)


def training(record, handlers=(), loss=None, epochs=2, **knobs):
    network = nn.Linear(8, 1)
    return Trainer(
        device="cpu", max_epochs=epochs, epoch_length=4, train_data_loader=BATCHES, network=network,
        optimizer=torch.optim.SGD(network.parameters(), 0.0), train_handlers=[*handlers, TrainingTracker(record)],
        loss_function=loss or (lambda prediction, label: {"term": (prediction - label).square().mean()}), **knobs,
    )


def tracker(folder):
    return Tracker(f"sqlite:///{folder / 'mlruns.db'}", "experiment", folder)


def runs(folder, experiment="experiment"):
    client = MlflowClient(f"sqlite:///{folder / 'mlruns.db'}")
    return client, client.search_runs([client.get_experiment_by_name(experiment).experiment_id])


def history(folder, name):
    client, (run,) = runs(folder)
    return [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, name)]


def test_a_loss_is_the_mean_over_the_batches_of_its_step(tmp_path):
    seen = []
    engine = training(tracker(tmp_path), accumulation=2, epochs=1)
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda e: seen.append(float(e.state.output[0]["loss"])))
    engine.run()
    assert history(tmp_path, "loss") == [(1, (seen[0] + seen[1]) / 2), (2, (seen[2] + seen[3]) / 2)]


def test_validation_is_recorded_at_the_step_of_the_training(tmp_path):
    record = tracker(tmp_path)
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"), val_data_loader=BATCHES[:1], network=nn.Linear(8, 1),
        val_handlers=[EvaluationTracker(record)],
    )
    evaluator.add_event_handler(Events.EPOCH_COMPLETED, lambda e: e.state.metrics.update(dice=0.5, rows=torch.zeros(2)))
    training(record, [ValidationHandler(1, evaluator)]).run()
    assert history(tmp_path, "validation/dice") == [(4, 0.5), (8, 0.5)]


def test_odd_names_and_infinite_values_do_not_end_the_record(tmp_path):
    engine = training(tracker(tmp_path), loss=lambda p, y: {"a#b λ": p.square().mean()}, epochs=1)

    @engine.on(Events.ITERATION_STARTED)
    def note(engine):
        engine.state.figures["rank"] = math.inf if engine.state.iteration == 2 else 1.0

    engine.run()
    assert [step for step, _ in history(tmp_path, "loss/a_b λ")] == [1, 2, 3, 4]
    assert [step for step, _ in history(tmp_path, "rank")] == [1, 3, 4]
    assert not list(tmp_path.glob("*.jsonl"))


def test_throughput_leaves_validation_out(tmp_path, monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr("medcl_monai.handlers.tracking.time.perf_counter", lambda: float(next(clock)))
    engine = training(tracker(tmp_path))
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda _: [next(clock) for _ in range(100)])
    engine.run()
    assert [value for _, value in history(tmp_path, "samples_per_second")] == [4.0, 4.0]


def test_ctrl_c_ends_the_run_as_killed(tmp_path):
    engine = training(tracker(tmp_path))

    @engine.on(Events.ITERATION_STARTED(once=3))
    def interrupt(engine):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.run()
    _, (run,) = runs(tmp_path)
    assert run.info.status == "KILLED"
    assert history(tmp_path, "loss")[-1][0] == 2


def test_each_round_of_a_federation_goes_on_with_the_run(tmp_path):
    engine = training(tracker(tmp_path), epochs=1)
    engine.run()
    engine.state.max_epochs = 2
    engine.run()
    assert [step for step, _ in history(tmp_path, "loss")] == list(range(1, 9))


def test_a_store_that_another_process_made_meanwhile_stays(tmp_path, monkeypatch):
    other = tracker(tmp_path)
    other.begin()
    exists = type(tmp_path).exists
    # this process had looked for the store before the other one made it
    monkeypatch.setattr(type(tmp_path), "exists", lambda path: path.name != "mlruns.db" and exists(path))
    prepare_store(f"sqlite:///{tmp_path / 'mlruns.db'}")
    monkeypatch.undo()
    other.finish()
    _, (run,) = runs(tmp_path)
    assert run.info.status == "FINISHED"
    assert [path.name for path in tmp_path.glob(".*")] == []


def test_a_record_that_a_kill_cut_off_is_sent_as_far_as_it_goes(tmp_path):
    lines = [
        {"kind": "begin", "what": {"run_name": "cut", "experiment_name": "experiment", "run_id": None}},
        {"kind": "metrics", "what": [["loss", 0.5, 1, 1], ["loss", 0.4, 2, 2]]},
    ]
    record = tmp_path / "tracking_1.jsonl"
    record.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"kind": "metr')
    replay(record, f"sqlite:///{tmp_path / 'mlruns.db'}")
    assert history(tmp_path, "loss") == [(1, 0.5), (2, 0.4)]


def test_a_folder_that_cannot_be_written_costs_warnings_alone(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    engine = training(Tracker(f"sqlite:///{tmp_path / 'file' / 'mlruns.db'}", "experiment", tmp_path / "file"))
    engine.run()
    assert engine.state.optimizer_steps == 8
    assert "cannot be written" in caplog.text


def test_monais_own_tracking_leaves_exactly_one_finished_run(tmp_path):
    config = {
        "bundle_root": str(tmp_path), "device": "$torch.device('cpu')", "dataset_dir": "", "output_dir": str(tmp_path),
        "tracking_uri": f"sqlite:///{tmp_path / 'mlruns.db'}", "experiment_name": "experiment", "run_name": None,
        "network": {"_target_": "torch.nn.Linear", "in_features": 8, "out_features": 1},
        "tracker": {
            "_target_": "medcl_monai.Tracker", "tracking_uri": "@tracking_uri",
            "experiment_name": "@experiment_name", "folder": "@output_dir", "run_name": "@run_name",
        },
        "batches": "$[{'image': torch.ones(4, 8), 'label': torch.zeros(4, 1)}] * 4",
        "validate": {
            "handlers": [{"_target_": "medcl_monai.handlers.tracking.EvaluationTracker", "tracker": "@tracker"}],
            "evaluator": {
                "_target_": "SupervisedEvaluator", "device": "@device", "val_data_loader": "@batches",
                "network": "@network", "val_handlers": "@validate::handlers",
            },
        },
        "train": {
            "dataset": "@batches", "inferer": {"_target_": "SimpleInferer"},
            "handlers": [
                {"_target_": "ValidationHandler", "validator": "@validate::evaluator", "interval": 1},
                {"_target_": "medcl_monai.handlers.tracking.TrainingTracker", "tracker": "@tracker"},
            ],
            "trainer": {
                "_target_": "medcl_monai.Trainer", "device": "@device", "max_epochs": 2, "epoch_length": 4,
                "train_data_loader": "@batches", "network": "@network", "train_handlers": "@train::handlers",
                "loss_function": {"_target_": "torch.nn.MSELoss"},
                "optimizer": {"_target_": "torch.optim.SGD", "params": "$@network.parameters()", "lr": 0.1},
            },
        },
        "run": ["$@train::trainer.run()"],
    }
    path = tmp_path / "train.json"
    path.write_text(json.dumps(config))
    prepare_store(config["tracking_uri"])
    workflow = ConfigWorkflow(str(path), workflow_type="train", logging_file=False, tracking="mlflow")
    workflow.initialize()
    workflow.run()
    workflow.finalize()
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    client, (run,) = runs(tmp_path)
    assert run.info.status == "FINISHED"
    assert len(client.get_metric_history(run.info.run_id, "train_loss")) == 8


@pytest.mark.parametrize("first", [True, False])
def test_after_a_hard_kill_and_a_resume_every_step_has_its_loss(tmp_path, first):
    """Wherever the checkpoints' handler stands; a hard kill sends nothing more, as a handler that is gone."""
    def engine(**knobs):
        record, saver = tracker(tmp_path), Checkpoints(tmp_path / "checkpoints", 3)
        made = training(record, handlers=[saver] if first else (), **knobs)
        if not first:
            saver.attach(made)
        return record, made

    record, killed = engine()

    @killed.on(Events.GET_BATCH_COMPLETED(once=3))
    def kill(engine):
        record.active = False
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        killed.run()
    engine(resume=tmp_path / "checkpoints")[1].run()
    assert [step for step, _ in history(tmp_path, "loss")] == list(range(1, 9))


def test_a_process_that_ends_in_the_middle_leaves_no_running_run(tmp_path):
    prepare_store(f"sqlite:///{tmp_path / 'mlruns.db'}")
    script = (
        "from medcl_monai.tracking.tracker import Tracker\n"
        f"Tracker('sqlite:///{tmp_path / 'mlruns.db'}', 'experiment', r'{tmp_path}').begin()\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
    _, (run,) = runs(tmp_path)
    assert run.info.status == "FAILED"
