"""What every supervised method keeps, whatever its loss reads: one suite, one line per method."""

import sys
from pathlib import Path

import pytest
import torch
from monai.networks.nets import BasicUNet

from medcl_monai import (
    FeatureTaps,
    LabelBoxes,
    PDCRLoss,
    SegmentationLoss,
    TermLoss,
    Trainer,
    insert_uafs,
    parameter_groups,
)
from medcl_monai.handlers.checkpoint import Checkpoints
from medcl_monai.handlers.collapse import CollapseMonitor

sys.path.insert(0, str(Path(__file__).parents[1] / "toys"))
from toys import Tap, TapLoss

CLASSES = 3


def toy(network):
    """Network, inferer of the trainer, loss, and the key of a map that the loss reads."""
    return network, Tap("down_1"), TapLoss(SegmentationLoss(torch.full((CLASSES,), 1 / CLASSES)), width=8), "tap"


def pdcr_uafs(network):
    boxes = LabelBoxes({"down_1": [3, 5], "down_2": [3, 5]}, CLASSES, 16)
    segmentation = SegmentationLoss(torch.full((CLASSES,), 1 / CLASSES))
    loss = PDCRLoss(segmentation, boxes, 0.1, cross_weight=0.1, cross_channels={"down_1": 8, "down_2": 16})
    sites = [f"upcat_{k}.convs" for k in (4, 3, 2, 1)]
    return insert_uafs(network, sites), FeatureTaps(["down_1", "down_2"]), loss, "down_2"


METHODS = [toy, pdcr_uafs]


@pytest.fixture(params=METHODS, ids=lambda method: method.__name__)
def method(request):
    torch.manual_seed(0)
    return request.param(BasicUNet(2, 1, CLASSES, features=(4, 8, 16, 32, 64, 4), norm="batch"))


@pytest.fixture
def batch():
    image = torch.randn(4, 1, 32, 32)
    return {"image": image, "label": (image > 0).long() + (image > 1).long()}


def trained(method, batch, steps, **knobs):
    network, inferer, loss, _ = method
    groups = parameter_groups(network, 0.01, loss=loss)
    engine = Trainer(
        device="cpu", max_epochs=1, epoch_length=steps, train_data_loader=[batch] * steps, network=network,
        optimizer=torch.optim.AdamW(groups), loss_function=loss, inferer=inferer, **knobs,
    )
    engine.run()
    return engine


def test_all_terms_together_reach_every_parameter_of_network_and_loss(method, batch):
    network, inferer, loss, _ = method
    terms = loss(inferer(batch["image"], network), batch["label"])
    assert isinstance(loss, TermLoss)
    assert set(loss.contrasts) <= set(terms)
    sum(terms.values()).backward()
    named = [*network.named_parameters(), *loss.named_parameters()]
    assert [name for name, parameter in named if parameter.requires_grad and parameter.grad is None] == []


def test_the_segmenter_stays_the_plain_network(method, batch):
    network, inferer, _, _ = method
    before = list(network.state_dict())
    assert torch.equal(inferer(batch["image"], network.eval())["pred"], network(batch["image"]))
    trained(method, batch, 1)
    assert list(network.state_dict()) == before
    assert isinstance(network(batch["image"]), torch.Tensor)
    assert not [module for module in network.modules() if module._forward_hooks]


def test_the_parameters_of_the_loss_move_and_a_checkpoint_holds_them(method, batch):
    loss = method[2]
    before = {name: value.clone() for name, value in loss.named_parameters()}
    engine = trained(method, batch, 2)
    assert [name for name, value in loss.named_parameters() if torch.equal(value, before[name])] == []
    state = engine.checkpoint()["loss"]
    assert all(torch.equal(value, loss.state_dict()[name]) for name, value in state.items())


def test_a_resumed_training_takes_over_the_parameters_of_the_loss(method, batch, tmp_path):
    loss = method[2]
    trained(method, batch, 2, train_handlers=[Checkpoints(tmp_path, 2)])
    kept = {name: value.clone() for name, value in loss.state_dict().items()}
    for parameter in loss.parameters():
        parameter.data.zero_()
    trained(method, batch, 2, resume=tmp_path)
    assert all(torch.equal(value, kept[name]) for name, value in loss.state_dict().items())


def test_steps_lower_the_loss_and_nothing_that_is_left_holds_a_graph(method, batch):
    network, inferer, loss, key = method
    first = float(sum(loss(inferer(batch["image"], network.train()), batch["label"]).values()).detach())
    engine = trained(method, batch, 12, train_handlers=[CollapseMonitor(1, [key])])
    (left,) = engine.state.output
    assert float(left["loss"]) < first
    assert set(left) >= {"image", "label", "pred", "output", "target", "terms", "loss"}
    tensors = [left["pred"], *left["output"].values(), *left["terms"].values()]
    assert not any(tensor.requires_grad for tensor in tensors)
    assert engine.state.figures[f"{key}.effective_rank"] > 0
