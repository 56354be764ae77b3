"""What contrast of hidden cells (PDCR) and feature selection (UAFS) change in supervised training.

    python studies/pdcr_uafs.py sweep DATA... [--workers 2]
    python studies/pdcr_uafs.py compare DATA... [--workers 2]
    python studies/pdcr_uafs.py report [--write]

DATA is "example" or a folder. `sweep` trains with both forms of the pair loss and two weights on a quarter of the
labels, and scores validation people; `compare` takes the form and the weight that the sweep prefers, trains the base
network, each part alone and both on a quarter and on all of the labels, and scores test people. All arms share people,
steps, learning rate, augmentation and seeds. Every figure is added to studies/pdcr_uafs.csv when it is known, and
figures that are there are not computed again.
"""

import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import fire
import numpy as np
from arms import ROOT, Bench, append_row, read_rows, side_by_side
from recipe import work_folder
from tables import counted, differences, means, show

from medcl_monai.commands.demo_report import t_interval

BUNDLE, RESULTS = "pdcr_uafs", Path(__file__).with_suffix(".csv")
PAGE = ROOT / "docs" / "methods" / "pdcr_uafs.md"
DRAWS = range(3)
FRACTIONS = (0.25, 1.0)
STEPS = 200
FORMS = {"pdcr": "$medcl_monai.pdcr", "balanced": "$medcl_monai.balanced_pdcr"}
CELLS = {f"{form} {weight:g}": (form, weight) for form in FORMS for weight in (0.01, 0.1)}
DEFAULT = "balanced 0.01"
ARMS = {"plain": "base network", "pdcr": "+ PDCR", "uafs": "+ UAFS", "both": "both"}
NO_UAFS, NO_PDCR = {"network_def::sites": []}, {"loss::intra_weight": 0.0}
FIGURES = {"dice": "Dice", "cosine": "cosine of foreground and background"}
TAP, LOOKED_AT = "down_2", 256  # module whose cells are compared on held-out slices, and the number of these slices


def sweep(*data: str, workers: int = 2, place: str | None = None) -> None:
    """Run what is missing of the sweep."""
    arms = ("plain", *CELLS)
    jobs = [("sweep", one, FRACTIONS[0], arm, draw, "validation") for draw in DRAWS for one in data for arm in arms]
    _run(jobs, workers, place)


def compare(*data: str, workers: int = 2, place: str | None = None) -> None:
    """Run what is missing of the comparison."""
    preferred(read_rows(RESULTS))
    jobs = [
        ("compare", one, fraction, arm, draw, "test")
        for draw in DRAWS for one in data for fraction in FRACTIONS for arm in ARMS
    ]
    _run(jobs, workers, place)


def _run(jobs: list[tuple], workers: int, place: str | None) -> None:
    done = {tuple(row[key] for key in ("stage", "data", "fraction", "arm", "draw")) for row in read_rows(RESULTS)}
    missing = [
        job for job in jobs if (job[0], Path(job[1]).name, f"{job[2]:g}", job[3], str(job[4])) not in done
    ]
    side_by_side(one_run, [(*job, str(work_folder(place))) for job in missing], workers)


def one_run(stage: str, data: str, fraction: float, arm: str, draw: int, people: str, place: str) -> None:
    """Train one arm on one draw, and write down its Dice and its cosine."""
    import torch

    torch.set_num_threads(1)
    whole = Bench(BUNDLE, data, Path(place))
    pool = len({entry["subject"] for entry in whole.split().training})
    bench = Bench(BUNDLE, data, Path(place), labelled=max(1, round(fraction * pool)))
    start, knobs = f"{arm}-{fraction:g}", overrides(arm, read_rows(RESULTS))
    model = bench.folder(start, draw) / "models" / stage / "model.pt"
    bench.tune(start, draw, model, steps=STEPS, **knobs)
    row = {"stage": stage, "data": bench.name, "fraction": f"{fraction:g}", "arm": arm, "draw": draw, "people": people}
    dice = bench.score(start, draw, model, people, **knobs)
    cosine = separation(bench, start, draw, model, people, knobs)
    append_row(RESULTS, {**row, "dice": dice, "cosine": round(cosine, 4)})


def overrides(arm: str, rows: Sequence[dict[str, str]]) -> dict[str, object]:
    """The knobs of train.json of an arm of the sweep or of the comparison."""
    if arm in ("plain", "uafs"):
        return {**NO_PDCR, **(NO_UAFS if arm == "plain" else {})}
    form, weight = CELLS[arm if arm in CELLS else preferred(rows)]
    knobs = {"loss::pair_loss": FORMS[form], "loss::intra_weight": weight}
    return knobs if arm == "both" else {**knobs, **NO_UAFS}


def separation(bench: Bench, start: str, draw: int, model: Path, people: str, knobs: dict[str, object]) -> float:
    """The cosine between foreground and background cells of `TAP`, on slices of people whom no training saw."""
    import torch

    from medcl_monai import FeatureTaps
    from medcl_monai.handlers.pdcr_figures import foreground_background_cosine
    from medcl_monai.losses.pdcr import cell_embeddings

    parser = bench.parser(start, draw, "train.json")
    for name, value in knobs.items():
        parser[name] = value
    parser["train::dataset::data"] = getattr(bench.split(), people)
    parser["train::dataset::augmentation"] = None
    network, boxes = (parser.get_parsed_content(name) for name in ("network_def", "loss::boxes"))
    network.load_state_dict(torch.load(model, weights_only=True))
    data = parser.get_parsed_content("train::dataset")
    places = torch.linspace(0, len(data) - 1, LOOKED_AT).long().tolist()
    samples = [data[place] for place in places]
    image, label = (torch.stack([sample[key] for sample in samples]) for key in ("image", "label"))
    with torch.no_grad():
        feature_map = torch.cat([FeatureTaps([TAP])(part, network.eval())[TAP] for part in image.split(32)])
    cells = boxes(label, {TAP: feature_map.shape[2:]})[TAP]
    return foreground_background_cosine(cell_embeddings(feature_map, cells.index), cells)


def preferred(rows: Sequence[dict[str, str]]) -> str:
    """The cell of the sweep that validation people prefer: `DEFAULT` unless another cell is clearly better.

    A cell is clearly better if the 95 % t interval of its paired differences to `DEFAULT`, over draws and data sets,
    lies above 0; of several such cells the one with the highest mean is taken.
    """
    dice = {
        (row["arm"], row["data"], row["draw"]): float(row["dice"]) for row in rows if row["stage"] == "sweep"
    }
    if len(dice) < (1 + len(CELLS)) * len(DRAWS):
        raise ValueError("pdcr_uafs: the sweep is not complete: run sweep first")
    better = {}
    for cell in CELLS:
        pairs = [value - dice[DEFAULT, *key[1:]] for key, value in dice.items() if key[0] == cell]
        if cell != DEFAULT and t_interval(np.array(pairs))[1] > 0:
            better[cell] = statistics.fmean(pairs)
    return max(better, key=better.get, default=DEFAULT)


def report(write: bool = False) -> None:
    """Print the tables; with --write, put them into the page of the method, between its marks."""
    show(tables(read_rows(RESULTS)), PAGE, "studies/pdcr_uafs.py", write)


def tables(rows: Sequence[dict[str, str]]) -> list[str]:
    """Markdown: the sweep against the base network and the default, then the comparison against every control."""
    lines, cells = [], []
    datasets = list(dict.fromkeys(row["data"] for row in rows))
    parts = [("sweep", data, FRACTIONS[0], ["plain", DEFAULT], {"plain": ARMS["plain"], **{c: c for c in CELLS}})
             for data in datasets]
    parts += [("compare", data, fraction, ["plain"], ARMS) for data in datasets for fraction in FRACTIONS]
    for stage, data, fraction, controls, labels in parts:
        wanted = (stage, data, f"{fraction:g}")
        of_part = [row for row in rows if (row["stage"], row["data"], row["fraction"]) == wanted]
        shown = {arm: label for arm, label in labels.items() if any(row["arm"] == arm for row in of_part)}
        if not shown:
            continue
        people, draws = of_part[0]["people"], len({row["draw"] for row in of_part})
        lines += [f"{data}, {fraction:.0%} of the labels, {people} people, {draws} draws:", ""]
        lines += [*means(of_part, shown, FIGURES), ""]
        rows_of_table, values = differences(of_part, shown, [name for name in controls if name in shown], FIGURES)
        lines, cells = [*lines, *rows_of_table, ""], [*cells, *values]
    return [*lines, counted(cells)] if cells else ["No run is committed yet."]


if __name__ == "__main__":
    sys.exit(fire.Fire({"sweep": sweep, "compare": compare, "report": report}))
