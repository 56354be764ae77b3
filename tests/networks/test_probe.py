import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from monai.networks.nets import FlexibleUNet
from torch import nn

from medcl_monai.networks.probe import LinearProbe


@pytest.mark.parametrize(("dims", "mode"), [(2, "bilinear"), (3, "trilinear")])
def test_the_probe_is_one_convolution_of_the_enlarged_maps_side_by_side(dims, mode):
    probe = LinearProbe(FlexibleUNet(1, 2, "resnet10", spatial_dims=dims), 3).eval()
    image = torch.randn(2, 1, *[64] * dims)
    maps = [F.interpolate(x, image.shape[2:], mode=mode, align_corners=False) for x in probe.encoder(image)]
    layers = [layer.conv for layer in probe.classifiers]
    convolve = F.conv2d if dims == 2 else F.conv3d
    whole = convolve(torch.cat(maps, 1), torch.cat([layer.weight for layer in layers], 1), layers[-1].bias)
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


def test_only_the_classifier_learns_and_the_norms_stand_still():
    probe = LinearProbe(FlexibleUNet(1, 2, "resnet10"), 3).train()
    before = {name: value.clone() for name, value in probe.state_dict().items()}
    optimizer = torch.optim.AdamW(probe.parameters(), 0.1, weight_decay=0.1)
    probe(torch.randn(2, 1, 64, 64)).square().mean().backward()
    optimizer.step()
    moved = {name for name, value in probe.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {name for name in before if name.startswith("classifiers.")}
    assert not any(module.training for module in probe.encoder.modules())
    assert sum(isinstance(layer, nn.Conv2d) and layer.bias is not None for layer in probe.modules()) == 1
