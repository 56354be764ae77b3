"""What every method keeps, whatever it does: one suite, one line per method."""

import sys
from pathlib import Path

import pytest
import torch
from monai.networks.nets import BasicUNet, FlexibleUNet, SwinUNETR

from medcl_monai import (
    JCL,
    CropViews,
    DecorrelatedMoCo,
    DecorrelatedMoCoLoss,
    DecorrelatedMoCoViews,
    JCLLoss,
    JCLViews,
    NTXentLoss,
    PretrainingNetwork,
    RegressionContrast,
    RegressionContrastLoss,
    RegressionContrastViews,
    SwinMoCo,
    SwinMoCoLoss,
    SwinMoCoViews,
    SwinUNet,
    TermLoss,
    WhitenZCA,
    load_pretrained,
)

sys.path.insert(0, str(Path(__file__).parents[1] / "toys"))
from toys import ToySwin


def jcl(backbone):
    return JCL(backbone), JCLViews(), JCLLoss(), (8, 1, 128, 128)


def decorrelated_moco(backbone):
    network = DecorrelatedMoCo(
        backbone, WhitenZCA(512, 4), local_level="layer2", key_splits=2, queue_size=32, momentum=0.9
    )
    return network, DecorrelatedMoCoViews(CropViews((64, 64))), DecorrelatedMoCoLoss(), (8, 1, 64, 64)


def flexible_unet(classes=3):
    return FlexibleUNet(1, classes, "resnet10")


def toy_swin(backbone):
    return ToySwin(backbone), CropViews((64, 64)), NTXentLoss(), (4, 1, 64, 64)


def swin_unetr(classes=3):
    return SwinUNETR(1, classes, depths=(1, 1, 1, 1), num_heads=(1, 2, 4, 8), feature_size=12, spatial_dims=2)


def transformer_transfer(backbone):
    network = SwinMoCo(backbone, 32, 16, momentum=0.9, decoder_level=1, skip_drop=0.5)
    return network, SwinMoCoViews(CropViews((32, 32)), regions=16), SwinMoCoLoss(0.2, dense_weight=0.5), (8, 1, 32, 32)


def regression_vs_contrastive(backbone):
    return RegressionContrast(backbone, projector_width=32), RegressionContrastViews(4), RegressionContrastLoss(), (
        8, 1, 32, 32,
    )


def grouped(classes=3):
    return BasicUNet(2, 1, classes, features=(8, 8, 8, 16, 16, 8), norm=("group", {"num_groups": 4}))


def swin_unet(classes=3):
    return SwinUNet(2, 1, classes, patch_size=2, embed_dim=8, window_size=2)


METHODS = [jcl, decorrelated_moco, transformer_transfer, regression_vs_contrastive, toy_swin]
BACKBONES = {  # of the others: `unet`
    "decorrelated_moco": flexible_unet, "transformer_transfer": swin_unet,
    "regression_vs_contrastive": grouped, "toy_swin": swin_unetr,
}
COVERAGE = {"toy_swin": 0.1}  # the encoder's share of the backbone's elements; of the others above half
STATISTICS = ("running_mean", "running_var", "running_covariance", "num_batches_tracked")


@pytest.fixture(params=METHODS, ids=lambda method: method.__name__)
def chosen(request):
    return request.param


@pytest.fixture
def plain(chosen, unet):
    """Builds the method's backbone."""
    return BACKBONES.get(chosen.__name__, unet)


@pytest.fixture
def method(chosen, plain):
    return chosen(plain())


@pytest.fixture
def made(method):
    network, views, loss, size = method
    batch = {"image": torch.rand(size), "position": torch.rand(size[0]).double(), "subject": torch.arange(size[0])}
    return network, loss, *views(batch)


def total(network, loss, views, target):
    return sum(loss(network(views), target).values())


def test_all_terms_together_reach_every_trained_parameter_and_no_other(made):
    network, loss, views, target = made
    total(network, loss, views, target).backward()
    reached = {name for name, p in network.named_parameters() if p.grad is not None and float(p.grad.abs().sum()) > 0}
    assert reached == {name for name, p in network.named_parameters() if p.requires_grad}


def test_forward_is_repeatable_and_changes_only_the_statistics_of_norms(made):
    network, _, views, _ = made
    before = {name: value.clone() for name, value in network.state_dict().items()}
    found = []
    for _ in range(2):
        torch.manual_seed(0)
        found.append(network(views))
    first, second = found
    assert all(torch.equal(first[name], second[name]) for name in first)
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert all(name.endswith(STATISTICS) for name in changed)


def test_one_step_moves_exactly_the_trained_parts(made):
    network, loss, views, target = made
    before = {name: value.clone() for name, value in network.backbone.state_dict().items()}
    optimizer = torch.optim.SGD(network.parameters(), 0.1, weight_decay=0.01)
    total(network, loss, views, target).backward()
    optimizer.step()
    network.update([])
    moved = {name for name, value in network.backbone.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == set(network.trained_parts())


def test_shared_parts_load_into_a_plain_network_and_the_rest_starts_as_from_scratch(made, chosen, plain, tmp_path):
    network = made[0]
    weights = {name: network.backbone.state_dict()[name] for name in network.shared_parts()}
    torch.save(weights, tmp_path / "pretrained.pt")
    torch.manual_seed(1)
    scratch = plain(classes=6)
    torch.manual_seed(1)
    fine_tuned = plain(classes=6)
    report = load_pretrained(tmp_path / "pretrained.pt", fine_tuned, COVERAGE.get(chosen.__name__, 0.5))
    assert set(report.carried) == set(network.shared_parts())
    assert not report.unused
    assert not report.reshaped
    for name in report.missing:
        assert torch.equal(fine_tuned.state_dict()[name], scratch.state_dict()[name])


def test_the_state_dict_round_trips(made, method):
    network = made[0]
    state = {name: value.clone() for name, value in network.state_dict().items()}
    for parameter in network.parameters():
        parameter.data.zero_()
    network.load_state_dict(state)
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())


def test_the_contract_is_abstract_and_met(made):
    assert isinstance(made[0], PretrainingNetwork)
    assert set(made[0].shared_parts()) >= set(made[0].trained_parts())
    assert not any(name.endswith("index") for name in made[0].trained_parts())
    with pytest.raises(TypeError, match="abstract"):
        PretrainingNetwork()


def test_what_the_monitor_follows_is_what_network_and_loss_give(made):
    network, loss, views, target = made
    output, watched = network(views), network.watched()
    assert isinstance(loss, TermLoss)
    assert set(watched.keys) | {key for pair in watched.pairs for key in pair} <= set(output)
    assert loss.contrasts
    assert set(loss.contrasts) <= set(loss(output, target))


def test_a_step_on_the_cpu_asks_for_no_cuda(made, monkeypatch):
    def refuse():
        raise AssertionError("CUDA was asked for")

    monkeypatch.setattr(torch.cuda, "_lazy_init", refuse)
    network, loss, views, target = made
    total(network, loss, views, target).backward()
    network.update([])


def test_five_steps_lower_the_loss(made):
    network, loss, views, target = made
    optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.9)
    values = []
    for _ in range(6):
        optimizer.zero_grad()
        value = total(network, loss, views, target)
        value.backward()
        optimizer.step()
        network.update([])
        values.append(float(value.detach()))
    assert values[-1] < values[0]
