"""A handler that shows a progress bar over a whole run, with the remaining time."""

import sys

from ignite.engine import Engine, Events
from tqdm import tqdm

from medcl_monai.distributed import rank
from medcl_monai.engines.loop import TrainingLoop


class Progress:
    """Shows a progress bar on stderr: optimiser steps and loss of a training, or volumes of an evaluation.

    Only the first process shows the bar.

    Args:
        title: text in front of the bar.
        quiet: whether the bar is hidden.
    """

    def __init__(self, title: str, quiet: bool = False) -> None:
        self.title, self.quiet, self.bar = title, quiet, None

    def attach(self, engine: Engine) -> None:
        """Show the bar while `engine` runs."""
        engine.add_event_handler(Events.STARTED, self._open)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._advance)
        engine.add_event_handler(Events.COMPLETED, lambda _: self.bar.close())

    def _open(self, engine: Engine) -> None:
        state = engine.state
        length = len(state.dataloader) if state.epoch_length is None else state.epoch_length
        done = max(state.iteration, state.epoch * length)  # an evaluator counts its iterations from 0 in each run
        ahead = state.max_epochs * length - done
        per_step = _per_step(engine)
        self.bar = tqdm(
            total=(state.iteration + ahead) // per_step, initial=state.iteration // per_step, desc=self.title,
            dynamic_ncols=True, disable=self.quiet or rank() != 0, file=sys.stderr,
        )

    def _advance(self, engine: Engine) -> None:
        if self.bar.disable or engine.state.iteration % _per_step(engine):
            return
        due = self.bar.n + 1 >= self.bar.last_print_n + self.bar.miniters  # reading the loss waits for the device
        if due and isinstance(engine, TrainingLoop):
            self.bar.set_postfix(loss=f"{float(engine.state.output[0]['loss']):.3f}", refresh=False)
        self.bar.update()


def _per_step(engine: Engine) -> int:
    return engine.accumulation if isinstance(engine, TrainingLoop) else 1
