"""Weights that leave a run: bare state dicts, written whole or not at all, with a record of who was seen."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from ignite.engine import Engine, Events
from torch import nn

from medcl_monai.distributed import bare, rank
from medcl_monai.engines.state import stateful
from medcl_monai.files import write_atomically
from medcl_monai.knobs import knob_types
from medcl_monai.transfer.manifest import MANIFEST, digests, record_weights, seen_subjects
from medcl_monai.transforms.preprocessing import Preprocessing

logger = logging.getLogger(__name__)


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
        prepared: how the volumes were prepared, which is recorded with the weights; None: nothing is recorded.

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
        prepared: Preprocessing | None = None,
    ) -> None:
        self.path, self.network, self.data = Path(path), network, data
        self.names, self.metric, self.start, self.best = names, metric, start, float("-inf")
        self.settings = None if prepared is None else prepared.settings
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
        state = bare(self.network).state_dict()
        names = state if self.names is None else self.names
        weights = {name: state[name].detach().cpu().clone() for name in names}
        if bad := [name for name, value in weights.items() if not bool(torch.isfinite(value).all())]:
            raise ValueError(f"{self.path} is not written: tensor {bad[0]!r} ({len(bad)} in all) is not finite")
        seen_before = self._look_back()
        write_atomically(self.path, lambda path: torch.save(weights, path))
        record_weights(self.path, self.data, seen_before, self.settings)
        logger.info("saved %s: %d tensors", self.path, len(weights))
