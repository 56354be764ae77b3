"""Whitening of feature maps: a layer that removes the correlation between channels."""

import logging
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from medcl_monai.distributed import from_first, total, world_size
from medcl_monai.knobs import knob_types
from medcl_monai.precision import full_precision

logger = logging.getLogger(__name__)
# enough iterations for the largest condition number that the type can represent: each iteration divides the condition
# number by 2.25; a fixed number needs no test for convergence, which would wait for the device
NEWTON_STEPS = {torch.float32: 28, torch.float64: 56}
SMALLEST = 1e-12  # smaller eigenvalues and norms are raised to this number


def inverse_root_eigh(matrices: Float[Tensor, "*batch g g"]) -> Float[Tensor, "*batch g g"]:
    r"""Compute Σ^(-1/2) of symmetric positive matrices by eigenvalues, with a backward pass of its own.

    With :math:`\Sigma = U \mathrm{diag}(r^2) U^\top` and the upstream gradient G, the backward pass is the formula of
    Daleckii and Krein:
    :math:`d\Sigma = \mathrm{sym}(U ((U^\top G U) \circ K) U^\top),\ K_{ij} = -1 / (r_i r_j (r_i + r_j))`.
    The formula is finite at repeated eigenvalues, where the gradient of ``torch.linalg.eigh`` is NaN.

    Raises:
        ValueError: the eigenvalues cannot be computed, for example because a matrix contains NaN.
    """
    return _InverseRoot.apply(matrices)


def inverse_root_newton(
    matrices: Float[Tensor, "*batch g g"], steps: int | None = None
) -> Float[Tensor, "*batch g g"]:
    """Compute Σ^(-1/2) of symmetric positive matrices by matrix products alone: the coupled Newton-Schulz iteration.

    Guo and Higham 2006, SIAM J. Matrix Anal. Appl. 28(3): only the coupled form of the iteration is stable. IterNorm
    (Huang et al. 2019, https://arxiv.org/abs/1904.03441) uses the form that is not coupled.

    Args:
        matrices: symmetric positive matrices (…, g, g).
        steps: number of iterations; 22 iterations are enough for a condition number of g / 1e-4. None: 28 in fp32, 56
            in fp64.
    """
    eye = torch.eye(matrices.shape[-1], dtype=matrices.dtype, device=matrices.device)
    norm = matrices.flatten(-2).norm(dim=-1)[..., None, None].clamp(min=SMALLEST)
    y, z = matrices / norm, eye.expand_as(matrices)
    for _ in range(NEWTON_STEPS[matrices.dtype] if steps is None else steps):
        turn = 1.5 * eye - 0.5 * z @ y
        y, z = y @ turn, turn @ z
    return z / norm.sqrt()


class WhitenZCA(nn.Module):
    r"""Whitens channels over batch and positions, in groups (ZCA): :math:`Y = (\Sigma + \rho I)^{-1/2} (X - \mu)`.

    The method is that of Huang et al. 2018 (Decorrelated Batch Normalization, https://arxiv.org/abs/1804.08450), with
    the ridge :math:`\rho = \epsilon\, \mathrm{tr}(\Sigma)/g + \text{floor}`, where g is the group size. The ridge keeps
    the gradient of collapsed features finite. The layer has no scale and no shift. In training, Σ and μ are computed
    from the batch, over all processes. In `eval`, Σ and μ are the running averages; the covariance is averaged, never
    its inverse root. The layer runs outside autocast, in fp32 or fp64.

    Args:
        channels: number of channels of the maps.
        group_size: number of channels that are decorrelated together, a divisor of `channels`. A batch needs at least
            twice as many samples (batch × positions, over all processes) as this number; four times as many are better.
        eps: ridge as a share of the mean variance of a group, 0 or more; no unit.
        floor: constant part of the ridge, in squared units of the features, 0 or more.
        momentum: weight of the current batch in the running averages, 0 to 1.
        inverse_root: function that computes the inverse root: `inverse_root_eigh` or `inverse_root_newton`.
        shuffle_groups: whether every batch gets new random groups of channels (Hua et al. 2021,
            https://arxiv.org/abs/2105.00470); in `eval` and in `fold`, the groups are consecutive channels.

    Raises:
        ValueError: a number is out of range; in `forward`: the batch has too few samples.
    """

    @knob_types
    def __init__(
        self,
        channels: int,
        group_size: int = 64,
        eps: float = 1e-4,
        floor: float = 1e-6,
        momentum: float = 0.1,
        inverse_root: Callable[[Tensor], Tensor] = inverse_root_eigh,
        shuffle_groups: bool = False,
    ) -> None:
        super().__init__()
        if group_size < 1 or channels % group_size:
            raise ValueError(f"WhitenZCA: group_size {group_size} must divide the {channels} channels")
        if eps < 0 or floor < 0 or not 0 <= momentum <= 1:
            raise ValueError(f"WhitenZCA: eps {eps} and floor {floor} must be 0 or more, momentum {momentum} 0 to 1")
        self.channels, self.group_size, self.eps, self.floor = channels, group_size, eps, floor
        self.momentum, self.inverse_root, self.shuffle_groups = momentum, inverse_root, shuffle_groups
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_covariance", torch.eye(group_size).repeat(channels // group_size, 1, 1))
        self._warned = False

    @full_precision
    def forward(self, x: Float[Tensor, "batch channels *positions"]) -> Float[Tensor, "batch channels *positions"]:
        """Whiten maps (B, C, *S) or embeddings (B, C)."""
        rows = x.movedim(1, 0).flatten(1)
        if not self.training:
            white = self._whiten(rows - self.running_mean.to(rows)[:, None], self.running_covariance.to(rows))
        else:
            white = self._by_batch(rows, x.shape)
        return white.unflatten(1, (len(x), *x.shape[2:])).movedim(0, 1)

    def fold(self, spatial_dims: int) -> nn.Module:
        """Return the layer with its running averages as a grouped convolution of kernel size 1.

        The convolution is meant for deployment and for a linear probe.

        Raises:
            ValueError: `spatial_dims` is not 1, 2 or 3.
        """
        if spatial_dims not in (1, 2, 3):
            raise ValueError(f"WhitenZCA.fold: spatial_dims must be 1, 2 or 3, got {spatial_dims}")
        convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[spatial_dims - 1]
        groups = self.channels // self.group_size
        layer = convolution(self.channels, self.channels, 1, groups=groups).to(self.running_mean)
        with torch.no_grad():
            root = self.inverse_root(self._ridged(self.running_covariance))
            layer.weight.copy_(root.reshape(layer.weight.shape))
            layer.bias.copy_(-(root @ self.running_mean.reshape(groups, -1, 1)).flatten())
        return layer

    def _by_batch(
        self, rows: Float[Tensor, "channels samples"], shape: torch.Size
    ) -> Float[Tensor, "channels samples"]:
        # one collective call sums the rows and counts the samples
        sums = total(torch.cat([rows.sum(1), rows.new_tensor([rows.shape[1]])]))
        samples = sums[-1].detach()
        self._check(int(samples) if world_size() > 1 else rows.shape[1], shape)
        mean = sums[:-1] / samples
        centred = rows - mean[:, None]
        covariance = self._covariance(centred, samples)
        if self.shuffle_groups:
            order = from_first(torch.randperm(self.channels)).to(rows.device)
            shuffled = centred[order]
            white = self._whiten(shuffled, self._covariance(shuffled, samples))[order.argsort()]
        else:
            white = self._whiten(centred, covariance)
        with torch.no_grad():
            self.running_mean.lerp_(mean.to(self.running_mean), self.momentum)
            self.running_covariance.lerp_(covariance.to(self.running_covariance), self.momentum)
        return white

    def _covariance(self, centred: Float[Tensor, "channels samples"], samples: Tensor) -> Float[Tensor, "groups g g"]:
        grouped = centred.unflatten(0, (-1, self.group_size))
        return total(grouped @ grouped.mT) / samples

    def _whiten(
        self, centred: Float[Tensor, "channels samples"], covariance: Float[Tensor, "groups g g"]
    ) -> Float[Tensor, "channels samples"]:
        root = self.inverse_root(self._ridged(covariance))
        return (root @ centred.unflatten(0, (-1, self.group_size))).flatten(0, 1)

    def _ridged(self, covariance: Float[Tensor, "groups g g"]) -> Float[Tensor, "groups g g"]:
        variance = covariance.diagonal(dim1=-2, dim2=-1).mean(-1)
        ridge = self.eps * variance + self.floor
        eye = torch.eye(self.group_size, dtype=covariance.dtype, device=covariance.device)
        return (covariance + covariance.mT) / 2 + ridge[:, None, None] * eye

    def _check(self, samples: int, shape: torch.Size) -> None:
        g = self.group_size
        positions = " x ".join(map(str, shape[2:])) or "1"
        where = f"{shape[0]} x {positions} positions" + (" in each process" if world_size() > 1 else "")
        if samples < 2 * g:
            raise ValueError(
                f"WhitenZCA: {samples} samples ({where}) cannot whiten groups of {g}: at "
                f"least {2 * g} are needed, {4 * g} are better; lower group_size or key_splits, or raise the batch"
            )
        if samples < 4 * g and not self._warned:
            self._warned = True
            logger.warning("WhitenZCA: %d samples for groups of %d are few, %d are better", samples, g, 4 * g)


class _InverseRoot(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, matrices: Tensor) -> Tensor:
        try:
            values, vectors = torch.linalg.eigh(matrices)
        except torch.linalg.LinAlgError as error:
            raise ValueError(f"the features to be whitened have no covariance (NaN or infinite?): {error}") from error
        root = values.clamp(min=SMALLEST).sqrt()
        ctx.save_for_backward(root, vectors)
        return (vectors / root[..., None, :]) @ vectors.mT

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> Tensor:
        root, vectors = ctx.saved_tensors
        rows, columns = root[..., :, None], root[..., None, :]
        inner = vectors.mT @ gradient @ vectors / -(rows * columns * (rows + columns))
        outer = vectors @ inner @ vectors.mT
        return (outer + outer.mT) / 2
