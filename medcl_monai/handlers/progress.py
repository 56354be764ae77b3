"""A progress bar over a whole run, with the time that remains."""

from ignite.engine import Engine, Events
from tqdm import tqdm

from medcl_monai.distributed import rank


class Progress:
    """One bar on stderr for all iterations of an engine, with the loss where there is one; on the first process only.

    Args:
        title: what the bar stands for.
    """

    def __init__(self, title: str) -> None:
        self.title, self.bar = title, None

    def attach(self, engine: Engine) -> None:
        """Draw while `engine` runs."""
        if rank() == 0:
            engine.add_event_handler(Events.STARTED, self._open)
            engine.add_event_handler(Events.ITERATION_COMPLETED, self._advance)
            engine.add_event_handler(Events.COMPLETED, lambda _: self.bar.close())
            engine.add_event_handler(Events.TERMINATE, lambda _: self.bar.close())

    def _open(self, engine: Engine) -> None:
        state = engine.state
        length = len(state.dataloader) if state.epoch_length is None else state.epoch_length
        self.bar = tqdm(total=state.max_epochs * length, initial=state.iteration, desc=self.title, dynamic_ncols=True)

    def _advance(self, engine: Engine) -> None:
        output = engine.state.output
        due = self.bar.n + 1 >= self.bar.last_print_n + self.bar.miniters  # reading the loss waits for the device
        if due and isinstance(output, list) and len(output) == 1 and "loss" in output[0]:
            self.bar.set_postfix(loss=f"{float(output[0]['loss']):.3f}", refresh=False)
        self.bar.update()
