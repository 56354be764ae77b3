"""The ways of supervised and contrastive weights into encoder and decoder of a Swin-Unet, and their controls.

    python studies/swin_arms.py run DATA... [--workers 2]
    python studies/swin_arms.py report [--write]

DATA is a folder or "example". Every draw has its own source, pre-trainings and labelled people; every arm is fine-tuned
with each learning rate of the same grid, scored on validation people, and, with the rate that the arm chose there, once
on test people. Every row is added to studies/swin_arms.csv when its run has finished, and rows that are there are not
run again.
"""

import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import fire
from arms import ROOT, Bench, append_row, read_rows, side_by_side
from recipe import work_folder
from tables import NOTHING, counted, differences, means, show
from transformer_transfer import train_source

BUNDLE, RESULTS = "transformer_transfer", Path(__file__).with_suffix(".csv")
PAGE = ROOT / "docs" / "methods" / "transformer_transfer.md"
DRAWS, RATES, LABELLED = range(3), (0.001, 0.003), 4
DENSE = {
    "network_def::freeze_encoder": True, "loss::contrast_weight": 0.0, "loss::dense_weight": 1.0, "views::regions": 64,
}
HALF = {**DENSE, "network_def::decoder_level": 0, "network_def::skip_drop": 0.5}
PRETRAININGS: dict[str, tuple[str, dict[str, object]]] = {  # name to what it starts from, and knobs
    "moco from random": ("none", {}),
    "moco": ("source", {}),
    "dense, all skips": ("moco", {**DENSE, "network_def::decoder_level": 0}),
    "dense, half of the skips": ("moco", HALF),
    "dense, level 2": ("moco", {**DENSE, "network_def::decoder_level": 2, "network_def::skip_drop": 0.5}),
    # read by studies/decoder_contrast.py alone
    "dense, level 2, all skips": ("moco", {**DENSE, "network_def::decoder_level": 2}),
    "dense, regions in air too": ("moco", {**HALF, "views::crops::foreground": -1.0}),
    "dense on a random encoder": ("none", HALF),
}
LONGER = 3.0  # steps of the longer control, as a multiple: what pre-training costs in fine-tuning steps, rounded up
ARMS: dict[str, tuple[str, str | None, dict[str, object]]] = {  # encoder, decoder that is mirrored, knobs
    "random, random": ("none", None, {}),
    "supervised, random": ("source", None, {}),
    "supervised, mirrored": ("source", "source", {}),
    "MoCo from random, mirrored": ("moco from random", "moco from random", {}),
    "MoCo, random": ("moco", None, {}),
    "MoCo, mirrored": ("moco", "moco", {}),
    "MoCo, mirrored supervised": ("moco", "source", {}),
    "supervised, mirrored MoCo": ("source", "moco", {}),
    "MoCo, dense, all skips": ("dense, all skips", "dense, all skips", {}),
    "MoCo, dense, half of the skips": ("dense, half of the skips", "dense, half of the skips", {}),
    "MoCo, dense, level 2": ("dense, level 2", "dense, level 2", {}),
    "supervised, mirrored, longer": ("source", "source", {"longer": True}),
    "whole source": ("source", None, {"whole": True}),
}
CONTROLS = ("random, random", "supervised, mirrored", "MoCo, mirrored")


def run(*data: str, workers: int = 2, place: str | None = None) -> None:
    """Run what is missing; a first pass over all draws makes the weights that several arms share."""
    folder, done = str(work_folder(place)), read_rows(RESULTS)
    side_by_side(make_weights, [(one, draw, folder) for draw in DRAWS for one in data], workers)
    test = {(row["data"], row["arm"], row["draw"]) for row in done if row["people"] == "test"}
    for stage in (one_arm, one_test):
        jobs = [(one, arm, draw, folder) for draw in DRAWS for one in data for arm in ARMS]
        side_by_side(stage, [job for job in jobs if (Path(job[0]).name, job[1], str(job[2])) not in test], workers)


def make_weights(data: str, draw: int, place: str) -> None:
    """Train the source of a draw, and pre-train everything that arms of the draw start from."""
    import torch

    torch.set_num_threads(1)
    bench = Bench(BUNDLE, data, Path(place), LABELLED)
    for name in ("source", *PRETRAININGS):
        weights_of(bench, name, draw)


def weights_of(bench: Bench, name: str, draw: int) -> str:
    """The weights called `name`: "none", the source, or a pre-training; made unless they are there."""
    if name == "none":
        return "none"
    if name == "source":
        return str(train_source(bench, draw))
    start, knobs = PRETRAININGS[name]
    start = weights_of(bench, start, draw)
    if "network_def::decoder_level" in knobs and start != "none":  # the decoder starts mirrored
        start = str(composed(bench, draw, start, start, "mirrored"))
    return str(bench.pretrain(name, draw, initial_weights=start, **knobs))


def composed(bench: Bench, draw: int, encoder: str, decoder: str | None, name: str) -> Path:
    """A file of the encoder of one file, and of the decoder that another file holds or that its encoder mirrors."""
    import torch

    from medcl_monai import mirror_decoder
    from medcl_monai.files import write_atomically
    from medcl_monai.transfer.manifest import record_weights, seen_subjects

    path = bench.folder("composed", draw) / name / "weights.pt"
    if not path.is_file() or seen_subjects(path) is None:
        weights = torch.load(encoder, map_location="cpu", weights_only=True)
        kept = {name: value for name, value in weights.items() if name.startswith(("swinViT.", "norm."))}
        if decoder is not None:
            own = bench.parser("composed", draw, "train.json").get_parsed_content("network_def").state_dict()
            other = torch.load(decoder, map_location="cpu", weights_only=True)
            if "out.weight" in other:  # a whole segmenter: its encoder is mirrored, its decoder is not taken
                other = {name: value for name, value in other.items() if not name.startswith("decoder.")}
            other = mirror_decoder(other, own)
            kept |= {name: value for name, value in other.items() if name.startswith("decoder.")}
        write_atomically(path, lambda target: torch.save(kept, target))
        files = [file for file in (encoder, decoder) if file is not None]
        record_weights(path, [], {person for file in files for person in seen_subjects(file) or ()})
    return path


def start_of(bench: Bench, arm: str, draw: int) -> str:
    """The file that an arm's fine-tuning starts from."""
    encoder, decoder, knobs = ARMS[arm]
    first = weights_of(bench, encoder, draw)
    if first == "none" or knobs.get("whole"):
        return first
    other = None if decoder is None else weights_of(bench, decoder, draw)
    return str(composed(bench, draw, first, other, arm))


def tune(bench: Bench, arm: str, draw: int, rate: float) -> Path:
    """Fine-tune an arm at a learning rate; the segmenter."""
    import json

    model = bench.folder(arm, draw) / "models" / f"{rate:g}" / "model.pt"
    train = json.loads((bench.root(arm, draw) / "configs" / "train.json").read_text(encoding="utf-8"))
    steps = round(train["steps"] * (LONGER if ARMS[arm][2].get("longer") else 1))
    start = start_of(bench, arm, draw)
    knobs = {"transfer::layout::mirror": False, "coverage": 0.0, "learning_rate": rate, "steps": steps}
    bench.tune(arm, draw, model, pretrained=start, **knobs)
    return model


def one_arm(data: str, arm: str, draw: int, place: str) -> None:
    """Fine-tune one arm of a draw with every rate, and score validation people."""
    import torch

    torch.set_num_threads(1)
    bench = Bench(BUNDLE, data, Path(place), LABELLED)
    for rate in RATES:
        row = {"data": bench.name, "arm": arm, "draw": draw, "rate": f"{rate:g}", "people": "validation"}
        key = {name: str(value) for name, value in row.items()}
        if not any(key.items() <= seen.items() for seen in read_rows(RESULTS)):
            dice = bench.score(arm, draw, tune(bench, arm, draw, rate), "validation")
            append_row(RESULTS, {**row, "dice": dice})


def one_test(data: str, arm: str, draw: int, place: str) -> None:
    """Score test people with the rate that the arm chose on validation people."""
    import torch

    torch.set_num_threads(1)
    bench, rate = Bench(BUNDLE, data, Path(place), LABELLED), chosen(read_rows(RESULTS), Path(data).name, arm)
    dice = bench.score(arm, draw, tune(bench, arm, draw, rate), "test")
    row = {"data": bench.name, "arm": arm, "draw": draw, "rate": f"{rate:g}", "people": "test"}
    append_row(RESULTS, {**row, "dice": dice})


def chosen(rows: Sequence[dict[str, str]], data: str, arm: str) -> float:
    """The rate with the highest Dice of validation people, over draws; ties: the lower rate."""
    dice: dict[float, list[float]] = {}
    for row in rows:
        if (row["data"], row["arm"], row["people"]) == (data, arm, "validation"):
            dice.setdefault(float(row["rate"]), []).append(float(row["dice"]))
    if not dice:
        raise ValueError(f"swin_arms: no run of {arm!r} on {data}: run first")
    return max(sorted(dice), key=lambda rate: statistics.fmean(dice[rate]))


def report(write: bool = False) -> None:
    """Print the tables; with --write, put them into the page of the method, between its marks."""
    show(tables(read_rows(RESULTS)), PAGE, "studies/swin_arms.py", write)


def tables(rows: Sequence[dict[str, str]]) -> list[str]:
    """Markdown: Dice of test people of every arm, then its difference to every control."""
    if not rows:
        return [NOTHING]
    lines, cells = [], []
    for data in dict.fromkeys(row["data"] for row in rows):
        tested = [row for row in rows if row["data"] == data and row["people"] == "test"]
        shown = {arm: arm for arm in ARMS if any(row["arm"] == arm for row in tested)}
        draws = len({row["draw"] for row in tested})
        lines += [f"{data}, test people, {draws} draws:", "", *means(tested, shown, {"dice": "Dice"}), ""]
        controls = [arm for arm in CONTROLS if arm in shown]
        table, values = differences(tested, shown, controls, {"dice": "Dice"})
        lines, cells = [*lines, *table, ""], [*cells, *values]
    return [*lines, counted(cells)]


if __name__ == "__main__":
    sys.exit(fire.Fire({"run": run, "report": report}))
