from types import SimpleNamespace

import pytest
import torch
from ignite.engine import Events
from monai.data import MetaTensor
from monai.handlers import MeanDice, ValidationHandler, from_engine
from monai.transforms import AsDiscreted
from torch import nn
from torch.utils.data import DataLoader, Dataset

from medcl_monai.curves import cosine, polynomial
from medcl_monai.data.samplers import StreamSampler
from medcl_monai.engines.freezing import FrozenEncoder
from medcl_monai.engines.loop import epoch_length
from medcl_monai.engines.pretrainer import Pretrainer
from medcl_monai.engines.state import checkpoints
from medcl_monai.engines.trainer import Trainer
from medcl_monai.handlers.checkpoint import Checkpoints
from medcl_monai.handlers.schedule import Schedule
from medcl_monai.handlers.views_picture import ViewsPicture
from medcl_monai.methods.base import PretrainingNetwork


class Numbers(Dataset):
    """Samples that depend on the item and its seed."""

    def __len__(self):
        return 12

    def __getitem__(self, item):
        index, seed = item
        generator = torch.Generator().manual_seed(seed)
        image = torch.randn(1, 8, generator=generator) + index
        return {"image": image, "label": image.sum(1, keepdim=True) / 8}


def loader(batch_size=4, seed=0):
    data = Numbers()
    return DataLoader(data, batch_sampler=StreamSampler(len(data), batch_size, seed))


def segmenter():
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 1))


def with_statistics(network):
    network.train()(torch.randn(16, 1, 8))
    return network


def mean_squares(prediction, label):
    return {"squares": (prediction - label.flatten(1)).square().mean()}


def trainer(network, handlers=(), lr=0.05, epochs=2, length=5, optimizer=None, **knobs):
    optimizer = optimizer or torch.optim.SGD(network.parameters(), lr, momentum=0.9)
    return Trainer(
        device="cpu", max_epochs=epochs, epoch_length=length, network=network,
        train_data_loader=knobs.pop("train_data_loader", loader()), optimizer=optimizer,
        loss_function=knobs.pop("loss_function", mean_squares),
        train_handlers=[*handlers, Schedule(optimizer, warm_up=0.2)], **knobs,
    )


def weights(network):
    return [value.clone() for value in network.state_dict().values()]


def equal(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


class StopError(Exception):
    pass


def stop_at(engine, iteration):
    def stop(engine):
        if engine.state.iteration == iteration:
            raise StopError

    engine.add_event_handler(Events.ITERATION_COMPLETED, stop)


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("stop", range(3, 20, 3))
def test_a_killed_run_resumes_to_the_same_weights_bit_for_bit(tmp_path, stop, accumulation):
    knobs = {"epochs": 2, "length": 10, "accumulation": accumulation, "clip": 1.0, "seed": 5}
    whole = segmenter()
    trainer(whole, **knobs).run()
    killed = segmenter()
    engine = trainer(killed, [Checkpoints(tmp_path, 1)], **knobs)
    stop_at(engine, stop)
    with pytest.raises(StopError):
        engine.run()
    resumed = segmenter()
    torch.manual_seed(99)
    again = trainer(resumed, resume=tmp_path, **knobs)
    again.run()
    assert equal(weights(whole), weights(resumed))
    assert again.state.optimizer_steps == 20 // accumulation
    assert again.state.epoch == 2


def test_resuming_a_finished_run_trains_nothing(tmp_path):
    network = segmenter()
    trainer(network, [Checkpoints(tmp_path, 5)]).run()
    before = weights(network)
    trainer(network, resume=tmp_path).run()
    assert equal(before, weights(network))


def test_the_two_newest_checkpoints_stay_and_a_damaged_one_is_passed_over(tmp_path, caplog):
    network = segmenter()
    trainer(network, [Checkpoints(tmp_path, 2)]).run()
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint_10.pt", "checkpoint_8.pt"]
    (tmp_path / "checkpoint_10.pt").write_bytes(b"half")
    engine = trainer(segmenter(), resume=tmp_path)
    engine.restore(tmp_path)
    assert engine.state.optimizer_steps == 8
    assert "checkpoint_10.pt cannot be read" in caplog.text


def test_what_cannot_be_resumed_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint to resume from"):
        trainer(segmenter(), resume=tmp_path).run()
    network = segmenter()
    trainer(network, [Checkpoints(tmp_path, 5)]).run()
    other = nn.Sequential(nn.Flatten(), nn.Linear(8, 4), nn.Linear(4, 1))
    with pytest.raises(ValueError, match=r"is of another network: tensor '1.weight' is \(8, 8\) there, \(4, 8\)"):
        trainer(other, resume=tmp_path).run()
    torch.save({"weight": torch.zeros(1)}, tmp_path / "bare.pt")
    with pytest.raises(ValueError, match="is no checkpoint of a run: it holds"):
        trainer(network, resume=tmp_path / "bare.pt").run()


def test_accumulated_batches_are_one_large_batch():
    plain = nn.Sequential(nn.Flatten(), nn.Linear(8, 1))
    start = {name: value.clone() for name, value in plain.state_dict().items()}
    batches = [next(iter([batch])) for batch, _ in zip(loader(), range(4), strict=False)]
    large = [{key: torch.cat([batches[k][key], batches[k + 1][key]]) for key in batches[0]} for k in (0, 2)]
    results = []
    for data, length, accumulation in ((batches, 4, 2), (large, 2, 1)):
        plain.load_state_dict(start)
        trainer(plain, epochs=1, length=length, accumulation=accumulation, train_data_loader=data).run()
        results.append(weights(plain))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


def test_clipping_bounds_the_step():
    network = nn.Sequential(nn.Flatten(), nn.Linear(8, 1))
    before = torch.cat([value.flatten() for value in weights(network)])
    optimizer = torch.optim.SGD(network.parameters(), 1.0)
    trainer(network, epochs=1, length=1, clip=0.01, optimizer=optimizer).run()
    after = torch.cat([value.flatten() for value in weights(network)])
    assert 0.009 < float((after - before).norm()) < 0.0101


def test_a_second_round_gets_a_whole_schedule():
    network = segmenter()
    engine, rates = trainer(network, epochs=1, length=10), []
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda e: rates.append(e.optimizer.param_groups[0]["lr"]))
    engine.run()
    engine.state.max_epochs = 2
    engine.run()
    assert rates[:10] == rates[10:]
    assert max(rates) == pytest.approx(0.05)
    assert rates[0] == pytest.approx(0.025)
    assert rates[9] < 0.005


def test_decays_end_at_0():
    for decay in (cosine, polynomial):
        assert decay(0.0) == 1.0
        assert decay(1.0) == pytest.approx(0.0, abs=1e-12)


def test_a_frozen_random_encoder_whose_statistics_nobody_computed_is_refused():
    network = segmenter()
    engine = trainer(network, epochs=1, frozen=FrozenEncoder(network, ["1.", "2."], 1))
    with pytest.raises(ValueError, match=r"the batch norm '2' \(1 in all\) is frozen with statistics that were never"):
        engine.run()


def test_a_frozen_encoder_does_not_move_nor_do_its_norms():
    network = with_statistics(segmenter())
    before = {name: value.clone() for name, value in network.state_dict().items()}
    engine = trainer(network, epochs=1, lr=0.001, frozen=FrozenEncoder(network, ["1.", "2."], 1))
    engine.run()
    moved = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"4.weight", "4.bias"}
    engine.state.max_epochs = 2
    engine.run()
    moved = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert moved | {"1.bias"} == set(before)  # a bias before batch norm has no gradient but rounding


def test_a_loss_that_is_not_finite_stops_the_run_with_its_step_and_terms():
    engine = trainer(segmenter(), loss_function=lambda p, y: {"odd": mean_squares(p, y)["squares"] * torch.nan})
    with pytest.raises(ValueError, match=r"not finite at step 0 \(iteration 1\): {'odd': nan}"):
        engine.run()


def test_a_meta_tensor_is_refused():
    batch = {"image": MetaTensor(torch.zeros(4, 1, 8)), "label": torch.zeros(4)}
    engine = trainer(segmenter(), train_data_loader=[batch])
    with pytest.raises(ValueError, match=r"batch\['image'\] is a MetaTensor"):
        engine.run()


def test_the_output_is_a_list_of_one_dict_and_amp_leaves_the_loss_in_fp32():
    engine = trainer(segmenter(), epochs=1, length=1, amp=True)
    engine.run()
    (output,) = engine.state.output
    assert {"loss", "terms", "image", "label", "pred"} <= set(output)
    assert output["pred"].dtype == torch.bfloat16


def test_epochs_must_divide_steps():
    assert epoch_length(150, 10, 2) == 30
    for steps, epochs in ((15, 10), (0, 1), (10, 0)):
        with pytest.raises(ValueError, match="positive multiple"):
            epoch_length(steps, epochs)


@pytest.mark.parametrize("knobs", [{"accumulation": 0}, {"clip": 0.0}])
def test_impossible_knobs_are_named(knobs):
    with pytest.raises(ValueError, match="must be at least 1"):
        trainer(segmenter(), **knobs)


class Toy(PretrainingNetwork):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Linear(8, 2)
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self.seen = []

    def forward(self, views):
        return {"features": self.backbone(views["view_1"][:, 0])}

    def trained_parts(self):
        return ("weight", "bias")

    def update(self, outputs):
        self.updates += 1
        self.seen.append([output["features"].requires_grad for output in outputs])


def test_pre_training_makes_views_and_updates_once_per_step_with_all_its_batches():
    network = Toy()
    engine = Pretrainer(
        device="cpu", max_epochs=1, epoch_length=6, train_data_loader=loader(), network=network,
        views=lambda batch: ({"view_1": batch["image"] + torch.rand(1)}, batch), accumulation=3,
        optimizer=torch.optim.SGD(network.parameters(), 0.1),
        loss_function=lambda output, target: {"term": output["features"].square().mean()},
    )
    engine.run()
    assert int(network.updates) == 2
    assert network.seen == [[False] * 3] * 2
    assert set(engine.state.output[0]) == {"views", "target", "output", "terms", "loss"}


class Pictured(Toy):
    def forward(self, views):
        return super().forward({"view_1": views["view_1"][..., 0]})


def test_pictures_of_views_count_optimiser_steps():
    network, drawn = Pictured(), []
    engine = Pretrainer(
        device="cpu", max_epochs=1, epoch_length=8, train_data_loader=loader(), network=network, accumulation=2,
        views=lambda batch: ({"view_1": batch["image"][..., None]}, batch),
        optimizer=torch.optim.SGD(network.parameters(), 0.1), train_handlers=[ViewsPicture(3)],
        loss_function=lambda output, target: {"term": output["features"].square().mean()},
    )
    engine.add_event_handler(
        Events.ITERATION_COMPLETED, lambda e: drawn.append(bool(e.state.pictures)) or e.state.pictures.clear()
    )
    engine.run()
    assert drawn == [False, True, False, False, False, False, False, True]


def test_training_metrics_see_one_postprocessed_dict_per_sample():
    metric = MeanDice(output_transform=from_engine(["pred", "label"]))
    engine = Trainer(
        device="cpu", max_epochs=1, epoch_length=2, network=nn.Conv2d(1, 2, 1),
        optimizer=torch.optim.SGD([nn.Parameter(torch.zeros(1))]),
        train_data_loader=[{"image": torch.randn(3, 1, 4, 4), "label": torch.ones(3, 1, 4, 4, dtype=torch.uint8)}] * 2,
        loss_function=lambda prediction, label: prediction.square().mean(), key_train_metric={"dice": metric},
        postprocessing=AsDiscreted(["pred", "label"], argmax=[True, False], to_onehot=2),
    )
    nn.init.zeros_(engine.network.weight)
    with torch.no_grad():
        engine.network.bias.copy_(torch.tensor([0.0, 1.0]))
    engine.run()
    assert engine.state.metrics["dice"] == pytest.approx(1.0)
    assert [sample["pred"].shape for sample in engine.state.output] == [(2, 4, 4)] * 3
    assert float(engine.state.output[0]["loss"]) == pytest.approx(0.5)


def test_a_late_look_at_the_losses_names_the_first_that_was_not_finite():
    engine = trainer(segmenter())
    losses = [torch.tensor(value) for value in (1.0, torch.inf, torch.nan)]
    engine._unchecked = [(f"step {k}", loss, {"odd": loss}) for k, loss in enumerate(losses)]
    with pytest.raises(ValueError, match=r"not finite at step 1: {'odd': inf}"):
        engine.check_finite()
    engine.check_finite()


@pytest.mark.parametrize("loss", [lambda p, y: {}, lambda p, y: {"wide": p}])
def test_a_loss_of_no_scalar_terms_is_named(loss):
    with pytest.raises(ValueError, match=r"no terms|'wide' of the loss must be a scalar, got the shape \(4, 1\)"):
        trainer(segmenter(), loss_function=loss).run()


def test_an_epoch_of_unknown_or_odd_length_and_an_absent_encoder_are_named():
    with pytest.raises(ValueError, match="multiple of accumulation=2, got 5"):
        trainer(segmenter(), accumulation=2).run()
    with pytest.raises(ValueError, match="multiple of accumulation=1, got None"):
        trainer(segmenter(), length=None).run()
    with pytest.raises(ValueError, match=r"begins with one of \('down_',\), as '1.weight'"):
        FrozenEncoder(segmenter(), ["down_"], 1)
    with pytest.raises(ValueError, match="epochs must be 0 or more, got -1"):
        FrozenEncoder(segmenter(), ["1."], -1)


def test_a_run_that_ends_while_frozen_gives_the_gradients_back():
    network = with_statistics(segmenter())
    trainer(network, epochs=1, frozen=FrozenEncoder(network, ["1."], 5)).run()
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_clipping_counts_all_groups():
    network, norms = segmenter(), []
    groups = [{"params": [parameter]} for parameter in network.parameters()]
    optimizer = torch.optim.SGD(groups, 0.0)
    engine = trainer(network, epochs=1, length=1, optimizer=optimizer, clip=1e-3)
    optimizer.register_step_pre_hook(lambda *_: norms.extend(p.grad.norm() for p in network.parameters()))
    engine.run()
    assert float(torch.stack(norms).norm()) == pytest.approx(1e-3, rel=1e-3)


def test_a_frozen_encoder_leaves_what_the_user_froze_alone():
    network = segmenter()
    network[1].bias.requires_grad_(False)
    engine = trainer(network, epochs=2, frozen=FrozenEncoder(network, ["1."], 1))
    engine.run()
    assert network[1].weight.requires_grad
    assert not network[1].bias.requires_grad


def test_randomness_depends_on_seed_and_iteration_alone():
    def drawn(seed, disturb):
        values = []

        def loss(prediction, label):
            values.append(torch.rand(1))
            return prediction.square().mean()

        engine = trainer(segmenter(), epochs=1, seed=seed, loss_function=loss)
        engine.add_event_handler(Events.ITERATION_COMPLETED, lambda _: torch.rand(disturb))
        engine.run()
        return torch.cat(values)

    assert torch.equal(drawn(1, 0), drawn(1, 5))
    assert not torch.equal(drawn(1, 0), drawn(2, 0))
    assert len(set(drawn(1, 0).tolist())) == 5


@pytest.mark.parametrize(("interval", "epochs", "validated"), [(1, 3, [1, 2, 3]), (2, 3, [2, 3]), (5, 2, [2])])
def test_the_last_epoch_is_validated_whatever_the_interval(interval, epochs, validated):
    seen = []
    handler = ValidationHandler(interval)
    handler.validator = SimpleNamespace(run=seen.append)
    trainer(segmenter(), [handler], epochs=epochs).run()
    assert seen == validated
