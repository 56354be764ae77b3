import pytest
import torch
from ignite.engine import Events
from torch import nn

from medcl_monai.curves import polynomial
from medcl_monai.engines.trainer import Trainer
from medcl_monai.handlers.checkpoint import Checkpoints
from medcl_monai.handlers.schedule import Schedule

BATCHES = [{"image": torch.randn(4, 8), "label": torch.zeros(4, 1)} for _ in range(4)]


def training(handlers=(), epochs=2, accumulation=1, lr=0.5, warm_up=0.25, resume=None):
    network = nn.Linear(8, 1)
    optimizer = torch.optim.SGD([{"params": network.weight, "lr": lr / 10}, {"params": network.bias}], lr)
    engine = Trainer(
        device="cpu", max_epochs=epochs, epoch_length=4, train_data_loader=BATCHES, network=network,
        optimizer=optimizer, train_handlers=[Schedule(optimizer, warm_up, polynomial), *handlers], resume=resume,
        loss_function=lambda prediction, label: (prediction - label).square().mean(), accumulation=accumulation,
    )
    engine.rates = []
    engine.add_event_handler(
        Events.ITERATION_COMPLETED, lambda e: e.rates.append([group["lr"] for group in optimizer.param_groups])
    )
    return engine


def test_the_rate_rises_over_the_warm_up_and_falls_to_0():
    engine = training()
    engine.run()
    rates = [rate for _, rate in engine.rates]
    assert rates[:2] == [0.25, 0.5]
    assert rates[2:] == pytest.approx([0.5 * (1 - k / 6) ** 0.9 for k in range(6)])
    assert [10 * slow for slow, _ in engine.rates] == pytest.approx(rates)


def test_a_schedule_counts_optimiser_steps():
    engine = training(accumulation=2)
    engine.run()
    rates = [rate for _, rate in engine.rates]
    assert rates[::2] == rates[1::2]
    assert rates[::2] == pytest.approx([0.5 * factor for factor in (1, 1, (2 / 3) ** 0.9, (1 / 3) ** 0.9)])


def test_whoever_sets_the_epochs_before_the_run_gets_a_whole_schedule():
    engine = training()
    engine.state.max_epochs = 5
    engine.run()
    assert len(engine.rates) == 20
    assert [rate for _, rate in engine.rates][5:] == pytest.approx([0.5 * (1 - k / 15) ** 0.9 for k in range(15)])


def test_each_round_of_a_federation_learns():
    engine = training(epochs=1)
    for epochs in (1, 2, 3):
        engine.state.max_epochs = epochs
        engine.run()
    assert engine.rates[:4] == engine.rates[4:8] == engine.rates[8:]
    assert min(rate for _, rate in engine.rates) > 0


@pytest.mark.parametrize("stop", [3, 4, 6])
def test_a_resumed_run_goes_on_with_its_schedule(tmp_path, stop):
    whole, killed = training(), training([Checkpoints(tmp_path, 1)])
    whole.run()

    @killed.on(Events.ITERATION_STARTED(once=stop + 1))
    def kill(engine):
        raise RuntimeError("kill")

    with pytest.raises(RuntimeError, match="kill"):
        killed.run()
    again = training(resume=tmp_path)
    again.run()
    assert again.rates == whole.rates[len(whole.rates) - len(again.rates):]
    assert len(again.rates) == 8 - stop
    again.state.max_epochs = 4
    again.run()
    assert again.rates[8 - stop:] == whole.rates


def test_a_resumed_run_takes_its_own_learning_rate(tmp_path):
    training([Checkpoints(tmp_path, 1)], epochs=1).run()
    whole, again = training(lr=0.1), training(lr=0.1, resume=tmp_path)
    whole.run()
    again.run()
    assert again.rates == whole.rates[4:]


@pytest.mark.parametrize("warm_up", [-0.1, 1.0])
def test_an_impossible_warm_up_is_named(warm_up):
    with pytest.raises(ValueError, match=f"0 up to 1, got {warm_up}"):
        training(warm_up=warm_up)
