import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.losses import ContrastiveLoss

from medcl_monai.losses.ntxent import NTXentLoss, ntxent

F64 = torch.float64


def cross_entropy_form(a, b, temperature):
    """SimCLR's own form: the partner is the right class among all other views."""
    z = F.normalize(torch.cat([a, b]), dim=1)
    logits = (z @ z.T / temperature).fill_diagonal_(-torch.inf)
    return F.cross_entropy(logits, torch.arange(len(z)).roll(len(a)))


def sines(*shape):
    k = torch.arange(math.prod(shape), dtype=F64)
    return torch.sin(1 + 0.7 * k + 0.013 * k**2).reshape(shape)


def test_monai_s_contrastive_loss_gives_the_same_number():
    torch.manual_seed(0)
    a, b = torch.randn(16, 32), torch.randn(16, 32)
    assert float(ntxent(a, b, 0.1)) == pytest.approx(5.228660, abs=1e-6)
    assert float(ntxent(a, b, 0.1)) == pytest.approx(float(ContrastiveLoss(0.1)(a, b)), abs=1e-6)


def test_the_value_is_the_oracle_s():
    a, b = sines(2, 8, 8)
    assert float(ntxent(a, b, 0.5)) == pytest.approx(3.0645669088, abs=1e-10)


def test_orthogonal_samples_give_the_closed_form():
    one_hot = torch.eye(16, dtype=F64)
    assert float(ntxent(one_hot, one_hot, 0.1)) == pytest.approx(math.log(1 + 30 * math.exp(-10)), abs=1e-12)


@settings(deadline=None, derandomize=True, max_examples=40)
@given(seed=st.integers(0, 10**6), batch=st.integers(1, 9), temperature=st.floats(0.005, 1.0))
def test_value_and_gradient_equal_simclr_s_cross_entropy(seed, batch, temperature):
    random = torch.Generator().manual_seed(seed)
    a, b = torch.randn(2, batch, 5, generator=random, dtype=F64).requires_grad_()
    ours, theirs = ntxent(a, b, temperature), cross_entropy_form(a, b, temperature)
    torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=1e-12)
    for one, other in zip(torch.autograd.grad(ours, [a, b]), torch.autograd.grad(theirs, [a, b]), strict=True):
        torch.testing.assert_close(one, other, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("temperature", [0.005, 0.05, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_value_and_gradient_are_finite_and_equal_under_autocast(temperature, dtype):
    a, b = (torch.randn(8, 16).to(dtype).requires_grad_() for _ in range(2))
    value = ntxent(a, b, temperature)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ntxent(a, b, temperature), value)
    value.backward()
    assert value.dtype == torch.float32
    assert torch.isfinite(value)
    assert torch.isfinite(a.grad).all()
    assert torch.isfinite(b.grad).all()


def test_the_module_returns_one_weighted_term():
    a, b = sines(2, 8, 8)
    terms = NTXentLoss(temperature=0.5, weight=0.25)({"view_1": a, "view_2": b})
    assert list(terms) == ["contrast"]
    assert terms["contrast"] == 0.25 * ntxent(a, b, 0.5)


@pytest.mark.parametrize("temperature", [0.0, -0.1, math.nan])
def test_an_impossible_temperature_is_named(temperature):
    with pytest.raises(ValueError, match=f"temperature must be above 0, got {temperature}"):
        NTXentLoss(temperature)
