import pytest
import torch
from ignite.engine import Engine
from monai.engines import SupervisedEvaluator
from torch import nn

from medcl_monai.engines.trainer import Trainer
from medcl_monai.handlers.progress import Progress

BATCHES = [{"image": torch.randn(4, 8), "label": torch.zeros(4, 1)} for _ in range(4)]


def training(progress):
    network = nn.Linear(8, 1)
    return Trainer(
        device="cpu", max_epochs=3, epoch_length=4, train_data_loader=BATCHES, network=network, accumulation=2,
        optimizer=torch.optim.SGD(network.parameters(), 0.1), train_handlers=[progress],
        loss_function=lambda prediction, label: (prediction - label).square().mean(),
    )


def test_the_bar_counts_optimiser_steps_of_the_whole_run_and_shows_the_loss(capsys):
    progress = Progress("training")
    training(progress).run()
    out, err = capsys.readouterr()
    assert out == ""
    assert "training: 100%" in err
    assert "6/6" in err
    assert "loss=" in err
    assert progress.bar.n == progress.bar.total == 6


def test_a_later_round_goes_on_where_the_bar_stood(capsys):
    progress = Progress("training")
    engine = training(progress)
    engine.run()
    engine.state.max_epochs = 4
    engine.run()
    assert (progress.bar.initial, progress.bar.n, progress.bar.total) == (6, 8, 8)


@pytest.mark.parametrize("epoch", [1, 5])
def test_the_bar_of_an_evaluator_counts_its_volumes(capsys, epoch):
    progress = Progress("evaluating")
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"), val_data_loader=BATCHES, network=nn.Linear(8, 1), val_handlers=[progress]
    )
    evaluator.run(epoch)
    assert (progress.bar.n, progress.bar.total) == (4, 4)


def test_a_quiet_bar_and_another_process_write_nothing(capsys, monkeypatch):
    training(Progress("training", quiet=True)).run()
    monkeypatch.setattr("medcl_monai.handlers.progress.rank", lambda: 1)
    training(Progress("training")).run()
    assert capsys.readouterr().err == ""


def test_any_ignite_engine_can_have_a_bar(capsys):
    engine = Engine(lambda *_: None)
    progress = Progress("working")
    progress.attach(engine)
    engine.run([0, 1, 2], max_epochs=2)
    assert progress.bar.n == 6
