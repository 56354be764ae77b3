"""Peers that need care to import."""

import torch

_library = torch.library.Library("torchvision", "FRAGMENT")


def lightly_ntxent(temperature: float) -> torch.nn.Module:
    """Lightly's loss; beside a CPU torch, torchvision imports only when its two operators are declared first."""
    for operator in ("nms", "qnms"):
        try:
            _library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        except RuntimeError:  # declared already
            break
    from lightly.loss import NTXentLoss

    return NTXentLoss(temperature)
