"""How to fine-tune from pre-trained weights, and from scratch: each start chooses its learning rates for itself.

    python studies/recipe.py run DATA... [--bundles jcl,decorrelated_moco] [--starts scratch,pretrained] [--workers 2]
    python studies/recipe.py confirm DATA... [--workers 2]
    python studies/recipe.py report

DATA is "example" or a folder. `run` fine-tunes every start with every cell of the grid, for every draw of labelled
people, and scores validation people; `confirm` scores test people, once, with the cells that were chosen. Every row is
added to studies/recipe.csv when its run has finished, and rows that are there are not run again.
"""

import statistics
import sys
import time
from pathlib import Path

import fire
from arms import EXAMPLE, ROOT, Bench, append_row, read_rows, side_by_side
from tables import by_draw, counted, differences, interval, show

RESULTS, PAGE = Path(__file__).with_suffix(".csv"), ROOT / "docs" / "fine_tuning.md"
BUNDLES = ("jcl", "decorrelated_moco")
DRAWS = range(5)
RATES, SCALES = (0.001, 0.003), (0.1, 1.0)
LONGER = 4
WHOLE = 2 * 2 * len(RATES) * len(SCALES) * len(DRAWS)  # two data sets, scratch and pre-trained; of one bundle
STARTS = ("scratch", "pretrained", "no_blank", "longer")
LABELS = {
    "scratch": "scratch", "pretrained": "pre-trained", "no_blank": "pre-trained without blank slices",
    "longer": f"pre-trained {LONGER} times as long",
}


def run(*data: str, bundles: tuple = BUNDLES, starts: tuple = STARTS, workers: int = 2,
        place: str | None = None) -> None:
    """Run what is missing."""
    jobs = [
        (bundle, one, start, draw, str(work_folder(place)))
        for start_pair in _stages(starts) for draw in DRAWS for one in data for bundle in _names(bundles)
        for start in start_pair if start != "no_blank" or one == EXAMPLE  # the hippocampus volumes have no blank slice
    ]
    side_by_side(one_start, [job for job in jobs if _missing(*job[:4])], workers)


def one_start(bundle: str, data: str, start: str, draw: int, place: str) -> None:
    """Pre-train, then fine-tune with every cell of the grid and score the validation people."""
    import torch

    torch.set_num_threads(1)
    bench = Bench(bundle, data, Path(place))
    for rate, scale in _missing(bundle, data, start, draw):
        began = time.time()
        model = model_file(bench, start, draw, rate, scale)
        bench.tune(start, draw, model, pretrained=_weights(bench, start, draw, scale), learning_rate=rate,
                   carried_lr_scale=scale)
        dice = bench.score(start, draw, model, "validation")
        append_row(RESULTS, {
            "bundle": bundle, "data": bench.name, "start": start, "rate": rate, "scale": scale, "draw": draw,
            "people": "validation", "dice": dice, "minutes": round((time.time() - began) / 60, 2),
        })


def _weights(bench: Bench, start: str, draw: int, scale: float) -> str:
    """What fine-tuning starts from. From scratch a scale needs a file too: the random tensors themselves."""
    if start == "scratch":
        return "none" if scale == 1 else str(bench.untrained(start, draw))
    knobs = {"no_blank": {"train::dataset::blank": False}, "longer": {"steps": LONGER * _steps(bench, start, draw)}}
    return str(bench.pretrain(start, draw, **knobs.get(start, {})))


def _steps(bench: Bench, start: str, draw: int) -> int:
    import json

    return json.loads((bench.root(start, draw) / "configs" / "pretrain.json").read_text(encoding="utf-8"))["steps"]


def model_file(bench: Bench, start: str, draw: int, rate: float, scale: float) -> Path:
    """The segmenter of a start, a draw and a cell of the grid."""
    return bench.folder(start, draw) / "models" / f"{rate}-{scale}" / "model.pt"


def _missing(bundle: str, data: str, start: str, draw: int) -> list[tuple[float, float]]:
    key = {"bundle": bundle, "data": Path(data).name, "start": start, "draw": str(draw), "people": "validation"}
    rows = [row for row in read_rows(RESULTS) if key.items() <= row.items()]
    done = {(float(row["rate"]), float(row["scale"])) for row in rows}
    return [(rate, scale) for rate in RATES for scale in SCALES if (rate, scale) not in done]


def _stages(starts: tuple) -> list[list[str]]:
    """Scratch and the bundle's own pre-training first, whole draws of them; then the variants."""
    wanted = _names(starts)
    return [[start for start in stage if start in wanted] for stage in (STARTS[:2], STARTS[2:])]


def _names(value: tuple | str) -> tuple[str, ...]:
    return tuple(value.split(",")) if isinstance(value, str) else tuple(value)


def work_folder(place: str | None) -> Path:
    """Where weights, segmenters and scores of studies lie: in the package's cache folder unless told otherwise."""
    from medcl_monai.data.place import cache_folder

    return cache_folder() / "studies" if place is None else Path(place).resolve()


def confirm(*data: str, workers: int = 2, place: str | None = None) -> None:
    """Score test people, once, with what each start chose on validation people; `run` left the segmenters."""
    rows = read_rows(RESULTS)
    done = {(row["bundle"], row["data"], row["start"], row["draw"]) for row in rows if row["people"] == "test"}
    jobs = [
        (bundle, one, start, draw, *choice(rows, bundle, start), str(work_folder(place)))
        for one in data for bundle in BUNDLES for start in STARTS[:2] for draw in DRAWS
        if (bundle, Path(one).name, start, str(draw)) not in done
    ]
    side_by_side(one_test, jobs, workers)


def one_test(bundle: str, data: str, start: str, draw: int, rate: float, scale: float, place: str) -> None:
    """Score the test people with one segmenter."""
    import torch

    torch.set_num_threads(1)
    began, bench = time.time(), Bench(bundle, data, Path(place))
    dice = bench.score(start, draw, model_file(bench, start, draw, rate, scale), "test")
    append_row(RESULTS, {
        "bundle": bundle, "data": bench.name, "start": start, "rate": rate, "scale": scale, "draw": draw,
        "people": "test", "dice": dice, "minutes": round((time.time() - began) / 60, 2),
    })


def choice(
    rows: list[dict[str, str]], bundle: str, start: str, scales: tuple[float, ...] = SCALES
) -> tuple[float, float]:
    """Rate and scale with the highest Dice of validation people: mean over draws, then over data sets; ties: the first.

    Only draws that every cell has are compared. Rows of test people are not read.
    """
    cells: dict[tuple[float, float], dict[tuple[str, str], float]] = {}
    for row in rows:
        known = (row["bundle"], row["start"], row["people"]) == (bundle, start, "validation")
        if known and float(row["scale"]) in scales:
            cell = cells.setdefault((float(row["rate"]), float(row["scale"])), {})
            cell[row["data"], row["draw"]] = float(row["dice"])
    common = sorted(set.intersection(*map(set, cells.values()))) if cells else []
    if not common:
        raise ValueError(f"recipe: no draw of validation people in all cells for {start} of {bundle}: run first")

    def mean(cell: tuple[float, float]) -> float:
        datasets = {data for data, _ in common}
        return statistics.fmean(
            statistics.fmean(cells[cell][key] for key in common if key[0] == data) for data in datasets
        )

    return max(sorted(cells), key=mean)


def report(write: bool = False) -> None:
    """Print the tables of all bundles; with --write, put them into the page, between its marks."""
    for bundle in BUNDLES:
        show(tables(read_rows(RESULTS), bundle), PAGE, f"studies/recipe.py {bundle}", write)


def tables(rows: list[dict[str, str]], bundle: str) -> list[str]:
    """Markdown: Dice of validation people in each cell, then what each start chose, against every other start."""
    rows = [
        {**row, "cell": f"{float(row['rate']):g}, {float(row['scale']):g}"} for row in rows if row["bundle"] == bundle
    ]
    datasets = list(dict.fromkeys(row["data"] for row in rows))
    validated = {(row["data"], row["start"], row["cell"], row["draw"]) for row in rows if row["people"] == "validation"}
    done = sum(start in STARTS[:2] for _, start, *_ in validated)
    if done < WHOLE:
        return [f"{done} of {WHOLE} runs are done. The tables follow when every draw of every cell is complete."]
    # no_blank is tried on one data set: the hippocampus volumes have no blank slice
    expected = {start: WHOLE // 2 // (2 if start == "no_blank" else 1) for start in STARTS[2:]}
    variants = {start: sum(start == other for _, other, *_ in validated) for start in expected}
    starts = [*STARTS[:2], *(start for start in expected if variants[start] >= expected[start])]
    rows = [row for row in rows if row["start"] in starts]
    chosen = {start: "{:g}, {:g}".format(*choice(rows, bundle, start)) for start in starts}
    lines = []
    for data in datasets:
        shown = [start for start in starts if any((row["start"], row["data"]) == (start, data) for row in rows)]
        lines += [f"{data}, Dice of validation people:", "", _line("rate, scale", [LABELS[start] for start in shown])]
        lines.append("|---" * (1 + len(shown)) + "|")
        for cell in sorted({row["cell"] for row in rows}):
            wanted = {"data": data, "cell": cell, "people": "validation"}
            values = [interval(list(by_draw(rows, "dice", start=start, **wanted).values())) for start in shown]
            marks = [" (chosen)" if chosen[start] == cell else "" for start in shown]
            lines.append(_line(cell, [value + mark for value, mark in zip(values, marks, strict=True)]))
        lines.append("")
    kept = [{**row, "arm": row["start"]} for row in rows if row["cell"] == chosen[row["start"]]]
    cells = []
    for people in dict.fromkeys(row["people"] for row in kept):
        for data in datasets:
            of_part = [row for row in kept if (row["people"], row["data"]) == (people, data)]
            arms = {start: LABELS[start] for start in starts if any(row["start"] == start for row in of_part)}
            controls = [start for start in STARTS[:2] if start in arms]
            rows_of_table, values = differences(of_part, arms, controls, {"dice": f"{data}, {people} people"})
            lines, cells = [*lines, *rows_of_table, ""], [*cells, *values]
    waiting = [
        f"{LABELS[start]}: {count} of {expected[start]} runs are done."
        for start, count in variants.items() if 0 < count < expected[start]
    ]
    lines += [*waiting, ""] if waiting else []
    single = choice(rows, bundle, "scratch", scales=(1.0,))[0]
    return [*lines, f"Of the cells with one rate (scale 1), scratch chooses {single:g}.", "", counted(cells)]


def _line(first: str, others: list[str]) -> str:
    return f"| {first} | " + " | ".join(others) + " |"


if __name__ == "__main__":
    sys.exit(fire.Fire({"run": run, "confirm": confirm, "report": report}))
