"""A dataset of whole volumes for validation, test and inference."""

from collections.abc import Callable, Sequence

from monai.data import Dataset

from medcl_monai.data.cache import check_loaded


class VolumeDataset(Dataset):
    """Loads entries ``{"image": …, "label": …}`` through MONAI dictionary transforms; an error names the file.

    Args:
        data: the entries.
        transform: transform that loads, orients, resamples and normalises one entry.

    Raises:
        ValueError: on access to an entry whose image or label cannot be used; `check_loaded` lists the reasons.
    """

    def __init__(self, data: Sequence[dict], transform: Callable[[dict], dict]) -> None:
        super().__init__(data, transform)

    def _transform(self, index: int) -> dict:
        return check_loaded(self.data[index], self.transform)
