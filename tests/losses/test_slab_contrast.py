"""Slab-aware contrast: against the definition as loops, known values, and what each mistake would give."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from medcl_monai.losses.ntxent import ntxent
from medcl_monai.losses.slab_contrast import SlabContrastiveLoss, slab_contrast


def embeddings(views, batch, dim):
    k = torch.arange(views * batch * dim, dtype=torch.float64)
    return torch.sin(1 + 0.7 * k + 0.013 * k**2).view(views, batch, dim).transpose(0, 1)


def by_loops(z, slab, temperature, cross_subject=0.0):
    """The definition, for every ordered pair of views of a sample."""
    samples, views, _ = z.shape
    rows = [(i, v) for i in range(samples) for v in range(views)]
    unit = {(i, v): z[i, v] / z[i, v].norm() for i, v in rows}

    def loss(a, b):
        s = {k: float(unit[a] @ unit[k]) / temperature for k in rows}
        negatives = [math.exp(s[k]) for k in rows if slab[k[0]] != slab[a[0]]]
        return math.log(math.exp(s[b]) + sum(negatives)) - s[b]

    own = [loss(a, b) for a in rows for b in rows if a[0] == b[0] and a[1] != b[1]]
    value = sum(own) / len(own)
    if cross_subject:
        other = [loss(a, b) for a in rows for b in rows if a[0] != b[0] and slab[a[0]] == slab[b[0]]]
        value = (1 - cross_subject) * value + cross_subject * sum(other) / len(other)
    return value


@pytest.mark.parametrize(
    ("shape", "slabs", "temperature", "expected"),
    [
        ((3, 12, 16), 4, 0.1, 7.611811829),
        ((3, 12, 16), 3, 0.1, 6.256775206),
        ((3, 10, 16), 4, 0.1, 6.533424428),
        ((3, 12, 16), 4, 0.01, 72.258863),
        ((2, 8, 8), 4, 0.5, 2.948016082),
    ],
)
def test_known_values(shape, slabs, temperature, expected):
    z, slab = embeddings(*shape), torch.arange(shape[1]) % slabs
    assert float(slab_contrast(z, slab, temperature)) == pytest.approx(expected, rel=1e-8)
    assert float(slab_contrast(z, slab, temperature)) == pytest.approx(by_loops(z, slab, temperature), abs=1e-12)
    assert float(slab_contrast(z.float(), slab, temperature)) == pytest.approx(expected, rel=2e-6)


@pytest.mark.parametrize("share", [0.25, 0.9])
def test_other_subjects_of_a_slab_can_be_positives(share):
    z, slab = embeddings(3, 12, 16), torch.arange(12) % 4
    assert float(slab_contrast(z, slab, 0.1, share)) == pytest.approx(by_loops(z, slab, 0.1, share), abs=1e-12)
    alone = (float(slab_contrast(z, slab, 0.1, 0.5)) - 0.5 * 7.611811829) / 0.5
    assert alone == pytest.approx(7.333476085, rel=1e-8)
    lonely = embeddings(3, 4, 16)
    assert float(slab_contrast(lonely, torch.arange(4), 0.1, 0.5)) == pytest.approx(
        0.5 * by_loops(lonely, torch.arange(4), 0.1)
    )


def test_without_slabs_and_with_two_views_the_loss_is_that_of_simclr():
    z = embeddings(2, 8, 8)
    value = float(slab_contrast(z, None, 0.5))
    assert value == pytest.approx(3.064566909, rel=1e-9)
    assert value == pytest.approx(float(ntxent(z[:, 0], z[:, 1], 0.5)), rel=1e-12)


def test_closed_forms():
    slab = torch.arange(12) % 4
    equal = torch.ones(12, 3, 8, dtype=torch.float64)
    assert float(slab_contrast(equal, slab, 0.1)) == pytest.approx(math.log(28), rel=1e-9)
    orthogonal = torch.eye(4, dtype=torch.float64)[slab][:, None].expand(-1, 3, -1)
    assert float(slab_contrast(orthogonal, slab, 0.1)) == pytest.approx(math.log1p(27 * math.exp(-10)), rel=1e-9)
    alone = embeddings(3, 12, 16).clone().requires_grad_()
    value = slab_contrast(alone, torch.zeros(12, dtype=torch.long), 0.1)
    value.backward()
    assert value.item() == 0
    assert bool((alone.grad == 0).all())


def test_value_and_gradient_by_hand():
    z = torch.tensor([[[1, 0], [1, 0]], [[0, 1], [0.6, 0.8]]], dtype=torch.float64, requires_grad=True)
    value = slab_contrast(z, torch.tensor([0, 1]), 0.5)
    value.backward()
    assert value.item() == pytest.approx(0.5275868568, rel=1e-9)
    expected = torch.tensor([[[0, 0.3425853], [-0.0288979, 0]], [[0, 0.3425853], [0.5712548, -0.4284411]]])
    torch.testing.assert_close(z.grad.transpose(0, 1), expected.double(), atol=1e-7, rtol=0)


def test_the_negatives_of_an_anchor_are_the_slices_of_other_slabs(monkeypatch):
    z = embeddings(3, 12, 16).clone().requires_grad_()
    slab = torch.arange(12) % 4
    unit = F.normalize(z, dim=-1)
    own, all_rows = unit[0, 0], unit.transpose(0, 1).flatten(0, 1)
    logits = (all_rows @ own / 0.1).view(3, 12)
    kept = logits[:, slab != 0].flatten().logsumexp(0)
    (torch.logaddexp(logits[1, 0], kept) - logits[1, 0]).backward()
    by_definition = z.grad.clone()
    z.grad = None
    pairs = []  # what the loss averages: sample, view, other view
    monkeypatch.setattr(
        "medcl_monai.losses.slab_contrast.mean_over_processes", lambda values, _: pairs.append(values) or values.mean()
    )
    slab_contrast(z, slab, 0.1)
    pairs[0][0, 0, 1].backward()
    torch.testing.assert_close(z.grad, by_definition)
    untouched = [row for row in range(36) if not z.grad.transpose(0, 1).flatten(0, 1)[row].any()]
    assert untouched == [4, 8, 16, 20, 24, 28, 32]


@given(st.integers(0, 10**6), st.floats(0.005, 1.0), st.sampled_from([None, 1, 3, 4]))
def test_scale_order_of_samples_and_order_of_views_do_not_matter(seed, temperature, slabs):
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(8, 3, 6, generator=generator, dtype=torch.float64)
    slab = None if slabs is None else torch.arange(8) % slabs
    value = slab_contrast(z, slab, temperature)
    scaled = z * (0.1 + torch.rand(8, 3, 1, generator=generator, dtype=torch.float64))
    order = torch.randperm(8, generator=generator)
    for other, its_slab in (
        (scaled, slab), (z[order], None if slab is None else slab[order]), (z[:, [2, 0, 1]], slab)
    ):
        torch.testing.assert_close(slab_contrast(other, its_slab, temperature), value, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("temperature", [0.005, 0.01, 0.1, 1.0])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16])
def test_half_precision_and_autocast_are_finite_and_close(temperature, kind):
    z, slab = embeddings(3, 12, 16), torch.arange(12) % 4
    expected = float(slab_contrast(z, slab, temperature))
    rounded = z.to(kind).requires_grad_()
    value = slab_contrast(rounded, slab, temperature)
    value.backward()
    assert value.item() == pytest.approx(expected, rel=0.01)
    assert bool(torch.isfinite(rounded.grad).all())
    with torch.autocast("cpu", torch.bfloat16):
        inside = slab_contrast(z.float(), slab, temperature)
    assert float(inside) == pytest.approx(float(slab_contrast(z.float(), slab, temperature)), rel=1e-6)


def test_the_slab_follows_from_the_position_and_a_weight_of_zero_leaves_the_term_out():
    z = embeddings(3, 12, 16)
    output = {f"view_{view + 1}": z[:, view] for view in range(3)}
    position = (torch.arange(12) % 4 + 0.3) / 4
    assert float(SlabContrastiveLoss(2.0)(output, {"position": position})["contrast"]) == pytest.approx(2 * 7.611811829)
    end = torch.where(torch.arange(12) % 4 == 3, 1.0, position)  # the end of the axis belongs to the last slab
    assert float(SlabContrastiveLoss()(output, {"position": end})["contrast"]) == pytest.approx(7.611811829)
    assert SlabContrastiveLoss(0.0)(output, {"position": position}) == {}
    simclr = SlabContrastiveLoss(slabs=None, temperature=0.5, views=("view_1", "view_2"))
    assert set(simclr(output, {"position": position})) == {"contrast"}


@pytest.mark.parametrize("wrong", [{"weight": -1.0}, {"cross_subject": 1.0}, {"slabs": 0}, {"views": ("view_1",)}])
def test_impossible_settings_are_named(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))[:4]}"):
        SlabContrastiveLoss(**wrong)
    with pytest.raises(ValueError, match="temperature"):
        SlabContrastiveLoss(temperature=0.0)
