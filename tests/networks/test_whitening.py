import logging

import pytest
import torch
from torch import nn

from medcl_monai.networks.whitening import WhitenZCA, inverse_root_eigh, inverse_root_newton

F64 = torch.float64
ROOTS = [inverse_root_eigh, inverse_root_newton]
EXAMPLE = torch.tensor([[2.0, 1.0], [1.0, 2.0]], dtype=F64)


def positive(g=6, batch=3, seed=0):
    rows = torch.randn(batch, g, 4 * g, dtype=F64, generator=torch.Generator().manual_seed(seed))
    return rows @ rows.mT / (4 * g)


def layer(channels, group, eps=0.0, floor=0.0, **knobs):
    return WhitenZCA(channels, group, eps, floor, **knobs).double()


def covariance(y):
    rows = y.movedim(1, 0).flatten(1)
    rows = rows - rows.mean(1, keepdim=True)
    return rows @ rows.T / rows.shape[1]


def test_four_points_become_white_and_their_covariance_runs_along():
    points = torch.tensor([[2.0, 0], [-2, 0], [0, 1], [0, -1]], dtype=F64)
    white = layer(2, 2)
    root = 2**0.5
    torch.testing.assert_close(white(points), torch.tensor([[root, 0], [-root, 0], [0, root], [0, -root]], dtype=F64))
    torch.testing.assert_close(white.running_covariance[0], torch.diag(torch.tensor([1.1, 0.95], dtype=F64)))


@pytest.mark.parametrize("inverse_root", ROOTS)
def test_the_inverse_root_and_its_gradient_have_their_closed_form(inverse_root):
    matrix = EXAMPLE.clone().requires_grad_()
    found = inverse_root(matrix)
    torch.testing.assert_close(
        found, torch.tensor([[0.7886751, -0.2113249], [-0.2113249, 0.7886751]], dtype=F64), atol=1e-7, rtol=0
    )
    (gradient,) = torch.autograd.grad(found[0, 0], matrix)
    expected = torch.tensor([[-0.2547187, 0.1009437], [0.1009437, -0.0433938]], dtype=F64)
    torch.testing.assert_close((gradient + gradient.mT) / 2, expected, atol=1e-7, rtol=0)


def test_both_methods_agree_in_value_and_gradient():
    matrices, upstream = positive(), torch.randn(3, 6, 6, dtype=F64)
    values, gradients = [], []
    for inverse_root in ROOTS:
        leaf = matrices.clone().requires_grad_()
        values.append(inverse_root(leaf))
        (gradient,) = torch.autograd.grad(values[-1], leaf, upstream)
        gradients.append((gradient + gradient.mT) / 2)
    torch.testing.assert_close(*values, atol=1e-9, rtol=0)
    torch.testing.assert_close(*gradients, atol=1e-9, rtol=0)


def test_more_newton_steps_change_nothing_even_for_features_of_one_direction():
    rows = torch.randn(128, 1) @ torch.randn(1, 512)
    matrix = rows @ rows.T / 512
    matrix = matrix + 1e-4 * matrix.diagonal().mean() * torch.eye(128)
    exact = inverse_root_eigh(matrix.double())

    def error(steps):
        return float((inverse_root_newton(matrix, steps) - exact).norm() / exact.norm())

    assert error(50) == pytest.approx(error(22), rel=0.1)
    assert error(100) == pytest.approx(error(22), rel=0.1)
    assert error(22) < 0.05 < error(16)


@pytest.mark.parametrize("eps", [1e-4, 1e-7])
def test_newton_reaches_what_fp64_can_tell_of_one_direction(eps):
    rows = torch.randn(64, 1, dtype=F64) @ torch.randn(1, 256, dtype=F64)
    matrix = rows @ rows.T / 256
    matrix = matrix + eps * matrix.diagonal().mean() * torch.eye(64, dtype=F64)
    torch.testing.assert_close(inverse_root_newton(matrix), inverse_root_eigh(matrix), rtol=1e-3, atol=1e-3 / eps**0.5)
    assert torch.isfinite(inverse_root_newton(torch.zeros(2, 4, 4))).all()


def test_the_gradient_at_equal_eigenvalues_is_finite_and_known():
    upstream = torch.randn(4, 4, dtype=F64)
    eye = torch.eye(4, dtype=F64, requires_grad=True)
    (gradient,) = torch.autograd.grad(inverse_root_eigh(eye), eye, upstream)
    torch.testing.assert_close(gradient, -(upstream + upstream.T) / 4)


@pytest.mark.parametrize("inverse_root", ROOTS)
@pytest.mark.parametrize("shuffle", [False, True])
def test_the_layer_passes_gradcheck(inverse_root, shuffle):
    x = torch.randn(4, 6, 5, dtype=F64, requires_grad=True)
    white = layer(6, 3, eps=1e-3, inverse_root=inverse_root, shuffle_groups=shuffle)

    def run(x):
        torch.manual_seed(0)
        return white(x)

    assert torch.autograd.gradcheck(run, x)


def broken(kind, rows=64, channels=8):
    healthy = torch.randn(rows, channels)
    return {
        "constant": torch.ones(rows, channels),
        "rank 1": torch.randn(rows, 1) @ torch.randn(1, channels),
        "half dead": healthy * (torch.arange(channels) % 2),
        "equal variances": torch.cat([torch.eye(channels), -torch.eye(channels)]).repeat(rows // (2 * channels), 1),
    }[kind]


@pytest.mark.parametrize("inverse_root", ROOTS)
@pytest.mark.parametrize("kind", ["constant", "rank 1", "half dead", "equal variances"])
def test_collapsed_features_have_finite_gradients_twice(inverse_root, kind):
    x = broken(kind).requires_grad_()
    y = WhitenZCA(8, 8, inverse_root=inverse_root)(x)
    loss = (y * torch.randn_like(y)).sum()
    first = torch.autograd.grad(loss, x, retain_graph=True)[0]
    second = torch.autograd.grad(loss, x)[0]
    assert torch.isfinite(first).all()
    assert torch.equal(first, second)


@pytest.mark.parametrize(("dtype", "eps", "bar"), [(F64, 0.0, 1e-8), (torch.float32, 1e-4, 2e-3)])
def test_the_output_is_white_in_each_group(dtype, eps, bar):
    x = torch.randn(32, 8, 4, 4, dtype=dtype) @ torch.randn(4, 4, dtype=dtype) + 3
    y = (WhitenZCA(8, 4, eps, 0.0).to(dtype))(x)
    assert float(y.movedim(1, 0).flatten(1).mean(1).abs().max()) < 1e-5
    for group in covariance(y).reshape(2, 4, 2, 4).diagonal(dim1=0, dim2=2).movedim(-1, 0):
        assert float((group - torch.eye(4, dtype=dtype)).abs().max()) < bar


def test_scale_and_shift_of_the_input_do_not_matter_and_channels_may_be_renamed():
    x = torch.randn(16, 6, 8)
    white = WhitenZCA(6, 6)
    torch.testing.assert_close(white(3 * x + 7), white(x), atol=1e-4, rtol=0)
    order = torch.randperm(6)
    torch.testing.assert_close(white(x[:, order]), white(x)[:, order], atol=1e-5, rtol=0)


def test_shuffled_groups_leave_each_channel_itself():
    x = torch.randn(64, 8, 4)
    y = WhitenZCA(8, 4, shuffle_groups=True)(x)
    for own, white in zip(x.movedim(1, 0).flatten(1), y.movedim(1, 0).flatten(1), strict=True):
        assert float(torch.corrcoef(torch.stack([own, white]))[0, 1]) > 0.9


def test_evaluation_uses_the_averaged_covariance_and_folds_into_a_convolution():
    x = torch.randn(16, 6, 4, 4) @ torch.randn(4, 4) + 1
    white = WhitenZCA(6, 3, momentum=1.0)
    trained = white(x)
    white.eval()
    torch.testing.assert_close(white(x), trained, atol=1e-5, rtol=0)
    state = {name: value.clone() for name, value in white.state_dict().items()}
    folded = white.fold(2)
    assert isinstance(folded, nn.Conv2d)
    assert folded.groups == 2
    torch.testing.assert_close(folded(x), white(x), atol=1e-5, rtol=0)
    assert all(torch.equal(value, state[name]) for name, value in white.state_dict().items())


def test_running_statistics_are_of_the_covariance_not_of_its_root():
    white = layer(2, 2, momentum=0.5)
    for scale in (1.0, 3.0):
        x = torch.randn(4000, 2, dtype=F64, generator=torch.Generator().manual_seed(1)) * scale
        white(x)
    expected = 0.25 + 0.5 * (0.5 * 1 + 9)  # of the start 1, then of variances 1 and 9
    assert float(white.running_covariance.diagonal(dim1=1, dim2=2).mean()) == pytest.approx(expected, rel=0.05)


def test_near_duplicates_stay_alike():
    x = torch.randn(64, 16)
    x[1] = x[0] + 0.01 * torch.randn(16)
    y = WhitenZCA(16, 16)(x)
    assert float(torch.cosine_similarity(y[0], y[1], dim=0)) > 0.99


def test_autocast_does_not_reach_the_layer():
    x = torch.randn(64, 8).bfloat16()
    white = WhitenZCA(8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        inside = white(x)
    assert inside.dtype == torch.float32
    torch.testing.assert_close(inside, WhitenZCA(8, 8)(x.float()))


def test_too_few_samples_and_odd_groups_are_named(caplog):
    with pytest.raises(ValueError, match=r"20 samples \(5 x 4 positions\) cannot whiten groups of 16: at least 32"):
        WhitenZCA(16, 16)(torch.randn(5, 16, 4))
    white = WhitenZCA(16, 16)
    with caplog.at_level(logging.WARNING):
        white(torch.randn(48, 16))
        white(torch.randn(48, 16))
    assert caplog.text.count("48 samples for groups of 16 are few, 64 are better") == 1
    with pytest.raises(ValueError, match="group_size 5 must divide the 16 channels"):
        WhitenZCA(16, 5)
    white = WhitenZCA(4, 4)
    with pytest.raises(ValueError, match="NaN or infinite"):
        white(torch.full((16, 4), float("nan")))
    assert all(bool(torch.isfinite(value).all()) for value in white.state_dict().values())
    with pytest.raises(ValueError, match="spatial_dims must be 1, 2 or 3, got 0"):
        white.fold(0)


@pytest.mark.parametrize(
    ("width", "variance"), [(32, 0.823544), (64, 0.586394), (128, 0.359683), (512, 0.106246), (2048, 0.027746)]
)
def test_five_steps_of_the_released_iteration_do_not_whiten(width, variance):
    """Why ours is exact: IterNorm with T = 5 on a flat spectrum, y ← y (1.5 - 0.5 y)² from 1 / d."""
    y = 1 / width
    for _ in range(5):
        y = y * (1.5 - 0.5 * y) ** 2
    assert y == pytest.approx(variance, abs=1e-6)
