"""Join a process group or not; gather and sum over its processes with exact gradients."""

import os

import ignite.distributed as idist
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

_made = False


def join_processes(device: str | torch.device = "cpu") -> bool:
    """Join the group of processes that torchrun started, or adopt one that exists; nothing to do for one process.

    Every process joins ignite here, before anything asks for a rank: ignite's first question is a collective, and
    asked by one rank alone it would wait for ever.

    Args:
        device: of this process; CUDA takes nccl, anything else gloo.

    Returns:
        Whether a group was made, which `leave_processes` then ends.
    """
    global _made
    if dist.is_available() and dist.is_initialized():
        idist.sync()
    elif int(os.environ.get("WORLD_SIZE", "1")) > 1:
        idist.initialize("nccl" if torch.device(device).type == "cuda" else "gloo")
        _made = True
    return _made


def leave_processes() -> None:
    """End the group that `join_processes` made; a group of somebody else stays."""
    global _made
    if _made:
        idist.finalize()
        _made = False


def rank() -> int:
    """Number of this process, 0 without a group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes, 1 without a group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def local_device() -> torch.device:
    """The accelerator of this process on its machine (torchrun's LOCAL_RANK), else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def distribute(network: nn.Module, device: torch.device, broadcast_buffers: bool = True) -> nn.Module:
    """The network on its device, wrapped for several processes; batch norm is synchronised on CUDA.

    torch.nn.SyncBatchNorm refuses CPU tensors: with gloo the batch statistics are per process.

    Args:
        network: to be wrapped.
        device: of this process.
        broadcast_buffers: send the first process's buffers to all before each forward pass. Off for pre-training,
            where nothing reads running statistics and a queue would be sent each time.
    """
    device = torch.device(device)
    if device.type == "cuda":
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    devices = [device] if device.type == "cuda" else None
    return DistributedDataParallel(network.to(device), device_ids=devices, broadcast_buffers=broadcast_buffers)


def bare(network: nn.Module) -> nn.Module:
    """The network without the wrapper for several processes."""
    return network.module if isinstance(network, DistributedDataParallel) else network


def gather(x: Tensor) -> Tensor:
    """Rows (dim 0) of all processes in rank order, with gradient: each gets the sum of what all make of its rows.

    Processes may hold unequal numbers of rows. Without a group: `x` itself.
    """
    return _Gather.apply(x) if world_size() > 1 else x


def total(x: Tensor) -> Tensor:
    """Sum over all processes, whose backward is a sum as well. Without a group: `x` itself."""
    return _Total.apply(x) if world_size() > 1 else x


def mean_over_processes(values: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean of the rows of all processes, such that the mean over processes of the gradients is its gradient.

    Args:
        values: one per row, (N, …).
        weights: of the same shape, 0 or 1: which count. If none does anywhere, the mean is 0.
    """
    weights = torch.ones_like(values) if weights is None else weights.to(values)
    count = total(weights.sum().detach()).clamp(min=1)
    return (values * weights).sum() * world_size() / count


def from_first(x: Tensor) -> Tensor:
    """The first process's values, on all processes; `x` is on the CPU and changes in place."""
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
