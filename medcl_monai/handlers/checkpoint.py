"""A handler that writes checkpoints, from which a run can be resumed exactly."""

from pathlib import Path

import torch
from ignite.engine import Engine, Events

from medcl_monai.distributed import rank
from medcl_monai.engines.state import checkpoints
from medcl_monai.files import write_atomically
from medcl_monai.knobs import knob_types


class Checkpoints:
    """Writes a checkpoint every `interval` optimiser steps and at the end of a run, and keeps the newest `keep` files.

    The checkpoint of a step is written when the engine asks for the next batch. By then everything that belongs to the
    step, or to the end of its epoch, is done, such as the record of the losses or a validation. The position of this
    handler in the list of handlers therefore does not matter.

    Args:
        folder: folder of the checkpoint files, which are named ``checkpoint_STEP.pt``; the folder is made if it does
            not exist.
        interval: number of optimiser steps between two checkpoints, at least 1.
        keep: number of the newest checkpoint files that are kept, at least 1; older files are deleted.

    Raises:
        ValueError: `interval` or `keep` is below 1.
    """

    @knob_types
    def __init__(self, folder: str | Path, interval: int, keep: int = 2) -> None:
        if interval < 1 or keep < 1:
            raise ValueError(f"Checkpoints: interval {interval} and keep {keep} must be at least 1")
        self.folder, self.interval, self.keep, self._last = Path(folder), interval, keep, 0

    def attach(self, engine: Engine) -> None:
        """Write checkpoints while `engine`, a `Trainer` or a `Pretrainer`, runs."""
        engine.add_event_handler(Events.STARTED, self._begin)
        engine.add_event_handler(Events.GET_BATCH_STARTED, self._at_interval)
        engine.add_event_handler(Events.COMPLETED, self._write)

    def _begin(self, engine: Engine) -> None:
        self._last = engine.state.optimizer_steps  # the state at the start is new, or was just read from a checkpoint

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
