"""Segmentation of whole volumes, slice by slice or window by window, and training that reads inner maps."""

from collections.abc import Callable, Iterable, Mapping, Sequence

from monai.inferers import Inferer, SliceInferer, SlidingWindowInferer
from torch import Tensor, nn

from medcl_monai.distributed import bare
from medcl_monai.knobs import knob_types
from medcl_monai.networks.modules import module_named
from medcl_monai.transforms.postprocessing import PREDICTION


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


class FeatureTaps(Inferer):
    """Runs a network and returns its inner feature maps beside the prediction, for a loss that reads these maps.

    The inferer is for training alone. The network stays the bare segmenter: hooks are registered for one call and
    removed after the call, and nothing is remembered between calls. The loss gets a flat dict, ``pred`` and one map per
    tapped module.

    Args:
        names: names of the tapped modules, such as ``down_1``; the keys of a mapping will do.

    Raises:
        ValueError: `names` is one string, or contains ``pred``; in a call: the network has no such module, a module
            gave no output or several outputs, or the map of a module with trained parameters has no gradient although
            the prediction has one.

    Example:
        >>> import torch
        >>> network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 2, 1))
        >>> {name: tuple(value.shape) for name, value in FeatureTaps(["0"])(torch.zeros(1, 1, 8, 8), network).items()}
        {'pred': (1, 2, 6, 6), '0': (1, 4, 6, 6)}
    """

    @knob_types
    def __init__(self, names: Iterable[str]) -> None:
        super().__init__()
        self.names = (names,) if isinstance(names, str) else tuple(names)
        if isinstance(names, str) or PREDICTION in self.names:
            raise ValueError(f"FeatureTaps: names must be a list of module names without 'pred', got {self.names}")

    def __call__(
        self, inputs: Tensor, network: Callable[..., Tensor], *args: object, **kwargs: object
    ) -> dict[str, Tensor]:
        """Return the prediction under ``pred``, and each map under the name of its module."""
        maps: dict[str, list[Tensor]] = {name: [] for name in self.names}
        tapped, hooks = self._tapped(network), []
        try:
            for name, module in tapped.items():
                hooks.append(module.register_forward_hook(lambda _, __, output, kept=maps[name]: kept.append(output)))
            prediction = network(inputs, *args, **kwargs)
        finally:
            for hook in hooks:
                hook.remove()
        for name, outputs in maps.items():
            if len(outputs) != 1:
                what = f"{len(outputs)} outputs" if outputs else "no output"
                raise ValueError(f"FeatureTaps: {name!r} gave {what} in this forward pass: one is expected")
            trained = any(parameter.requires_grad for parameter in tapped[name].parameters())  # a frozen map is meant
            if trained and needs_gradient(prediction) and not outputs[0].requires_grad:
                raise ValueError(f"FeatureTaps: the map of {name!r} has no gradient, but the prediction has one")
        return {PREDICTION: prediction, **{name: output for name, (output,) in maps.items()}}

    def _tapped(self, network: nn.Module) -> dict[str, nn.Module]:
        segmenter = _uncompiled(bare(_uncompiled(network)))
        return {name: module_named(segmenter, name, "FeatureTaps") for name in self.names}


def _uncompiled(network: nn.Module) -> nn.Module:
    return getattr(network, "_orig_mod", network)  # as torch.compile names it


def needs_gradient(prediction: object) -> bool:
    """Return whether a prediction, or one of several predictions in a list or dict, carries a gradient."""
    if isinstance(prediction, Tensor):
        return prediction.requires_grad
    return any(map(needs_gradient, prediction.values() if isinstance(prediction, Mapping) else prediction))


def pad_with_minimum(x: Tensor, size: Sequence[int]) -> Tensor:
    """Pad (B, C, *S) at the end of each axis to at least `size`, with the minimum of each channel of each sample."""
    padded = [max(side, least) for side, least in zip(x.shape[2:], size, strict=True)]
    if padded == list(x.shape[2:]):
        return x
    canvas = x.flatten(2).amin(2)[(..., *(None for _ in size))].expand(*x.shape[:2], *padded).clone()
    canvas[(..., *(slice(side) for side in x.shape[2:]))] = x
    return canvas


__all__ = ["FeatureTaps", "SegmentationInferer", "pad_with_minimum"]
