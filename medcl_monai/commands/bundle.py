"""The verb `bundle`: a copy of a bundle, for data of your own if you name them."""

from pathlib import Path

from medcl_monai.bundles import adapt_bundle, bundle_folder, size_rule
from medcl_monai.data.inspection import Inspection, inspect_dataset


def bundle(name: str, folder: str, dataset: str | None = None) -> str:
    """Write a copy of a bundle, without weights; with `dataset`, its knobs fit the data.

    Args:
        name: name of a bundle in ./bundles, or the bundle's folder.
        folder: where the copy is written; an existing copy is refreshed, and its weights stay.
        dataset: a Decathlon folder or imagesTr/ with labelsTr/; structures, pixel spacing, sizes and dataset_dir of the
            copy are then set as `inspect` suggests them. None leaves the knobs as they are.

    Returns:
        What was written, as text.

    Raises:
        FileNotFoundError: there is no such bundle or data set.
        ValueError: a volume of the data set cannot be read.
    """
    root = bundle_folder(name)
    if dataset is None:
        return f"written: {adapt_bundle(root, folder, {})}"
    copy, inspection = bundle_for(root, Path(folder), dataset)
    return f"{inspection}\nwritten: {copy}"


def bundle_for(root: Path, folder: Path, dataset: str) -> tuple[Path, Inspection]:
    """A copy of the bundle `root` whose knobs fit a data set, and what the data set is like."""
    place = str(Path(dataset).resolve())
    inspection = inspect_dataset(place, rule=size_rule(root))
    copy = adapt_bundle(root, folder, {**inspection.knobs, "dataset_dir": place})
    return copy.resolve(), inspection
