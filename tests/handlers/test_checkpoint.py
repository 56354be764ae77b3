import pytest
import torch
from ignite.engine import Events
from ignite.metrics import Metric
from monai.engines import SupervisedEvaluator
from monai.handlers import ValidationHandler
from torch import nn

from medcl_monai.engines.state import checkpoints
from medcl_monai.engines.trainer import Trainer
from medcl_monai.handlers.checkpoint import Checkpoints
from medcl_monai.handlers.shared_weights import SharedWeights

BATCHES = [{"image": torch.randn(4, 8), "label": torch.zeros(4, 1)} for _ in range(4)]
SCORES = [0.3, 0.9, 0.5, 0.4]  # of the four epochs: the second is the best


class Score(Metric):
    """The score of the epoch that is validated."""

    def reset(self):
        self.epoch = 0

    def update(self, output):
        self.epoch = output

    def compute(self):
        return SCORES[self.epoch - 1]


def training(folder, epochs=4, interval=4, optimizer=torch.optim.SGD, first=(), **knobs):
    torch.manual_seed(0)
    network = nn.Linear(8, 1)
    best = SharedWeights(folder / "model.pt", network, [], metric="score")
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"), val_data_loader=BATCHES[:1], network=network, decollate=False, val_handlers=[best],
        key_val_metric={"score": Score(output_transform=lambda _: evaluator.state.epoch)},
    )
    saver = Checkpoints(folder / "checkpoints", interval, keep=9)
    # the saver stands before the validation on purpose
    handlers = [*first, saver, ValidationHandler(1, evaluator), SharedWeights(folder / "last.pt", network, [])]
    return Trainer(
        device="cpu", max_epochs=epochs, epoch_length=4, train_data_loader=BATCHES, network=network,
        optimizer=optimizer(network.parameters(), 0.1), train_handlers=handlers,
        loss_function=lambda prediction, label: (prediction - label).square().mean(), **knobs,
    )


def load(path):
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize("stop", [5, 8, 9, 12, 15])
def test_a_resumed_training_keeps_its_best_model(tmp_path, stop):
    training(tmp_path / "whole").run()
    engine = training(tmp_path / "killed")

    @engine.on(Events.ITERATION_COMPLETED(once=stop))
    def kill(engine):
        raise RuntimeError("kill")

    with pytest.raises(RuntimeError, match="kill"):
        engine.run()
    again = training(tmp_path / "killed", resume=tmp_path / "killed" / "checkpoints")
    again.run()
    for name in ("model.pt", "last.pt"):
        whole, resumed = (load(tmp_path / run / name) for run in ("whole", "killed"))
        assert all(torch.equal(whole[key], resumed[key]) for key in whole), name
    assert again.validations[0].validator.state.best_metric == 0.9


def test_the_state_at_the_end_of_an_epoch_holds_its_validation(tmp_path):
    training(tmp_path).run()
    states = [load(path) for path in reversed(checkpoints(tmp_path / "checkpoints"))]
    assert [state["optimizer_steps"] for state in states] == [4, 8, 12, 16]
    assert [state["best_metrics"][1] for state in states] == [[0.3, 1], [0.9, 2], [0.9, 2], [0.9, 2]]


def test_resuming_a_finished_run_writes_what_the_kill_had_left_out(tmp_path):
    training(tmp_path).run()
    before = load(tmp_path / "last.pt")
    (tmp_path / "last.pt").unlink()
    training(tmp_path, resume=tmp_path / "checkpoints").run()
    assert torch.equal(load(tmp_path / "last.pt")["weight"], before["weight"])


def one_group_each(parameters, lr):
    return torch.optim.SGD([{"params": [parameter]} for parameter in parameters], lr)


def test_a_checkpoint_of_another_optimiser_or_with_a_flipped_bit_is_named(tmp_path, caplog):
    training(tmp_path, epochs=1, interval=2).run()
    newest = checkpoints(tmp_path / "checkpoints")[0]
    with pytest.raises(ValueError, match=f"{newest.name} is of another optimiser, loss or handler"):
        training(tmp_path, resume=newest, optimizer=one_group_each).run()
    weight = load(newest)["network"]["weight"].numpy().tobytes()
    content = newest.read_bytes()
    assert content.count(weight) == 1
    newest.write_bytes(content.replace(weight, bytes([weight[0] ^ 1]) + weight[1:]))
    engine = training(tmp_path)
    engine.restore(tmp_path / "checkpoints")
    assert engine.state.optimizer_steps == 2
    assert f"{newest.name} cannot be read" in caplog.text


def test_the_network_of_a_failed_resume_is_as_it_was(tmp_path):
    training(tmp_path, epochs=1).run()
    engine = training(tmp_path, optimizer=one_group_each)
    before = engine.network.weight.detach().clone()
    with pytest.raises(ValueError, match="another optimiser"):
        engine.restore(tmp_path / "checkpoints")
    assert torch.equal(before, engine.network.weight)


def test_a_resumed_training_has_its_own_settings_and_never_another_accumulation(tmp_path, caplog):
    training(tmp_path, epochs=1).run()

    def decayed(parameters, lr):
        return torch.optim.SGD(parameters, lr, weight_decay=0.5)

    engine = training(tmp_path, optimizer=decayed, resume=tmp_path / "checkpoints")
    engine.run()
    assert engine.optimizer.param_groups[0]["weight_decay"] == 0.5
    assert "['weight_decay'] are taken from this run" in caplog.text
    with pytest.raises(ValueError, match=r"checkpoint_16.pt was written with accumulation=1, this run has 2"):
        training(tmp_path, accumulation=2, resume=tmp_path / "checkpoints").run()


@pytest.mark.parametrize("knobs", [{"interval": 0}, {"interval": 1, "keep": 0}])
def test_impossible_knobs_are_named(tmp_path, knobs):
    with pytest.raises(ValueError, match="must be at least 1"):
        Checkpoints(tmp_path, **knobs)
