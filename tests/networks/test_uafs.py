import copy
import pickle

import pytest
import torch
from monai.networks.nets import BasicUNet, DynUNet, SegResNet, SwinUNETR, UNet

from medcl_monai import UAFS, insert_uafs, load_pretrained

pytestmark = pytest.mark.filterwarnings(
    "ignore::torch.jit.TracerWarning", "ignore:Converting a tensor", "ignore:The TorchScript type system",
    "ignore::DeprecationWarning", "ignore::FutureWarning",
)
GROUP = ("group", {"num_groups": 4})


def basic_unet(dims):
    return BasicUNet(dims, 1, 3, features=(16, 32, 64, 128, 128, 16), act=("relu", {"inplace": True}), norm=GROUP)


def unet(dims):
    return UNet(dims, 1, 3, (8, 16, 32, 64), (2, 2, 2), num_res_units=2)


def dynunet(dims, **deep):
    return DynUNet(dims, 1, 3, [3] * 4, [1, 2, 2, 2], [2, 2, 2], filters=[8, 16, 32, 64], **deep)


def deep_dynunet(dims):
    return dynunet(dims, deep_supervision=True, deep_supr_num=2)


def segresnet(dims):
    return SegResNet(dims, 8, 1, 3)


def swin_unetr(dims):
    return SwinUNETR(1, 3, depths=(1, 1, 1, 1), feature_size=12, spatial_dims=dims)


ROWS = [  # network, sites, whether the plain network scripts
    (basic_unet, [f"upcat_{k}.convs" for k in (4, 3, 2, 1)] + ["conv_0", "down_1", "down_2", "down_3", "down_4"], True),
    (unet, ["model.1.submodule.2", "model.1.submodule.1.submodule.2"], True),
    (dynunet, [f"upsamples.{k}.conv_block" for k in (0, 1, 2)], True),
    (deep_dynunet, ["upsamples.0.conv_block", "upsamples.1.conv_block"], False),
    (segresnet, [f"up_layers.{k}" for k in (0, 1, 2)], True),
    (swin_unetr, [f"decoder{k}.conv_block" for k in (5, 4, 3, 2, 1)], False),
]
SLOW, LONG = [pytest.mark.slow], [(swin_unetr, 3)]
rows = pytest.mark.parametrize(
    ("build", "sites", "scripts", "dims"),
    [
        pytest.param(*row, dims, id=f"{row[0].__name__}-{dims}d", marks=SLOW if (row[0], dims) in LONG else [])
        for row in ROWS for dims in (2, 3)
    ],
)


def image(build, dims):
    return torch.randn(1, 1, *[64 if build is swin_unetr else 32 if dims == 2 else 16] * dims)


@rows
def test_the_block_is_the_identity_at_its_start_and_leaves_every_name(build, sites, scripts, dims, tmp_path):
    torch.manual_seed(0)
    plain = build(dims).eval()
    network = copy.deepcopy(plain)
    assert insert_uafs(network, sites) is network
    x = image(build, dims)
    fired = []
    for name, module in network.named_modules():
        if isinstance(module, UAFS):
            module.register_forward_hook(lambda *_, name=name: fired.append(name))
    with torch.no_grad():
        assert torch.equal(network(x), plain(x))
    assert sorted(fired) == sorted(f"{site}.uafs" for site in sites)
    before, after = set(plain.state_dict()), set(network.state_dict())
    assert before <= after
    tensors = {id(value) for name, value in network.named_parameters() if "uafs" in name}
    assert len(tensors) == 6 * len(sites)
    torch.save(plain.state_dict(), tmp_path / "plain.pt")
    report = load_pretrained(tmp_path / "plain.pt", insert_uafs(build(dims), sites), 0.5)
    assert report.unused == ()
    assert set(report.missing) == after - before == {name for name in after if ".uafs." in name}


@rows
def test_script_trace_copy_and_pickle_keep_the_block(build, sites, scripts, dims):
    torch.manual_seed(0)
    network = insert_uafs(build(dims).eval(), sites)
    x = image(build, dims)
    copied, pickled = copy.deepcopy(network), pickle.loads(pickle.dumps(network))
    with torch.no_grad():
        closed = network(x)
        for module in network.modules():
            if isinstance(module, UAFS):
                module.gate.fill_(1.0)
        opened = network(x)
        assert not torch.equal(opened, closed)
        for other in (copied, pickled):  # opening one leaves the others closed
            assert torch.equal(other(x), closed)
        assert torch.equal(copy.deepcopy(network)(x) if build is not deep_dynunet else opened, opened)
        assert torch.equal(torch.jit.trace(network, x, check_trace=False)(x), opened)
    if scripts:
        assert torch.equal(torch.jit.script(network)(x), opened)


def test_the_gate_learns_at_once_and_the_head_as_soon_as_the_gate_is_open():
    torch.manual_seed(0)
    block = UAFS(2, 16)
    x, target = torch.randn(2, 16, 8, 8), torch.randn(2, 16, 8, 8)
    assert torch.equal(block(x), x)
    optimizer = torch.optim.SGD(block.parameters(), 0.1)
    moved = []
    for _ in range(2):
        optimizer.zero_grad()
        ((block(x) - target) ** 2).mean().backward()
        moved.append({name for name, value in block.named_parameters() if bool(value.grad.abs().sum() > 0)})
        optimizer.step()
    assert moved[0] == {"gate"}
    assert moved[1] == {name for name, _ in block.named_parameters()}


@pytest.mark.parametrize(("logit", "expected"), [(0, 0), (1, 0.1601), (2, 0.4729), (4, 0.8700), (30, 1)])
def test_confidence_is_one_minus_the_normalised_entropy(logit, expected):
    block = UAFS(2, 4, gate=False)
    block.head = torch.nn.Identity()
    states = torch.tensor([float(logit), 0.0]).reshape(1, 2, 1, 1)
    assert float(block.confidence(states)) == pytest.approx(expected, abs=5e-5)
    y = block(states)
    assert bool((y / states.clamp(min=1e-9) <= 2).all())


@pytest.mark.parametrize(("states", "gate"), [(2, True), (3, False)])
def test_value_and_gradient_are_those_of_the_formula(states, gate):
    torch.manual_seed(0)
    block, x = UAFS(2, 8, states=states, gate=gate).double(), torch.randn(2, 8, 4, 4, dtype=torch.float64)
    if gate:
        torch.nn.init.constant_(block.gate, 0.7)
    p = block.head(x).softmax(1)
    entropy = -(p * p.log()).sum(1, keepdim=True) / torch.tensor(float(states)).double().log()
    torch.testing.assert_close(block(x), x * (1 + (0.7 if gate else 1) * (1 - entropy)), atol=1e-12, rtol=0)
    assert torch.autograd.gradcheck(block, x.requires_grad_())


def test_norm_and_gate_reach_the_blocks():
    network = insert_uafs(basic_unet(2), ["down_1", "down_2"], norm="batch", gate=False)
    for name in ("down_1", "down_2"):
        block = network.get_submodule(name).uafs
        assert isinstance(block.head[1], torch.nn.BatchNorm2d)
        assert block.gate is None


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_sites_inside_one_another_get_blocks_of_their_own_width(order):
    sites = ["upcat_1.convs.conv_1", "upcat_1.convs"]
    plain = basic_unet(2).eval()
    network, x = copy.deepcopy(plain), torch.randn(1, 1, 32, 32)
    insert_uafs(network, [sites[place] for place in order])
    assert torch.equal(network(x), plain(x))
    again = insert_uafs(insert_uafs(copy.deepcopy(plain), sites[:1]), sites[1:])
    assert torch.equal(again(x), plain(x))


def test_without_a_gate_certain_cells_are_doubled_at_most():
    torch.manual_seed(0)
    block = UAFS(3, 16, gate=False)
    x = torch.rand(2, 16, 4, 4, 4) + 0.1
    ratio = block(x) / x
    assert float(ratio.min().detach()) >= 1
    assert float(ratio.max().detach()) <= 2
    assert "gate" not in block.state_dict()


def test_a_last_convolution_of_zeros_would_never_learn():
    block = UAFS(2, 8, gate=False)
    torch.nn.init.zeros_(block.head[3].weight)
    torch.nn.init.zeros_(block.head[3].bias)
    block(torch.randn(2, 8, 8, 8)).square().sum().backward()
    assert float(block.head[3].weight.grad.abs().max()) < 1e-6


def test_in_half_precision_the_confidence_is_computed_in_single():
    block, x = UAFS(2, 8), torch.randn(1, 8, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert block.confidence(x).dtype == torch.float32
    half = block.to(torch.bfloat16)
    assert half.confidence(x.bfloat16()).dtype == torch.float32
    assert half(x.bfloat16()).dtype == torch.bfloat16
    assert block.double()(x.double()).dtype == torch.float64


def test_the_width_of_the_head_suits_its_groups():
    assert {channels: UAFS(2, channels).head[0].out_channels for channels in (8, 16, 32, 64, 100)} == {
        8: 4, 16: 4, 32: 8, 64: 16, 100: 24,
    }
    assert isinstance(UAFS(2, 8, norm="batch").head[1], torch.nn.BatchNorm2d)
    with pytest.raises(ValueError, match="states must be at least 2, got 1"):
        UAFS(2, 8, states=1)


def test_no_sites_leave_the_plain_network():
    network = basic_unet(2)
    names = list(network.state_dict())
    assert list(insert_uafs(network, []).state_dict()) == names


@pytest.mark.parametrize(
    ("sites", "message"),
    [
        (["upcat_5.convs"], r"has no module 'upcat_5.convs'; nearest: 'upcat_\d.convs'"),
        (["upcat_4"], "'upcat_4' takes 2 inputs; use 'upcat_4.convs'"),
        (["conv_0.conv_0.adn"], "has no convolution"),
        (["down_1", "down_1"], "named twice"),
    ],
)
def test_a_site_that_cannot_be_selected_is_refused_and_nothing_is_changed(sites, message):
    network = basic_unet(2)
    before = list(network.state_dict())
    with pytest.raises(ValueError, match=message):
        insert_uafs(network, ["down_2", *sites])
    assert list(network.state_dict()) == before
    insert_uafs(network, ["down_2"])
    with pytest.raises(ValueError, match="'down_2' has a UAFS block already"):
        insert_uafs(network, ["down_2"])
