import pytest
import torch
import torch.nn.functional as F
from monai.data import create_test_image_2d
from numpy.random import RandomState
from torch.utils.data import Dataset

from medcl_monai.diagnostics.leakage import leakage
from medcl_monai.methods.transformer_transfer import SwinMoCoViews
from medcl_monai.networks.swin_unet import SwinUNet2D
from medcl_monai.transforms.crop_views import CropViews

REGIONS = 16


def views(**knobs):
    return SwinMoCoViews(CropViews((32, 32), area_range=(0.6, 1.0), foreground=-1.0, **knobs), regions=REGIONS)


class Discs(Dataset):
    """Slices with discs of two kinds."""

    def __len__(self):
        return 24

    def __getitem__(self, place):
        state = RandomState(place)
        image, label = create_test_image_2d(32, 32, num_objs=3, rad_max=8, num_seg_classes=2, random_state=state)
        values = {"image": torch.tensor(image)[None].float(), "label": torch.tensor(label)[None].long()}
        return {**values, "position": torch.tensor(0.5), "subject": torch.tensor(place)}


def network():
    torch.manual_seed(0)
    return SwinUNet2D(out_channels=3, patch_size=2, embed_dim=16, window_size=2, drop_path_rate=0.0).eval()


def test_a_decoder_that_ignores_the_deepest_map_finds_all_by_the_skip_connections():
    blind = network()
    blind.decoder.skip[0].weight.data[:, : blind.decoder.skip[0].weight.shape[1] // 2] = 0
    found = leakage(blind, Discs(), views(), level=0)
    assert found["all"] == found["skips"]
    assert abs(found["deepest"] - found["chance"]) < 0.05  # a constant map


def test_a_decoder_that_ignores_the_skip_connections_finds_nothing_by_them():
    closed = network()
    closed.decoder.skip[0].weight.data[:, closed.decoder.skip[0].weight.shape[1] // 2 :] = 0
    found = leakage(closed, Discs(), views(), level=0)
    assert found["all"] == found["deepest"]
    assert abs(found["skips"] - found["chance"]) < 0.05


def test_in_a_trained_segmenter_the_skip_connections_find_the_places():
    trained = network().train()
    batch = [Discs()[place] for place in range(24)]
    image, label = (torch.stack([item[key] for item in batch]) for key in ("image", "label"))
    optimizer = torch.optim.AdamW(trained.parameters(), 3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(trained(image), label[:, 0]).backward()
        optimizer.step()
    found = leakage(trained.eval(), Discs(), views(), level=2)
    assert found["skips"] > found["all"] - 0.05
    assert found["deepest"] < found["all"] / 2


def test_views_without_regions_are_named():
    with pytest.raises(ValueError, match=r"the target holds no regions, but .*warp_1"):
        leakage(network(), Discs(), SwinMoCoViews(CropViews((32, 32))), level=0)


def test_a_network_with_statistics_that_were_never_computed_is_refused(unet):
    with pytest.raises(ValueError, match="statistics that were never computed"):
        leakage(unet().eval(), Discs(), views(), level=0)
