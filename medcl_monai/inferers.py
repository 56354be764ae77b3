"""Segmentation of whole volumes, slice by slice or window by window."""

from collections.abc import Callable, Sequence

from monai.inferers import Inferer, SliceInferer, SlidingWindowInferer
from torch import Tensor

from medcl_monai.knobs import knob_types


class SegmentationInferer(Inferer):
    """Segments volumes (B, C, X, Y, Z) with a 2D network over their slices, or with a 3D network over windows.

    A volume smaller than `roi_size` is padded with its own minimum, as training pads its samples, and the result is
    cropped to the size of the volume. MONAI's inferers pad with 0, which is the mean of z-scored data.

    Args:
        roi_size: size of the network's input, one number per axis: pixels of the two axes within the slice (2D), or
            voxels (3D).
        spatial_dims: number of spatial dimensions of the network, 2 or 3.
        slice_axis: axis of the volume that 2D slices are perpendicular to: 0, 1 or 2 for x, y or z; not used in 3D.
        batch_size: number of slices or windows per forward pass, at least 1.
        overlap: overlap of neighbouring windows as a share of `roi_size`, 0 up to but not including 1.
        multiple: number that must divide every entry of `roi_size`, because the network requires it; 1: any size is
            allowed.

    Raises:
        ValueError: `roi_size` does not have `spatial_dims` entries, or an entry is not a multiple of `multiple`; in a
            call: the input is not a batch of volumes.

    Example:
        >>> import torch
        >>> network = torch.nn.Conv2d(1, 3, 1)
        >>> SegmentationInferer([16, 16])(torch.zeros(1, 1, 10, 12, 5), network).shape
        torch.Size([1, 3, 10, 12, 5])
    """

    @knob_types
    def __init__(
        self,
        roi_size: Sequence[int],
        spatial_dims: int = 2,
        slice_axis: int = 2,
        batch_size: int = 8,
        overlap: float = 0.25,
        multiple: int = 1,
    ) -> None:
        super().__init__()
        if spatial_dims not in (2, 3) or len(roi_size) != spatial_dims:
            raise ValueError(f"roi_size {tuple(roi_size)} must have one entry per axis of a {spatial_dims}D network")
        roi = [int(side) for side in roi_size]
        if any(side % multiple for side in roi):
            raise ValueError(f"roi_size {tuple(roi)}: the network needs multiples of {multiple} in every axis")
        self.window = roi if spatial_dims == 3 else [*roi[:slice_axis], 1, *roi[slice_axis:]]
        windows = {"roi_size": roi, "sw_batch_size": batch_size, "overlap": overlap, "mode": "gaussian"}
        self.inferer = SlidingWindowInferer(**windows) if spatial_dims == 3 else SliceInferer(slice_axis, **windows)

    def __call__(self, inputs: Tensor, network: Callable[..., Tensor], *args: object, **kwargs: object) -> Tensor:
        """Return logits (B, K, X, Y, Z) on the grid of `inputs`."""
        if inputs.ndim != 5:
            raise ValueError(f"SegmentationInferer takes volumes (batch, channels, x, y, z), got {tuple(inputs.shape)}")
        logits = self.inferer(pad_with_minimum(inputs, self.window), network, *args, **kwargs)
        return logits[(..., *(slice(side) for side in inputs.shape[2:]))]


def pad_with_minimum(x: Tensor, size: Sequence[int]) -> Tensor:
    """Pad (B, C, *S) at the end of each axis to at least `size`, with the minimum of each channel of each sample."""
    padded = [max(side, least) for side, least in zip(x.shape[2:], size, strict=True)]
    if padded == list(x.shape[2:]):
        return x
    canvas = x.flatten(2).amin(2)[(..., *(None for _ in size))].expand(*x.shape[:2], *padded).clone()
    canvas[(..., *(slice(side) for side in x.shape[2:]))] = x
    return canvas


__all__ = ["SegmentationInferer", "pad_with_minimum"]
