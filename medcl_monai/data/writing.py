"""The writer of label maps."""

from monai.data import NibabelWriter
from torch import Tensor


class VolumeWriter(NibabelWriter):
    """MONAI's NIfTI writer for volumes of one channel: a volume with three axes is written with three axes.

    By default, MONAI drops the channel together with all axes of length 1 at the end, so a label map of one slice would
    become 2D. If MONAI is told to keep these axes, MONAI keeps the channel as well. This writer drops the channel
    alone.
    """

    def set_data_array(
        self, data_array: Tensor, channel_dim: int | None = 0, squeeze_end_dims: bool = True, **kwargs: object
    ) -> None:
        """Take over an array (1, *S) and drop its channel."""
        super().set_data_array(data_array, channel_dim, squeeze_end_dims=False, **kwargs)
        self.data_obj = self.data_obj[..., 0]
