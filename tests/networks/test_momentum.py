import pytest
import torch
from torch import nn

from medcl_monai.networks.momentum import FeatureQueue, MomentumCopy


def source(value=1.0):
    module = nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1))
    nn.init.constant_(module[0].weight, value)
    return module


def test_the_copy_follows_by_the_momentum_and_takes_buffers_by_value():
    module = source()
    copy = MomentumCopy({"encoder": module}, momentum=0.9)
    for value in (2.0, 3.0, 5.0):
        nn.init.constant_(module[0].weight, value)
        module[1].running_mean.fill_(value)
        copy.update({"encoder": module})
    assert float(copy["encoder"][0].weight) == pytest.approx(1.661)
    assert float(copy["encoder"][1].running_mean) == 5
    for ours, theirs in zip(copy.copies["encoder"].buffers(), module.buffers(), strict=True):
        assert ours.data_ptr() != theirs.data_ptr()
    assert not any(parameter.requires_grad for parameter in copy.parameters())


@pytest.mark.parametrize(("momentum", "value"), [(0.0, 2.0), (1.0, 1.0)])
def test_momentum_0_copies_and_1_keeps(momentum, value):
    module = source()
    copy = MomentumCopy({"encoder": module}, momentum)
    nn.init.constant_(module[0].weight, 2.0)
    copy.update({"encoder": module})
    assert float(copy["encoder"][0].weight) == value
    copy.reset({"encoder": module})
    assert float(copy["encoder"][0].weight) == 2


def test_an_update_after_each_step_gives_the_keys_of_an_update_before_each_key_pass():
    gradients = torch.randn(4, 3)
    keys = {}
    for order in ("after the step", "before the key pass"):
        weight = nn.Linear(3, 1, bias=False)
        nn.init.ones_(weight.weight)
        copy, optimizer = MomentumCopy({"a": weight}, 0.9), torch.optim.SGD(weight.parameters(), 0.1)
        keys[order] = []
        for gradient in gradients:
            if order == "before the key pass":
                copy.update({"a": weight})
            keys[order].append(copy["a"].weight.clone())
            weight.weight.grad = gradient[None].clone()
            optimizer.step()
            if order == "after the step":
                copy.update({"a": weight})
    assert all(torch.equal(*pair) for pair in zip(*keys.values(), strict=True))


def test_the_copy_cannot_follow_other_modules():
    copy = MomentumCopy({"encoder": source()}, 0.9)
    with pytest.raises(ValueError, match=r"copies of \['encoder'\] cannot follow \['decoder'\]"):
        copy.update({"decoder": source()})
    with pytest.raises(ValueError, match=r"momentum must be 0 to 1, got 1\.1"):
        MomentumCopy({"encoder": source()}, 1.1)


def push(queue, *numbers):
    values = torch.tensor(numbers)
    queue.push(values[:, None].float(), values, values.double() / 100)


def test_the_ring_keeps_the_newest_and_wraps_without_loss():
    queue = FeatureQueue(5, 1)
    push(queue, 1, 2, 3)
    assert (int(queue.pointer), int(queue.filled)) == (3, 3)
    assert queue.subject.tolist() == [1, 2, 3, -1, -1]
    push(queue, 4, 5, 6)
    assert queue.features[:, 0].tolist() == [6, 2, 3, 4, 5]
    assert (int(queue.pointer), int(queue.filled)) == (1, 5)
    push(queue, *range(7, 14))
    oldest_first = [(int(queue.pointer) + k) % 5 for k in range(5)]
    assert queue.features[oldest_first, 0].tolist() == queue.subject[oldest_first].tolist() == [9, 10, 11, 12, 13]
    assert queue.position[oldest_first].tolist() == pytest.approx([0.09, 0.10, 0.11, 0.12, 0.13])
    assert int(queue.filled) == 5


def test_a_queue_goes_on_from_its_state():
    queue, again = FeatureQueue(5, 1), FeatureQueue(5, 1)
    push(queue, 1, 2, 3)
    again.load_state_dict(queue.state_dict())
    for one in (queue, again):
        push(one, 4, 5, 6)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in queue.state_dict().items())


def test_a_new_queue_holds_unit_rows_of_nobody_the_same_everywhere():
    torch.rand(3)
    first, second = FeatureQueue(7, 4), FeatureQueue(7, 4)
    assert torch.equal(first.features, second.features)
    torch.testing.assert_close(first.features.norm(dim=1), torch.ones(7))
    assert first.subject.tolist() == [-1] * 7


def test_rows_of_another_width_and_numbers_that_do_not_fit_are_named():
    queue = FeatureQueue(5, 2)
    ids, places = torch.arange(4), torch.zeros(4)
    with pytest.raises(ValueError, match="keys are 3 wide, the queue's rows 2"):
        queue.push(torch.ones(4, 3), ids, places)
    with pytest.raises(ValueError, match=r"8 keys, 4 subjects and 4 positions do not fit.*over the processes"):
        queue.push(torch.ones(8, 2), ids, places)
    with pytest.raises(ValueError, match="length 0 and dim 2"):
        FeatureQueue(0, 2)
