"""An endless stream of batches that can start at any batch: batch k depends only on the seed, the rank and k."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from medcl_monai.data.slices import SliceDataset
from medcl_monai.data.stream import BatchStream
from medcl_monai.distributed import rank, world_size
from medcl_monai.knobs import knob_types
from medcl_monai.seeding import derive_seed


class StreamSampler(BatchStream):
    """Yields batches of pairs (item, seed of the item) without end.

    Without weights, the items come in random order, one permutation of all items after another, and each process takes
    its own part of every permutation. With weights, the items are drawn at random with replacement. Every batch is
    full.

    Args:
        length: number of items, at least 1.
        batch_size: number of items per batch and process, at least 1.
        seed: seed of the order of the items and of the items' own seeds.
        weights: relative frequency with which each item is drawn, 0 or more; None: every item occurs once per
            permutation.

    Attributes:
        start: number of the batch with which the next iteration begins, counted from 0.

    Raises:
        ValueError: `length` or `batch_size` is below 1, or `weights` are negative, all 0, or not one per item.
    """

    def __init__(
        self, length: int, batch_size: int, seed: int = 0, weights: Float[Tensor, " items"] | None = None
    ) -> None:
        if length < 1 or batch_size < 1:
            raise ValueError(f"StreamSampler: {length} items in batches of {batch_size}: both must be at least 1")
        if weights is not None and (len(weights) != length or float(weights.min()) < 0 or float(weights.sum()) <= 0):
            raise ValueError(f"StreamSampler: {length} weights of 0 or more, not all 0, are expected, got {weights}")
        super().__init__(batch_size, seed)
        self.length, self.weights = length, weights
        self._permutations: dict[int, Tensor] = {}

    def items(self, number: int) -> list[int]:
        """Return the items of batch `number` of this process, counted from 0."""
        if self.weights is None:
            first = (number * world_size() + rank()) * self.batch_size
            return [self._item(first + k) for k in range(self.batch_size)]
        generator = torch.Generator().manual_seed(derive_seed(self.seed, rank(), number))
        return torch.multinomial(self.weights, self.batch_size, replacement=True, generator=generator).tolist()

    def _item(self, place: int) -> int:
        turn, offset = divmod(place, self.length)
        if turn not in self._permutations:
            generator = torch.Generator().manual_seed(derive_seed(self.seed, turn))
            recent = {key: value for key, value in self._permutations.items() if key >= turn - 1}
            self._permutations = {**recent, turn: torch.randperm(self.length, generator=generator)}
        return int(self._permutations[turn][offset])


@knob_types
def sample_loader(
    dataset: SliceDataset,
    batch_size: int,
    seed: int = 0,
    weights: Float[Tensor, " items"] | None = None,
    num_workers: int = 0,
    sampler: BatchStream | None = None,
) -> DataLoader:
    """Make an endless loader of batches for `Trainer` and `Pretrainer`.

    The batches are the same with any number of workers.

    Args:
        dataset: the samples, slices (2D) or crops (3D).
        batch_size: number of samples per batch and process, at least 2, because batch normalisation needs two samples.
        seed: seed of the order of the samples, and of the random crop and the augmentation of each sample.
        weights: relative frequency with which each sample is drawn, 0 or more; None: every sample occurs once per pass.
        num_workers: number of worker processes that load samples; 0: the main process loads the samples.
        sampler: what yields the batches, such as a `SlabSampler` of the same batch size; None: a `StreamSampler`, which
            has `seed` and `weights`.

    Raises:
        ValueError: `batch_size` is below 2, or a sampler has another batch size or stands beside weights.
    """
    if batch_size < 2:
        raise ValueError(f"batch_size must be at least 2 (batch norm, and contrast, need as many), got {batch_size}")
    if sampler is None:
        sampler = StreamSampler(len(dataset), batch_size, seed, weights)
    elif weights is not None or sampler.batch_size != batch_size:
        raise ValueError(
            f"sample_loader: a sampler of batches of {batch_size} without weights is expected, got a "
            f"{type(sampler).__name__} of batches of {sampler.batch_size} and weights {weights}"
        )
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=num_workers,
        collate_fn=default_collate,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=num_workers > 0,
    )


@knob_types
def foreground_weights(dataset: SliceDataset, empty_slice_weight: float) -> Float[Tensor, " items"]:
    """Return weights for drawing samples: 1 for samples with foreground, `empty_slice_weight` for all other samples.

    Args:
        dataset: labelled samples.
        empty_slice_weight: how often a sample without foreground is drawn, relative to a sample with foreground; 0 or
            more. 0: such samples are never drawn; 1: all samples are drawn equally often.

    Raises:
        ValueError: `empty_slice_weight` is negative, or is 0 although no sample has foreground.
    """
    if empty_slice_weight < 0:
        raise ValueError(f"empty_slice_weight must be 0 or more, got {empty_slice_weight}")
    weights = torch.where(dataset.foreground, 1.0, float(empty_slice_weight))
    if float(weights.sum()) <= 0:
        raise ValueError("no slice of the training labels has foreground, and empty_slice_weight is 0")
    return weights
