import copy
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from monai.networks.nets import FlexibleUNet
from torch import nn

from medcl_monai.networks.encode import encode, encoder_parts
from medcl_monai.networks.probe import LinearProbe

MODES = {2: "bilinear", 3: "trilinear"}


def test_the_probe_is_one_convolution_of_the_enlarged_maps_side_by_side(case):
    network, image = case.network().eval(), case.image()
    probe = LinearProbe(network, 3).eval()
    maps = [
        F.interpolate(x, image.shape[2:], mode=MODES[case.dims], align_corners=False) for x in encode(network, image)
    ]
    layers = [layer.conv for layer in probe.classifiers]
    convolve = F.conv2d if case.dims == 2 else F.conv3d
    whole = convolve(torch.cat(maps, 1), torch.cat([layer.weight for layer in layers], 1), layers[-1].bias)
    assert whole.shape == (2, 3, *image.shape[2:])
    torch.testing.assert_close(probe(image), whole, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_the_probe_exports():
    """In a process of its own: the type checks of the tests cannot be scripted."""
    code = (
        "import torch; from monai.networks.nets import FlexibleUNet; from medcl_monai import LinearProbe\n"
        "probe, image = LinearProbe(FlexibleUNet(1, 2, 'resnet10'), 3).eval(), torch.randn(1, 1, 64, 64)\n"
        "torch.testing.assert_close(torch.jit.script(probe)(image), probe(image))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_only_the_classifiers_learn_and_the_norms_stand_still(case):
    probe, image = LinearProbe(case.network(), 3).train(), case.image()
    before = {name: value.clone() for name, value in probe.state_dict().items()}
    optimizer = torch.optim.AdamW(probe.parameters(), 0.1, weight_decay=0.1)
    probe(image).square().mean().backward()
    optimizer.step()
    moved = {name for name, value in probe.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {name for name in before if name.startswith("classifiers.")}
    learning = {name for name, part in probe.named_modules() if part.training and name}
    assert learning == {name for name, _ in probe.named_modules() if name.startswith("classifiers")}
    assert sum(name.endswith("bias") for name in moved) == 1


def test_the_encoder_s_tensors_load_by_their_names_in_the_backbone_and_the_decoder_s_are_left_out(case):
    probe, other, image = LinearProbe(case.network(), 3).eval(), case.network().eval(), case.image()
    missing, unused = probe.load_state_dict(other.state_dict(), strict=False)
    assert {name.split(".")[0] for name in missing} == {"classifiers"}
    torch.testing.assert_close(probe.read(image), encode(other, image), rtol=0, atol=0)
    own = {id(tensor) for part in encoder_parts(other) for tensor in other.get_submodule(part).parameters()}
    rest = {name for name, tensor in other.named_parameters() if id(tensor) not in own}
    assert rest <= set(unused)


def test_the_names_of_the_tensors_of_a_flexible_unet_s_probe_stay():
    network = FlexibleUNet(1, 2, "resnet10")
    encoder = [name for name in network.state_dict() if name.startswith("encoder.")]
    classifiers = [f"classifiers.{place}.conv.weight" for place in range(5)]
    assert list(LinearProbe(network, 3).state_dict()) == [*encoder, *classifiers, "classifiers.4.conv.bias"]


def test_a_copy_of_a_probe_reads_its_own_encoder(case):
    probe, image = LinearProbe(case.network(), 3).eval(), case.image()
    before, twin = probe(image), copy.deepcopy(probe)
    for name, tensor in twin.named_parameters():
        if not name.startswith("classifiers."):
            tensor.data.zero_()
    assert not torch.equal(twin(image), before)
    assert torch.equal(probe(image), before)
    assert probe.double()(image.double()).dtype == torch.float64


def test_a_probe_leaves_its_backbone_whole(case):
    network, image = case.network().eval(), case.image()
    names, before = list(network.state_dict()), network(image)
    LinearProbe(network, 3)
    assert list(network.state_dict()) == names
    torch.testing.assert_close(network(image), before, rtol=0, atol=0)


def test_a_probe_of_an_unknown_backbone_is_refused():
    with pytest.raises(TypeError, match="no case for Linear"):
        LinearProbe(nn.Linear(2, 2), 3)
