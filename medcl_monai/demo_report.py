"""The table and the picture at the end of the demo."""

import csv
import math
from pathlib import Path

import nibabel
import numpy as np
from scipy import stats

from medcl_monai.data.splits import Split
from medcl_monai.diagnostics.pictures import overlay_picture


def report(output: Path, arms: tuple[str, str], split: Split, entry: dict[str, str]) -> str:
    """Dice per structure of both arms, the paired difference over subjects, and the path of the picture.

    Args:
        output: the demo's folder: `ARM/test` and `ARM/half` hold the scores, `ARM/inference` the label map.
        arms: the pre-trained arm and the arm from scratch.
        split: says who the held-out subjects are.
        entry: the volume of the picture.
    """
    scores = {arm: subject_scores(output / arm / "test", split) for arm in arms}
    half = {arm: subject_scores(output / arm / "half", split) for arm in arms}
    lines = [f"{'Dice, mean over held-out subjects':34}{arms[0]:>12}{arms[1]:>12}{'difference':>12}"]
    rows = [
        (name, *(np.nanmean(scores[arm][:, int(value) - 1]) for arm in arms))
        for value, name in split.structures.items()
    ]
    rows.append(("mean over structures", *(np.nanmean(scores[arm], axis=1).mean() for arm in arms)))
    rows.append(("the same at half of the steps", *(np.nanmean(half[arm], axis=1).mean() for arm in arms)))
    lines += [f"{name:34}{first:12.3f}{second:12.3f}{first - second:+12.3f}" for name, first, second in rows]
    difference = np.nanmean(scores[arms[0]], axis=1) - np.nanmean(scores[arms[1]], axis=1)
    mean, low, high = t_interval(difference)
    lines += [
        f"paired difference over {len(difference)} subjects: {mean:+.3f}, 95 % t interval [{low:+.3f}, {high:+.3f}]",
        "one training run of each: how far runs differ is not in this interval",
        f"picture: {draw(output, arms, entry, split.structures)}",
    ]
    return "\n".join(lines)


def t_interval(difference: np.ndarray, level: float = 0.95) -> tuple[float, float, float]:
    """Mean and Student's interval of paired differences; an infinite interval for fewer than two."""
    mean = float(np.mean(difference))
    if len(difference) < 2:
        return mean, -math.inf, math.inf
    half = stats.t.ppf((1 + level) / 2, len(difference) - 1) * stats.sem(difference)
    return mean, mean - half, mean + half


def subject_scores(folder: Path, split: Split) -> np.ndarray:
    """Dice (subjects, structures) of an evaluation; two volumes of one person are averaged."""
    subject = {Path(entry["image"]).name: entry["subject"] for entry in split.test}
    people: dict[str, list[list[float]]] = {}
    with (folder / "mean_dice_raw.csv").open(encoding="utf-8", newline="") as file:
        reader = csv.reader(file, delimiter="," if "," in file.readline() else "\t")
        for row in reader:
            people.setdefault(subject[Path(row[0]).name], []).append([float(value) for value in row[1:-1]])
    return np.array([np.nanmean(people[name], axis=0) for name in sorted(people)])


def draw(output: Path, arms: tuple[str, str], entry: dict[str, str], structures: dict[str, str]) -> Path:
    """The slice with the most foreground: image, label, and what both networks predict."""
    stem = Path(entry["image"]).name.split(".")[0]
    image, label = (nibabel.as_closest_canonical(nibabel.load(entry[key])).get_fdata() for key in ("image", "label"))
    found = {
        arm: nibabel.as_closest_canonical(
            nibabel.load(next((output / arm / "inference").rglob(f"{stem}*.nii.gz")))
        ).get_fdata()
        for arm in arms
    }
    place = int((label > 0).sum((0, 1)).argmax())
    predictions = {arm: volume[:, :, place] for arm, volume in found.items()}
    path = output / "demo.png"
    overlay_picture(image[:, :, place], label[:, :, place], predictions, path, structures)
    return path
