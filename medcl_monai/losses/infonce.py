"""Contrast of queries with their keys against a queue of older keys."""

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

LEAST = -1e30  # a masked logit: finite, so that a row of masked ones has a gradient of 0 and not NaN


class QueueInfoNCELoss(TermLoss):
    """Each query must pick its key out of the key and the queue.

    He et al. 2020 (MoCo), eq. 1, https://arxiv.org/abs/1911.05722, and MoCo v2. See `queue_infonce`.

    Args:
        temperature: divides the cosine similarities; the paper's τ. No unit, above 0.
        exclude_radius: older keys of the query's own subject no farther than this share of the axis are no negatives;
            0: only those of the very same place; None or "none": all are negatives, as in MoCo.
        weight: of this term in the sum that is minimised. No unit.

    Raises:
        ValueError: `temperature` is not above 0, or `exclude_radius` negative.
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
        """The one weighted term of ``query``, ``key`` (N, C), ``queue`` (K, C), the subject and position of both."""
        masked = None
        if self.exclude_radius is not None:
            own, older = ([output[f"{whose}{what}"] for what in ("subject", "position")] for whose in ("", "queue_"))
            masked = same_place(*own, *older, self.exclude_radius)
        rows = queue_infonce_rows(output["query"], output["key"], output["queue"], self.temperature, masked)
        return {"global": self.weight * mean_over_processes(rows)}


def queue_infonce(
    query: Float[Tensor, "batch dim"],
    key: Float[Tensor, "keys key_dim"],
    queue: Float[Tensor, "rows width"],
    temperature: float,
    masked: Bool[Tensor, "batch rows"] | None = None,
) -> Float[Tensor, ""]:
    r"""InfoNCE with a queue: the mean over queries. Gradient goes to the queries alone.

    .. math:: \ell_i = \log(e^{p_i} + \sum_j e^{n_{ij}}) - p_i,\quad p_i = q_i \cdot k_i / \tau,\quad
        n_{ij} = q_i \cdot Q_j / \tau

    Args:
        query: unit vectors.
        key: unit vectors; row i is the other view of row i of `query`.
        queue: unit vectors.
        temperature: τ, above 0.
        masked: rows of the queue that are no negatives of a query; None: all are.

    Raises:
        ValueError: `temperature` is not above 0, the queue is of another width, or the keys are not as many as the
            queries.

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
    """The ℓ of each query; see `queue_infonce`."""
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
    # log(e^p + e^n) - p; torch's own threshold of 20 would cost fp64 its last digits
    return F.softplus(negatives.logsumexp(1) - positive, threshold=40)


def same_place(
    subject: Int[Tensor, " batch"],
    position: Shaped[Tensor, " batch"],
    queue_subject: Int[Tensor, " rows"],
    queue_position: Shaped[Tensor, " rows"],
    radius: float,
) -> Bool[Tensor, "batch rows"]:
    """Which rows of a queue are of a query's own subject and no farther than `radius` (share of the axis) from it."""
    far = position[:, None].double() - queue_position
    own = (subject[:, None] == queue_subject) & (queue_subject >= 0)  # -1 is nobody
    return own & (far.abs() <= radius + TIE)
