"""What lets MoCo v3 learn on a small Swin encoder: settings of pre-training, each against the encoder it starts from.

    python studies/transformer_transfer.py profile DATA... [--cells default,plain] [--workers 2]
    python studies/transformer_transfer.py report [--write]

DATA is "example" or a folder. For every draw a supervised source is trained on another task, and every cell pre-trains
from the source. Held-out slices show whether a view finds its partner, and how many directions the features use; a
linear probe on a draw of labelled people is scored on validation people. Test people are not read. Every row is added
to studies/transformer_transfer.csv when its run has finished, and rows that are there are not run again.
studies/swin_arms.py compares the ways into encoder and decoder.
"""

import logging
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import fire
from arms import ROOT, Bench, append_row, read_rows, side_by_side
from recipe import work_folder
from tables import NOTHING, counted, differences, means, show

BUNDLE, RESULTS = "transformer_transfer", Path(__file__).with_suffix(".csv")
PAGE = ROOT / "docs" / "methods" / "transformer_transfer.md"
DRAWS = range(3)
MILD = {
    "views::crops::area_range": [0.8, 1.0], "views::crops::aspect": 1.05, "views::crops::rotation": 5.0,
    "views::crops::gamma": 0.1, "views::crops::contrast": 0.08, "views::crops::shift": 0.04,
    "views::crops::noise": 0.015,
}
CELLS: dict[str, dict[str, object] | None] = {
    "random": None,
    "source": None,
    "default": {},
    "plain": {"views::standardise": False},
    "inside": {"sample_size": [32, 32]},
    "mild": MILD,
    "apart": {"loss::exclude_radius": 0.1},
    "warm": {"loss::temperature": 1.0},
    "fast": {"learning_rate": 0.002},
    "slow": {"learning_rate": 0.0001},
    "long": {"steps": 300},
    "large": {"batch_size": 96},
    "from random": {"initial_weights": "none"},
}
LABELS = {
    "random": "random encoder", "source": "supervised source", "default": "the bundle's pretrain.json",
    "plain": "views not standardised", "inside": "crops of 32 pixels, no padding", "mild": "milder views",
    "apart": "neighbours are no negatives", "warm": "temperature 1", "fast": "learning rate 2e-3",
    "slow": "learning rate 1e-4", "long": "three times the steps", "large": "three times the batch",
    "from random": "from random weights",
}
FIGURES = {
    "retrieval": "retrieval", "effective_rank": "effective rank", "numerical_rank": "numerical rank",
    "participation_ratio": "participation ratio", "alarms": "alarms", "linear_dice": "linear Dice",
}
PROBE_RATES, PROBE_STEPS = (0.003, 0.01, 0.03), 200
HELD_OUT_SLICES, VIEW_SEEDS = 512, 4  # a view finds its partner seldom: views are drawn several times


def profile(*data: str, cells: tuple | str = tuple(CELLS), workers: int = 2, place: str | None = None) -> None:
    """Run what is missing."""
    names = cells.split(",") if isinstance(cells, str) else cells
    done = {(row["data"], row["cell"], row["draw"]) for row in read_rows(RESULTS)}
    jobs = [(one, cell, draw) for draw in DRAWS for one in data for cell in names]
    missing = [job for job in jobs if (Path(job[0]).name, job[1], str(job[2])) not in done]
    side_by_side(one_cell, [(*job, str(work_folder(place))) for job in missing], workers)


def one_cell(data: str, cell: str, draw: int, place: str) -> None:
    """Pre-train with one cell from one draw's source, and write down the figures of its encoder and of its start."""
    import torch

    torch.set_num_threads(1)
    bench = Bench(BUNDLE, data, Path(place))
    source = train_source(bench, draw)
    knobs, alarms = {"initial_weights": str(source), **(CELLS[cell] or {})}, 0
    if CELLS[cell] is None:
        weights = "none" if cell == "random" else str(source)
    else:
        weights, alarms = pretrain_and_count(bench, cell, draw, knobs)
    start = "none" if knobs["initial_weights"] == "none" else str(source)
    figures, before = (look(bench, cell, draw, each) for each in (weights, start))
    append_row(RESULTS, {
        "data": bench.name, "cell": cell, "draw": draw, **figures, "retrieval_before": before["retrieval"],
        "alarms": alarms, "linear_dice": max(probe(bench, cell, draw, weights, rate) for rate in PROBE_RATES),
    })


def pretrain_and_count(bench: Bench, cell: str, draw: int, knobs: dict[str, object]) -> tuple[str, int]:
    """Pre-train unless that was done; the weights, and the number of the monitor's alarms."""
    root = bench.root(cell, draw)
    counted, counter = root / "models" / "alarms.txt", AlarmCounter()
    if not counted.is_file():  # weights without a count are of a run that was killed between the two
        (root / "models" / "pretrained.pt").unlink(missing_ok=True)
        with counter:
            bench.pretrain(cell, draw, **knobs)
        counted.write_text(str(counter.alarms), encoding="utf-8")
    return str(bench.pretrain(cell, draw, **knobs)), int(counted.read_text(encoding="utf-8"))


def train_source(bench: Bench, draw: int) -> Path:
    """Train the supervised source of a draw, once for all cells; nobody validates, so only the end is written."""
    import filelock

    from medcl_monai.bundles import run_bundle

    root = bench.root("source", draw)
    path = root / "eval" / "source.pt"
    with filelock.FileLock(root.with_name("training.lock")):
        if not path.is_file():
            files = [root / "configs" / name for name in ("train.json", "source.json")]
            knobs = {"validate::dataset::data": [], "train::handlers::2::names": "none"}
            run_bundle(files, bundle_root=str(root), seed=draw, **knobs)
    return path


def look(bench: Bench, cell: str, draw: int, weights: str) -> dict[str, float]:
    """Figures of an encoder on held-out slices of validation people, through the views of the cell."""
    from functools import partial

    from medcl_monai import convert_swin, load_pretrained
    from medcl_monai.diagnostics.held_out import held_out_figures

    backbone, data, views = bench.held_out(cell, draw, "validation", **(CELLS[cell] or {}))
    load_pretrained(weights, backbone, layout=partial(convert_swin, inputs="z-score"))
    seen = [held_out_figures(backbone.eval(), data, views, HELD_OUT_SLICES, seed) for seed in range(VIEW_SEEDS)]
    return {name: round(statistics.fmean(figures[name] for figures in seen), 4) for name in seen[0]}


def probe(bench: Bench, cell: str, draw: int, weights: str, rate: float) -> float:
    """Mean Dice of validation people with a linear probe on the encoder."""
    model, overlay = bench.folder(cell, draw) / "models" / f"probe-{rate:g}" / "model.pt", ["linear_probe.json"]
    bench.tune(cell, draw, model, overlay, pretrained=weights, learning_rate=rate, steps=PROBE_STEPS)
    return bench.score(cell, draw, model, "validation", overlay)


class AlarmCounter(logging.Handler):
    """Counts the alarms that the collapse monitor logs inside a with block."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.alarms = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Count an alarm."""
        self.alarms += record.getMessage().startswith("collapse at step")

    def __enter__(self) -> None:
        logging.getLogger("medcl_monai.handlers.collapse").addHandler(self)

    def __exit__(self, *_: object) -> None:
        logging.getLogger("medcl_monai.handlers.collapse").removeHandler(self)


def report(write: bool = False) -> None:
    """Print the tables; with --write, put them into the page of the method, between its marks."""
    show(tables(read_rows(RESULTS)), PAGE, "studies/transformer_transfer.py", write)


def tables(rows: Sequence[dict[str, str]]) -> list[str]:
    """Markdown: the figures of each cell, then its difference to the encoder that it starts from, and to the source."""
    if not rows:
        return [NOTHING]
    lines, cells = [], []
    for data in dict.fromkeys(row["data"] for row in rows):
        of_data = [{**row, "arm": row["cell"]} for row in rows if row["data"] == data]
        shown = {cell: LABELS[cell] for cell in CELLS if any(row["arm"] == cell for row in of_data)}
        draws = len({row["draw"] for row in of_data})
        lines += [f"{data}, {draws} draws:", "", *means(of_data, shown, FIGURES), ""]
        gained = [{**row, "gain": str(float(row["retrieval"]) - float(row["retrieval_before"]))} for row in of_data]
        trained = {cell: label for cell, label in shown.items() if CELLS[cell] is not None}
        lines += [f"{data}, retrieval minus that of the start, through the same views:", ""]
        lines += [*means(gained, trained, {"gain": "retrieval, gained"}), ""]
        controls = [cell for cell in ("source", "random") if cell in shown]
        table, values = differences(of_data, shown, controls, {"linear_dice": "linear Dice"})
        lines, cells = [*lines, f"{data}, paired differences:", "", *table, ""], [*cells, *values]
        good = [label for cell, label in trained.items() if reaches(of_data, cell)]
        lines += [f"{data}: all bars are reached by: {', '.join(good) or 'none'}.", ""]
    return [*lines, counted(cells)]


def reaches(rows: Sequence[dict[str, str]], cell: str) -> bool:
    """Whether a cell reaches the bars on the data set that `rows` are of.

    The bars are: no alarm in any draw; as means over draws, retrieval above that of the start, and linear Dice not
    below that of the start. A draw whose start was not measured shows nothing.
    """
    by_draw = {(row["cell"], row["draw"]): row for row in rows}
    start = "random" if (CELLS[cell] or {}).get("initial_weights") == "none" else "source"
    of_cell = {draw: row for (name, draw), row in by_draw.items() if name == cell}
    pairs = [(row, by_draw[start, draw]) for draw, row in of_cell.items() if (start, draw) in by_draw]
    if len(pairs) < len(of_cell) or not pairs:
        return False
    silent = all(float(row["alarms"]) == 0 for row, _ in pairs)
    gained = statistics.fmean(float(row["retrieval"]) - float(row["retrieval_before"]) for row, _ in pairs)
    dice = statistics.fmean(float(row["linear_dice"]) - float(other["linear_dice"]) for row, other in pairs)
    return silent and gained > 0 and dice >= 0


if __name__ == "__main__":
    sys.exit(fire.Fire({"profile": profile, "report": report}))
