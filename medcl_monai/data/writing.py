"""How label maps are written."""

from monai.data import NibabelWriter
from torch import Tensor


class VolumeWriter(NibabelWriter):
    """MONAI's NIfTI writer, for volumes of one channel: three axes go in and come out.

    MONAI drops all axes of length 1 at the end together with the channel, so a label map of one slice came back in
    2D; told to keep them, it keeps the channel too.
    """

    def set_data_array(
        self, data_array: Tensor, channel_dim: int | None = 0, squeeze_end_dims: bool = True, **kwargs: object
    ) -> None:
        """Take over an array (1, *S)."""
        super().set_data_array(data_array, channel_dim, squeeze_end_dims=False, **kwargs)
        self.data_obj = self.data_obj[..., 0]
