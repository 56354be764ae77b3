"""What every method keeps, whatever it does: one suite, one line per method."""

import pytest
import torch

from medcl_monai import JCL, JCLLoss, JCLViews, PretrainingNetwork, load_pretrained


def jcl(unet):
    return JCL(unet()), JCLViews(), JCLLoss(), (8, 1, 128, 128)


METHODS = [jcl]


@pytest.fixture(params=METHODS, ids=lambda method: method.__name__)
def method(request, unet):
    return request.param(unet)


@pytest.fixture
def made(method):
    network, views, loss, size = method
    batch = {"image": torch.randn(size), "position": torch.rand(size[0]).double(), "subject": torch.arange(size[0])}
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
    first, second = network(views), network(views)
    assert all(torch.equal(first[name], second[name]) for name in first)
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert all(name.endswith(("running_mean", "running_var", "num_batches_tracked")) for name in changed)


def test_one_step_moves_exactly_the_trained_parts(made):
    network, loss, views, target = made
    before = {name: value.clone() for name, value in network.backbone.state_dict().items()}
    optimizer = torch.optim.SGD(network.parameters(), 0.1, weight_decay=0.01)
    total(network, loss, views, target).backward()
    optimizer.step()
    network.update([])
    moved = {name for name, value in network.backbone.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == set(network.trained_parts())


def test_shared_parts_load_into_a_plain_network_and_the_rest_starts_as_from_scratch(made, unet, tmp_path):
    network = made[0]
    weights = {name: network.backbone.state_dict()[name] for name in network.shared_parts()}
    torch.save(weights, tmp_path / "pretrained.pt")
    torch.manual_seed(1)
    scratch = unet(classes=6)
    torch.manual_seed(1)
    plain = unet(classes=6)
    report = load_pretrained(tmp_path / "pretrained.pt", plain, 0.5)
    assert set(report.carried) == set(network.shared_parts())
    assert not report.unused
    assert not report.reshaped
    for name in report.missing:
        assert torch.equal(plain.state_dict()[name], scratch.state_dict()[name])


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
