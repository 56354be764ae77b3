import math
from collections import deque
from datetime import timedelta
from itertools import count
from typing import NamedTuple

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from ignite.engine import Events
from matplotlib.figure import Figure
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from medcl_monai.engines.pretrainer import Pretrainer
from medcl_monai.engines.trainer import Trainer
from medcl_monai.handlers.collapse import CollapseMonitor, evenly, pool, rows_for_rank, terms_of_equal_embeddings
from medcl_monai.losses.ntxent import NTXentLoss
from medcl_monai.losses.positional import PositionalContrastiveLoss
from medcl_monai.losses.terms import TermLoss
from medcl_monai.methods.base import PretrainingNetwork
from medcl_monai.methods.jcl import JCLLoss

ONSET, BAR = 7, 50
KEYS, TERMS = ("view_1", "view_2"), ("contrast",)


class Scaled(PretrainingNetwork):
    """Gives its views, times weights that begin at 1; from a step on what `collapse` makes of them."""

    def __init__(self, width, collapse, onset):
        super().__init__()
        self.backbone = nn.Linear(width, 1, bias=False)
        nn.init.ones_(self.backbone.weight)
        self.collapse, self.onset, self.steps = collapse, onset, 0

    def forward(self, views):
        weight = self.backbone.weight[0]
        output = {name: view * weight.reshape(-1, *[1] * (view.ndim - 2)) for name, view in views.items()}
        output["features"] = output["view_1"].detach()
        changed = {name: self.collapse(output[name]) for name in views if self.steps >= self.onset}
        return {**output, **changed, "subject": torch.arange(len(output["features"]))}

    def trained_parts(self):
        return ("weight",)

    def update(self, outputs):
        self.steps += 1


def views_of(batch):
    return {name: batch["image"] + torch.randn_like(batch["image"]) for name in KEYS}, {"position": batch["position"]}


def training(
    monitor=None, collapse=lambda z: z, onset=ONSET, width=64, batch=16, steps=ONSET + BAR, loss=None, seed=0,
    wrap=lambda network: network, shape=None, **knobs,
):
    """An engine that notes the figures and pictures of each look, and the steps with alarms."""
    torch.manual_seed(seed)
    network, shape = wrap(Scaled(width, collapse, onset)), (batch, *(shape or (width,)))
    engine = Pretrainer(
        device="cpu", max_epochs=1, epoch_length=steps, seed=seed, network=network, views=views_of,
        train_data_loader=[{"image": torch.randn(shape), "position": torch.rand(batch)} for _ in range(steps)],
        optimizer=torch.optim.SGD(network.parameters(), 0.01), loss_function=loss or NTXentLoss(),
        train_handlers=[] if monitor is None else [monitor], **knobs,
    )
    engine.figures, engine.pictures, engine.alarmed = {}, {}, []

    @engine.on(Events.ITERATION_COMPLETED)
    def note(engine):
        step, state = engine.state.optimizer_steps, engine.state
        if "collapse/alarms" in state.figures:
            engine.figures[step] = dict(state.figures)
            engine.pictures |= dict.fromkeys([step] if state.pictures else (), state.pictures.get("spectrum"))
            engine.alarmed += [step] if state.figures["collapse/alarms"] else []
        state.figures.clear()
        state.pictures.clear()

    engine.run()
    return engine


def constant(z):
    return z * 0 + z[:1].detach()


def low_rank(rank, dtype=torch.float32):
    def project(z):
        basis = torch.linalg.qr(torch.randn(z.shape[1], rank, generator=torch.Generator().manual_seed(0)))[0]
        return (z @ basis @ basis.T).to(dtype)

    return project


@pytest.mark.parametrize("collapse", [constant, low_rank(1), low_rank(8), low_rank(8, torch.bfloat16)])
def test_a_collapse_is_flagged_within_50_steps_and_not_before_it(collapse):
    engine = training(CollapseMonitor(10, KEYS), collapse, width=512)
    assert ONSET < engine.alarmed[0] <= ONSET + BAR
    assert engine.alarmed == [step for step in engine.figures if step >= engine.alarmed[0]]


@pytest.mark.parametrize(("batch", "width"), [(16, 64), (16, 512), (4, 128), (64, 2048)])
def test_healthy_embeddings_raise_no_alarm(batch, width):
    engine = training(CollapseMonitor(10, KEYS, [KEYS], TERMS), batch=batch, width=width, steps=31)
    assert list(engine.figures) == [1, 11, 21, 31]
    assert not engine.alarmed


def test_rows_of_several_batches_are_pooled_for_a_rank():
    engine = training(CollapseMonitor(1, ["view_1"]), width=512, steps=10)
    ranks = [figures["view_1.numerical_rank"] for figures in engine.figures.values()]
    assert ranks == [16 * min(step, 8) for step in range(1, 11)]  # 128 rows are kept, 103 are judged: 5 % are 26


@pytest.mark.parametrize("width", [16, 128, 2048])
def test_the_pool_forgets_whole_steps_as_soon_as_enough_rows_stay(width):
    steps = deque()
    for number in range(100):
        pool(steps, torch.full((24, width), float(number)))
    rows = sum(map(len, steps))
    assert max(128, rows_for_rank(width)) <= rows < max(128, rows_for_rank(width)) + 24
    assert [float(step[0, 0]) for step in steps] == list(range(100 - len(steps), 100))


def test_of_maps_the_same_sites_of_both_views_are_taken_from_all_samples():
    place = torch.arange(6 * 4 * 5).reshape(6, 1, 4, 5).float()
    rows = evenly(torch.cat([place, place * 2], 1), 30)
    assert rows.shape == (30, 2)
    assert torch.equal(rows[:, 1], rows[:, 0] * 2)
    assert rows[:, 0].tolist() == [number * 119 // 29 for number in range(30)]
    few = torch.randn(6, 3)
    assert torch.equal(evenly(few, 30), few)


def test_a_term_at_its_value_for_equal_embeddings_for_20_steps_is_an_alarm_though_features_are_healthy(caplog):
    monitor = CollapseMonitor(1, ["features"], terms=TERMS)
    engine = training(monitor, lambda z: z * 0 + 1, onset=0, steps=25)
    assert engine.alarmed == [20, 21, 22, 23, 24, 25]
    assert "the term contrast has been within 0.6% of its value for equal embeddings for 20 steps" in caplog.text
    assert engine.figures[20]["contrast.from_equal"] == pytest.approx(0, abs=1e-5)
    assert engine.figures[20]["features.numerical_rank"] == 64


@pytest.mark.parametrize(("interval", "first"), [(1, 35), (10, 41)])
def test_a_step_away_from_it_starts_the_count_anew(interval, first):
    """Healthy at step 15 alone: the twentieth step near it is then the 35th; from look to look the 40th."""
    calls = count()
    monitor = CollapseMonitor(interval, ["features"], terms=TERMS)
    engine = training(monitor, lambda z: z if next(calls) // 2 == 14 else z * 0 + 1, onset=0, steps=45)
    assert engine.alarmed[0] == first


@pytest.mark.parametrize("batch", [4, 16])
def test_equal_embeddings_give_the_terms_of_jcl_the_weight_times_ln_2n_minus_1(batch):
    shapes = {"image": (batch, 8), "pixel": (batch, 8, 3, 2), "feature": (batch, 6, 2, 2)}
    branches = ("auxiliary", "dominant")
    output = {f"{level}_{branch}": torch.randn(shape) for level, shape in shapes.items() for branch in branches}
    loss, target = JCLLoss(image_weight=0.7, pixel_weight=0.3), {"position": torch.rand(batch).double()}
    terms = terms_of_equal_embeddings(loss, output, target)
    assert float(terms["image"]) == pytest.approx(0.7 * math.log(2 * batch - 1), abs=1e-5)
    assert float(terms["pixel"]) == pytest.approx(0.3 * math.log(2 * batch - 1), abs=1e-5)


def test_only_embeddings_are_replaced_by_unit_vectors_and_a_loss_that_draws_leaves_the_generator():
    seen = {}

    def loss(output, target):
        seen.update(output, number=torch.rand(()))
        return {"contrast": target}

    known = {"subject": torch.arange(3), "place": torch.rand(3), "cells": torch.ones(3, 2, dtype=torch.int64)}
    output = {"query": torch.randn(3, 4), "map": torch.randn(3, 4, 2, 2), **known}
    before = torch.get_rng_state()
    assert terms_of_equal_embeddings(loss, output, torch.ones(())) == {"contrast": 1}
    for name in ("query", "map"):
        torch.testing.assert_close(seen[name].norm(dim=1), torch.ones_like(output[name][:, 0]))
        assert len(seen[name].unique()) == 1
    assert all(seen[name] is value for name, value in known.items())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("weight", [0.02, 1.0, 50.0])
def test_the_bar_of_a_term_is_a_share_of_its_value_for_equal_embeddings(weight):
    knobs = {"steps": 25, "loss": NTXentLoss(0.5, weight)}
    healthy = training(CollapseMonitor(1, ["features"], terms=TERMS), **knobs)
    assert not healthy.alarmed
    equal = training(CollapseMonitor(1, ["features"], terms=TERMS), lambda z: z * 0 + 1, 0, **knobs)
    assert equal.alarmed[0] == 20


def one_vector_per_sample(z):
    return z.mean((2, 3), keepdim=True).expand_as(z)


def mean_of_view(output, _):
    return output["view_1"].mean()


def test_a_map_that_is_one_vector_at_all_places_of_each_sample_is_an_alarm():
    """Its rank and spread over samples are healthy: only the variance within samples tells."""
    monitor = CollapseMonitor(10, ["view_1"], terms=())
    engine = training(monitor, one_vector_per_sample, shape=(64, 6, 6), loss=mean_of_view)
    figures = engine.figures[max(engine.figures)]
    assert engine.alarmed == [step for step in engine.figures if step > ONSET]
    assert figures["view_1.numerical_rank"] == 32  # two steps of 16 samples are pooled
    assert figures["view_1.within_samples"] == pytest.approx(0, abs=1e-6)
    healthy = training(CollapseMonitor(10, ["view_1"]), shape=(64, 6, 6), loss=mean_of_view)
    assert not healthy.alarmed


def test_a_resumed_monitor_knows_the_variance_within_samples_at_the_start(tmp_path):
    before = CollapseMonitor(1, ["view_1"])
    training(before, shape=(64, 6, 6), loss=mean_of_view, steps=2)
    torch.save(before.state_dict(), tmp_path / "state.pt")
    after = CollapseMonitor(1, ["view_1"])
    after.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert training(after, one_vector_per_sample, 0, shape=(64, 6, 6), loss=mean_of_view, steps=1).alarmed == [1]


def test_a_network_and_a_loss_say_themselves_what_is_watched():
    engine = training(CollapseMonitor(1), steps=1)
    assert set(engine.figures[1]) >= {"features.effective_rank", "contrast.from_equal"}
    assert "view_1.effective_rank" not in engine.figures[1]


class Segmenter(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(1, 4, 3, padding=1)

    def forward(self, x):
        features = self.layer(x)
        return {"pred": features[:, :2], "tap": features, "nested": {"inner": [features]}}


def test_a_supervised_training_is_followed_as_a_pre_training_is():
    batch = {"image": torch.randn(4, 1, 8, 8), "label": torch.randint(0, 2, (4, 1, 8, 8))}
    network = Segmenter()
    engine = Trainer(
        device="cpu", max_epochs=1, epoch_length=3, network=network, train_data_loader=[batch] * 3,
        optimizer=torch.optim.SGD(network.parameters(), 0.01), train_handlers=[CollapseMonitor(1, ["tap"])],
        loss_function=lambda output, label: {"squares": (output["pred"] - label).square().mean()},
        postprocessing=lambda sample: sample,
    )
    engine.run()
    assert engine.state.figures["tap.effective_rank"] > 1
    sample = engine.state.output[0]
    assert sample["pred"].shape == (2, 8, 8)
    assert sample["output"]["tap"].shape == (4, 4, 8, 8)
    assert not sample["output"]["nested"]["inner"][0].requires_grad
    assert torch.equal(sample["target"], batch["label"])
    with pytest.raises(ValueError, match="Segmenter and function do not say what to watch: give keys"):
        Trainer(
            device="cpu", max_epochs=1, epoch_length=1, network=network, train_data_loader=[batch],
            optimizer=torch.optim.SGD(network.parameters(), 0.01), train_handlers=[CollapseMonitor(1)],
            loss_function=lambda output, label: output["pred"].mean(),
        ).run()


class Pair(NamedTuple):
    first: torch.Tensor
    second: torch.Tensor


def test_a_loss_says_what_to_watch_where_the_network_is_a_plain_segmenter():
    class Squares(TermLoss):
        watched, contrasts = ("tap",), ("squares",)

        def forward(self, output, target):
            return {"squares": output["pair"].first.square().mean()}

    class Paired(Segmenter):
        def forward(self, x):
            output = super().forward(x)
            return {**output, "pair": Pair(output["tap"], output["tap"])}

    batch, network = {"image": torch.randn(4, 1, 8, 8), "label": torch.zeros(4, 1, 8, 8)}, Paired()
    engine = Trainer(
        device="cpu", max_epochs=1, epoch_length=2, network=network, train_data_loader=[batch] * 2,
        optimizer=torch.optim.SGD(network.parameters(), 0.01), loss_function=Squares(),
        train_handlers=[CollapseMonitor(1)],
    )
    engine.run()
    assert engine.state.figures["tap.effective_rank"] > 0
    assert isinstance(engine.state.output[0]["output"]["pair"], Pair)


def test_what_a_network_or_a_loss_does_not_give_is_left_out():
    engine = training(CollapseMonitor(1, ["view_1", "off"], [["off", "view_1"]], ["contrast", "other"]), steps=2)
    assert set(engine.figures[2]) == {
        "collapse/alarms", "contrast.from_equal", "view_1.effective_rank", "view_1.numerical_rank",
        "view_1.participation_ratio", "view_1.feature_spread",
    }
    with pytest.raises(ValueError, match="at least 1 step, got 0"):
        CollapseMonitor(0)


def test_figures_tell_a_line_from_a_ball():
    both = (lambda z: z, low_rank(1))
    ball, line = (training(CollapseMonitor(1, KEYS, [KEYS]), each, 0, steps=8).figures[8] for each in both)
    for figure in ("effective_rank", "numerical_rank", "participation_ratio"):
        assert line[f"view_1.{figure}"] == pytest.approx(1, abs=1e-3)  # in fp32 rounding would count
        assert ball[f"view_1.{figure}"] > 32
    assert ball["view_1.uniformity"] < line["view_1.uniformity"]
    assert 0 < ball["view_1.alignment"] < 2


def test_each_cause_is_warned_of_once_with_its_figure_and_what_to_do(caplog):
    engine = training(CollapseMonitor(10, ["view_1"], terms=TERMS), lambda z: z * 0 + 1, width=512)
    warned = [record.message for record in caplog.records if "collapse" in record.message]
    assert len(warned) == 3
    assert all("lower learning_rate" in message and "docs/diagnostics.md" in message for message in warned)
    assert any("the term contrast has" in message for message in warned)
    assert any("view_1 has a spread of 0, below 1% of the" in message for message in warned)
    assert any("view_1 has a numerical rank of 1, below 5% of its width 512" in message for message in warned)
    assert engine.figures[51]["collapse/alarms"] == 3


def test_the_spectrum_is_drawn_now_and_then_and_at_a_new_alarm():
    engine = training(CollapseMonitor(1, KEYS), constant, steps=12)
    assert all(isinstance(picture, Figure) for picture in engine.pictures.values())
    assert {1, 6, 8, 11} <= set(engine.pictures)
    assert len(engine.pictures) < len(engine.figures)


def test_a_resumed_monitor_knows_the_spread_at_the_start_and_the_steps_so_far(tmp_path, caplog):
    before = CollapseMonitor(1, KEYS, terms=TERMS)
    training(before, lambda z: z * 0 + 1, onset=1, steps=16)
    torch.save(before.state_dict(), tmp_path / "state.pt")
    caplog.clear()
    after = CollapseMonitor(1, KEYS, terms=TERMS)
    after.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    engine = training(after, lambda z: z * 0 + 1, onset=0, steps=6)
    assert engine.figures[1]["view_1.feature_spread"] == pytest.approx(0, abs=1e-6)
    assert "view_1 has a spread" in caplog.text
    assert [figures["collapse/alarms"] for figures in engine.figures.values()] == [4, 4, 4, 4, 5, 5]


def test_the_monitor_leaves_the_running_statistics_of_a_loss():
    class Normed(TermLoss):
        contrasts = TERMS

        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(64)

        def forward(self, output, target):
            return NTXentLoss()({name: self.norm(output[name]) for name in KEYS})

    found = []
    for monitor in (None, CollapseMonitor(1, KEYS)):
        engine = training(monitor, steps=4, loss=Normed())
        found.append({**engine.loss_function.state_dict(), **engine.network.state_dict()})
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


def test_nested_outputs_are_followed():
    output = {"view_1": torch.randn(4, 8), "nested": {"maps": [torch.randn(4, 8, 2, 2)]}}
    terms = terms_of_equal_embeddings(lambda out, _: out["nested"]["maps"][0].std(), output, None)
    assert float(terms["loss"]) == pytest.approx(0, abs=1e-6)


def test_only_optimiser_steps_count():
    engine = training(CollapseMonitor(1, ["features"], terms=TERMS), lambda z: z * 0 + 1, 0, steps=42, accumulation=2)
    assert list(engine.figures) == list(range(1, 22))
    assert engine.alarmed == [20, 21]


def test_training_is_the_same_bit_for_bit_with_and_without_it():
    def loss(output, target):
        contrast = PositionalContrastiveLoss()(output, target)["contrast"]
        return {"contrast": contrast, "noise": (output["view_1"] * torch.rand(())).square().mean()}

    results = []
    for monitor in (None, CollapseMonitor(2, KEYS, [KEYS], ("contrast", "noise"))):
        engine = training(monitor, steps=9, loss=loss)
        results.append((engine.network.backbone.weight.detach(), torch.get_rng_state(), engine.state.output[0]["loss"]))
    assert not torch.equal(results[0][0], torch.ones(1, 64))
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_embeddings_that_are_not_finite_do_not_end_a_training():
    def loss(output, target):
        return {"finite": output["view_1"].nan_to_num(0).mean()}

    engine = training(CollapseMonitor(1, ["view_1"]), lambda z: z * math.nan, onset=0, steps=1, loss=loss)
    assert engine.figures[1]["view_1.numerical_rank"] == 0


def in_each(rank, folder):
    timeout = timedelta(seconds=60)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2, timeout=timeout)
    torch.set_num_threads(1)

    def loss(output, target):
        contrast = PositionalContrastiveLoss()(output, target)["contrast"]
        return {"contrast": contrast + rank * output["view_1"].std()}  # 0 for equal embeddings

    engine = training(
        CollapseMonitor(5, ["features"], terms=TERMS), lambda z: z * 0 + torch.arange(1, 17)[:, None], onset=0,
        seed=rank, wrap=DistributedDataParallel, loss=loss, steps=11,
    )
    torch.save([figures["contrast.from_equal"] for figures in engine.figures.values()], folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.distributed
def test_processes_agree_on_when_a_term_is_near_its_value_for_equal_embeddings(tmp_path):
    """By its own embeddings one of the two would ask at every step, and wait for the other's rows for ever."""
    mp.spawn(in_each, (tmp_path,), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert first == second
    assert len(first) == 3
    assert min(first) > 1
