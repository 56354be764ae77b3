"""What whitening and the local term change: MoCo v2, each alone, both, and no pre-training, on equal budgets.

    python studies/decorrelated_moco.py run DATA... [--workers 2]
    python studies/decorrelated_moco.py report [--write]

DATA is "example" or a folder. Each arm pre-trains, then learns on a draw of labelled people, once as a linear probe
and once as a whole network; test people are scored. The linear probe of each arm chooses its learning rate on
validation people; the whole network takes the rates that studies/recipe.py chose. Every figure is added to
studies/decorrelated_moco.csv when it is known, and figures that are there are not computed again.
"""

import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import fire
import recipe
from arms import ROOT, Bench, append_row, read_rows, side_by_side
from tables import NOTHING, counted, differences, means, show

BUNDLE, RESULTS = "decorrelated_moco", Path(__file__).with_suffix(".csv")
PAGE = ROOT / "docs" / "methods" / "decorrelated_moco.md"
NO_WHITENING = {"network_def::whiten": "none"}
NO_LOCAL = {"network_def::local_level": "none", "loss::local_weight": 0.0}
ARMS = {
    "scratch": None,
    "moco": {**NO_WHITENING, **NO_LOCAL},
    "local": NO_WHITENING,
    "whitening": NO_LOCAL,
    "both": {},
}
LABELS = {
    "scratch": "scratch", "moco": "MoCo v2", "local": "+ local", "whitening": "+ whitening", "both": "both",
}
CONTROLS = ("scratch", "moco")
FIGURES = {
    "effective_rank": "effective rank, of 512", "retrieval": "retrieval", "linear_dice": "linear Dice",
    "tuned_dice": "fine-tuned Dice",
}
START = {"scratch": "scratch", "both": "pretrained"}  # the same runs as in studies/recipe.py
PROBE_RATES = (0.01, 0.05)
HELD_OUT_SLICES = 512


def run(*data: str, workers: int = 2, place: str | None = None) -> None:
    """Run what is missing."""
    jobs = [(one, arm, draw, str(recipe.work_folder(place))) for draw in recipe.DRAWS for one in data for arm in ARMS]
    side_by_side(one_arm, [job for job in jobs if list(_missing(*job[:3]))], workers)


def one_arm(data: str, arm: str, draw: int, place: str) -> None:
    """The missing figures of one arm and draw."""
    import torch

    torch.set_num_threads(1)
    bench, start = Bench(BUNDLE, data, Path(place)), START.get(arm, arm)
    weights = bench.untrained(start, draw) if arm == "scratch" else bench.pretrain(start, draw, **ARMS[arm])
    for figure, setting, people in _missing(data, arm, draw):
        row = {"data": bench.name, "arm": arm, "draw": draw, "figure": figure, "setting": setting, "people": people}
        if figure == "linear_dice":
            values = {figure: _probe(bench, start, draw, weights, float(setting), people)}
        elif figure == "tuned_dice":
            values = {figure: _tune(bench, start, draw, weights, setting, people)}
        else:
            values = look(bench, start, draw, weights)
        for name, value in values.items():
            append_row(RESULTS, {**row, "figure": name, "value": value})


def _missing(data: str, arm: str, draw: int) -> Iterator[tuple[str, str, str]]:
    """Figure, setting and people of what has no row."""
    rate, scale = recipe.choice(read_rows(recipe.RESULTS), BUNDLE, "scratch" if arm == "scratch" else "pretrained")
    wanted = [("effective_rank", "", "test")]
    wanted += [("linear_dice", f"{rate:g}", people) for rate in PROBE_RATES for people in ("validation", "test")]
    wanted += [("tuned_dice", f"{rate:g}, {scale:g}", "test")]
    done = {
        (row["figure"], row["setting"], row["people"])
        for row in read_rows(RESULTS) if (row["data"], row["arm"], row["draw"]) == (Path(data).name, arm, str(draw))
    }
    return (key for key in wanted if key not in done)


def _probe(bench: Bench, start: str, draw: int, weights: Path, rate: float, people: str) -> float:
    model, overlay = bench.folder(start, draw) / "models" / f"probe-{rate:g}" / "model.pt", ["linear_probe.json"]
    bench.tune(start, draw, model, overlay, pretrained=str(weights), learning_rate=rate)
    return bench.score(start, draw, model, people, overlay)


def _tune(bench: Bench, start: str, draw: int, weights: Path, setting: str, people: str) -> float:
    rate, scale = (float(value) for value in setting.split(", "))
    model = recipe.model_file(bench, start, draw, rate, scale)
    word = "none" if start == "scratch" and scale == 1 else str(weights)
    bench.tune(start, draw, model, pretrained=word, learning_rate=rate, carried_lr_scale=scale)
    return bench.score(start, draw, model, people)


def look(bench: Bench, start: str, draw: int, weights: Path) -> dict[str, float]:
    """Rank of the pooled features of held-out slices, and how often a view finds its partner among them."""
    from medcl_monai import compute_statistics, load_pretrained
    from medcl_monai.diagnostics.held_out import held_out_figures

    backbone, data, views = bench.held_out(start, draw, "test")
    load_pretrained(weights, backbone)
    unlabelled = bench.parser(start, draw, "pretrain.json").get_parsed_content("train::dataset")
    compute_statistics(backbone.encoder, unlabelled)  # a random encoder's alone
    figures = held_out_figures(backbone.eval(), data, views, HELD_OUT_SLICES)
    return {name: round(value, 4) for name, value in figures.items()}


def report(write: bool = False) -> None:
    """Print the tables; with --write, put them into the page of the method, between its marks."""
    show(tables(read_rows(RESULTS)), PAGE, "studies/decorrelated_moco.py", write)


def tables(rows: Sequence[dict[str, str]]) -> list[str]:
    """Markdown: the figures of each arm, then its difference to every control that the table holds."""
    if not rows:
        return [NOTHING]
    lines, cells = [], []
    rates = {arm: probe_rate(rows, arm) for arm in ARMS}
    for data in dict.fromkeys(row["data"] for row in rows):
        by_run: dict[tuple[str, str], dict[str, str]] = {}
        for row in rows:
            if row["data"] == data and row["people"] == "test" and row["setting"] == _setting(row, rates):
                key = (row["arm"], row["draw"])
                by_run.setdefault(key, {"arm": row["arm"], "draw": row["draw"]})[row["figure"]] = row["value"]
        wide = [row for row in by_run.values() if set(FIGURES) <= set(row)]
        shown = {arm: LABELS[arm] for arm in ARMS if any(row["arm"] == arm for row in wide)}
        draws = len({row["draw"] for row in wide})
        lines += [f"{data}, {draws} draws:", "", *means(wide, shown, FIGURES), ""]
        rows_of_table, values = differences(wide, shown, [name for name in CONTROLS if name in shown], FIGURES)
        lines, cells = [*lines, f"{data}, paired differences:", "", *rows_of_table, ""], [*cells, *values]
    chosen = ", ".join(f"{LABELS[arm]} {rate}" for arm, rate in rates.items() if rate)
    return [*lines, f"Learning rates of the linear probes, chosen on validation people: {chosen}.", "", counted(cells)]


def _setting(row: dict[str, str], rates: dict[str, str]) -> str:
    """The setting of a row's figure that is shown: the linear probe's is what its arm chose."""
    return rates[row["arm"]] if row["figure"] == "linear_dice" else row["setting"]


def probe_rate(rows: Sequence[dict[str, str]], arm: str) -> str:
    """The learning rate of an arm's probe with the highest Dice of validation people, over data sets and draws."""
    dice: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        if (row["figure"], row["people"], row["arm"]) == ("linear_dice", "validation", arm):
            dice.setdefault(row["setting"], {}).setdefault(row["data"], []).append(float(row["value"]))
    return max(dice, key=lambda s: statistics.fmean(map(statistics.fmean, dice[s].values())), default="")


if __name__ == "__main__":
    sys.exit(fire.Fire({"run": run, "report": report}))
