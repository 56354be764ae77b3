"""Weights that leave a run: bare state dicts, written whole or not at all, with a record of who was seen."""

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from ignite.engine import Engine, Events
from torch import nn

from medcl_monai.distributed import rank
from medcl_monai.files import file_hash, write_atomically

logger = logging.getLogger(__name__)
MANIFEST = "manifest.json"


class SharedWeights:
    """Saves a network as a bare state dict, and records file hash and seen subjects in ``manifest.json`` beside it.

    Attached to a training engine it saves at the end; given a `metric` and attached to an evaluator it saves whenever
    that metric is better than before.

    Args:
        path: of the file.
        network: whose tensors are saved, wrapped for several processes or not.
        data: entries that training saw, for the record of subjects.
        names: of the tensors; None: all.
        metric: of the evaluator, larger is better; None: save at the end of the engine.
        start: weights that training started from; the subjects of their record were seen too.
    """

    def __init__(
        self,
        path: str | Path,
        network: nn.Module,
        data: Sequence[dict],
        names: Sequence[str] | None = None,
        metric: str | None = None,
        start: str | Path | None = None,
    ) -> None:
        self.path, self.network, self.data = Path(path), network, data
        self.names, self.metric, self.start, self.best = names, metric, start, float("-inf")

    def attach(self, engine: Engine) -> None:
        """Save when `engine` completes."""
        engine.add_event_handler(Events.COMPLETED, self._completed)

    def _completed(self, engine: Engine) -> None:
        if self.metric is not None:
            value = float(engine.state.metrics[self.metric])
            if not value > self.best and self.best > float("-inf"):
                return
            self.best = value
        if rank() == 0:
            self.save()

    def save(self) -> None:
        """Write the file and its record."""
        network = self.network.module if isinstance(self.network, nn.parallel.DistributedDataParallel) else self.network
        state = network.state_dict()
        names = state if self.names is None else self.names
        weights = {name: state[name].detach().cpu().clone() for name in names}
        write_atomically(self.path, lambda path: torch.save(weights, path))
        record_weights(self.path, self.data, self.start)
        logger.info("saved %s: %d tensors", self.path, len(weights))


def record_weights(path: Path, data: Sequence[dict], start: str | Path | None = None) -> None:
    """Record the hash of weights and digests of the subjects seen in ``manifest.json`` beside them."""
    manifest = path.parent / MANIFEST
    records = read_manifest(manifest)
    seen = {digest(entry.get("subject", entry["image"])) for entry in data}
    if start is not None and (before := seen_subjects(start)) is not None:
        seen |= set(before)
    records[path.name] = {"sha256": file_hash(path), "subjects_seen": sorted(seen)}
    text = json.dumps(records, indent=1, sort_keys=True) + "\n"
    write_atomically(manifest, lambda aside: aside.write_text(text, encoding="utf-8"))


def seen_subjects(path: str | Path) -> list[str] | None:
    """Digests of the subjects that weights have seen; None where no record fits the file's hash."""
    path = Path(path)
    record = read_manifest(path.parent / MANIFEST).get(path.name)
    if not path.is_file() or record is None or record["sha256"] != file_hash(path):
        return None
    return record["subjects_seen"]


def check_unseen(path: str | Path, data: Sequence[dict]) -> None:
    """Refuse to score subjects that the weights have seen; warn where nothing is known.

    Raises:
        ValueError: naming the subjects.
    """
    seen = seen_subjects(path)
    if seen is None:
        logger.warning("%s: no record of its hash in %s: who was seen in training is not known", path, MANIFEST)
        return
    subjects = sorted({entry.get("subject", entry["image"]) for entry in data})
    if known := [subject for subject in subjects if digest(subject) in set(seen)]:
        raise ValueError(f"{path} was trained on {len(known)} of the subjects to be scored: {known[:5]}")


def read_manifest(path: Path) -> dict[str, dict]:
    """The records of a folder of weights, empty where there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def digest(subject: str) -> str:
    """sha256 of a subject's name: a manifest names nobody."""
    return hashlib.sha256(str(subject).encode()).hexdigest()
