import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medcl_monai.losses.positional import (
    PositionalContrastiveLoss,
    dense_rows,
    local_pair_contrast,
    positional_contrast,
)

F64 = torch.float64
EYE = torch.eye(2, dtype=F64)
A = torch.tensor([[1, 0], [0.6, 0.8], [0, 1]], dtype=F64)
D = torch.tensor([[0.8, 0.6], [1, 0], [-1, 0]], dtype=F64)
P = torch.tensor([0.10, 0.15, 0.90], dtype=F64)
many = settings(deadline=None, derandomize=True, max_examples=40)


def loops(embeddings, position, temperature, threshold):
    """Equation 9 and 10 of Zeng et al., one anchor and one positive after another."""
    rows = embeddings / embeddings.norm(dim=1, keepdim=True)
    cosine, place, total = (rows @ rows.T).tolist(), position.tolist(), 0.0
    for a in range(len(place)):
        others = [b for b in range(len(place)) if b != a]
        denominator = sum(math.exp(cosine[a][b] / temperature) for b in others)
        near = [b for b in others if abs(place[a] - place[b]) < threshold - 1e-6]
        total -= sum(cosine[a][b] / temperature - math.log(denominator) for b in near) / len(near)
    return total / len(place)


def sines(*shape):
    k = torch.arange(math.prod(shape), dtype=F64)
    return torch.sin(1 + 0.7 * k + 0.013 * k**2).reshape(shape)


@pytest.mark.parametrize(
    ("first", "second", "position", "temperature", "expected"),
    [
        (EYE, EYE, (0.1, 0.9), 1.0, 0.5514447139),
        (EYE, EYE, (0.50, 0.55), 1.0, 1.2181113806),
        (EYE, EYE, (0.50, 0.55), 0.1, 6.6667574624),
        (torch.ones(16, 4, dtype=F64), torch.ones(16, 4, dtype=F64), [0.03 * k for k in range(16)], 0.1, 3.4339872045),
        (A, D, (0.10, 0.15, 0.90), 1.0, 1.4019041380),
        (A, D, (0.10, 0.15, 0.90), 0.1, 2.7450239637),
        (A, D, (0.1, 0.5, 0.9), 1.0, 1.4641263602),
    ],
)
def test_the_value_is_the_oracle_s(first, second, position, temperature, expected):
    value = local_pair_contrast(first, second, torch.tensor(position, dtype=F64), temperature, 0.1)
    assert float(value) == pytest.approx(expected, abs=1e-10)


def test_the_gradient_is_the_oracle_s():
    a, d = EYE.clone().requires_grad_(), EYE.clone().requires_grad_()
    local_pair_contrast(a, d, torch.tensor([0.50, 0.55], dtype=F64), 1.0, 0.1).backward()
    expected = torch.tensor([[0, -0.1213917758], [-0.1213917758, 0]], dtype=F64)
    torch.testing.assert_close(a.grad, expected, atol=1e-10, rtol=0)
    torch.testing.assert_close(d.grad, expected, atol=1e-10, rtol=0)
    a, d = A.clone().requires_grad_(), D.clone().requires_grad_()
    local_pair_contrast(a, d, P, 1.0, 0.1).backward()
    expected_a = torch.tensor([[0, -0.0034393], [-0.1279056, 0.0959292], [0.4537238, 0]], dtype=F64)
    expected_d = torch.tensor([[-0.0648701, 0.0864934], [0, -0.0034393], [0, -0.1926036]], dtype=F64)
    torch.testing.assert_close(a.grad, expected_a, atol=1e-7, rtol=0)
    torch.testing.assert_close(d.grad, expected_d, atol=1e-7, rtol=0)


def test_sites_are_compared_each_by_itself():
    first = torch.stack([A, A])
    second = torch.stack([D, D.roll(1, 0)])
    assert float(local_pair_contrast(first, second, P, 1.0, 0.1)) == pytest.approx(1.6685708047, abs=1e-10)
    assert float(local_pair_contrast(first, second, P, 0.1, 0.1)) == pytest.approx(5.4116906303, abs=1e-10)
    output = {"a": torch.stack([A, A], -1)[..., None], "b": torch.stack([D, D.roll(1, 0)], -1)[..., None]}
    term = PositionalContrastiveLoss("a", "b", 0.1, 0.1, weight=0.5)(output, {"position": P})["contrast"]
    assert float(term) == pytest.approx(0.5 * 5.4116906303, abs=1e-10)


def test_a_map_becomes_the_rows_of_each_site():
    maps = torch.randn(4, 5, 2, 3)
    rows = dense_rows(maps)
    assert rows.shape == (6, 4, 5)
    assert torch.equal(rows[1 * 3 + 2], maps[:, :, 1, 2])
    embeddings = torch.randn(4, 5)
    assert dense_rows(embeddings) is embeddings


@pytest.mark.parametrize(
    ("threshold", "temperature", "expected"),
    [(0.2, 0.1, 8.2098687472), (0.3, 0.1, 8.0295495246), (0.3, 0.01, 77.4014505919), (0.25, 0.1, 8.2098687472)],
)
def test_wide_arrays_give_the_oracle_and_a_tie_is_never_near(threshold, temperature, expected):
    views, position = sines(2, 8, 8), (torch.arange(8, dtype=F64) + 0.5) / 8
    value = float(local_pair_contrast(views[0], views[1], position, temperature, threshold))
    assert value == pytest.approx(expected, abs=1e-9)
    assert value == pytest.approx(loops(views.flatten(0, 1), position.repeat(2), temperature, threshold), abs=1e-12)


def test_two_clusters_of_slices_give_the_closed_form():
    clusters = EYE.repeat_interleave(8, 0)
    position = torch.tensor([0.1] * 8 + [0.9] * 8, dtype=F64)
    value = local_pair_contrast(clusters, clusters, position, 0.1, 0.1)
    assert float(value) == pytest.approx(math.log(15 + 16 * math.exp(-10)), abs=1e-12)


@pytest.mark.parametrize("depth", range(10, 101, 10))
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_no_pair_at_exactly_the_threshold_is_near(depth, dtype):
    position = ((torch.arange(depth, dtype=F64) + 0.5) / depth).to(dtype)
    rows = torch.eye(depth, dtype=F64)
    strictly = (torch.arange(depth)[:, None] - torch.arange(depth)).abs() * 10 < depth
    ours = float(local_pair_contrast(rows, rows, position, 1.0, 0.1))
    counts = 2.0 * strictly.sum(1).double() - 1
    expected = math.log(math.e + 2 * depth - 2) - float((1 / counts).mean())
    assert ours == pytest.approx(expected, abs=1e-12)


@many
@given(seed=st.integers(0, 10**6), scale=st.floats(0.1, 10.0))
def test_scale_order_sides_and_shift_of_positions_do_not_matter(seed, scale):
    random = torch.Generator().manual_seed(seed)
    a, d = torch.randn(2, 6, 5, generator=random, dtype=F64)
    position = torch.rand(6, generator=random, dtype=F64)
    value = float(local_pair_contrast(a, d, position, 0.2, 0.3))
    order = torch.randperm(6, generator=random)
    assert float(local_pair_contrast(a * scale, d, position, 0.2, 0.3)) == pytest.approx(value, abs=1e-10)
    assert float(local_pair_contrast(a[order], d[order], position[order], 0.2, 0.3)) == pytest.approx(value, abs=1e-10)
    assert float(local_pair_contrast(d, a, position, 0.2, 0.3)) == pytest.approx(value, abs=1e-10)
    assert float(local_pair_contrast(a, d, position + 0.25, 0.2, 0.3)) == pytest.approx(value, abs=1e-10)
    assert value == pytest.approx(loops(torch.cat([a, d]), position.repeat(2), 0.2, 0.3), abs=1e-10)


@many
@given(seed=st.integers(0, 10**6), temperature=st.floats(0.05, 1.0), threshold=st.floats(0.01, 1.5))
def test_the_value_stays_within_its_bounds(seed, temperature, threshold):
    random = torch.Generator().manual_seed(seed)
    a, d = torch.randn(2, 6, 3, generator=random, dtype=F64)
    position = torch.rand(6, generator=random, dtype=F64)
    value = float(local_pair_contrast(a, d, position, temperature, threshold))
    near = (position.repeat(2)[:, None] - position.repeat(2)).abs() < threshold - 1e-6
    floor = float((near.sum(1) - 1).double().log().mean())  # all positives alike, no other row counts
    assert floor <= value <= math.log(11) + 2 / temperature


@pytest.mark.parametrize("temperature", [0.005, 0.01, 0.07, 0.1, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_value_and_gradient_are_finite_and_equal_under_autocast(temperature, dtype):
    rows = torch.randn(2, 3, 8, 8).to(dtype).requires_grad_()
    position = torch.rand(8)
    value = local_pair_contrast(rows[0], rows[1], position, temperature, 0.1)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(local_pair_contrast(rows[0], rows[1], position, temperature, 0.1), value)
        module = PositionalContrastiveLoss("a", "b", temperature, 0.1)
        term = module({"a": rows[0, 0], "b": rows[1, 0]}, {"position": position})["contrast"]
        assert torch.equal(term, local_pair_contrast(rows[0, 0], rows[1, 0], position, temperature, 0.1))
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(rows.grad).all()
    assert value.dtype == torch.float32


def test_constant_maps_give_the_pooled_value_and_one_site_is_pooled():
    a, d = torch.randn(2, 6, 5, dtype=F64)
    position = torch.rand(6, dtype=F64)
    pooled = local_pair_contrast(a, d, position, 0.1, 0.2)
    maps = [x[:, :, None, None].expand(-1, -1, 3, 4) for x in (a, d)]
    dense = local_pair_contrast(*map(dense_rows, maps), position, 0.1, 0.2)
    torch.testing.assert_close(dense, pooled, atol=1e-12, rtol=0)
    module = PositionalContrastiveLoss("a", "d", 0.1, 0.2)
    assert module({"a": maps[0], "d": maps[1]}, {"position": position})["contrast"] == dense


def test_a_row_without_a_positive_is_named():
    with pytest.raises(ValueError, match=r"no row is nearer than 0\.1 to the row at position 0\.9"):
        positional_contrast(torch.randn(3, 4), torch.tensor([0.1, 0.15, 0.9], dtype=F64), 0.1, 0.1)
    with pytest.raises(ValueError, match="position nan"):
        local_pair_contrast(A, D, torch.tensor([0.1, math.nan, 0.9], dtype=F64), 0.1, 0.1)


@pytest.mark.parametrize(("temperature", "threshold"), [(0.0, 0.1), (-1.0, 0.1), (0.1, 0.0), (0.1, 1e-6)])
def test_impossible_temperature_or_threshold_is_named(temperature, threshold):
    with pytest.raises(ValueError, match=r"must be above"):
        local_pair_contrast(A, D, P, temperature, threshold)
    with pytest.raises(ValueError, match=r"must be above"):
        PositionalContrastiveLoss(temperature=temperature, threshold=threshold)
