"""Functions to join a process group, and to gather and sum over its processes with exact gradients."""

import os
from collections.abc import Iterable

import ignite.distributed as idist
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

_made = False


def join_processes(device: str | torch.device = "cpu") -> bool:
    """Join the process group that torchrun started, or adopt an existing group; a single process needs no group.

    Every process joins Ignite in this function, before any process asks for its rank. Ignite's first query of the rank
    is a collective call: if only one rank made this call, this rank would wait for ever.

    Args:
        device: device of this process; CUDA devices communicate by nccl, all other devices by gloo.

    Returns:
        Whether this function made a group; `leave_processes` then ends the group.
    """
    global _made
    if dist.is_available() and dist.is_initialized():
        idist.sync()
    elif int(os.environ.get("WORLD_SIZE", "1")) > 1:
        idist.initialize("nccl" if torch.device(device).type == "cuda" else "gloo")
        _made = True
    return _made


def leave_processes() -> None:
    """End the group that `join_processes` made; a group that other code made stays."""
    global _made
    if _made:
        idist.finalize()
        _made = False


def rank() -> int:
    """Return the rank of this process, counted from 0; without a group, 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of processes; without a group, 1."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def local_device() -> torch.device:
    """Return the GPU of this process on its machine (torchrun's LOCAL_RANK), or the CPU if there is no GPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def distribute(network: nn.Module, device: torch.device, broadcast_buffers: bool = True) -> nn.Module:
    """Move a network to its device and wrap it in DistributedDataParallel; on CUDA, batch norm is synchronised.

    torch.nn.SyncBatchNorm refuses CPU tensors, so with gloo each process has batch statistics of its own.

    Args:
        network: the network that is wrapped.
        device: device of this process.
        broadcast_buffers: whether the first process sends its buffers to all processes before each forward pass. This
            is off for pre-training, where nothing reads running statistics and a queue would be sent each time.
    """
    device = torch.device(device)
    if device.type == "cuda":
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    devices = [device] if device.type == "cuda" else None
    return DistributedDataParallel(network.to(device), device_ids=devices, broadcast_buffers=broadcast_buffers)


def bare(network: nn.Module) -> nn.Module:
    """Return the network without the DistributedDataParallel wrapper."""
    return network.module if isinstance(network, DistributedDataParallel) else network


def gather(x: Tensor) -> Tensor:
    """Gather the rows (dim 0) of all processes in rank order, with gradient.

    The gradient of a row is the sum of the gradients from all processes. The processes may hold different numbers of
    rows. Without a group, the result is `x` itself.
    """
    return _Gather.apply(x) if world_size() > 1 else x


def first_row(x: Tensor) -> int:
    """Return the place of this process's first row in the result of `gather`; without a group, 0."""
    if world_size() == 1:
        return 0
    counts = gather(torch.tensor([len(x)], device=x.device))
    return int(counts[: rank()].sum())


def total(x: Tensor) -> Tensor:
    """Sum a tensor over all processes; the backward pass sums the gradient over all processes as well.

    Without a group, the result is `x` itself.
    """
    return _Total.apply(x) if world_size() > 1 else x


def mean_over_processes(values: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return a value whose average over the processes is the mean over the rows of all processes.

    The same holds for the gradients: DistributedDataParallel averages the gradients over the processes, and this
    average is the gradient of the mean over all rows.

    Args:
        values: one value per row, (N, …).
        weights: 1 for each value that counts and 0 for each other value, in the shape of `values`; None: all values
            count. If no value counts in any process, the mean is 0.
    """
    weights = torch.ones_like(values) if weights is None else weights.to(values)
    count = total(weights.sum().detach()).clamp(min=1)
    return (values * weights).sum() * world_size() / count


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace each gradient by its mean over all processes, as DistributedDataParallel does for a network it wraps.

    Args:
        parameters: parameters that no DistributedDataParallel wraps, such as those of a loss; a parameter without a
            gradient must lack its gradient in all processes.
    """
    if world_size() == 1:
        return
    for parameter in parameters:
        if parameter.grad is not None:
            dist.all_reduce(parameter.grad)
            parameter.grad /= world_size()


def from_first(x: Tensor) -> Tensor:
    """Return the values of the first process in all processes; `x` is on the CPU and may be changed in place."""
    if world_size() > 1:
        x = x.to(local_device()) if dist.get_backend() == "nccl" else x
        dist.broadcast(x, 0)
    return x


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        counts = [torch.zeros(1, dtype=torch.int64, device=x.device) for _ in range(world_size())]
        dist.all_gather(counts, torch.tensor([len(x)], device=x.device))
        ctx.counts = [int(count) for count in counts]
        most = max(ctx.counts)
        padded = x.new_zeros(most, *x.shape[1:])
        padded[: len(x)] = x
        rows = [torch.empty_like(padded) for _ in ctx.counts]
        dist.all_gather(rows, padded)
        return torch.cat([part[:count] for part, count in zip(rows, ctx.counts, strict=True)])

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous().clone()
        dist.all_reduce(gradient)
        return gradient.split(ctx.counts)[rank()]


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        summed = x.clone()
        dist.all_reduce(summed)
        return summed

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous().clone()
        dist.all_reduce(gradient)
        return gradient
