import math

import pytest
import torch
import torch.nn.functional as F

from medcl_monai import affinity, balanced_pdcr, pdcr

SHARES = torch.tensor(
    [[1, 0, 0], [0.75, 0.25, 0], [0.5, 0.25, 0.25], [0, 1, 0], [0, 0.5, 0.5], [0, 0, 1]], dtype=torch.float64
).expand(2, 6, 3)
ALIKE = affinity(SHARES, SHARES)
FORMS = [pdcr, balanced_pdcr]
forms = pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)


def formula(*size):
    """Numbers that anybody can write down again: sin(1 + 0.7 k + 0.013 k²)."""
    k = torch.arange(math.prod(size), dtype=torch.float64)
    return torch.sin(1 + 0.7 * k + 0.013 * k * k).reshape(size)


def loops(z_1, z_2, a, temperature):
    """The equation, one pair at a time."""
    total = 0.0
    for image in range(len(z_1)):
        s = [[(float(F.cosine_similarity(p, q, dim=0)) - 1) / temperature for q in z_2[image]] for p in z_1[image]]
        rows = range(len(s))
        columns = range(len(s[0]))
        for i in rows:
            push = math.log(sum(math.exp((1 - float(a[image, i, k])) * s[i][k]) for k in columns))
            total += sum(push - float(a[image, i, j]) * s[i][j] for j in columns) / (len(s) * len(s[0]))
    return total / len(z_1)


def balanced_loops(z, a, temperature):
    values = []
    for image in range(len(z)):
        for i in range(z.shape[1]):
            s = [(float(F.cosine_similarity(z[image, i], q, dim=0)) - 1) / temperature for q in z[image]]
            like = [float(a[image, i, j]) for j in range(len(s))]
            pull = sum(w * x for w, x in zip(like, s, strict=True)) / sum(like)
            push = sum((1 - w) * math.exp(x) for w, x in zip(like, s, strict=True)) / sum(1 - w for w in like)
            values.append(math.log(push) - pull)
    return sum(values) / len(values)


def two(cosine, a, temperature=0.5):
    """The loss of two vectors at an angle, with affinity a."""
    z = torch.tensor([[[1.0, 0.0], [cosine, math.sqrt(1 - cosine**2)]]], dtype=torch.float64)
    return float(pdcr(z, z, torch.tensor([[[1.0, a], [a, 1.0]]], dtype=torch.float64), temperature))


def classes(*counts):
    """Affinity of pure cells, so many of each class."""
    one_hot = F.one_hot(torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))).double()[None]
    return affinity(one_hot, one_hot)


def test_affinity_is_one_minus_the_total_variation_over_all_classes():
    row = torch.tensor([0, 1 / 3, 1], dtype=torch.float64)
    two_classes = torch.stack([1 - row, row], -1)[None]
    expected = torch.tensor([[1, 2 / 3, 0], [2 / 3, 1, 1 / 3], [0, 1 / 3, 1]], dtype=torch.float64)
    torch.testing.assert_close(affinity(two_classes, two_classes)[0], expected)
    assert ALIKE[0, 0].tolist() == [1, 0.75, 0.5, 0, 0, 0]
    assert ALIKE[0, 2].tolist() == [0.5, 0.75, 1, 0.25, 0.5, 0.25]
    assert torch.equal(classes(1, 1, 1)[0], torch.eye(3, dtype=torch.float64))


@pytest.mark.parametrize(("temperature", "expected"), [(0.5, 1.569142453), (1.0, 1.597332030), (0.1, 3.168506457)])
def test_the_loss_is_the_equation_pair_by_pair(temperature, expected):
    z = formula(2, 6, 5)
    found = float(pdcr(z, z, ALIKE, temperature))
    assert found == pytest.approx(loops(z, z, ALIKE, temperature), abs=1e-12)
    assert found == pytest.approx(expected, abs=1e-9)


def test_pairs_of_two_layers_are_not_symmetric():
    z_1 = formula(2, 6, 5)
    z_2, a = torch.cos(2 * z_1 + 0.3), affinity(SHARES, SHARES.flip(1))
    assert float(pdcr(z_1, z_2, a)) == pytest.approx(1.720756490, abs=1e-9)
    assert float(pdcr(z_1, z_2, a)) == pytest.approx(loops(z_1, z_2, a, 0.5), abs=1e-12)
    assert float(pdcr(z_2, z_1, a.mT)) == pytest.approx(1.731205626, abs=1e-9)


@pytest.mark.parametrize(
    ("cosine", "a", "expected"),
    [(-1, 0, 0.018149928), (0, 0, 0.126928011), (1, 0, 0.693147181), (0, 0.5, 0.813261688), (0.5, 0.25, 0.511871006),
     (0, 1, 1.693147181), (-1, 1, 2.693147181)],
)
def test_two_vectors_have_their_closed_form(cosine, a, expected):
    # a pair of equal labels alone would be left out of the mean, so a third cell's place is taken by rounding
    if a == 1:
        z = torch.tensor([[[1.0, 0.0], [cosine, math.sqrt(1 - cosine**2)]]], dtype=torch.float64)
        almost = torch.tensor([[[1.0, 1 - 2e-6], [1 - 2e-6, 1.0]]], dtype=torch.float64)
        assert float(pdcr(z, z, almost)) == pytest.approx(expected, abs=1e-5)
    else:
        assert two(cosine, a) == pytest.approx(expected, abs=1e-9)


def test_a_cell_that_is_not_valid_counts_nowhere():
    z = formula(2, 6, 5)
    valid = torch.ones(2, 6, dtype=torch.bool)
    valid[0, 4] = False
    kept = [0, 1, 2, 3, 5]
    alone = pdcr(z[:1, kept], z[:1, kept], ALIKE[:1, kept][:, :, kept]), pdcr(z[1:], z[1:], ALIKE[1:])
    found = float(pdcr(z, z, ALIKE, 0.5, valid, valid))
    assert found == pytest.approx(float(sum(alone)) / 2, abs=1e-12)
    assert found == pytest.approx(1.491079135, abs=1e-9)
    within = balanced_pdcr(z[:1], z[:1], ALIKE[:1], 0.5, valid[:1], valid[:1])
    few = balanced_pdcr(z[:1, kept], z[:1, kept], ALIKE[:1, kept][:, :, kept])
    assert float(within) == pytest.approx(float(few), abs=1e-12)


def test_an_image_of_one_class_is_left_out_and_several_of_them_give_zero_without_gradient():
    one = SHARES.clone()
    one[1] = torch.tensor([1.0, 0, 0])
    z = formula(2, 6, 5)
    assert float(pdcr(z, z, affinity(one, one))) == pytest.approx(1.585092909, abs=1e-9)
    assert float(pdcr(z[:1], z[:1], ALIKE[:1])) == pytest.approx(1.585092909, abs=1e-9)
    for form in FORMS:
        free = z.clone().requires_grad_()
        value = form(free, free, torch.ones_like(ALIKE))
        value.backward()
        assert float(value.detach()) == 0
        assert float(free.grad.abs().max()) == 0


@forms
def test_equal_embeddings_give_the_value_of_a_collapse(form):
    z = torch.ones(2, 7, 4)
    a = torch.rand(2, 7, 7)
    a.diagonal(dim1=1, dim2=2).fill_(1)
    assert float(form(z, z, a)) == pytest.approx(math.log(7) if form is pdcr else 0, abs=1e-5)


@pytest.mark.parametrize(
    ("form", "expected"), [(pdcr, (4.158883083, 4.002797717, 3.941406578)), (balanced_pdcr, (0, -2, -4))]
)
def test_a_small_structure_gains_little_in_the_published_form_and_all_in_the_balanced_form(form, expected):
    background, a = torch.tensor([1.0, 0.0], dtype=torch.float64), classes(60, 4)
    for foreground, value in zip(([1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]), expected, strict=True):
        z = torch.cat([background.expand(60, 2), torch.tensor(foreground, dtype=torch.float64).expand(4, 2)])[None]
        assert float(form(z, z, a)) == pytest.approx(value, abs=1e-6)


def test_the_balanced_form_is_its_equation_cell_by_cell():
    z = formula(2, 6, 5)
    assert float(balanced_pdcr(z, z, ALIKE)) == pytest.approx(balanced_loops(z, ALIKE, 0.5), abs=1e-12)
    assert float(balanced_pdcr(z, z, ALIKE)) == pytest.approx(-0.237346127, abs=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_free_vectors_separate_by_class(seed):
    """The orientation: with affinity and divergence exchanged, all cosines end at 0.997."""
    torch.manual_seed(seed)
    z, a = torch.randn(1, 6, 8, dtype=torch.float64, requires_grad=True), classes(3, 3)
    optimizer = torch.optim.Adam([z], 0.05)
    for _ in range(500):
        optimizer.zero_grad()
        loss = pdcr(z, z, a)
        loss.backward()
        optimizer.step()
    unit = F.normalize(z.detach()[0], dim=1)
    cosines = unit @ unit.T
    assert float(cosines[a[0] == 1].min()) > 0.999
    assert float(cosines[a[0] == 0].max()) < -0.999
    assert float(loss.detach()) == pytest.approx(math.log(3 + 3 * math.exp(-4)), abs=1e-4)


def test_even_a_near_collapse_of_a_small_structure_is_left_by_free_vectors():
    torch.manual_seed(0)
    z = (1 + 0.05 * torch.randn(1, 64, 16, dtype=torch.float64)).requires_grad_()
    a = classes(60, 4)
    optimizer = torch.optim.SGD([z], 53.0)
    for _ in range(300):
        optimizer.zero_grad()
        pdcr(z, z, a).backward()
        optimizer.step()
    unit = F.normalize(z.detach()[0], dim=1)
    assert float((unit @ unit.T)[a[0] == 0].max()) < -0.99
    assert float(pdcr(z.detach(), z.detach(), a)) == pytest.approx(3.9414, abs=1e-3)


def test_the_gradient_with_respect_to_the_similarities_is_the_closed_form():
    z = formula(2, 6, 5)
    unit = F.normalize(z, dim=-1)
    s = ((unit @ unit.mT - 1) / 0.5).requires_grad_()
    d, n = 1 - ALIKE, 6
    loss = ((d * s).logsumexp(-1, keepdim=True) - ALIKE * s).mean()
    assert float(loss.detach()) == pytest.approx(float(pdcr(z, z, ALIKE)), abs=1e-12)
    loss.backward()
    closed = (n * d * (d * s).softmax(-1) - ALIKE) / (2 * n * n)
    torch.testing.assert_close(s.grad, closed.detach(), atol=1e-15, rtol=0)
    free = z.clone().requires_grad_()
    pdcr(free, free, ALIKE).backward()
    through = z.clone().requires_grad_()
    unit = F.normalize(through, dim=-1)
    ((unit @ unit.mT / 0.5) * closed.detach()).sum().backward()
    torch.testing.assert_close(free.grad, through.grad, atol=1e-14, rtol=0)


def test_the_loss_falls_with_the_cosine_of_like_cells_and_rises_with_that_of_unlike_cells():
    cosines = [-0.9, -0.3, 0.3, 0.9]
    like, unlike = ([two(cosine, a) for cosine in cosines] for a in (1 - 2e-6, 0.0))
    assert like == sorted(like, reverse=True)
    assert unlike == sorted(unlike)


@forms
def test_neither_the_length_of_embeddings_nor_the_order_of_cells_matters(form):
    z = formula(2, 6, 5)
    lengths = torch.rand(2, 6, 1, dtype=torch.float64) + 0.1
    order = torch.randperm(6)
    value = float(form(z, z, ALIKE))
    assert float(form(z * lengths, z * lengths, ALIKE)) == pytest.approx(value, abs=1e-12)
    assert float(form(z[:, order], z[:, order], ALIKE[:, order][:, :, order])) == pytest.approx(value, abs=1e-12)


@forms
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("temperature", [0.005, 0.1, 1.0])
def test_value_and_gradient_are_finite_and_autocast_changes_neither(form, dtype, temperature):
    z = formula(2, 6, 5).to(dtype).requires_grad_()
    a, values, gradients = ALIKE.float(), [], []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            values.append(form(z, z, a, temperature))
        gradients.append(*torch.autograd.grad(values[-1], z))
    assert values[0].dtype == torch.float32
    assert bool(torch.isfinite(values[0]))
    assert bool(torch.isfinite(gradients[0]).all())
    assert torch.equal(values[0], values[1])
    assert torch.equal(*gradients)


@forms
def test_zero_vectors_give_finite_values(form):
    z = torch.zeros(1, 6, 5, requires_grad=True)
    value = form(z, z, ALIKE[:1].float())
    value.backward()
    assert bool(torch.isfinite(value))
    assert bool(torch.isfinite(z.grad).all())


@forms
def test_several_box_sizes_are_the_mean_of_each_alone(form):
    z, sizes = formula(2, 6, 5), torch.stack([ALIKE, ALIKE**2, torch.ones_like(ALIKE)], 1)
    valid = torch.ones(2, 3, 6, dtype=torch.bool)
    valid[0, 1, 2] = False
    alone = [form(z, z, sizes[:, r], 0.5, valid[:, r], valid[:, r]) for r in range(3)]
    assert float(form(z, z, sizes, 0.5, valid, valid)) == pytest.approx(float(sum(alone)) / 3, abs=1e-12)


def test_a_temperature_of_zero_is_refused():
    with pytest.raises(ValueError, match="temperature must be above 0, got 0"):
        pdcr(formula(1, 2, 2), formula(1, 2, 2), torch.eye(2)[None], 0.0)


def test_layers_of_different_cells_and_validity_are_the_loops_over_what_is_valid():
    z_1, z_2 = formula(1, 6, 5), torch.cos(formula(1, 4, 5))
    a = affinity(SHARES[:1], SHARES[:1, [0, 2, 3, 5]])
    valid_1, valid_2 = torch.ones(1, 6, dtype=torch.bool), torch.ones(1, 4, dtype=torch.bool)
    valid_1[0, 0] = valid_2[0, 3] = False
    expected = loops(z_1[:, 1:], z_2[:, :3], a[:, 1:, :3], 0.5)
    assert float(pdcr(z_1, z_2, a, 0.5, valid_1, valid_2)) == pytest.approx(expected, abs=1e-12)
    few = balanced_pdcr(z_1[:, 1:], z_2[:, :3], a[:, 1:, :3])
    assert float(balanced_pdcr(z_1, z_2, a, 0.5, valid_1, valid_2)) == pytest.approx(float(few), abs=1e-12)


@forms
def test_an_invalid_cell_counts_nowhere_at_any_temperature(form):
    z = torch.cat([torch.tensor([[[1.0, 0.0], [-1.0, 0.0]]]), torch.tensor([[[0.0, 1.0]]])], 1).double()
    a, valid = torch.eye(3, dtype=torch.float64)[None], torch.tensor([[True, True, False]])
    alone = form(z[:, :2], z[:, :2], a[:, :2, :2], 0.005)
    assert float(form(z, z, a, 0.005, valid, valid)) == pytest.approx(float(alone), abs=1e-9)


def test_an_invalid_cell_of_another_layer_is_farther_than_any_valid_one():
    z_1, z_2 = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[-1.0, 0.0], [1.0, 0.0]]])
    first, second = torch.tensor([[True]]), torch.tensor([[True, False]])
    assert float(pdcr(z_1, z_2, torch.zeros(1, 1, 2), 0.005, first, second)) == pytest.approx(-400)


@forms
def test_an_image_whose_only_unlike_cell_is_invalid_is_left_out(form):
    z, a = formula(2, 6, 5), torch.ones(2, 6, 6, dtype=torch.float64)
    a[:, 5, :5] = a[:, :5, 5] = 0
    valid = torch.ones(2, 6, dtype=torch.bool)
    valid[0, 5] = False
    assert float(form(z, z, a, 0.5, valid, valid)) == pytest.approx(float(form(z[1:], z[1:], a[1:])), abs=1e-12)


@forms
def test_shares_that_differ_by_rounding_are_alike(form):
    z = formula(1, 6, 5)
    assert float(form(z, z, torch.full((1, 6, 6), 1 - 1e-7, dtype=torch.float64))) == 0
