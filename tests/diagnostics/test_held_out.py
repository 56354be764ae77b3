import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from medcl_monai.diagnostics.held_out import held_out_figures, retrieval
from medcl_monai.networks.statistics import compute_statistics
from medcl_monai.transforms.crop_views import CropViews


class Noise(Dataset):
    def __len__(self):
        return 12

    def __getitem__(self, place):
        image = torch.rand(1, 64, 64, generator=torch.Generator().manual_seed(place))
        return {"image": image, "position": torch.tensor(0.5), "subject": torch.tensor(place)}


def test_partners_are_found_among_all():
    torch.manual_seed(0)
    rows = torch.randn(64, 32)
    assert float(retrieval(rows, 3 * rows + 0.01)) == 1.0
    assert float(retrieval(rows, rows.flip(0))) == 0.0
    assert float(retrieval(rows, torch.randn(64, 32))) < 0.1


def test_figures_are_repeatable_and_leave_the_random_numbers_alone(unet):
    torch.manual_seed(0)
    network = unet(features=(4, 4, 8, 8, 8, 4))
    with pytest.raises(ValueError, match="statistics that were never computed"):
        held_out_figures(network.eval(), Noise(), CropViews((64, 64)))
    compute_statistics(network, Noise())
    before = torch.random.get_rng_state()
    first, second = (held_out_figures(network.eval(), Noise(), CropViews((64, 64))) for _ in range(2))
    assert first == second
    assert torch.equal(torch.random.get_rng_state(), before)
    assert set(first) == {"effective_rank", "numerical_rank", "participation_ratio", "retrieval"}
    assert 1 <= first["effective_rank"] <= 8
    same = held_out_figures(network, Noise(), lambda batch: ({f"view_{k}": batch["image"] for k in (1, 2)}, {}))
    assert same["retrieval"] == 1.0


def test_a_decoder_without_statistics_is_no_obstacle(unet):
    torch.manual_seed(0)
    network = unet(features=(4, 4, 8, 8, 8, 4))
    compute_statistics(network, Noise())
    before = held_out_figures(network.eval(), Noise(), CropViews((64, 64)))
    for name in ("upcat_4", "upcat_3", "upcat_2", "upcat_1"):
        for layer in network.get_submodule(name).modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.reset_running_stats()
    assert held_out_figures(network, Noise(), CropViews((64, 64))) == before
