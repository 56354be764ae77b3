"""Two processes compute the terms and gradients of one process that holds both their batches."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from monai.networks.nets import BasicUNet
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from medcl_monai import FeatureTaps, LabelBoxes, PDCRLoss, balanced_pdcr, insert_uafs, pdcr
from medcl_monai.distributed import average_gradients

pytestmark = pytest.mark.distributed
CLASSES = 3


class MeanCrossEntropy(nn.Module):
    """A segmentation loss whose mean over two halves is the mean over the whole."""

    def forward(self, prediction, label):
        return {"cross_entropy": nn.functional.cross_entropy(prediction, label[:, 0].long())}


def made(form):
    torch.manual_seed(0)
    network = BasicUNet(2, 1, CLASSES, features=(8, 8, 16, 16, 16, 8), norm=("group", {"num_groups": 4})).double()
    insert_uafs(network, ["upcat_2.convs", "upcat_1.convs"])
    boxes = LabelBoxes({"down_1": [5, 9], "down_2": [5, 9]}, CLASSES, 16)
    channels = {"down_1": 8, "down_2": 16}
    loss = PDCRLoss(MeanCrossEntropy(), boxes, 0.5, 0.5, channels, projection_dim=4, pair_loss=form).double()
    image = torch.randn(8, 1, 32, 32, dtype=torch.float64)
    label = torch.zeros(8, 1, 32, 32)
    label[:5, :, 4:20, 8:24] = 1  # images of one class are in the second half alone
    label[0, :, 22:30, 2:30] = 2
    return network, loss, image, label


def gradients(network, loss, image, label):
    terms = loss(FeatureTaps(loss.watched)(image, network), label)
    sum(terms.values()).backward()
    average_gradients(loss.parameters())
    bare = network.module if isinstance(network, DistributedDataParallel) else network
    named = [*bare.named_parameters(), *loss.named_parameters()]
    return {name: value.grad for name, value in named}


def half(rank, folder, form):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    network, loss, image, label = made(form)
    part = slice(4 * rank, 4 * rank + 4)
    torch.save(gradients(DistributedDataParallel(network), loss, image[part], label[part]), folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.parametrize("form", [pdcr, balanced_pdcr], ids=lambda form: form.__name__)
def test_two_processes_give_the_gradient_of_one_with_twice_the_batch(tmp_path, form):
    whole = gradients(*made(form))
    mp.spawn(half, (tmp_path, form), nprocs=2)
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert set(found) == set(whole)
        for name, value in whole.items():
            torch.testing.assert_close(found[name], value, atol=1e-12, rtol=1e-9)
