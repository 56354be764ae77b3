"""What the studies run: one bundle on one data set, pre-trained, fine-tuned on a draw of labelled people, scored."""

import csv
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import filelock

ROOT = Path(__file__).parents[1]
EXAMPLE = "example"
NEVER = 10**6  # an interval that no run of a study reaches


@dataclass(frozen=True)
class Bench:
    """One bundle on one data set.

    Attributes:
        bundle: name of a folder in bundles/.
        data: folder of a labelled data set; "example": the example population.
        place: folder of what the runs leave.
        labelled: number of labelled people of a draw.
    """

    bundle: str
    data: str
    place: Path
    labelled: int = 2

    @property
    def name(self) -> str:
        """Name of the data set in results: never a path."""
        return Path(self.data).name

    @property
    def dataset_dir(self) -> str | None:
        """The knob of the bundle."""
        return None if self.data == EXAMPLE else str(Path(self.data).resolve())

    def split(self) -> object:
        """Who is who; the same in all draws."""
        from medcl_monai.data.splits import split_dataset

        return split_dataset(self.dataset_dir)

    def root(self, start: str, draw: int) -> Path:
        """A copy of the bundle for these data, of its own for each start and draw; made if it is not there."""
        from medcl_monai.bundles import adapt_bundle, size_rule
        from medcl_monai.data.inspection import inspect_dataset

        source, root = ROOT / "bundles" / self.bundle, self.folder(start, draw) / self.bundle
        with filelock.FileLock(f"{root}.lock"):  # several jobs of a draw may need the same copy
            if not root.is_dir():
                aside = root.with_name(f"{self.bundle}.{os.getpid()}")
                if self.dataset_dir is None:
                    shutil.copytree(source, aside, ignore=shutil.ignore_patterns("eval", "models"))
                else:
                    adapt_bundle(source, aside, inspect_dataset(self.dataset_dir, rule=size_rule(source)).knobs)
                aside.rename(root)
        return root

    def folder(self, start: str, draw: int) -> Path:
        """Of a start and a draw."""
        folder = self.place / f"{self.bundle}-{self.name}" / f"{start}-{draw}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def people(self, draw: int) -> list[dict[str, str]]:
        """Entries of the labelled people of a draw: the first of the pool, in the order of the draw."""
        from medcl_monai.data.splits import ordered

        pool = self.split().training
        kept = ordered({entry["subject"] for entry in pool}, draw)[: self.labelled]
        return [entry for entry in pool if entry["subject"] in kept]

    def pretrain(self, start: str, draw: int, **overrides: object) -> Path:
        """Pre-train unless that was done; the weights."""
        from medcl_monai.bundles import run_bundle

        root = self.root(start, draw)
        path = root / "models" / "pretrained.pt"
        if not path.is_file():
            run_bundle([root / "configs" / "pretrain.json"], **self._common(root, draw), **overrides)
        return path

    def untrained(self, start: str, draw: int) -> Path:
        """The tensors that pre-training would share, as they are before the first step of fine-tuning from scratch."""
        import torch

        from medcl_monai.files import write_atomically

        root = self.root(start, draw)
        path = root / "models" / "untrained.pt"
        if not path.is_file():
            shared = self.parser(start, draw, "pretrain.json").get_parsed_content("network_def").shared_parts()
            weights = self.parser(start, draw, "train.json").get_parsed_content("network_def").state_dict()
            weights = {name: weights[name] for name in shared}
            write_atomically(path, lambda target: torch.save(weights, target))
        return path

    def tune(self, start: str, draw: int, model: Path, overlay: Sequence[str] = (), **overrides: object) -> None:
        """Fine-tune on the labelled people of a draw unless that was done; nobody validates, `model` is the last."""
        from medcl_monai.bundles import run_bundle

        if model.is_file():
            return
        root = self.root(start, draw)
        files = [root / "configs" / name for name in ("train.json", *overlay)]
        data = {"train::dataset::data": self.people(draw), "validate::dataset::data": []}
        run_bundle(files, **self._common(root, draw), model_file=str(model), **data, **overrides)

    def score(
        self, start: str, draw: int, model: Path, people: str, overlay: Sequence[str] = (), **overrides: object
    ) -> float:
        """Mean Dice over people and structures of the people called `people`: "validation" or "test"."""
        import numpy as np

        from medcl_monai.bundles import run_bundle
        from medcl_monai.commands.demo_report import subject_scores

        root, entries = self.root(start, draw), getattr(self.split(), people)
        files = [root / "configs" / name for name in ("train.json", *overlay, "evaluate.json")]
        output = self.folder(start, draw) / "scores" / people / model.parent.name
        knobs = {**self._common(root, draw), "output_dir": str(output), "validate::dataset::data": entries}
        run_bundle(files, **knobs, model_file=str(model), **overrides)
        return round(float(np.nanmean(subject_scores(output, entries), axis=1).mean()), 4)

    def _common(self, root: Path, draw: int) -> dict[str, object]:
        return {
            "bundle_root": str(root), "dataset_dir": self.dataset_dir, "seed": draw, "checkpoint_interval": NEVER,
            "output_dir": str(root / "eval"),
        }

    def held_out(self, start: str, draw: int, people: str, **knobs: object) -> tuple[object, object, object]:
        """The backbone of pretrain.json, and its samples and views of the people called `people`, as knobs say."""
        parser = self.parser(start, draw, "pretrain.json")
        entries = getattr(self.split(), people)
        parser["train::dataset::data"] = [{key: entry[key] for key in ("image", "subject")} for entry in entries]
        for name, value in knobs.items():
            parser[name] = value
        network, data, views = (parser.get_parsed_content(name) for name in ("network_def", "train::dataset", "views"))
        return network.backbone, data, views

    def parser(self, start: str, draw: int, config: str) -> object:
        """A config of the copy, ready to make its objects as a run of this draw would."""
        import torch
        from monai.bundle import ConfigParser

        root, parser = self.root(start, draw), ConfigParser()
        torch.manual_seed(draw)
        parser.read_config(str(root / "configs" / config))
        parser.config |= {"bundle_root": str(root), "dataset_dir": self.dataset_dir}
        return parser


def read_rows(results: Path) -> list[dict[str, str]]:
    """The rows of a file of results; none where there is no file."""
    if not results.is_file():
        return []
    with results.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def append_row(results: Path, row: Mapping[str, object]) -> None:
    """Add a row to a file of results; several processes may do so at once."""
    with filelock.FileLock(f"{results}.lock"):
        new = not results.is_file()
        with results.open("a", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(row), lineterminator="\n")
            if new:
                writer.writeheader()
            writer.writerow(row)


def side_by_side(function: Callable, jobs: Iterable[tuple], workers: int) -> None:
    """Run `function(*job)` for all jobs in processes of one thread each; a job that fails stops none of the others.

    A process that the system kills ends the study with an error, and the next start goes on.
    """
    os.environ["OMP_NUM_THREADS"] = "1"
    failed = []
    with ProcessPoolExecutor(workers, get_context("spawn"), max_tasks_per_child=4) as pool:
        running = {pool.submit(function, *job): job for job in jobs}
        for done in as_completed(running):
            if error := done.exception():  # the next start of the study tries the job again
                failed.append(f"{running[done]}: {error!r}")
                print(failed[-1], file=sys.stderr, flush=True)
    if failed:
        raise RuntimeError("these jobs failed:\n" + "\n".join(failed))
