"""The table and the picture that the demo shows at its end."""

import csv
import math
from collections.abc import Sequence
from pathlib import Path

import nibabel
import numpy as np
from scipy import stats

from medcl_monai.data.splits import Split
from medcl_monai.diagnostics.pictures import overlay_picture


def report(output: Path, arms: Sequence[str], split: Split, entry: dict[str, str]) -> str:
    """Return the report of the demo: a table of Dice scores, the differences between arms, and the path of the picture.

    The table gives the Dice of each structure for all arms. The differences are paired over subjects, between the first
    arm and each other arm.

    Args:
        output: folder of the demo: `ARM/test` and `ARM/half` hold the scores, `ARM/inference` holds the label map.
        arms: names of the arms: the arm that the demo is about, then its controls.
        split: the split, which lists the held-out subjects and the structures.
        entry: entry of the data list with the volume of the picture.
    """
    scores = {arm: subject_scores(output / arm / "test", split.test) for arm in arms}
    half = {arm: subject_scores(output / arm / "half", split.test) for arm in arms}
    rows = [
        (name, [np.nanmean(scores[arm][:, int(value) - 1]) for arm in arms])
        for value, name in split.structures.items()
    ]
    rows.append(("mean over structures", [np.nanmean(scores[arm], axis=1).mean() for arm in arms]))
    rows.append(("the same at half of the steps", [np.nanmean(half[arm], axis=1).mean() for arm in arms]))
    lines = [f"{'Dice, mean over held-out subjects':34}" + "".join(f"{arm:>16}" for arm in arms)]
    lines += [f"{name:34}" + "".join(f"{value:16.3f}" for value in values) for name, values in rows]
    for control in arms[1:]:
        difference = np.nanmean(scores[arms[0]], axis=1) - np.nanmean(scores[control], axis=1)
        mean, low, high = t_interval(difference)
        lines.append(
            f"{arms[0]} minus {control}, paired over {len(difference)} subjects: {mean:+.3f}, "
            f"95 % t interval [{low:+.3f}, {high:+.3f}]"
        )
    lines += [
        "one training run of each: how far runs differ is not in an interval over subjects",
        f"picture: {draw(output, arms, entry, split.structures)}",
    ]
    return "\n".join(lines)


def t_interval(difference: np.ndarray, level: float = 0.95) -> tuple[float, float, float]:
    """Return the mean of paired differences and the lower and upper end of Student's t interval.

    For fewer than two differences, the interval is infinite.
    """
    mean = float(np.mean(difference))
    if len(difference) < 2:
        return mean, -math.inf, math.inf
    half = float(stats.sem(difference) * stats.t.ppf((1 + level) / 2, len(difference) - 1))
    return mean, mean - half, mean + half


def subject_scores(folder: Path, entries: Sequence[dict[str, str]]) -> np.ndarray:
    """Return the Dice scores (subjects, structures) of an evaluation, in the sorted order of the subjects' names.

    The scores of several volumes of one person are averaged. Volumes are identified by their whole paths, because files
    of different people may have the same name, for example if each person has a folder.

    Args:
        folder: folder of the evaluation, which holds ``mean_dice_raw.csv``.
        entries: entries of the data list that were scored, with `image` and `subject`.

    Raises:
        ValueError: the evaluation did not score exactly the volumes of `entries`.
    """
    subject = {Path(entry["image"]): entry["subject"] for entry in entries}
    people: dict[str, list[list[float]]] = {}
    with (folder / "mean_dice_raw.csv").open(encoding="utf-8", newline="") as file:
        reader = csv.reader(file, delimiter="," if "," in file.readline() else "\t")
        rows = {Path(row[0]): [float(value) for value in row[1:-1]] for row in reader}
    if lone := sorted(set(rows) ^ set(subject)):
        raise ValueError(f"{folder / 'mean_dice_raw.csv'} does not fit the entries: {lone[0]} is only in one of them")
    for path, values in rows.items():
        people.setdefault(subject[path], []).append(values)
    return np.array([np.nanmean(people[name], axis=0) for name in sorted(people)])


def draw(output: Path, arms: Sequence[str], entry: dict[str, str], structures: dict[str, str]) -> Path:
    """Draw the slice with the most foreground: image, label and prediction of each arm; return the picture's path."""
    stem = Path(entry["image"]).name.split(".")[0]
    image, label = (nibabel.as_closest_canonical(nibabel.load(entry[key])).get_fdata() for key in ("image", "label"))
    maps = {
        arm: nibabel.as_closest_canonical(
            nibabel.load(next((output / arm / "inference").rglob(f"{stem}*.nii.gz")))
        ).get_fdata()
        for arm in arms
    }
    place = int((label > 0).sum((0, 1)).argmax())
    predictions = {arm: volume[:, :, place] for arm, volume in maps.items()}
    path = output / "demo.png"
    overlay_picture(image[:, :, place], label[:, :, place], predictions, path, structures)
    return path
