"""Weights that leave a run: bare state dicts, written whole or not at all, with a record of who was seen."""

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from ignite.engine import Engine, Events
from torch import nn

from medcl_monai.data.datalist import stem
from medcl_monai.distributed import rank
from medcl_monai.files import file_hash, write_atomically
from medcl_monai.handlers.checkpoint import stateful
from medcl_monai.knobs import knob_types
from medcl_monai.transfer.load import starting_weights

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

    Raises:
        ValueError: at the end of the engine, if it has no such metric, or a tensor is not finite.
    """

    @knob_types
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
        self.names, self.metric, self.start, self.best = names, metric, starting_weights(start), float("-inf")
        self._seen_before: set[str] | None = None

    def attach(self, engine: Engine) -> None:
        """Save when `engine` completes."""
        stateful(engine)[f"shared {self.path.name}"] = self  # a resumed training keeps its best model, and who was seen
        engine.add_event_handler(Events.STARTED, lambda _: self._look_back())
        engine.add_event_handler(Events.COMPLETED, self._completed)

    def state_dict(self) -> dict[str, object]:
        """For a checkpoint."""
        return {"best": self.best, "seen": sorted(digests(self.data) | self._look_back())}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """From a checkpoint: who was seen before it stays seen, whoever is seen now."""
        self.best = float(state["best"])
        self._seen_before = self._look_back() | set(state["seen"])

    def _look_back(self) -> set[str]:
        """Whom `start` has seen: asked once, before its file may be replaced by what is saved here."""
        if self._seen_before is None:
            known = [] if self.start is None else seen_subjects(self.start)
            if known is None:
                logger.warning("%s: no record of its hash in %s: whom it has seen is not known", self.start, MANIFEST)
            self._seen_before = set(known or [])
        return self._seen_before

    def _completed(self, engine: Engine) -> None:
        if self.metric is not None:
            if self.metric not in engine.state.metrics:
                raise ValueError(f"SharedWeights: no metric {self.metric!r} among {sorted(engine.state.metrics)}")
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
        if bad := [name for name, value in weights.items() if not bool(torch.isfinite(value).all())]:
            raise ValueError(f"{self.path} is not written: tensor {bad[0]!r} ({len(bad)} in all) is not finite")
        seen_before = self._look_back()
        write_atomically(self.path, lambda path: torch.save(weights, path))
        record_weights(self.path, self.data, seen_before)
        logger.info("saved %s: %d tensors", self.path, len(weights))


def record_weights(path: Path, data: Sequence[dict], seen_before: Iterable[str] = ()) -> None:
    """Record the hash of weights and digests of the subjects seen in ``manifest.json`` beside them.

    Args:
        path: the weights.
        data: entries that training saw.
        seen_before: digests of subjects that the weights it started from had seen.
    """
    manifest = path.parent / MANIFEST
    records = read_manifest(manifest)
    seen = digests(data) | set(seen_before)
    records[path.name] = {"sha256": file_hash(path), "subjects_seen": sorted(seen)}
    text = json.dumps(records, indent=1, sort_keys=True) + "\n"
    write_atomically(manifest, lambda aside: aside.write_text(text, encoding="utf-8"))


def seen_subjects(path: str | Path) -> list[str] | None:
    """Digests of the subjects that weights have seen; None where no record fits the file's hash."""
    path = Path(path)
    record = read_manifest(path.parent / MANIFEST).get(path.name)
    if not path.is_file() or record is None or record.get("sha256") != file_hash(path):
        return None
    return record.get("subjects_seen")


def check_unseen(path: str | Path, data: Sequence[dict]) -> None:
    """Refuse to score subjects that the weights have seen; warn where nothing is known.

    Raises:
        ValueError: naming the subjects.
    """
    seen = seen_subjects(path)
    if seen is None:
        logger.warning("%s: no record of its hash in %s: who was seen in training is not known", path, MANIFEST)
        return
    subjects = sorted({subject_of(entry) for entry in data})
    if known := [subject for subject in subjects if digest(subject) in set(seen)]:
        raise ValueError(f"{path} was trained on {len(known)} of the subjects to be scored: {known[:5]}")


def read_manifest(path: Path) -> dict[str, dict]:
    """The records of a folder of weights, empty where there is none.

    Raises:
        ValueError: the file holds no records.
    """
    try:
        records = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise ValueError(f"{path} holds no records of weights: {error}") from error
    if not isinstance(records, dict):
        raise ValueError(f"{path} holds no records of weights: an object of file name to record is expected")
    return records


def subject_of(entry: Mapping[str, str]) -> str:
    """Name of an entry's subject; the file's name where a client sends none, as MONAI Label does."""
    return str(entry.get("subject") or stem(Path(entry["image"])))


def digests(data: Iterable[Mapping[str, str]]) -> set[str]:
    """Digests of the subjects of entries."""
    return {digest(subject_of(entry)) for entry in data}


def digest(subject: str) -> str:
    """sha256 of a subject's name: a manifest names nobody."""
    return hashlib.sha256(str(subject).encode()).hexdigest()
