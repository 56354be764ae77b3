import logging
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import mlflow
import pytest
import torch
from ignite.engine import Events
from matplotlib.figure import Figure
from mlflow.tracking import MlflowClient
from torch import nn

from medcl_monai.engines.trainer import Trainer
from medcl_monai.handlers.checkpoint import Checkpoints
from medcl_monai.handlers.tracking import EvaluationTracker, TrainingTracker
from medcl_monai.tracking.replay import replay
from medcl_monai.tracking.tracker import Tracker

BATCHES = [{"image": torch.randn(4, 8), "label": torch.zeros(4, 1)} for _ in range(6)]
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning"
)


@pytest.fixture(autouse=True)
def _quiet():
    logging.getLogger("mlflow").setLevel(logging.WARNING)


def trainer(tracker, handlers=(), epochs=2, **knobs):
    network = nn.Linear(8, 1)
    return Trainer(
        device="cpu", max_epochs=epochs, epoch_length=3, train_data_loader=BATCHES, network=network,
        optimizer=torch.optim.SGD(network.parameters(), 0.1),
        loss_function=lambda prediction, label: {"squares": (prediction - label).square().mean()},
        train_handlers=[TrainingTracker(tracker), *handlers], **knobs,
    )


def tracker(tmp_path, uri=None, **knobs):
    return Tracker(uri or f"sqlite:///{tmp_path / 'runs.db'}", "experiment", tmp_path, **knobs)


def runs(tmp_path, uri=None):
    client = MlflowClient(uri or f"sqlite:///{tmp_path / 'runs.db'}")
    experiment = client.get_experiment_by_name("experiment")
    return client, client.search_runs([experiment.experiment_id]) if experiment else []


def test_a_training_is_one_finished_run_with_every_term_figure_picture_and_file(tmp_path):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "train.json").write_text("{}")
    engine = trainer(tracker(tmp_path, parameters={"steps": 6}, artifacts=[tmp_path / "configs"]))

    @engine.on(Events.ITERATION_COMPLETED(once=2))
    def note(engine):
        engine.state.figures["rank"] = 3.0
        engine.state.pictures["views"] = Figure()

    # the tracker listens since the engine was built, so what is noted now is recorded with the next iteration
    engine.run()
    client, (run,) = runs(tmp_path)
    assert run.info.status == "FINISHED"
    assert run.data.params["steps"] == "6"
    history = client.get_metric_history(run.info.run_id, "loss/squares")
    assert [metric.step for metric in history] == [1, 2, 3, 4, 5, 6]
    assert {"loss", "learning_rate/0", "samples_per_second", "rank"} <= set(run.data.metrics)
    found = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert found == {"configs", "pictures"}
    assert not list(tmp_path.glob("*.jsonl"))


def test_two_trainings_are_two_runs_and_an_exception_ends_one_as_failed(tmp_path):
    trainer(tracker(tmp_path)).run()
    engine = trainer(tracker(tmp_path))

    @engine.on(Events.ITERATION_COMPLETED(once=4))
    def crash(engine):
        raise RuntimeError("crash")

    with pytest.raises(RuntimeError, match="crash"):
        engine.run()
    _, found = runs(tmp_path)
    assert sorted(run.info.status for run in found) == ["FAILED", "FINISHED"]
    assert len({run.info.run_name for run in found}) == 2


def test_a_resumed_training_goes_on_with_its_run(tmp_path):
    engine = trainer(tracker(tmp_path, parameters={"steps": 3}), [Checkpoints(tmp_path / "checkpoints", 3)], epochs=1)
    engine.run()
    trainer(tracker(tmp_path, parameters={"steps": 6}), epochs=2, resume=tmp_path / "checkpoints").run()
    client, (run,) = runs(tmp_path)
    assert [metric.step for metric in client.get_metric_history(run.info.run_id, "loss")] == [1, 2, 3, 4, 5, 6]
    assert run.data.params["steps"] == "3"
    assert run.data.tags["resumed.steps"] == "6"


def test_metrics_of_an_evaluator_join_the_active_run_or_make_their_own(tmp_path):
    from ignite.engine import Engine

    shared = tracker(tmp_path)
    evaluator = Engine(lambda *_: None)
    EvaluationTracker(shared).attach(evaluator)
    evaluator.add_event_handler(Events.EPOCH_COMPLETED, lambda e: e.state.metrics.update(mean_dice=0.5))
    shared.begin()
    evaluator.run([0])
    assert shared.active
    shared.finish()
    alone = tracker(tmp_path)
    evaluator = Engine(lambda *_: None)
    evaluator.add_event_handler(Events.EPOCH_COMPLETED, lambda e: e.state.metrics.update(mean_dice=0.7))
    EvaluationTracker(alone).attach(evaluator)
    evaluator.run([0])
    _, found = runs(tmp_path)
    assert sorted(run.data.metrics["validation/mean_dice"] for run in found) == [0.5, 0.7]
    assert {run.info.status for run in found} == {"FINISHED"}


def test_an_unreachable_server_costs_a_warning_and_the_record_can_be_sent_later(tmp_path, caplog):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    started = time.time()
    trainer(tracker(tmp_path, address, parameters={"steps": 6})).run()
    assert time.time() - started < 60
    assert caplog.text.count("cannot be reached") == 1
    (record,) = tmp_path.glob("tracking_*.jsonl")
    store = f"sqlite:///{tmp_path / 'runs.db'}"
    replay(record, store)
    client, (run,) = runs(tmp_path)
    assert run.info.status == "FINISHED"
    assert run.data.params["steps"] == "6"
    assert len(client.get_metric_history(run.info.run_id, "loss")) == 6


@pytest.mark.slow
def test_a_server_killed_in_the_middle_does_not_end_the_training(tmp_path, caplog):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    store = f"sqlite:///{tmp_path / 'server.db'}"
    server = subprocess.Popen([
        sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store, "--port", str(port), "--workers", "1",
        "--artifacts-destination", str(tmp_path / "artifacts"),
    ], start_new_session=True)
    address = f"http://127.0.0.1:{port}"
    for _ in range(120):
        try:
            urllib.request.urlopen(f"{address}/health", timeout=1)
            break
        except OSError:
            time.sleep(0.5)
    engine = trainer(tracker(tmp_path, address), epochs=4)

    @engine.on(Events.EPOCH_COMPLETED(once=2))
    def kill(engine):
        os.killpg(server.pid, signal.SIGKILL)  # with its workers
        server.wait()

    engine.run()
    assert caplog.text.count("cannot be reached") == 1
    (record,) = tmp_path.glob("tracking_*.jsonl")
    replay(record, store)
    client, (run,) = runs(tmp_path, store)
    assert run.info.status == "FINISHED"
    assert len(client.get_metric_history(run.info.run_id, "loss")) == 12


def test_what_is_no_record_is_named(tmp_path):
    (tmp_path / "odd.jsonl").write_text('{"kind": "metrics"}\n')
    with pytest.raises(ValueError, match="is no record of a run"):
        replay(tmp_path / "odd.jsonl", f"sqlite:///{tmp_path / 'runs.db'}")
    assert mlflow.active_run() is None
