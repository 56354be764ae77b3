"""How to fine-tune from pre-trained weights, and from scratch: each start chooses its learning rates for itself.

    python studies/recipe.py run DATA... [--bundles jcl,decorrelated_moco] [--starts scratch,pretrained] [--workers 2]
    python studies/recipe.py confirm DATA... [--workers 2]
    python studies/recipe.py report

DATA is "example" or a folder. `run` fine-tunes every start with every cell of the grid, for every draw of labelled
people, and scores validation people; `confirm` scores test people, once, with the cells that were chosen. Every row is
added to studies/recipe.csv when its run has finished, and rows that are there are not run again.
"""

import sys
import time
from pathlib import Path

import fire

from arms import EXAMPLE, Bench, append_row, read_rows, side_by_side

RESULTS = Path(__file__).with_suffix(".csv")
DRAWS = range(5)
RATES, SCALES = (0.001, 0.003), (0.1, 1.0)
LONGER = 4
STARTS = ("scratch", "pretrained", "no_blank", "longer")


def run(*data: str, bundles: tuple = ("jcl", "decorrelated_moco"), starts: tuple = STARTS, workers: int = 2,
        place: str | None = None) -> None:
    """Run what is missing."""
    jobs = [
        (bundle, one, start, draw, str(_place(place)))
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
        model = _model(bench, start, draw, rate, scale)
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


def _model(bench: Bench, start: str, draw: int, rate: float, scale: float) -> Path:
    return bench.folder(start, draw) / "models" / f"{rate}-{scale}" / "model.pt"


def _missing(bundle: str, data: str, start: str, draw: int) -> list[tuple[float, float]]:
    key = (bundle, Path(data).name, start, str(draw), "validation")
    rows = [row for row in read_rows(RESULTS) if tuple(row[k] for k in ("bundle", "data", "start", "draw", "people")) == key]
    done = {(float(row["rate"]), float(row["scale"])) for row in rows}
    return [(rate, scale) for rate in RATES for scale in SCALES if (rate, scale) not in done]


def _stages(starts: tuple) -> list[list[str]]:
    """Scratch and the bundle's own pre-training first, whole draws of them; then the variants."""
    wanted = _names(starts)
    return [[start for start in stage if start in wanted] for stage in (STARTS[:2], STARTS[2:])]


def _names(value: tuple | str) -> tuple[str, ...]:
    return tuple(value.split(",")) if isinstance(value, str) else tuple(value)


def _place(place: str | None) -> Path:
    from medcl_monai.data.place import cache_folder

    return cache_folder() / "studies" / "recipe" if place is None else Path(place).resolve()


if __name__ == "__main__":
    sys.exit(fire.Fire({"run": run}))
