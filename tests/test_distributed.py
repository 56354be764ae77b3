"""Run by pytest, and by torchrun as the script of two gloo processes (`work`)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

from medcl_monai.distributed import distribute, gather, join_processes, leave_processes, rank, total, world_size
from medcl_monai.losses.mocov3 import MoCoV3Loss
from medcl_monai.losses.positional import local_pair_contrast, pair_contrast
from medcl_monai.methods.decorrelated_moco import DecorrelatedMoCoLoss
from medcl_monai.methods.jcl import JCL, JCLLoss
from medcl_monai.methods.regression_vs_contrastive import RegressionContrastLoss
from medcl_monai.networks.heads import normed_projector
from medcl_monai.networks.momentum import FeatureQueue
from medcl_monai.networks.whitening import WhitenZCA
from medcl_monai.transforms.regions import Regions

F64 = torch.float64
SPLITS = {"equal": (4, 4), "unequal": (3, 5)}


def samples():
    """Eight samples in two views at six sites, their positions, and a shared linear map."""
    random = torch.Generator().manual_seed(0)
    views = torch.randn(2, 6, 8, 5, generator=random, dtype=F64)
    weight = torch.randn(5, 4, generator=random, dtype=F64)
    return views, torch.rand(8, generator=random, dtype=F64), weight


def own_rows(counts):
    start = sum(counts[: rank()])
    return slice(start, start + counts[rank()])


def value_and_gradient(contrast, views, position, weight):
    weight = weight.clone().requires_grad_()
    value = contrast(views[0] @ weight, views[1] @ weight, position, 0.1, 0.2)
    value.backward()
    return value.detach(), weight.grad


def output_of(views, weight):
    """What a network would give to the loss of JCL."""
    first, second = views @ weight
    maps = [x.permute(1, 2, 0).reshape(x.shape[1], -1, 2, 3) for x in (first, second)]
    output = {"pixel_auxiliary": maps[0], "pixel_dominant": maps[1]}
    output.update(image_auxiliary=first[0], image_dominant=second[0])
    return {**output, "feature_auxiliary": maps[0], "feature_dominant": maps[1]}


def jcl_terms(views, position, weight):
    weight = weight.clone().requires_grad_()
    terms = JCLLoss()(output_of(views, weight), {"position": position})
    sum(terms.values()).backward()
    return torch.stack(list(terms.values())).detach(), weight.grad


def averaged(values):
    """The mean over processes, as DistributedDataParallel takes it of gradients."""
    for value in values:
        dist.all_reduce(value)
        value /= world_size()
    return values


def network_steps():
    torch.manual_seed(rank())  # the start is taken from rank 0 by the wrapper
    from monai.networks.nets import BasicUNet

    network = distribute(JCL(BasicUNet(2, 1, 2, features=(4, 4, 8, 8, 8, 4), norm="batch")), torch.device("cpu"))
    optimizer = torch.optim.SGD(network.parameters(), 0.01)
    for _ in range(2):
        views = {name: torch.randn(2, 1, 128, 128) for name in ("aligned_1", "aligned_2", "view_1", "view_2")}
        optimizer.zero_grad()
        sum(JCLLoss()(network(views), {"position": torch.rand(2, dtype=F64)}).values()).backward()
        optimizer.step()
    return [p.detach().clone() for p in network.parameters() if p.requires_grad]


def moco_samples():
    """Maps of eight samples, local maps and regions of both views, keys and a queue."""
    random = torch.Generator().manual_seed(1)
    points = torch.rand(2, 8, 6, 2, generator=random, dtype=F64) * 2 - 1
    return {
        "map": torch.randn(8, 6, 3, 3, generator=random, dtype=F64),
        "key": F.normalize(torch.randn(8, 6, generator=random, dtype=F64), dim=1),
        "queue": F.normalize(torch.randn(16, 6, generator=random, dtype=F64), dim=1),
        "local": torch.randn(2, 8, 4, 5, 5, generator=random, dtype=F64),
        "points": points, "valid": torch.rand(8, 6, generator=random) < 0.6,
    }


def moco_terms(own):
    """Terms, gradient to the maps, running statistics and queue, of the rows `own` of the samples."""
    given = moco_samples()
    maps, local = given["map"][own].requires_grad_(), given["local"][0, own].requires_grad_()
    white = WhitenZCA(6, 3, eps=1e-3).double()
    pooled = white(maps).flatten(2).mean(2)
    numbers = torch.arange(8)[own]
    output = {
        "query": F.normalize(pooled, dim=1), "whitened": pooled, "key": given["key"][own], "queue": given["queue"],
        "local_query": local, "local_key": given["local"][1, own], "subject": numbers, "position": numbers / 8.0,
        "queue_subject": torch.arange(16) % 8, "queue_position": torch.arange(16) % 8 / 8.0,
    }
    regions = Regions(*(points[own] for points in given["points"]), given["valid"][own])
    terms = DecorrelatedMoCoLoss(covariance_weight=0.1)(output, {"regions": regions})
    sum(terms.values()).backward()
    queue = FeatureQueue(6, 6)
    queue.push(*(gather(x) for x in (given["key"][own].float(), numbers, numbers / 8.0)))
    values = torch.stack(list(terms.values())).detach()
    statistics = [*white.state_dict().values(), *queue.state_dict().values()]
    return values, maps.grad, local.grad, statistics


def mocov3_terms(own):
    """The loss, gradients and statistics of a head and MoCo v3's contrast, of the rows `own` of the samples."""
    random = torch.Generator().manual_seed(2)
    features = torch.randn(2, 8, 6, generator=random, dtype=F64)[:, own].requires_grad_()
    torch.manual_seed(0)
    head = normed_projector((6, 5, 4)).double()
    keys = torch.randn(2, 8, 4, generator=random, dtype=F64)[:, own]
    output = {f"query_{view}": head(half) for view, half in enumerate(features, 1)}
    output |= {f"key_{view}": half for view, half in enumerate(keys, 1)}
    numbers = torch.arange(8)[own]
    output |= {"subject": numbers // 2, "position": numbers / 8.0}
    (value,) = MoCoV3Loss(0.2, exclude_radius=0.0)(output).values()
    (other,) = MoCoV3Loss(0.2, exclude_radius=0.2)(output).values()
    (value + other).backward()
    gradients = [parameter.grad for parameter in head.parameters()]
    return torch.stack([value.detach(), other.detach()]), features.grad, gradients, list(head.state_dict().values())


def arms_terms(own):
    """Terms of regression against contrast and their gradients, of the rows `own` of the samples."""
    random = torch.Generator().manual_seed(3)
    embeddings = torch.randn(3, 8, 5, generator=random, dtype=F64)[:, own].requires_grad_()
    images = torch.randn(2, 8, 1, 4, 4, generator=random, dtype=F64)[:, own].requires_grad_()
    changed = (torch.rand(8, 1, 4, 4, generator=random) < torch.linspace(0.1, 0.9, 8)[:, None, None, None])[own]
    output = {f"view_{number}": view for number, view in enumerate(embeddings, 1)} | {"restored": images[0]}
    target = {"image": images[1].detach(), "changed": changed, "position": torch.arange(8)[own] % 3 / 3.0}
    terms = RegressionContrastLoss(unchanged_weight=0.3, slabs=3, cross_subject=0.4)(output, target)
    sum(terms.values()).backward()
    return torch.stack(list(terms.values())).detach(), embeddings.grad, images.grad[0]


def work(folder):
    """What each of the two processes does; its findings go to a file of its own."""
    torch.set_num_threads(1)
    found = {"joined": (join_processes("cpu"), rank(), world_size())}
    views, position, weight = samples()
    for name, counts in SPLITS.items():
        own = own_rows(counts)
        found[name] = averaged(value_and_gradient(pair_contrast, views[:, :, own], position[own], weight))
    own = own_rows(SPLITS["equal"])
    found["jcl"] = averaged(jcl_terms(views[:, :, own], position[own], weight))
    x = torch.arange(2.0 + rank()).add(10 * rank()).requires_grad_()
    everything = gather(x)
    (everything * torch.arange(5.0) * (rank() + 1)).sum().backward()
    found["gather"] = everything.detach(), x.grad
    y = torch.tensor([1.0 + rank()], requires_grad=True)
    (total(y) * (rank() + 1)).sum().backward()
    found["total"] = total(y).detach(), y.grad
    found["moco"] = {name: moco_terms(own_rows(counts)) for name, counts in SPLITS.items()}
    found["mocov3"] = {name: mocov3_terms(own_rows(counts)) for name, counts in SPLITS.items()}
    found["arms"] = {name: arms_terms(own_rows(counts)) for name, counts in SPLITS.items()}
    found["network"] = network_steps()
    leave_processes()
    found["left"] = not dist.is_initialized()
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=int(os.environ["RANK"]), world_size=2)
    found["adopted"] = join_processes("cpu"), rank(), world_size()
    leave_processes()
    found["kept"] = dist.is_initialized()
    torch.save(found, Path(folder) / f"{os.environ['RANK']}.pt")
    if found["kept"]:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    """The findings of both processes, by rank."""
    folder = tmp_path_factory.mktemp("processes")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", __file__, folder]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(launch, capture_output=True, text=True, timeout=240, env=environment)
    assert run.returncode == 0, run.stderr[-3000:]
    return [torch.load(folder / f"{number}.pt") for number in range(2)]


def test_one_process_needs_no_group(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    x = torch.randn(3, requires_grad=True)
    assert join_processes("cpu") is False
    assert (rank(), world_size()) == (0, 1)
    assert gather(x) is x
    assert total(x) is x
    leave_processes()
    views, position, weight = samples()
    together = value_and_gradient(pair_contrast, views, position, weight)
    alone = value_and_gradient(local_pair_contrast, views, position, weight)
    assert all(torch.equal(a, b) for a, b in zip(together, alone, strict=True))


@pytest.mark.distributed
def test_only_a_group_that_we_made_is_ended(processes):
    for number, found in enumerate(processes):
        assert found["joined"] == (True, number, 2)
        assert found["left"]
        assert found["adopted"] == (False, number, 2)
        assert found["kept"]


@pytest.mark.distributed
def test_rows_are_gathered_in_rank_order_and_get_the_sum_of_all_gradients(processes):
    gradient = torch.arange(5.0) * 3  # rank 0 weighs it once, rank 1 twice
    for found, own in zip(processes, (slice(0, 2), slice(2, 5)), strict=True):
        assert found["gather"][0].tolist() == [0, 1, 10, 11, 12]
        assert torch.equal(found["gather"][1], gradient[own])


@pytest.mark.distributed
def test_a_total_and_its_gradient_are_sums(processes):
    for found in processes:
        assert found["total"][0].tolist() == [3.0]
        assert found["total"][1].tolist() == [3.0]


@pytest.mark.distributed
@pytest.mark.parametrize("split", SPLITS)
def test_two_processes_give_the_contrast_and_gradient_of_one(processes, split):
    expected = value_and_gradient(local_pair_contrast, *samples())
    for found in processes:
        for value, one in zip(found[split], expected, strict=True):
            torch.testing.assert_close(value, one, atol=1e-12, rtol=0)


@pytest.mark.distributed
def test_two_processes_give_the_terms_and_gradient_of_one(processes):
    expected = jcl_terms(*samples())
    for found in processes:
        for value, one in zip(found["jcl"], expected, strict=True):
            torch.testing.assert_close(value, one, atol=1e-12, rtol=0)


@pytest.mark.distributed
@pytest.mark.parametrize("split", SPLITS)
def test_two_processes_whiten_contrast_and_queue_as_one(processes, split):
    terms, maps, local, statistics = moco_terms(slice(None))
    start = 0
    torch.testing.assert_close(sum(found["moco"][split][0] for found in processes) / 2, terms, atol=1e-12, rtol=0)
    for found, count in zip(processes, SPLITS[split], strict=True):
        own = slice(start, start + count)
        start += count
        # the wrapper takes the mean of the gradients over processes
        torch.testing.assert_close(found["moco"][split][1] / 2, maps[own], atol=1e-12, rtol=0)
        torch.testing.assert_close(found["moco"][split][2] / 2, local[own], atol=1e-12, rtol=0)
        for ours, one in zip(found["moco"][split][3], statistics, strict=True):
            torch.testing.assert_close(ours, one, atol=1e-7, rtol=0)


@pytest.mark.distributed
@pytest.mark.parametrize("split", SPLITS)
def test_two_processes_norm_heads_and_contrast_batches_as_one(processes, split):
    values, features, gradients, statistics = mocov3_terms(slice(None))
    start, parts = 0, [found["mocov3"][split] for found in processes]
    torch.testing.assert_close(sum(part[0] for part in parts) / 2, values, atol=1e-12, rtol=0)
    for place, one in enumerate(gradients):  # the wrapper takes the mean of the gradients over processes
        torch.testing.assert_close(sum(part[2][place] for part in parts) / 2, one, atol=1e-12, rtol=0)
    for part, count in zip(parts, SPLITS[split], strict=True):
        torch.testing.assert_close(part[1] / 2, features[:, start : start + count], atol=1e-12, rtol=0)
        start += count
        for ours, one in zip(part[3], statistics, strict=True):
            torch.testing.assert_close(ours, one, atol=1e-12, rtol=0)


@pytest.mark.distributed
@pytest.mark.parametrize("split", SPLITS)
def test_two_processes_restore_and_contrast_slabs_as_one(processes, split):
    values, *gradients = arms_terms(slice(None))
    start, parts = 0, [found["arms"][split] for found in processes]
    torch.testing.assert_close(sum(part[0] for part in parts) / 2, values, atol=1e-12, rtol=0)
    for part, count in zip(parts, SPLITS[split], strict=True):
        own = slice(start, start + count)
        start += count
        # the wrapper takes the mean of the gradients over processes
        torch.testing.assert_close(part[1] / 2, gradients[0][:, own], atol=1e-12, rtol=0)
        torch.testing.assert_close(part[2] / 2, gradients[1][own], atol=1e-12, rtol=0)


@pytest.mark.distributed
def test_the_wrapped_network_has_no_parameter_without_gradient_and_stays_alike(processes):
    first, second = (found["network"] for found in processes)
    assert len(first) > 60
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


if __name__ == "__main__":
    work(sys.argv[1])
