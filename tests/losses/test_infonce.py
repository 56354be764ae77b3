import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from medcl_monai.losses.covariance import covariance_penalty
from medcl_monai.losses.infonce import QueueInfoNCELoss, queue_infonce, queue_infonce_rows, same_place

F64 = torch.float64
QUERY, KEY = torch.eye(2, dtype=F64), torch.tensor([[1.0, 0], [1, 0]], dtype=F64)
QUEUE = torch.tensor([[0.0, 1], [-1, 0]], dtype=F64)


def unit(*shape, seed=0, dtype=F64):
    return F.normalize(torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_two_queries_have_the_loss_and_the_gradient_of_the_equation():
    query = QUERY.clone().requires_grad_()
    rows = queue_infonce_rows(query, KEY, QUEUE, 0.5)
    torch.testing.assert_close(rows, torch.tensor([0.1429316, 2.2395448], dtype=F64), atol=1e-6, rtol=0)
    assert float(queue_infonce(QUERY, KEY, QUEUE, 0.5)) == pytest.approx(1.1912382, abs=1e-6)
    rows.sum().backward()
    expected = torch.tensor([[-0.2981258, 0.2346209], [-2.0, 1.5739721]], dtype=F64)
    torch.testing.assert_close(query.grad, expected, atol=1e-6, rtol=0)


def test_masked_rows_of_the_queue_are_no_negatives():
    first = torch.tensor([True, False]).expand(2, 2)
    rows = queue_infonce_rows(QUERY, KEY, QUEUE, 0.5, first)
    torch.testing.assert_close(rows, torch.tensor([0.0181499, 0.6931472], dtype=F64), atol=1e-6, rtol=0)
    query = QUERY.clone().requires_grad_()
    nothing = queue_infonce_rows(query, KEY, QUEUE, 0.5, torch.ones(2, 2, dtype=torch.bool))
    assert nothing.tolist() == [0, 0]
    nothing.sum().backward()
    assert query.grad.tolist() == [[0, 0], [0, 0]]


@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_a_tiny_temperature_stays_finite(dtype):
    rows = queue_infonce_rows(QUERY.to(dtype), KEY.to(dtype), QUEUE.to(dtype), 0.001)
    assert rows.tolist() == pytest.approx([0, 1000])


def test_the_batch_as_queue_without_itself_is_cross_entropy():
    query, key = unit(8, 16), unit(8, 16, seed=1)
    masked = torch.eye(8, dtype=torch.bool)
    expected = F.cross_entropy(query @ key.T / 0.2, torch.arange(8))
    torch.testing.assert_close(queue_infonce(query, key, key, 0.2, masked), expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize("rows", [1024, 65536])
def test_equal_embeddings_give_the_log_of_the_number_of_choices(rows):
    same = torch.ones(2, 4, dtype=F64) / 2
    assert float(queue_infonce(same, same, same[:1].expand(rows, 4), 0.2)) == pytest.approx(math.log(rows + 1))


@settings(deadline=None, derandomize=True, max_examples=40)
@given(st.integers(0, 1000), st.floats(0.02, 1.0), st.integers(1, 6), st.integers(1, 9))
def test_the_loss_is_that_of_loops_and_its_gradient_that_of_the_paper(seed, temperature, batch, length):
    query, key, queue = unit(batch, 5, seed=seed), unit(batch, 5, seed=seed + 1), unit(length, 5, seed=3)
    query.requires_grad_()
    rows = queue_infonce_rows(query, key, queue, temperature)
    (gradient,) = torch.autograd.grad(rows.sum(), query)
    rows, query = rows.detach(), query.detach()
    for i in range(batch):
        logits = torch.stack([query[i] @ key[i], *(query[i] @ old for old in queue)]) / temperature
        assert float(rows[i]) == pytest.approx(float(logits.logsumexp(0) - logits[0]), abs=1e-9)
        share = logits.softmax(0)
        expected = ((share[0] - 1) * key[i] + share[1:] @ queue) / temperature
        torch.testing.assert_close(gradient[i], expected, atol=1e-9, rtol=1e-9)


def test_keys_and_queue_get_no_gradient_and_autocast_does_not_reach_the_logits():
    query, key, queue = (unit(4, 8, seed=k, dtype=torch.float32).requires_grad_() for k in range(3))
    with torch.autocast("cpu", torch.bfloat16):
        inside = queue_infonce(query, key, queue, 0.05)
    assert torch.equal(inside, queue_infonce(query, key, queue, 0.05))
    inside.backward()
    assert key.grad is None
    assert queue.grad is None


def output(queue_subject, queue_position):
    return {
        "query": QUERY, "key": KEY, "queue": QUEUE, "subject": torch.tensor([0, 1]),
        "position": torch.tensor([0.5, 0.5], dtype=F64), "queue_subject": torch.tensor(queue_subject),
        "queue_position": torch.tensor(queue_position, dtype=F64),
    }


def test_older_keys_of_the_same_place_are_masked_and_those_of_nobody_never():
    places = (torch.tensor([0, -1]), torch.tensor([0.5, 0.5], dtype=F64))
    queue = torch.tensor([0, 0, 1, -1]), torch.tensor([0.5, 0.6, 0.5, 0.5], dtype=F64)
    assert same_place(places[0][:1], places[1][:1], *queue, 0.0).tolist() == [[True, False, False, False]]
    assert same_place(places[0][:1], places[1][:1], *queue, 0.1).tolist() == [[True, True, False, False]]
    found = QueueInfoNCELoss(0.5)(output([0, 0], [0.5, 0.9]))["global"]
    assert float(found) == pytest.approx((0.0181499 + 2.2395448) / 2, abs=1e-6)
    stock = QueueInfoNCELoss(0.5, exclude_radius=None)(output([0, 0], [0.5, 0.9]))["global"]
    assert float(stock) == pytest.approx(1.1912382, abs=1e-6)
    assert float(QueueInfoNCELoss(0.5)(output([-1, -1], [0.5, 0.5]))["global"]) == float(stock)
    assert not same_place(torch.tensor([-1]), torch.zeros(1), torch.tensor([-1]), torch.zeros(1), 0.0).any()
    assert QueueInfoNCELoss(exclude_radius="none").exclude_radius is None


def test_impossible_numbers_and_another_width_are_named():
    with pytest.raises(ValueError, match="temperature must be above 0"):
        QueueInfoNCELoss(0.0)
    with pytest.raises(ValueError, match="exclude_radius must be 0 or more"):
        QueueInfoNCELoss(exclude_radius=-0.1)
    with pytest.raises(ValueError, match="rows are 3 wide, the queries 2"):
        queue_infonce(QUERY, KEY, torch.ones(4, 3, dtype=F64), 0.2)
    with pytest.raises(ValueError, match=r"keys are \(1, 2\), queries \(2, 2\): each query needs its own key"):
        queue_infonce(QUERY, KEY[:1], QUEUE, 0.2)


def test_the_covariance_penalty_is_the_mean_square_of_the_off_diagonal():
    x = torch.randn(20, 4, dtype=F64)
    covariance = torch.cov(x.T)
    expected = (covariance - torch.diag(covariance.diagonal())).square().sum() / 4
    torch.testing.assert_close(covariance_penalty(x), expected)
    half = x.float() * 300
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(covariance_penalty(half), covariance_penalty(half))
        inside = covariance_penalty(half)
    assert torch.equal(inside, covariance_penalty(half))
    with pytest.raises(ValueError, match="1 rows have no covariance"):
        covariance_penalty(x[:1])
