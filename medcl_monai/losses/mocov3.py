"""The contrastive loss of MoCo v3: queries of one view are contrasted with the keys of the other view in the batch."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from medcl_monai.distributed import first_row, gather, mean_over_processes
from medcl_monai.knobs import knob_types
from medcl_monai.losses.cosine import check_temperature
from medcl_monai.losses.infonce import LEAST, same_place
from medcl_monai.losses.terms import TermLoss
from medcl_monai.precision import full_precision


class MoCoV3Loss(TermLoss):
    """Trains each query to pick its own key out of the other view's keys of the batch, in both directions.

    Chen, Xie and He 2021 (MoCo v3), algorithm 1, https://arxiv.org/abs/2104.02057. `mocov3` gives the formula. Neither
    other queries nor keys of the query's own view are negatives. On several processes, the keys of all processes are
    negatives.

    Args:
        temperature: the cosine similarities are divided by this number, the paper's τ; no unit, above 0.
        weight: weight of this term in the sum that is minimised; no unit, 0 or more. 0: the term is left out.
        exclude_radius: other keys of the query's own subject are not used as negatives if their position differs from
            the query's position by at most this share of the slice axis; 0 or more. 0: only keys at the same position
            are left out; None or "none": all other keys are negatives, as in MoCo v3.

    Raises:
        ValueError: `temperature` is not above 0, or another number is negative.
    """

    contrasts = ("contrast",)

    @knob_types
    def __init__(
        self, temperature: float = 1.0, weight: float = 1.0, exclude_radius: float | None = None
    ) -> None:
        super().__init__()
        check_temperature(temperature)
        if weight < 0 or (exclude_radius is not None and exclude_radius < 0):
            raise ValueError(f"MoCoV3Loss: weight {weight} and exclude_radius {exclude_radius} must be 0 or more")
        self.temperature, self.weight, self.exclude_radius = temperature, weight, exclude_radius

    def forward(self, output: Mapping[str, Tensor], target: object = None) -> dict[str, Tensor]:
        """Return the weighted term ``contrast``; if the weight is 0, no term is returned.

        Args:
            output: ``query_1``, ``query_2``, ``key_1``, ``key_2`` (B, C), of any length; with an `exclude_radius` also
                ``subject`` and ``position`` (B,).
            target: the engine's second argument, which this loss does not use.
        """
        if self.weight == 0:
            return {}
        masked = None if self.exclude_radius is None else self._excluded(output)
        queries = torch.stack([output["query_1"], output["query_2"]])
        keys = torch.stack([gather(output[key].detach()) for key in ("key_2", "key_1")])
        rows = mocov3_rows(queries, keys, self.temperature, masked, first_row(output["query_1"]))
        return {"contrast": self.weight * mean_over_processes(rows.sum(0))}

    def _excluded(self, output: Mapping[str, Tensor]) -> Bool[Tensor, "batch keys"]:
        subject, position = output["subject"], output["position"]
        masked = same_place(subject, position, gather(subject), gather(position), self.exclude_radius)
        first = first_row(subject)
        masked[:, first : first + len(subject)].fill_diagonal_(0)
        return masked


def mocov3(
    query_1: Float[Tensor, "batch dim"],
    query_2: Float[Tensor, "batch dim"],
    key_1: Float[Tensor, "batch dim"],
    key_2: Float[Tensor, "batch dim"],
    temperature: float,
) -> Float[Tensor, ""]:
    r"""Compute the loss of MoCo v3, as the mean over the batch; only the queries receive a gradient.

    .. math:: L = c(q^1, k^2) + c(q^2, k^1),\quad c(q, k) = \frac{2\tau}{N} \sum_i \Bigl[
        \log \sum_j e^{q_i \cdot k_j / \tau} - q_i \cdot k_i / \tau \Bigr]

    The embeddings are normalised, and the computation runs outside of autocast, in fp32 at least. The factor 2τ keeps
    the size of the gradient when τ changes. Equal embeddings give 4τ log N. The smallest value is
    4τ log(1 + (N - 1) exp(-(1 + 1/(N - 1))/τ)), which for τ = 1 is not far below.

    Args:
        query_1: queries of view 1.
        query_2: queries of view 2.
        key_1: keys of view 1.
        key_2: keys of view 2; row i belongs to row i of `query_1`.
        temperature: τ, above 0.

    Raises:
        ValueError: `temperature` is not above 0.

    Example:
        >>> import torch
        >>> round(float(mocov3(*[torch.eye(8)] * 4, 1.0)), 6)
        5.096035
    """
    rows = mocov3_rows(torch.stack([query_1, query_2]), torch.stack([key_2, key_1]), temperature)
    return rows.mean() * 2


@full_precision
def mocov3_rows(
    query: Float[Tensor, "directions batch dim"],
    key: Float[Tensor, "directions keys dim"],
    temperature: float,
    masked: Bool[Tensor, "batch keys"] | None = None,
    first: int = 0,
) -> Float[Tensor, "directions batch"]:
    """Compute the loss of each query, for several directions at once; `mocov3` gives the formula.

    Args:
        query: queries of this process, of each direction.
        key: keys of all processes, of each direction.
        temperature: τ, above 0.
        masked: for each query, the keys that are not used as negatives; None: all keys are negatives.
        first: place of the first query's own key; the own keys follow each other.

    Raises:
        ValueError: `temperature` is not above 0, or a query has no key.
    """
    check_temperature(temperature)
    count = query.shape[1]
    if first + count > key.shape[1]:
        raise ValueError(f"{count} queries from place {first} need as many keys, got {key.shape[1]}")
    q = F.normalize(query, dim=2) / temperature
    logits = q @ F.normalize(key.detach().to(q), dim=2).mT
    if masked is not None:
        logits = logits.masked_fill(masked, LEAST)
    own = torch.arange(first, first + count, device=logits.device)
    rows = F.cross_entropy(logits.flatten(0, 1), own.repeat(len(query)), reduction="none")
    return 2 * temperature * rows.unflatten(0, query.shape[:2])
