import math

import pytest
import torch

from medcl_monai.losses.mocov3 import MoCoV3Loss, mocov3, mocov3_rows


def wave(*shape):
    """The specification's E: element k in row-major order is sin(1 + 0.7 k + 0.013 k²)."""
    k = torch.arange(math.prod(shape), dtype=torch.float64)
    return torch.sin(1 + 0.7 * k + 0.013 * k * k).reshape(shape)


NAMES = ("query_1", "query_2", "key_1", "key_2")


def output(dtype=torch.float64):
    return dict(zip(NAMES, wave(4, 8, 16).to(dtype), strict=True))


def by_loops(q, k, tau):
    """One direction, one query after the other."""
    unit = [[row / row.norm() for row in part] for part in (q, k)]
    rows = []
    for i, query in enumerate(unit[0]):
        similarities = torch.stack([query @ key for key in unit[1]]) / tau
        rows.append(torch.log(torch.exp(similarities).sum()) - similarities[i])
    return 2 * tau * torch.stack(rows).mean()


@pytest.mark.parametrize(
    ("tau", "first", "second"), [(1.0, 4.314326215, 4.030129019), (0.2, 1.102865960, 0.904324613)]
)
def test_the_oracle_s_numbers_and_a_double_loop(tau, first, second):
    queries = output()
    pairs = (("query_1", "key_2"), ("query_2", "key_1"))
    one, two = (mocov3_rows(queries[q][None], queries[k][None], tau).mean() for q, k in pairs)
    assert float(one) == pytest.approx(first, abs=1e-9)
    assert float(two) == pytest.approx(second, abs=1e-9)
    assert float(MoCoV3Loss(tau)(queries)["contrast"]) == pytest.approx(first + second, abs=1e-9)
    torch.testing.assert_close(one, by_loops(queries["query_1"], queries["key_2"], tau))


def test_the_smallest_value_and_the_value_of_equal_embeddings():
    same = torch.eye(8, dtype=torch.float64)
    assert float(mocov3(*[same] * 4, 1.0)) == pytest.approx(5.096035345, abs=1e-9)
    assert float(mocov3(*[same] * 4, 0.2)) == pytest.approx(0.036869691, abs=1e-9)
    assert float(mocov3(*[torch.ones(8, 3).double()] * 4, 0.2)) == pytest.approx(4 * 0.2 * math.log(8), abs=1e-9)
    simplex = torch.eye(8, dtype=torch.float64) - 1 / 8
    floor = 4 * 0.2 * math.log(1 + 7 * math.exp(-(1 + 1 / 7) / 0.2))
    assert float(mocov3(*[simplex] * 4, 0.2)) == pytest.approx(floor, abs=1e-12)


def test_value_and_gradient_of_a_pair_by_hand():
    query = torch.eye(2, dtype=torch.float64, requires_grad=True)
    key = torch.tensor([[1.0, 0.0], [0.6, 0.8]], dtype=torch.float64, requires_grad=True)
    loss = mocov3_rows(query[None], key[None], 0.5).mean()
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0.277500703, abs=1e-9)
    wanted = torch.tensor([[0.0, 0.2480204151], [0.0671926459, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(query.grad, wanted, atol=1e-9, rtol=0)
    assert key.grad is None


def test_only_queries_get_a_gradient_and_masked_keys_give_none():
    queries = {name: value.requires_grad_() for name, value in output().items()}
    MoCoV3Loss(0.2)(queries)["contrast"].backward()
    assert all((queries[name].grad is not None) == name.startswith("query") for name in NAMES)


@pytest.mark.parametrize(("tau", "wanted"), [(0.005, 1.00005), (0.05, 1.13468), (0.2, 2.00719), (1.0, 8.34446)])
def test_single_precision_holds_at_every_temperature(tau, wanted):
    assert float(MoCoV3Loss(tau)(output(torch.float32))["contrast"]) == pytest.approx(wanted, abs=1e-5)


def test_half_precision_and_autocast():
    values = [float(MoCoV3Loss(tau)(output(torch.bfloat16))["contrast"]) for tau in (0.005, 0.05, 0.2, 1.0)]
    assert values == pytest.approx([1.00081, 1.13530, 2.00762, 8.34478], abs=1e-5)
    assert math.isfinite(float(MoCoV3Loss(0.005)(output(torch.float16))["contrast"]))
    plain = MoCoV3Loss(0.2)(output(torch.float32))["contrast"]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(MoCoV3Loss(0.2)(output(torch.float32))["contrast"], plain)


def test_near_slices_of_the_same_subject_are_no_negatives():
    place = {"subject": torch.arange(8) // 2, "position": torch.zeros(8, dtype=torch.float64)}
    found = MoCoV3Loss(0.2, exclude_radius=0.1)({**output(), **place})["contrast"]
    assert float(found) == pytest.approx(1.930690728, abs=1e-9)
    alone = {**output(), "subject": torch.zeros(8, dtype=torch.int64), "position": place["position"]}
    assert float(MoCoV3Loss(0.2, exclude_radius=0.0)(alone)["contrast"]) == pytest.approx(0.0, abs=1e-12)
    far = {**output(), "subject": alone["subject"], "position": torch.arange(8).double()}
    torch.testing.assert_close(MoCoV3Loss(0.2, exclude_radius=0.5)(far), MoCoV3Loss(0.2)(output()))


def test_a_weight_scales_the_term_and_0_leaves_it_out():
    assert float(MoCoV3Loss(1.0, 0.5)(output())["contrast"]) == pytest.approx(8.344455234 / 2, abs=1e-9)
    assert MoCoV3Loss(weight=0.0)(output()) == {}


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match=r"temperature must be above 0, got 0\.0"):
        MoCoV3Loss(0.0)
    with pytest.raises(ValueError, match=r"exclude_radius -1\.0 must be 0 or more"):
        MoCoV3Loss(exclude_radius=-1.0)
    with pytest.raises(ValueError, match="4 queries from place 2 need as many keys, got 4"):
        mocov3_rows(torch.rand(1, 4, 2), torch.rand(1, 4, 2), 1.0, first=2)
