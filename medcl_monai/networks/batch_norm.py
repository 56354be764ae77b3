"""Batch norm of embeddings over the batches of all processes, on any device."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from medcl_monai.distributed import total, world_size


class GlobalBatchNorm(nn.BatchNorm1d):
    """Normalises embeddings by the mean and the variance over the rows of all processes.

    torch.nn.SyncBatchNorm refuses tensors on the CPU. In one process, and in `eval()`, the layer is torch's
    `BatchNorm1d`. On several processes the statistics are exact for any numbers of rows, and the gradients are those of
    the whole batch.

    Raises:
        ValueError: in `forward` in train mode: all processes together have one row, which has no variance.
    """

    def forward(self, x: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch dim"]:
        """Return the normalised embeddings; in train mode, the running statistics are updated."""
        if not self.training or world_size() == 1:
            return super().forward(x)
        rows = x.to(torch.promote_types(x.dtype, torch.float32))
        count = total(torch.tensor(float(len(rows)), device=x.device, dtype=rows.dtype))
        if count < 2:
            raise ValueError("GlobalBatchNorm: the batch of all processes has one row, which has no variance")
        mean = total(rows.sum(0)) / count
        centred = rows - mean
        variance = total(centred.square().sum(0)) / count
        if self.track_running_stats:
            self._track(mean.detach(), (variance * count / (count - 1)).detach())
        normed = centred * (variance + self.eps).rsqrt()
        normed = normed if self.weight is None else normed * self.weight + self.bias
        return normed.to(x.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor) -> None:
        self.num_batches_tracked.add_(1)
        share = 1 / self.num_batches_tracked if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean), share)
        self.running_var.lerp_(variance.to(self.running_var), share)
