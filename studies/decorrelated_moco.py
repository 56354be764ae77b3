"""What whitening and the local term change: MoCo v2, each alone, both, and no pre-training, on equal budgets.

    python studies/decorrelated_moco.py run DATA [--seeds 3] [--workers 2]
    python studies/decorrelated_moco.py report

`run` appends one row per arm and seed to studies/decorrelated_moco.csv and leaves out those that are there; DATA is
"example" or a folder. Every process computes on one thread. The split by person is the same in all runs; what differs
between seeds is the network's start, the slices that are drawn and the views.
"""

import csv
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import fire
import numpy as np

ROOT = Path(__file__).parents[1]
BUNDLE, RESULTS = ROOT / "bundles" / "decorrelated_moco", Path(__file__).with_suffix(".csv")
ARMS = {
    "scratch": None,
    "moco": {"whiten": False, "local_weight": 0.0},
    "local": {"whiten": False, "local_weight": 0.5},
    "whitening": {"whiten": True, "local_weight": 0.0},
    "both": {"whiten": True, "local_weight": 0.5},
}
LABELLED, HELD_OUT_SLICES = 2, 512
COLUMNS = ("data", "arm", "seed", "effective_rank", "participation_ratio", "retrieval", "linear_dice", "tuned_dice",
           "minutes")


def run(data: str, seeds: int = 3, workers: int = 2) -> None:
    """Run what is missing of all arms and seeds on a data set."""
    name = "example" if data == "example" else Path(data).name
    done = {(row["data"], row["arm"], row["seed"]) for row in _rows()}
    wanted = [(arm, seed) for seed in range(seeds) for arm in ARMS if (name, arm, str(seed)) not in done]
    folder = None if data == "example" else str(Path(data).resolve())
    os.environ["OMP_NUM_THREADS"] = "1"
    with multiprocessing.get_context("spawn").Pool(workers, maxtasksperchild=1) as pool:
        for figures in pool.imap_unordered(one_run, [(name, folder, *job) for job in wanted], chunksize=1):
            new = not RESULTS.is_file()
            with RESULTS.open("a", encoding="utf-8", newline="") as file:
                writer = csv.DictWriter(file, COLUMNS)
                if new:
                    writer.writeheader()
                writer.writerow(figures)
            print(figures, flush=True)


def one_run(job: tuple[str, str | None, str, int]) -> dict[str, object]:
    """Pre-train, look at held-out slices, train a linear probe and the whole network on few labels; the figures."""
    import torch

    torch.set_num_threads(1)
    from medcl_monai.adaptation import adapt_bundle, grid_of
    from medcl_monai.data.inspection import inspect_dataset
    from medcl_monai.data.splits import split_dataset
    from medcl_monai.demo import run_bundle

    name, folder, arm, seed = job
    started = time.time()
    with tempfile.TemporaryDirectory() as place:
        root = Path(place) / BUNDLE.name
        if folder is None:
            shutil.copytree(BUNDLE, root, ignore=shutil.ignore_patterns("eval", "models"))
        else:
            adapt_bundle(BUNDLE, root, inspect_dataset(folder, grid=grid_of(BUNDLE)).knobs)
        split = split_dataset(folder)
        common = {"bundle_root": str(root), "dataset_dir": folder, "seed": seed,
                  "tracking_uri": f"sqlite:///{place}/runs.db", "checkpoint_interval": 10**6}
        pretrained = root / "models" / "pretrained.pt"
        if ARMS[arm] is not None:
            run_bundle([root / "configs" / "pretrain.json"], output_dir=f"{place}/pretraining", **common, **ARMS[arm])
        figures = look(root, folder, seed, pretrained if ARMS[arm] is not None else None, split.test)
        people = len({entry["subject"] for entry in split.training})
        common |= {"label_fraction": LABELLED / people, "val_interval": 10**6}
        if ARMS[arm] is None:
            common |= {"pretrained": "none", "encoder_lr_scale": 1.0}  # nothing to preserve: the whole network learns
        for kind, overlay in (("linear", [root / "configs" / "linear_probe.json"]), ("tuned", [])):
            figures[f"{kind}_dice"] = score(root, Path(place) / kind, overlay, split, common)
    return {"data": name, "arm": arm, "seed": seed, **figures, "minutes": round((time.time() - started) / 60, 2)}


def look(root: Path, folder: str | None, seed: int, pretrained: Path | None, test: Sequence[dict]) -> dict[str, float]:
    """Rank of the pooled features of held-out slices, and how often a view finds its partner among them."""
    import torch
    from monai.bundle import ConfigParser

    from medcl_monai import encode, load_pretrained
    from medcl_monai.diagnostics.figures import effective_rank, participation_ratio

    torch.manual_seed(seed)
    parser = ConfigParser()
    parser.read_config(str(root / "configs" / "pretrain.json"))
    parser.config |= {"bundle_root": str(root), "dataset_dir": folder}
    parser["train::dataset::data"] = [{key: entry[key] for key in ("image", "subject")} for entry in test]
    backbone = parser.get_parsed_content("network_def").backbone.eval()
    load_pretrained(pretrained, backbone)
    data, views = parser.get_parsed_content("train::dataset"), parser.get_parsed_content("views")
    places = np.linspace(0, len(data) - 1, HELD_OUT_SLICES).astype(int)
    samples = [data[int(place)] for place in places]
    batch = {key: torch.stack([sample[key] for sample in samples]) for key in samples[0]}
    torch.manual_seed(0)  # the same views for every arm and seed
    pair, _ = views(batch)
    with torch.no_grad():
        whole, first, second = (
            torch.cat([encode(backbone, part)[-1].flatten(2).mean(2) for part in images.split(64)])
            for images in (batch["image"], pair["view_1"], pair["view_2"])
        )
    nearest = (torch.nn.functional.normalize(first) @ torch.nn.functional.normalize(second).T).argmax(1)
    return {
        "effective_rank": round(float(effective_rank(whole)), 3),
        "participation_ratio": round(float(participation_ratio(whole)), 3),
        "retrieval": round(float((nearest == torch.arange(len(nearest))).float().mean()), 4),
    }


def score(root: Path, output: Path, overlay: list[Path], split: object, common: dict[str, object]) -> float:
    """Train on few labels, score held-out people: mean Dice over people and structures."""
    from medcl_monai.demo import run_bundle
    from medcl_monai.demo_report import subject_scores

    configs, knobs = root / "configs", {**common, "model_file": str(output / "model.pt")}
    run_bundle([configs / "train.json", *overlay], output_dir=str(output), **knobs)
    run_bundle([configs / "train.json", configs / "evaluate.json", *overlay], output_dir=str(output / "test"), **knobs)
    return round(float(np.nanmean(subject_scores(output / "test", split), axis=1).mean()), 4)


def report() -> None:
    """The table: mean over seeds with Student's 95 % interval, and the paired difference to MoCo v2."""
    rows = _rows()
    for data in dict.fromkeys(row["data"] for row in rows):
        print(f"{data}: mean [95 % t interval over seeds]; in brackets behind: paired difference to moco")
        for column in COLUMNS[3:-1]:
            for arm in ARMS:
                values = {row["seed"]: float(row[column]) for row in rows if (row["data"], row["arm"]) == (data, arm)}
                base = {row["seed"]: float(row[column]) for row in rows if (row["data"], row["arm"]) == (data, "moco")}
                pairs = [values[seed] - base[seed] for seed in values if seed in base]
                print(f"{column:22}{arm:12}n={len(values)}  {_interval(list(values.values()))}"
                      + ("" if arm == "moco" else f"   ({_interval(pairs, '+')})"))


def _interval(values: list[float], sign: str = "") -> str:
    from medcl_monai.demo_report import t_interval

    if not values:
        return "nan"
    mean, low, high = t_interval(np.array(values))
    return f"{mean:{sign}.3f}" + (f" [{low:{sign}.3f}, {high:{sign}.3f}]" if len(values) > 1 else "")


def _rows() -> list[dict[str, str]]:
    if not RESULTS.is_file():
        return []
    with RESULTS.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


if __name__ == "__main__":
    sys.exit(fire.Fire({"run": run, "report": report}))
