"""Checkpoints from which a run goes on exactly."""

import logging
import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from ignite.engine import Engine, Events
from torch import Tensor

from medcl_monai.distributed import rank
from medcl_monai.files import write_atomically

logger = logging.getLogger(__name__)


class Checkpoints:
    """Writes the engine's state every `interval` optimiser steps and at the end; the newest `keep` files stay.

    Args:
        folder: of the files ``checkpoint_STEP.pt``.
        interval: optimiser steps, at least 1.
        keep: number of files, at least 1.

    Raises:
        ValueError: `interval` or `keep` below 1.
    """

    def __init__(self, folder: str | Path, interval: int, keep: int = 2) -> None:
        if interval < 1 or keep < 1:
            raise ValueError(f"Checkpoints: interval {interval} and keep {keep} must be at least 1")
        self.folder, self.interval, self.keep, self._last = Path(folder), interval, keep, -1

    def attach(self, engine: Engine) -> None:
        """Write during the run of `engine`, a `Trainer` or `Pretrainer`."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._at_step)
        engine.add_event_handler(Events.COMPLETED, self._write)

    def _at_step(self, engine: Engine) -> None:
        whole = engine.state.iteration % engine.accumulation == 0
        if whole and engine.state.optimizer_steps % self.interval == 0:
            self._write(engine)

    def _write(self, engine: Engine) -> None:
        step = engine.state.optimizer_steps
        if rank() != 0 or step == self._last or engine.state.iteration % engine.accumulation:
            return
        self._last = step
        state = engine.checkpoint()
        write_atomically(self.folder / f"checkpoint_{step}.pt", lambda path: torch.save(state, path))
        for old in checkpoints(self.folder)[self.keep :]:
            old.unlink(missing_ok=True)


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoint files of a folder, newest first."""
    found = [path for path in folder.glob("checkpoint_*.pt") if re.fullmatch(r"checkpoint_\d+", path.stem)]
    return sorted(found, key=lambda path: (path.stat().st_mtime_ns, int(path.stem.split("_")[1])), reverse=True)


def load_checkpoint(path: str | Path, network: Mapping[str, Tensor]) -> tuple[Path, dict]:
    """A checkpoint, or the newest whole one of a folder, that fits the tensors of `network`.

    Raises:
        FileNotFoundError: no such file, or no checkpoint in the folder.
        ValueError: no checkpoint can be read, or it is of another network.
    """
    path = Path(path)
    candidates = checkpoints(path) if path.is_dir() else [path]
    if not candidates or not candidates[0].is_file():
        raise FileNotFoundError(f"{path}: no checkpoint to resume from; set resume to null to start anew")
    for candidate in candidates:
        try:
            state = torch.load(candidate, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
            logger.warning("%s cannot be read, an older one is tried: %s", candidate, error)
            continue
        _check(candidate, state, network)
        return candidate, state
    raise ValueError(f"{path}: no checkpoint can be read (tried {[file.name for file in candidates]})")


def _check(path: Path, state: object, network: Mapping[str, Tensor]) -> None:
    if not isinstance(state, dict) or not {"iteration", "network", "optimizer", "handlers"} <= set(state):
        holds = list(state)[:4] if isinstance(state, dict) else type(state).__name__
        raise ValueError(f"{path} is no checkpoint of a run: it holds {holds}")
    stored = state["network"]
    for name in [*network, *stored]:
        ours, theirs = (tuple(part[name].shape) if name in part else "absent" for part in (network, stored))
        if ours != theirs:
            raise ValueError(f"{path} is of another network: tensor {name!r} is {theirs} there, {ours} is expected")
