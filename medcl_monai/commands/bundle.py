"""The verb `bundle`: a copy of a bundle, for data of your own if you name them."""

from collections.abc import Mapping
from pathlib import Path

from medcl_monai.bundles import adapt_bundle, bundle_folder, size_rule
from medcl_monai.data.inspection import Inspection, inspect_dataset


def bundle(
    name: str, folder: str, dataset: str | None = None, subjects: str | None = None, subject_pattern: str | None = None
) -> str:
    """Write a copy of a bundle, without weights; with `dataset`, its knobs fit the data.

    Args:
        name: name of a bundle in ./bundles, or the bundle's folder.
        folder: where the copy is written; an existing copy is refreshed, and its weights stay.
        dataset: a Decathlon folder or imagesTr/ with labelsTr/; structures, pixel spacing, sizes and dataset_dir of the
            copy are then set as `inspect` suggests them. None leaves the knobs as they are.
        subjects: JSON file of file name to subject, written into the copy; None: as the bundle has it.
        subject_pattern: regular expression whose group 1 is the subject in a file name, written into the copy; None: as
            the bundle has it.

    Returns:
        What was written, as text.

    Raises:
        FileNotFoundError: there is no such bundle or data set.
        ValueError: a volume of the data set cannot be read.
    """
    root = bundle_folder(name)
    people = {"subjects": subjects and str(Path(subjects).resolve()), "subject_pattern": subject_pattern}
    people = {knob: value for knob, value in people.items() if value is not None}
    if dataset is None:
        return f"written: {adapt_bundle(root, folder, people)}"
    copy, inspection = bundle_for(root, Path(folder), dataset, people)
    return f"{inspection}\nwritten: {copy}"


def bundle_for(
    root: Path, folder: Path, dataset: str, people: Mapping[str, str] | None = None
) -> tuple[Path, Inspection]:
    """A copy of the bundle `root` whose knobs fit a data set, and what the data set is like.

    Args:
        root: folder of the bundle.
        folder: folder of the copy.
        dataset: folder of the data set.
        people: ``subjects`` or ``subject_pattern``, which say whom a volume shows.
    """
    place, people = str(Path(dataset).resolve()), dict(people or {})
    inspection = inspect_dataset(place, rule=size_rule(root), **people)
    copy = adapt_bundle(root, folder, {**inspection.knobs, **people, "dataset_dir": place})
    return copy.resolve(), inspection
