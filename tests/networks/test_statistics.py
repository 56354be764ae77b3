import copy

import pytest
import torch
from monai.networks.nets import FlexibleUNet
from torch import nn
from torch.optim.swa_utils import update_bn

from medcl_monai.networks.encode import encode
from medcl_monai.networks.probe import LinearProbe
from medcl_monai.networks.statistics import compute_statistics, missing_statistics, require_statistics


class Images(torch.utils.data.Dataset):
    def __init__(self, count=128, channels=1):
        self.images = torch.randn(count, channels, 32, 32) * 0.2 + 0.4

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return {"image": self.images[index]}


def small():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))


def test_the_statistics_of_a_random_network_are_those_that_torch_computes():
    network, images = small(), Images()
    oracle = copy.deepcopy(network)
    update_bn([images.images[:64], images.images[64:]], oracle)
    compute_statistics(network, images, samples=128)
    for ours, theirs in zip(network.buffers(), oracle.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs)


@torch.no_grad()
def test_features_of_a_random_encoder_vanish_without_statistics_and_not_with_them():
    network, images = FlexibleUNet(1, 2, "resnet10"), Images(64)
    before = float(encode(network.eval(), images.images)[-1].std())
    compute_statistics(network.encoder, images)
    after = float(encode(network.eval(), images.images)[-1].std())
    assert before < 0.1 * after
    assert not missing_statistics(network.encoder)


def test_statistics_that_came_with_weights_and_all_modes_stay():
    network, images = small(), Images()
    network[1].running_mean.fill_(0.3)
    network[3].eval()
    network[4].momentum = 0.05
    modes = [module.training for module in network.modules()]
    compute_statistics(network, images)
    assert network[1].running_mean.eq(0.3).all()
    assert network[1].running_var.eq(1).all()
    assert not network[4].running_mean.eq(0).any()
    assert (network[4].momentum, [module.training for module in network.modules()]) == (0.05, modes)
    kept = copy.deepcopy(network.state_dict())
    compute_statistics(network, Images())
    assert all(torch.equal(value, kept[name]) for name, value in network.state_dict().items())


def test_a_probe_of_a_random_encoder_gets_statistics_although_its_encoder_stays_in_eval():
    probe = LinearProbe(FlexibleUNet(1, 2, "resnet10"), 3).train()
    with pytest.raises(ValueError, match=r"LinearProbe: the batch norm 'encoder\.\S+' \(12 in all\) is frozen"):
        require_statistics(probe)
    compute_statistics(probe, Images(96))
    require_statistics(probe)
    assert not any(module.training for module in probe.encoder.modules())
    assert probe.classifiers.training


def test_layers_that_compute_their_statistics_now_are_not_refused():
    require_statistics(small().train())
    require_statistics(nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), nn.InstanceNorm2d(3)).eval())


def test_batches_of_nearly_equal_size_make_a_short_last_batch_count_no_more():
    network, images = nn.Sequential(nn.BatchNorm2d(1)), Images(66)
    images.images[-2:] += 100
    compute_statistics(network, images, samples=66)
    torch.testing.assert_close(network[0].running_mean, images.images.mean()[None], atol=1e-3, rtol=1e-3)


def test_too_few_samples_are_refused():
    with pytest.raises(ValueError, match="1 samples give no variance"):
        compute_statistics(small(), Images(1))
