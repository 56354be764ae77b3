"""InfoNCE with a queue: queries are contrasted with their keys and with a queue of older keys."""

from collections.abc import Mapping

import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from medcl_monai.distributed import mean_over_processes
from medcl_monai.knobs import knob_types
from medcl_monai.losses.cosine import check_temperature
from medcl_monai.losses.positional import TIE
from medcl_monai.losses.terms import TermLoss
from medcl_monai.precision import full_precision

LEAST = -1e30  # a masked logit; finite, so that a row in which all logits are masked has the gradient 0 and not NaN


class QueueInfoNCELoss(TermLoss):
    """Trains each query to pick its own key out of this key and the queue of older keys.

    He et al. 2020 (MoCo), eq. 1, https://arxiv.org/abs/1911.05722, and MoCo v2. `queue_infonce` gives the formula.

    Args:
        temperature: the cosine similarities are divided by this number, the paper's τ; no unit, above 0.
        exclude_radius: older keys of the query's own subject are not used as negatives if their position differs from
            the query's position by at most this share of the slice axis; 0 or more. 0: only older keys at the same
            position are left out; None or "none": all older keys are negatives, as in MoCo.
        weight: weight of this term in the sum that is minimised; no unit.

    Raises:
        ValueError: `temperature` is not above 0, or `exclude_radius` is negative.
    """

    contrasts = ("global",)

    @knob_types
    def __init__(
        self, temperature: float = 0.2, exclude_radius: float | None = 0.0, weight: float = 1.0
    ) -> None:
        super().__init__()
        check_temperature(temperature)
        if exclude_radius is not None and exclude_radius < 0:
            raise ValueError(f"exclude_radius must be 0 or more (share of the axis) or None, got {exclude_radius}")
        self.temperature, self.exclude_radius, self.weight = temperature, exclude_radius, weight

    def forward(self, output: Mapping[str, Tensor], target: object = None) -> dict[str, Tensor]:
        """Return the weighted term ``global``.

        Args:
            output: ``query`` and ``key`` (N, C), ``queue`` (K, C); unless `exclude_radius` is None, also ``subject``
                and ``position`` (N,), ``queue_subject`` and ``queue_position`` (K,).
            target: the engine's second argument, which this loss does not use.
        """
        masked = None
        if self.exclude_radius is not None:
            names = [f"{whose}{what}" for whose in ("", "queue_") for what in ("subject", "position")]
            masked = same_place(*(output[name] for name in names), self.exclude_radius)
        rows = queue_infonce_rows(output["query"], output["key"], output["queue"], self.temperature, masked)
        return {"global": self.weight * mean_over_processes(rows)}


def queue_infonce(
    query: Float[Tensor, "batch dim"],
    key: Float[Tensor, "keys key_dim"],
    queue: Float[Tensor, "rows width"],
    temperature: float,
    masked: Bool[Tensor, "batch rows"] | None = None,
) -> Float[Tensor, ""]:
    r"""Compute InfoNCE with a queue, the mean over the queries; only the queries receive a gradient.

    .. math:: \ell_i = \log(e^{p_i} + \sum_j e^{n_{ij}}) - p_i,\quad p_i = q_i \cdot k_i / \tau,\quad
        n_{ij} = q_i \cdot Q_j / \tau

    Args:
        query: queries, unit vectors.
        key: keys, unit vectors; row i is the other view of row i of `query`.
        queue: older keys, unit vectors.
        temperature: τ, above 0.
        masked: for each query, the rows of the queue that are not used as negatives; None: all rows are negatives.

    Raises:
        ValueError: `temperature` is not above 0, the queue has another width than the queries, or the keys have another
            shape than the queries.

    Example:
        >>> import torch
        >>> same = torch.ones(1, 1)
        >>> round(float(queue_infonce(same, same, same.expand(1024, 1), 0.2)), 4)  # log 1025
        6.9324
    """
    return queue_infonce_rows(query, key, queue, temperature, masked).mean()


@full_precision
def queue_infonce_rows(
    query: Float[Tensor, "batch dim"],
    key: Float[Tensor, "keys key_dim"],
    queue: Float[Tensor, "rows width"],
    temperature: float,
    masked: Bool[Tensor, "batch rows"] | None = None,
) -> Float[Tensor, " batch"]:
    """Compute the loss ℓ of each query; `queue_infonce` gives the formula."""
    check_temperature(temperature)
    if queue.shape[1] != query.shape[1]:
        raise ValueError(f"the queue's rows are {queue.shape[1]} wide, the queries {query.shape[1]}: they must agree")
    if key.shape != query.shape:
        raise ValueError(
            f"keys are {tuple(key.shape)}, queries {tuple(query.shape)}: each query needs its own key, of its process"
        )
    scaled = query / temperature
    positive = (scaled * key.detach().to(scaled)).sum(1)
    negatives = scaled @ queue.detach().to(scaled).T
    if masked is not None:
        negatives = negatives.masked_fill_(masked, LEAST)
    # log(e^p + e^n) - p; with torch's default threshold of 20, fp64 would lose its last digits
    return F.softplus(negatives.logsumexp(1) - positive, threshold=40)


def same_place(
    subject: Int[Tensor, " batch"],
    position: Shaped[Tensor, " batch"],
    queue_subject: Int[Tensor, " rows"],
    queue_position: Shaped[Tensor, " rows"],
    radius: float,
) -> Bool[Tensor, "batch rows"]:
    """Mark, for each query, the rows of a queue with the same subject and a position at most `radius` away.

    Positions and `radius` are shares of the slice axis.
    """
    far = position[:, None].double() - queue_position
    same_subject = (subject[:, None] == queue_subject) & (queue_subject >= 0)  # -1 marks a row without a subject
    return same_subject & (far.abs() <= radius + TIE)
