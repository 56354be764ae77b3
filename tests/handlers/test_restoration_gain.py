"""The gain of a restoration over the corrupted image itself."""

import pytest
import torch
from ignite.engine import Engine
from monai.engines.utils import IterationEvents

from medcl_monai.handlers.restoration_gain import RestorationGain
from medcl_monai.losses.restoration import restoration
from medcl_monai.methods.regression_vs_contrastive import RegressionContrastLoss


def looked(restored, views, target, weight=0.5, **weights):
    """The figures after one step with this restoration."""
    loss, figures = RegressionContrastLoss(weight, unchanged_weight=0.3, **weights), {}
    output = {} if restored is None else {"restored": restored}

    def step(engine, batch):
        terms = loss.restoration(output, target)
        engine.state.output = [{"terms": terms, "views": views, "target": target, "output": output}]
        engine.fire_event(IterationEvents.LOSS_COMPLETED)
        return engine.state.output

    engine = Engine(step)
    engine.register_events(*IterationEvents)
    engine.loss_function, engine.due = loss, lambda interval: True
    engine.state.figures = figures
    RestorationGain(1).attach(engine)
    engine.run([0], 1)
    return figures


@pytest.fixture
def made():
    torch.manual_seed(0)
    image, corrupted = torch.rand(2, 1, 8, 8), torch.rand(2, 1, 8, 8)
    return {"corrupted": corrupted}, {"image": image, "changed": torch.rand(2, 1, 8, 8) < 0.4}


def test_a_copy_gains_nothing_and_the_image_itself_everything(made):
    views, target = made
    assert looked(views["corrupted"], views, target) == {"restoration_gain": 0.0}
    assert looked(target["image"], views, target) == {"restoration_gain": 1.0}


def test_the_gain_is_that_of_the_loss_whatever_its_weight(made):
    views, target = made
    half = (views["corrupted"] + target["image"]) / 2
    images = half, views["corrupted"]
    losses = [float(restoration(image, target["image"], target["changed"], 0.3)) for image in images]
    assert looked(half, views, target)["restoration_gain"] == pytest.approx(1 - losses[0] / losses[1])
    assert looked(half, views, target, weight=3.0)["restoration_gain"] == pytest.approx(0.75)


def test_without_restoration_or_corruption_nothing_is_written(made):
    views, target = made
    assert looked(None, views, target, weight=0.0) == {}
    assert looked(target["image"], {"corrupted": target["image"]}, target) == {}


def test_impossible_settings_are_named():
    with pytest.raises(ValueError, match="interval must be at least 1 step, got 0"):
        RestorationGain(0)
    engine = Engine(lambda engine, batch: None)
    engine.register_events(*IterationEvents)
    engine.loss_function = torch.nn.MSELoss()
    RestorationGain(1).attach(engine)
    with pytest.raises(ValueError, match="the loss must have a restoration loss, got MSELoss"):
        engine.run([0], 1)
