"""The base of samplers whose endless stream of batches can start at any batch."""

from abc import ABC, abstractmethod
from collections.abc import Iterator

from torch.utils.data import Sampler

from medcl_monai.distributed import rank
from medcl_monai.seeding import derive_seed


class BatchStream(Sampler, ABC):
    """Yields batches of pairs (item, seed of the item) without end.

    Batch k of a process depends only on the seed, the rank and k.

    Args:
        batch_size: number of items per batch and process.
        seed: seed of the batches and of the items' own seeds.

    Attributes:
        start: number of the batch with which the next iteration begins, counted from 0.
    """

    def __init__(self, batch_size: int, seed: int) -> None:
        self.batch_size, self.seed, self.start = batch_size, seed, 0

    @abstractmethod
    def items(self, number: int) -> list[int]:
        """Return the items of batch `number` of this process, counted from 0."""

    def batch(self, number: int) -> list[tuple[int, int]]:
        """Return batch `number` of this process, counted from 0: its items, each with a seed of its own."""
        return [(item, derive_seed(self.seed, rank(), number, k)) for k, item in enumerate(self.items(number))]

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        number = self.start
        while True:
            yield self.batch(number)
            number += 1
