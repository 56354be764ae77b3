"""Peers that need care to import."""

import copy
from collections.abc import Callable

import torch

_library = torch.library.Library("torchvision", "FRAGMENT")


def _declare_operators() -> None:
    """Beside a CPU torch, torchvision imports only when its two operators are declared first."""
    for operator in ("nms", "qnms"):
        try:
            _library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        except RuntimeError:  # declared already
            break


def lightly_ntxent(temperature: float) -> torch.nn.Module:
    """Lightly's in-batch loss."""
    _declare_operators()
    from lightly.loss import NTXentLoss

    return NTXentLoss(temperature)


def lightly_memory_bank(query: torch.Tensor, key: torch.Tensor, length: int) -> Callable[[], object]:
    """Lightly's loss with a memory bank: value, gradient to the queries, push."""
    _declare_operators()
    from lightly.loss import NTXentLoss

    loss = NTXentLoss(temperature=0.2, memory_bank_size=(length, query.shape[1]))

    def run() -> tuple[torch.Tensor, ...]:
        leaf = query.detach().requires_grad_()
        value = loss(leaf, key)
        return (value.detach(), *torch.autograd.grad(value, [leaf]))

    return run


def lightly_moco(
    backbone: torch.nn.Module, view_1: torch.Tensor, view_2: torch.Tensor, length: int
) -> Callable[[], None]:
    """A step of MoCo v2 as lightly's examples build it, with an encoder of ours: one process, so no shuffle."""
    _declare_operators()
    from lightly.loss import NTXentLoss
    from lightly.models.modules import MoCoProjectionHead
    from lightly.models.utils import deactivate_requires_grad, update_momentum

    encoder, head = backbone.encoder, MoCoProjectionHead(512, 512, 128)
    slow_encoder, slow_head = copy.deepcopy(encoder), copy.deepcopy(head)
    for module in (slow_encoder, slow_head):
        deactivate_requires_grad(module)
    loss = NTXentLoss(temperature=0.2, memory_bank_size=(length, 128))
    optimizer = torch.optim.SGD([*encoder.parameters(), *head.parameters()], 0.03, 0.9)

    def run() -> None:
        update_momentum(encoder, slow_encoder, m=0.99)
        update_momentum(head, slow_head, m=0.99)
        query = head(encoder(view_1)[-1].flatten(2).mean(2))
        with torch.no_grad():
            key = slow_head(slow_encoder(view_2)[-1].flatten(2).mean(2))
        value = loss(query, key.detach())
        optimizer.zero_grad()
        value.backward()
        optimizer.step()

    return run
