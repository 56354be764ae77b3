"""A handler of evaluations: overlap, accuracy and surface distances, of each case and of all cases together."""

import csv
import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.distributed as dist
from ignite.engine import Engine, Events
from monai.data.utils import affine_to_spacing

from medcl_monai.diagnostics.scores import (
    class_counts,
    class_mean_accuracy,
    dice,
    mean_iou,
    overall_accuracy,
    surface_distances,
)
from medcl_monai.distributed import rank, world_size
from medcl_monai.files import write_atomically
from medcl_monai.knobs import knob_types

logger = logging.getLogger(__name__)
ACCURACIES = {"mean_iou": mean_iou, "overall_accuracy": overall_accuracy, "class_mean_accuracy": class_mean_accuracy}
DISTANCES = ("hausdorff", "hausdorff95")


class SegmentationScores:
    """Scores every case of an evaluation, and writes ``cases.csv`` and ``scores.json``.

    ``cases.csv`` has a row per case: Dice, Hausdorff distance and its 95th percentile of each structure, mean IoU,
    overall accuracy and class-mean accuracy. ``scores.json`` has the means over cases, and the same scores of the
    counts of all cases together ("aggregated"). `medcl_monai.diagnostics.scores` defines the scores. A structure that
    is missing in label or prediction has no distance; such cases are counted, and no mean includes them. The means also
    become metrics of the engine, which the tracker records, and a line of the log.

    Args:
        folder: folder of the two files.
        structures: label value to name, without background.
        distances: whether surface distances are measured, which takes most of the time.
    """

    @knob_types
    def __init__(self, folder: str | Path, structures: Mapping[str, str], distances: bool = True) -> None:
        self.folder, self.structures, self.distances = Path(folder), dict(structures), distances
        self._cases: list[dict[str, object]] = []

    def attach(self, engine: Engine) -> None:
        """Score the cases of `engine`, an evaluator whose prediction and label have one channel per class."""
        engine.add_event_handler(Events.STARTED, lambda _: self._cases.clear())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._score)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._finish)

    def _score(self, engine: Engine) -> None:
        for case in engine.state.output:
            label, prediction = case["label"], case["pred"]
            maps = [torch.as_tensor(part).argmax(0).cpu() for part in (label, prediction)]
            spacing = [float(side) for side in affine_to_spacing(label.affine, r=3)]
            found = {
                value: surface_distances(*(part == int(value) for part in maps), spacing) if self.distances else None
                for value in self.structures
            }
            self._cases.append({
                "image": str(case["image"].meta.get("filename_or_obj", "")),
                "counts": class_counts(*maps, len(label)),
                "distances": found,
            })

    def _finish(self, engine: Engine) -> None:
        cases = _of_all_processes(self._cases)
        rows = [self._row(case) for case in cases]
        summary = self._summary(cases, rows)
        engine.state.metrics |= {name: value for name, value in summary["mean over cases"].items() if value is not None}
        if rank() > 0:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self.folder / "cases.csv", lambda path: _write_table(path, rows))
        text = json.dumps(summary, indent=4, ensure_ascii=False) + "\n"
        write_atomically(self.folder / "scores.json", lambda path: path.write_text(text, encoding="utf-8"))
        shown = {name: summary["mean over cases"].get(name) for name in ("dice", *DISTANCES, *ACCURACIES)}
        means = ", ".join(f"{name} {value:.4g}" for name, value in shown.items() if value is not None)
        logger.info("%s cases, means: %s; each case: %s", len(rows), means, self.folder / "cases.csv")

    def _row(self, case: Mapping[str, object]) -> dict[str, object]:
        """Return the scores of one case, NaN where there is none."""
        overlap, row = dice(case["counts"]), {"image": case["image"]}
        for value, name in self.structures.items():
            row[f"dice {name}"] = float(overlap[int(value) - 1])
        for number, kind in enumerate(DISTANCES if self.distances else ()):
            for value, name in self.structures.items():
                found = case["distances"][value]
                row[f"{kind} {name} (mm)"] = math.nan if found is None else found[number]
        return row | {name: float(score(case["counts"])) for name, score in ACCURACIES.items()}

    def _summary(self, cases: list[Mapping[str, object]], rows: list[Mapping[str, object]]) -> dict[str, object]:
        total = sum(case["counts"] for case in cases)
        names = [name for name in rows[0] if name != "image"]
        table = torch.tensor([[row[name] for name in names] for row in rows], dtype=torch.float64)
        means = {name: _number(column.nanmean()) for name, column in zip(names, table.T, strict=True)}
        for kind in ("dice", *(DISTANCES if self.distances else ())):
            of_kind = table[:, [place for place, name in enumerate(names) if name.startswith(f"{kind} ")]]
            means[kind] = _number(of_kind.nanmean(0).nanmean())
        together = {name: float(score(total)) for name, score in ACCURACIES.items()}
        named = [int(value) - 1 for value in self.structures]
        together |= {f"dice {name}": _number(dice(total)[int(value) - 1]) for value, name in self.structures.items()}
        together["dice"] = _number(dice(total)[named].nanmean())
        empty = {
            name: {
                "in the label": sum(int(case["counts"][int(value)].sum() == 0) for case in cases),
                "in the prediction": sum(int(case["counts"][:, int(value)].sum() == 0) for case in cases),
            }
            for value, name in self.structures.items()
        }
        parts = {"mean over cases": means, "aggregated": together, "cases without the structure": empty}
        return {"cases": len(cases), **parts}


def _of_all_processes(cases: list) -> list:
    if world_size() == 1:
        return cases
    parts: list[list] = [[] for _ in range(world_size())]
    dist.all_gather_object(parts, cases)
    by_image = {case["image"]: case for part in parts for case in part}  # a sampler may give a case twice
    return list(by_image.values())


def _number(value: torch.Tensor) -> float | None:
    """Return a number, or None for NaN, which JSON does not have."""
    return None if bool(value.isnan()) else float(value)


def _write_table(path: Path, rows: list[Mapping[str, object]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
