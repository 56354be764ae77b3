import pytest
import torch

from medcl_monai.diagnostics.figures import (
    alignment,
    effective_rank,
    entropy_rank,
    feature_spread,
    numerical_rank,
    participation_ratio,
    spectrum,
    uniformity,
)
from medcl_monai.diagnostics.pictures import (
    overlay_picture,
    similarity_map,
    similarity_picture,
    spectrum_picture,
    views_picture,
)


def test_the_spectrum_is_that_of_an_svd():
    for shape in ((10, 4), (4, 10)):
        x = torch.randn(shape, dtype=torch.float64)
        torch.testing.assert_close(spectrum(x), torch.linalg.svdvals(x))


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_ranks_count_the_directions(rank):
    x = torch.eye(rank, 16, dtype=torch.float64).repeat(16, 1)
    x = x * torch.tensor([1.0, -1.0]).repeat_interleave(rank).repeat(8)[:, None]  # centred
    assert float(effective_rank(x)) == pytest.approx(rank, rel=1e-5)
    assert float(participation_ratio(x)) == pytest.approx(rank, rel=1e-5)


def test_the_rank_of_a_steep_spectrum_is_low_by_entropy_and_whole_by_number():
    values = 0.5 ** torch.arange(9.0)  # down to 0.4 %
    assert int(numerical_rank(values)) == int(numerical_rank(7 * values)) == 9
    assert float(entropy_rank(values)) == pytest.approx(4, abs=0.1)  # 2 ^ entropy of (1/2, 1/4, …) is 4
    assert int(numerical_rank(values, tolerance=0.1)) == 4
    assert int(numerical_rank(torch.zeros(9))) == 0


def test_one_point_has_no_spread_and_a_sphere_has_all():
    point = torch.ones(100, 8)
    sphere = torch.randn(5000, 8)
    assert float(feature_spread(point)) == pytest.approx(0, abs=1e-6)
    assert float(feature_spread(sphere)) == pytest.approx(1, abs=0.03)
    assert float(uniformity(point)) == pytest.approx(0, abs=1e-4)
    assert float(uniformity(sphere)) < -2.5


def test_alignment_is_the_squared_distance_of_unit_vectors():
    a = torch.eye(2)
    assert float(alignment(a, a * 7)) == pytest.approx(0)
    assert float(alignment(a, -a)) == pytest.approx(4)


def test_a_map_counts_each_site_as_a_sample():
    x = torch.randn(3, 5, 4, 4)
    rows = x.movedim(1, -1).reshape(-1, 5)
    for figure in (effective_rank, participation_ratio, feature_spread, uniformity):
        torch.testing.assert_close(figure(x), figure(rows))


def test_pictures_are_drawn(tmp_path):
    image = torch.randn(32, 24)
    label = torch.zeros(32, 24)
    label[4:12, 4:12] = 1
    predictions = {"a": label.numpy(), "b": label.numpy()}
    overlay_picture(image.numpy(), label.numpy(), predictions, tmp_path / "o.png", {"1": "s"})
    similarity_picture(image, torch.randn(8, 16, 12), (16, 12), tmp_path / "s.png")
    spectrum_picture({"features": torch.tensor([3.0, 1.0]), "dead": torch.zeros(2)}).savefig(tmp_path / "p.png")
    assert len(views_picture({"view_1": torch.randn(2, 8, 8), "view_2": torch.randn(2, 8, 8, 8)}).axes) == 4
    assert {path.name for path in tmp_path.iterdir()} == {"o.png", "s.png", "p.png"}
    same = similarity_map(torch.randn(8, 4, 4), (1, 2))
    assert float(same[1, 2]) == pytest.approx(1)
