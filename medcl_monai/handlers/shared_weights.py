"""A handler that saves the weights of a run for use elsewhere, with a record of the subjects seen in training."""

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
    """Saves a network as a bare state dict, and records the file's hash and the subjects seen in ``manifest.json``.

    The manifest lies beside the file, and the file is written whole or not at all. Without a `metric`, the handler is
    attached to a training engine and saves at the end. With a `metric`, the handler is attached to an evaluator and
    saves whenever the metric is better than before.

    Args:
        path: file that the weights are saved to.
        network: the network whose tensors are saved, plain or wrapped in DistributedDataParallel.
        data: entries of the data list that training used; the subjects of the entries are recorded as seen.
        names: names of the tensors that are saved; None: all tensors.
        metric: name of the metric of the evaluator that decides when to save, larger is better; None: the weights are
            saved at the end of the engine's run.
        start: file of the weights that training started from, whose recorded subjects count as seen too; None: training
            started from scratch.
        prepared: the preprocessing of the volumes, whose settings are recorded with the weights; None: no settings are
            recorded.

    Raises:
        ValueError: at the end of the engine's run: the engine has no such metric, or a tensor is not finite.
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
        """Save when `engine` completes a run."""
        stateful(engine)[f"shared {self.path.name}"] = self  # a resumed run keeps the best metric and the subjects seen
        engine.add_event_handler(Events.STARTED, lambda _: self._look_back())
        engine.add_event_handler(Events.COMPLETED, self._completed)

    def state_dict(self) -> dict[str, object]:
        """Return the state for a checkpoint: the best metric, and the digests of the subjects seen."""
        return {"best": self.best, "seen": sorted(digests(self.data) | self._look_back())}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Take over the best metric of a checkpoint, and count the checkpoint's subjects as seen before."""
        self.best = float(state["best"])
        self._seen_before = self._look_back() | set(state["seen"])

    def _look_back(self) -> set[str]:
        """Return the digests of the subjects that were seen before this run.

        The record of `start` is read only once, before this handler may overwrite the file of `start`.
        """
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
        """Write the weights file and its record."""
        state = bare(self.network).state_dict()
        names = state if self.names is None else self.names
        weights = {name: state[name].detach().cpu().clone() for name in names}
        if bad := [name for name, value in weights.items() if not bool(torch.isfinite(value).all())]:
            raise ValueError(f"{self.path} is not written: tensor {bad[0]!r} ({len(bad)} in all) is not finite")
        seen_before = self._look_back()
        write_atomically(self.path, lambda path: torch.save(weights, path))
        record_weights(self.path, self.data, seen_before, self.settings)
        logger.info("saved %s: %d tensors", self.path, len(weights))
