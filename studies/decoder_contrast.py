"""What goes wrong when the decoder of a Swin-Unet is contrasted, and what cures it: leakage through skip connections.

    python studies/decoder_contrast.py run DATA... [--workers 2]
    python studies/decoder_contrast.py report [--write]

DATA is a folder or "example". The pre-trainings are those of studies/swin_arms.py, which also fine-tunes from some of
them. Each figure is the share of places of held-out slices that find themselves in the other view, before and after the
decoder's pre-training, if the decoder is given all maps, the skip connections alone or the deepest map alone. Slices
are those of validation people; test people are not read. Every row is added to studies/decoder_contrast.csv when its
run has finished, and rows that are there are not run again.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import fire
from arms import ROOT, Bench, append_row, read_rows, side_by_side
from recipe import work_folder
from swin_arms import BUNDLE, DRAWS, LABELLED, PRETRAININGS, composed, make_weights, weights_of
from tables import NOTHING, counted, differences, means, show

RESULTS, PAGE = Path(__file__).with_suffix(".csv"), ROOT / "docs" / "methods" / "transformer_transfer.md"
VARIANTS = {
    "dense, all skips": "level 0, every skip connection",
    "dense, half of the skips": "level 0, half of the skip connections",
    "dense, level 2, all skips": "level 2, every skip connection",
    "dense, level 2": "level 2, half of the skip connections",
    "dense, regions in air too": "level 0, half, regions in air too",
    "dense on a random encoder": "level 0, half, on a random encoder",
}
GIVEN = {"all": "all maps", "skips": "skip connections alone", "deepest": "deepest map alone"}
REGIONS, SAMPLES = 16, 256


def run(*data: str, workers: int = 2, place: str | None = None) -> None:
    """Run what is missing."""
    folder = str(work_folder(place))
    jobs = [(one, draw, folder) for draw in DRAWS for one in data if _missing(one, draw)]
    side_by_side(make_weights, jobs, workers)
    side_by_side(one_draw, jobs, workers)


def _missing(data: str, draw: int) -> list[tuple[str, str]]:
    """Variant and moment of what has no row."""
    rows = [row for row in read_rows(RESULTS) if (row["data"], row["draw"]) == (Path(data).name, str(draw))]
    done = {(row["variant"], row["when"]) for row in rows}
    return [(variant, when) for variant in VARIANTS for when in ("before", "after") if (variant, when) not in done]


def one_draw(data: str, draw: int, place: str) -> None:
    """Write down the figures of all variants of a draw."""
    import torch

    torch.set_num_threads(1)
    bench = Bench(BUNDLE, data, Path(place), LABELLED)
    for variant, when in _missing(data, draw):
        start, knobs = PRETRAININGS[variant]
        weights = weights_of(bench, variant if when == "after" else start, draw)
        if when == "before" and weights != "none":
            weights = str(composed(bench, draw, weights, weights, "mirrored"))
        figures = look(bench, draw, weights, knobs["network_def::decoder_level"])
        append_row(RESULTS, {"data": bench.name, "variant": variant, "draw": draw, "when": when, **figures})


def look(bench: Bench, draw: int, weights: str, level: int) -> dict[str, float]:
    """Leakage of a decoder with these weights on slices of validation people."""
    from medcl_monai import load_pretrained
    from medcl_monai.diagnostics.leakage import leakage

    backbone, data, views = bench.held_out("composed", draw, "validation", **{"views::regions": REGIONS})
    load_pretrained(weights, backbone)
    figures = leakage(backbone.eval(), data, views, level, SAMPLES)
    return {name: round(value, 4) for name, value in figures.items()}


def report(write: bool = False) -> None:
    """Print the tables; with --write, put them into the page of the method, between its marks."""
    show(tables(read_rows(RESULTS)), PAGE, "studies/decoder_contrast.py", write)


def tables(rows: Sequence[dict[str, str]]) -> list[str]:
    """Markdown: the figures after each variant's pre-training, and what pre-training changed."""
    if not rows:
        return [NOTHING]
    lines, cells = [], []
    for data in dict.fromkeys(row["data"] for row in rows):
        after, changed = [], []
        for variant, label in VARIANTS.items():
            kept = [row for row in rows if (row["data"], row["variant"]) == (data, variant)]
            of_variant = [{**row, "arm": row["when"]} for row in kept]
            after += means(of_variant, {"after": label}, {**GIVEN, "chance": "a guess"})[2:]
            table, values = differences(of_variant, {"after": label, "before": "before"}, ["before"], GIVEN)
            changed, cells = changed + table[2:], [*cells, *values]
        draws = len({row["draw"] for row in rows if row["data"] == data})
        head = means([], {}, {**GIVEN, "chance": "a guess"})
        lines += [f"{data}, {draws} draws, after pre-training:", "", *head, *after, ""]
        lines += [f"{data}, after minus before:", "", *means([], {}, GIVEN), *changed, ""]
    return [*lines, counted(cells)]


if __name__ == "__main__":
    sys.exit(fire.Fire({"run": run, "report": report}))
