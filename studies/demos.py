"""The table of the README: every demo, run as a user runs it, with the scores of every held-out person.

    python studies/demos.py run DATA... [--bundles jcl,decorrelated_moco,pdcr_uafs]
    python studies/demos.py report [--write]

DATA is "example" or a folder. `run` calls the demo, one after the other, and replaces the rows of the same bundle and
data in studies/demos.csv. The minutes are wall time, so other jobs on the machine count.
"""

import csv
import os
import subprocess
import sys
import time
from pathlib import Path

import fire
import numpy as np
from arms import EXAMPLE, ROOT, read_rows
from tables import interval, show

RESULTS, PAGE = Path(__file__).with_suffix(".csv"), ROOT / "README.md"
BUNDLES = ("jcl", "decorrelated_moco", "pdcr_uafs")
LENGTHS = {"test": "whole", "half": "half"}  # folder of an arm's scores, to the share of the steps


def run(*data: str, bundles: tuple | str = BUNDLES) -> None:
    """Run the demos."""
    for bundle in bundles.split(",") if isinstance(bundles, str) else bundles:
        for one in data:
            began = time.time()
            command = [sys.executable, "-m", "medcl_monai", "demo", "--bundle", bundle]
            command += [] if one == EXAMPLE else ["--dataset", str(Path(one).resolve())]
            process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
            _, status, usage = os.wait4(process.pid, 0)
            if status:
                raise RuntimeError(f"the demo of {bundle} on {one} failed; its error stands above")
            collect(bundle, one, (time.time() - began) / 60, usage.ru_maxrss / 2**20)


def collect(bundle: str, data: str, minutes: float, gigabytes: float) -> None:
    """Take the scores of a demo that has run into the results.

    Args:
        bundle: name of the bundle.
        data: "example" or the folder of the data set.
        minutes: how long the demo took.
        gigabytes: resident memory of its largest process.
    """
    from medcl_monai.bundles import read_plan
    from medcl_monai.commands.demo_report import subject_scores
    from medcl_monai.data.splits import split_dataset

    root = ROOT / ("bundles" if data == EXAMPLE else "demo") / bundle
    split, name = split_dataset(None if data == EXAMPLE else str(Path(data).resolve())), Path(data).name
    people = sorted({entry["subject"] for entry in split.test})
    common = {"bundle": bundle, "data": name, "minutes": f"{minutes:.1f}", "gigabytes": f"{gigabytes:.1f}"}
    rows = [row for row in read_rows(RESULTS) if (row["bundle"], row["data"]) != (bundle, name)]
    for arm in read_plan(root).arms:
        for folder, steps in LENGTHS.items():
            dice = np.nanmean(subject_scores(root / "eval" / arm / folder, split.test), axis=1)
            rows += [
                {**common, "arm": arm, "steps": steps, "person": person, "dice": f"{value:.4f}"}
                for person, value in zip(people, dice, strict=True)
            ]
    with RESULTS.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def report(write: bool = False) -> None:
    """Print the table; with --write, put it into the README, between its marks."""
    show(table(read_rows(RESULTS)), PAGE, "studies/demos.py", write)


def table(rows: list[dict[str, str]]) -> list[str]:
    """Markdown: a row per demo and arm, and the first arm's paired difference to every other arm."""
    lines = [
        "| demo | arm | Dice | Dice at half of the steps | first arm minus this arm, 95 % t interval over people |",
        "|---|---|---|---|---|",
    ]
    for bundle, data in dict.fromkeys((row["bundle"], row["data"]) for row in rows):
        of_demo = [row for row in rows if (row["bundle"], row["data"]) == (bundle, data)]
        scores: dict[tuple[str, str], dict[str, float]] = {}
        for row in of_demo:
            scores.setdefault((row["arm"], row["steps"]), {})[row["person"]] = float(row["dice"])
        first, *others = dict.fromkeys(row["arm"] for row in of_demo)
        for arm in (first, *others):
            whole, half = scores[arm, "whole"], scores[arm, "half"]
            pairs = [value - whole[person] for person, value in scores[first, "whole"].items()]
            cells = [_title(of_demo[0], len(whole)) if arm == first else "", arm, _mean(whole), _mean(half)]
            lines.append("| " + " | ".join([*cells, "" if arm == first else interval(pairs, "+").strip("*")]) + " |")
    return lines


def _title(row: dict[str, str], people: int) -> str:
    knobs = [f"BUNDLE={row['bundle']}"] if row["bundle"] != BUNDLES[0] else []
    knobs += [f"DATASET={row['data']}"] if row["data"] != EXAMPLE else []
    return (
        f"`{' '.join(['make demo', *knobs])}`: {people} held-out people, {row['minutes']} min, "
        f"{row['gigabytes']} GB"
    )


def _mean(values: dict[str, float]) -> str:
    return f"{np.mean(list(values.values())):.3f}"


if __name__ == "__main__":
    sys.exit(fire.Fire({"run": run, "report": report}))
