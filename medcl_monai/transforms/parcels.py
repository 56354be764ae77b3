"""A task that needs no annotation of its own: where in the labelled body a voxel lies."""

from collections.abc import Mapping, Sequence

import torch
from monai.transforms import MapTransform
from torch import Tensor

from medcl_monai.knobs import knob_types


class PositionParcelsd(MapTransform):
    """Replaces a label map by parcels of position: halves along the first axis, thirds along the second axis.

    The box of all labelled voxels is divided; a labelled voxel gets the value of its part, 1 to 6: thirds of the first
    half, then thirds of the second half. In a volume in RAS, these are left back, left middle, left front, then right.
    Background stays 0. A network that learns the parcels learns supervised features without a label of the structures.

    Args:
        keys: keys of the label maps (1, X, Y, Z).
    """

    @knob_types
    def __init__(self, keys: str | Sequence[str]) -> None:
        super().__init__(keys)

    def __call__(self, data: Mapping[str, object]) -> dict[str, object]:
        """Return the entry with parcels in place of the label maps."""
        entry = dict(data)
        for key in self.key_iterator(entry):
            entry[key] = position_parcels(entry[key])
        return entry


def position_parcels(label: Tensor) -> Tensor:
    """Return the parcels of a label map (1, X, Y, Z), as `PositionParcelsd` describes them; metadata are kept."""
    body = label > 0
    parts = [_part(body, axis, number) for axis, number in ((1, 2), (2, 3))]
    return ((1 + 3 * parts[0] + parts[1]) * body).to(label.dtype)


def _part(body: Tensor, axis: int, number: int) -> Tensor:
    """Return the part, counted from 0, of each place along an axis; the box of the body has equal parts."""
    plain = torch.as_tensor(body).as_subclass(Tensor)
    places = plain.any(dim=tuple(other for other in range(plain.ndim) if other != axis)).nonzero()
    low, high = (int(places.min()), int(places.max()) + 1) if len(places) else (0, 1)
    part = ((torch.arange(body.shape[axis]) - low) * number // (high - low)).clamp(0, number - 1)
    return part.reshape([-1 if other == axis else 1 for other in range(body.ndim)])
