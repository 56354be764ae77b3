"""What `make demo` runs: pre-training, the arms of the bundle side by side, evaluation, a table and a picture."""

import json
import multiprocessing
import os
import shutil
import time
from pathlib import Path

from medcl_monai.bundles import Plan, Run, bundle_folder, read_plan, run_bundle
from medcl_monai.commands.bundle import bundle_for
from medcl_monai.data.splits import Split, split_dataset
from medcl_monai.overrides import ids, merged

LABELLED_SUBJECTS = 2
SEED = 0


def demo(bundle: str = "jcl", dataset: str | None = None, labelled: int = LABELLED_SUBJECTS, seed: int = SEED) -> None:
    """Pre-train without labels, fine-tune on few labels with and without the weights, and compare on held-out people.

    The file ``configs/demo.json`` of the bundle says what runs first, and which arms are compared with which knobs. On
    the example population the bundle keeps the weights (models/pretrained.pt, models/model.pt). With `dataset` the demo
    works on a copy of the bundle, demo/NAME, whose knobs it sets as ``inspect`` suggests. A copy that was set up for
    data of its own is run on these data.

    Args:
        bundle: name of a bundle in ./bundles, or the bundle's folder.
        dataset: a Decathlon folder, or a folder with imagesTr/ and labelsTr/; None: the ``dataset_dir`` of the bundle's
            train.json, which is the example population unless the bundle was set up for other data.
        labelled: number of labelled subjects in fine-tuning, at least 1.
        seed: seed of all training runs.

    Raises:
        FileNotFoundError: there is no such bundle or data set.
        ValueError: the data have no labels, or fewer labelled subjects than asked for.
    """
    from medcl_monai.commands.demo_report import report  # matplotlib: not before it is needed

    started = time.time()
    root = bundle_folder(bundle)
    if dataset is not None:
        dataset = str(Path(dataset).resolve())
        root, inspection = bundle_for(root, Path("demo") / root.name, dataset)
        print(inspection)
    train = json.loads((root / "configs" / "train.json").read_text(encoding="utf-8"))
    dataset = train["dataset_dir"] if dataset is None else dataset
    people = {knob: train[knob] for knob in ("split_seed", "subjects", "subject_pattern")}
    split = split_dataset(dataset, **people)
    output, plan = root / "eval", read_plan(root)
    _clear(output, plan)
    overrides = {"bundle_root": str(root), "dataset_dir": dataset, "seed": seed}
    overrides["tracking_uri"] = f"sqlite:///{output / 'mlruns.db'}"
    fraction = _label_fraction(split, labelled)
    print(
        f"{len(split.pretraining)} volumes without labels, {labelled} labelled subjects, "
        f"{len(split.test)} volumes of held-out subjects; results in {output}",
        flush=True,
    )
    print("1/4 " + (", ".join(run.name for run in plan.before) or "nothing runs before the arms"), flush=True)
    for run in plan.before:
        prepare(root, run, {**overrides, "output_dir": str(output / run.name), "run_name": run.name})
    print(f"2/4 fine-tuning and evaluation, side by side: {', '.join(plan.arms)}", flush=True)
    _side_by_side(root, output, plan.arms, {**overrides, "label_fraction": fraction})
    print("3/4 inference on one held-out volume", flush=True)
    entry = _volume_to_show(split)
    for arm in plan.arms:
        segment(root, output, arm, plan.arms[arm], entry["image"])
    print("4/4 report", flush=True)
    print(report(output, tuple(plan.arms), split, entry), flush=True)
    print(f"every run: .venv/bin/mlflow ui --backend-store-uri {overrides['tracking_uri']}")
    print("then http://127.0.0.1:5000/#/experiments/1/runs in a browser")
    print(f"finished in {(time.time() - started) / 60:.1f} minutes")


def prepare(root: Path, run: Run, overrides: dict[str, object]) -> None:
    """Run what comes before the arms; what an overlay sets is left to the overlay, such as data of its own."""
    files = [root / "configs" / config for config in run.configs]
    overlays = {name for file in files[1:] for name in json.loads(file.read_text(encoding="utf-8"))}
    kept = {name: value for name, value in overrides.items() if name not in overlays}
    run_bundle(files, **{**kept, **run.knobs})


def fine_tune(root: Path, output: Path, arm: str, knobs: dict[str, object], overrides: dict[str, object]) -> None:
    """Train one arm, and score the segmenter of the end and of half of the steps on the held-out subjects."""
    import torch

    from medcl_monai.files import write_atomically

    torch.set_num_threads(1)
    configs, folder = root / "configs", output / arm
    train = json.loads((configs / "train.json").read_text(encoding="utf-8"))
    steps, epochs = (knobs.get(name, train[name]) for name in ("steps", "epochs"))
    overrides = {**overrides, **knobs, "model_file": model_file(root, output, arm), "run_name": arm}
    budget = {"val_interval": epochs, "checkpoint_interval": steps // 2}
    run_bundle([configs / "train.json"], output_dir=str(folder), **budget, **overrides)
    half = folder / "half"
    half.mkdir(parents=True, exist_ok=True)
    checkpoint = next((folder / "checkpoints" / "training").glob(f"*{steps // 2}.pt"))
    weights = torch.load(checkpoint, map_location="cpu", weights_only=True)["network"]
    write_atomically(half / "model.pt", lambda target: torch.save(weights, target))
    for name, model in (("test", overrides["model_file"]), ("half", str(half / "model.pt"))):
        scoring = {**overrides, "model_file": model, "run_name": f"{arm}, {name}"}
        run_bundle([configs / "train.json", configs / "evaluate.json"], output_dir=str(folder / name), **scoring)


def segment(root: Path, output: Path, arm: str, knobs: dict[str, object], image: str) -> None:
    """Segment one volume with the network of one arm, by inference.json and those knobs of the arm that it has."""
    config = root / "configs" / "inference.json"
    known = set(ids(merged([config])))
    run_bundle(
        [config],
        workflow_type="infer",
        bundle_root=str(root),
        output_dir=str(output / arm / "inference"),
        model_file=model_file(root, output, arm),
        **{"dataset::data": [{"image": image}]},
        **{name: value for name, value in knobs.items() if name in known},
    )


def model_file(root: Path, output: Path, arm: str) -> str:
    """Return where an arm's segmenter is saved: models/model.pt for the first arm, among the results for the others."""
    first = next(iter(read_plan(root).arms))
    return str(root / "models" / "model.pt" if arm == first else output / arm / "model.pt")


def _side_by_side(root: Path, output: Path, arms: dict[str, dict], overrides: dict[str, object]) -> None:
    context = multiprocessing.get_context("spawn")
    processes = {}
    for position, (arm, knobs) in enumerate(arms.items()):
        os.environ.update(TQDM_POSITION=str(position), OMP_NUM_THREADS="1")  # tqdm reads its defaults from there
        processes[arm] = context.Process(target=fine_tune, args=(root, output, arm, knobs, overrides))
        processes[arm].start()
    del os.environ["TQDM_POSITION"], os.environ["OMP_NUM_THREADS"]
    for process in processes.values():
        process.join()
    if failed := [arm for arm, process in processes.items() if process.exitcode != 0]:
        raise RuntimeError(f"demo: fine-tuning failed ({', '.join(failed)}); its error stands above")


def _label_fraction(split: Split, labelled: int) -> float:
    pool = len({entry["subject"] for entry in split.training})
    if not 1 <= labelled <= pool:
        raise ValueError(f"demo: {labelled} labelled subjects of a pool of {pool}: between 1 and {pool}")
    return labelled / pool


def _volume_to_show(split: Split) -> dict[str, str]:
    return sorted(split.test, key=lambda entry: entry["image"])[0]


def _clear(output: Path, plan: Plan) -> None:
    """Remove the results of an earlier demo; its MLflow runs stay."""
    for folder in (*(run.name for run in plan.before), *plan.arms):
        shutil.rmtree(output / folder, ignore_errors=True)
    output.mkdir(parents=True, exist_ok=True)
