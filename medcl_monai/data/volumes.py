"""Whole volumes for validation, test and inference."""

from collections.abc import Callable, Sequence

from monai.data import Dataset

from medcl_monai.data.cache import check_loaded


class VolumeDataset(Dataset):
    """Entries ``{"image": …, "label": …}`` through MONAI dictionary transforms, with an error that names the file.

    Args:
        data: the entries.
        transform: loads, orients, resamples and normalises one entry.

    Raises:
        ValueError: on access, for what `check_loaded` refuses.
    """

    def __init__(self, data: Sequence[dict], transform: Callable[[dict], dict]) -> None:
        super().__init__(data, transform)

    def _transform(self, index: int) -> dict:
        return check_loaded(self.data[index], self.transform)
