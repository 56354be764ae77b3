"""Peers that need care to import."""

import copy
import itertools
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


def lightly_mocov3(backbone: torch.nn.Module, view_1: torch.Tensor, view_2: torch.Tensor) -> Callable[[], None]:
    """A step of momentum contrast in both directions from lightly's parts, with an encoder of ours and our widths."""
    _declare_operators()
    from lightly.models.modules.heads import ProjectionHead
    from lightly.models.utils import deactivate_requires_grad, update_momentum

    from medcl_monai import encode

    def head(*widths: int) -> ProjectionHead:
        pairs = list(itertools.pairwise(widths))
        last = len(pairs) - 1
        return ProjectionHead([
            (a, b, torch.nn.BatchNorm1d(b, affine=place < last), torch.nn.ReLU() if place < last else None)
            for place, (a, b) in enumerate(pairs)
        ])

    project, predict = head(192, 512, 512, 128), head(128, 512, 128)
    slow, slow_project = copy.deepcopy(backbone), copy.deepcopy(project)
    for module in (slow, slow_project):
        deactivate_requires_grad(module)
    loss = lightly_ntxent(0.2)
    parameters = [*backbone.swinViT.parameters(), *project.parameters(), *predict.parameters()]
    optimizer = torch.optim.AdamW(parameters, 1e-3)

    def run() -> None:
        update_momentum(backbone.swinViT, slow.swinViT, m=0.9)
        update_momentum(project, slow_project, m=0.9)
        queries = [predict(project(encode(backbone, view)[-1].flatten(2).mean(2))) for view in (view_1, view_2)]
        with torch.no_grad():
            keys = [slow_project(encode(slow, view)[-1].flatten(2).mean(2)) for view in (view_1, view_2)]
        value = loss(queries[0], keys[1]) + loss(queries[1], keys[0])
        optimizer.zero_grad()
        value.backward()
        optimizer.step()

    return run
