"""Checkpoints from which a run goes on exactly."""

from pathlib import Path

import torch
from ignite.engine import Engine, Events

from medcl_monai.distributed import rank
from medcl_monai.engines.state import checkpoints
from medcl_monai.files import write_atomically
from medcl_monai.knobs import knob_types


class Checkpoints:
    """Writes the engine's state every `interval` optimiser steps and at the end; the newest `keep` files stay.

    The state after a step is written when the next batch is asked for: whatever belongs to the step or its epoch's
    end, as the record of its losses or a validation, is then in it, wherever this handler stands in the list.

    Args:
        folder: of the files ``checkpoint_STEP.pt``.
        interval: optimiser steps, at least 1.
        keep: number of files, at least 1.

    Raises:
        ValueError: `interval` or `keep` below 1.
    """

    @knob_types
    def __init__(self, folder: str | Path, interval: int, keep: int = 2) -> None:
        if interval < 1 or keep < 1:
            raise ValueError(f"Checkpoints: interval {interval} and keep {keep} must be at least 1")
        self.folder, self.interval, self.keep, self._last = Path(folder), interval, keep, 0

    def attach(self, engine: Engine) -> None:
        """Write during the run of `engine`, a `Trainer` or `Pretrainer`."""
        engine.add_event_handler(Events.STARTED, self._begin)
        engine.add_event_handler(Events.GET_BATCH_STARTED, self._at_interval)
        engine.add_event_handler(Events.COMPLETED, self._write)

    def _begin(self, engine: Engine) -> None:
        self._last = engine.state.optimizer_steps  # nothing to write before the first step, nor what was just read

    def _at_interval(self, engine: Engine) -> None:
        if engine.state.optimizer_steps % self.interval == 0:
            self._write(engine)

    def _write(self, engine: Engine) -> None:
        step = engine.state.optimizer_steps
        if rank() != 0 or step == self._last or not engine.ends_step():
            return
        self._last = step
        state = engine.checkpoint()
        write_atomically(self.folder / f"checkpoint_{step}.pt", lambda path: torch.save(state, path))
        for old in checkpoints(self.folder)[self.keep :]:
            old.unlink(missing_ok=True)
