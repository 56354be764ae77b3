"""Slabs: equal parts of the slice axis, and an endless stream of batches with samples of every slab."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from medcl_monai.data.stream import BatchStream
from medcl_monai.distributed import rank, world_size
from medcl_monai.knobs import knob_types
from medcl_monai.seeding import derive_seed

ROUNDING = 1e-6  # many positions lie on a border between slabs; rounding must not decide


def slab_of(position: Float[Tensor, " samples"], slabs: int) -> Int[Tensor, " samples"]:
    """Return the number of the slab in which each position lies, 0 to slabs - 1.

    Args:
        position: places on the slice axis as a share of its length, 0 to 1.
        slabs: number of equal parts of the slice axis, at least 1.

    Example:
        >>> slab_of(torch.tensor([0.0, 0.249, 0.25, 1.0]), 4).tolist()
        [0, 0, 1, 3]
    """
    return (position * slabs + ROUNDING).floor().long().clamp(max=slabs - 1)


class SlabSampler(BatchStream):
    """Yields batches of pairs (item, seed of the item) without end; each batch holds each slab of several subjects.

    A batch holds ``batch_size / slabs`` subjects, drawn without replacement, and one random item of each slab of each
    of these subjects. The subjects of different processes differ. Batch k of a process depends only on the seed, the
    rank and k, as in `StreamSampler`.

    Args:
        positions: place of each item on the slice axis, 0 to 1.
        subjects: subject of each item.
        slabs: number of equal parts of the slice axis, at least 1.
        batch_size: number of items per batch and process, a multiple of `slabs`.
        seed: seed of the batches and of the items' own seeds.

    Attributes:
        start: number of the batch with which the next iteration begins, counted from 0.

    Raises:
        ValueError: `batch_size` is no multiple of `slabs`, a subject has no item in a slab, or there are fewer subjects
            than a batch of all processes needs.
    """

    @knob_types
    def __init__(
        self, positions: Float[Tensor, " items"], subjects: Sequence[object], slabs: int, batch_size: int, seed: int = 0
    ) -> None:
        if slabs < 1 or batch_size < 1 or batch_size % slabs:
            raise ValueError(
                f"SlabSampler: batch_size {batch_size} must be a multiple of the number of slabs, {slabs}: a batch "
                "holds one sample of each slab of several subjects"
            )
        super().__init__(batch_size, seed)
        self.slabs = slabs
        names = sorted(set(subjects), key=str)
        places = {name: place for place, name in enumerate(names)}
        group = torch.tensor([places[name] for name in subjects]) * slabs + slab_of(positions, slabs)
        self._order, self._counts = group.argsort(stable=True), group.bincount(minlength=len(names) * slabs)
        self._first = self._counts.cumsum(0) - self._counts
        if bool((self._counts == 0).any()):
            subject, slab = divmod(int((self._counts == 0).int().argmax()), slabs)
            count = sum(name == names[subject] for name in subjects)
            raise ValueError(
                f"SlabSampler: subject {names[subject]} has no slice in slab {slab} of {slabs} ({count} slices)"
            )
        needed = batch_size // slabs * world_size()
        if len(names) < needed:
            raise ValueError(
                f"SlabSampler: a batch of {batch_size} with {slabs} slabs needs {needed} subjects over "
                f"{world_size()} process(es), got {len(names)}"
            )
        self._subjects = len(names)

    def items(self, number: int) -> list[int]:
        """Return the items of batch `number` of this process, counted from 0."""
        own = self.batch_size // self.slabs
        generator = torch.Generator().manual_seed(derive_seed(self.seed, number))
        subjects = torch.randperm(self._subjects, generator=generator)[rank() * own : (rank() + 1) * own]
        groups = (subjects[:, None] * self.slabs + torch.arange(self.slabs)).flatten()
        generator.manual_seed(derive_seed(self.seed, rank(), number))
        within = (torch.rand(len(groups), generator=generator, dtype=torch.float64) * self._counts[groups]).long()
        return self._order[self._first[groups] + within].tolist()
