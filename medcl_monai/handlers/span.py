"""The base of handlers that change a setting over a run, step by step."""

from abc import ABC, abstractmethod

from ignite.engine import Engine, Events

from medcl_monai.engines.state import stateful


class Span(ABC):
    """Knows where the optimiser steps of a run begin and how many there are, and sets a value before each iteration.

    Each start of the engine begins a new span over the iterations that remain: (max_epochs - epoch) × epoch_length. A
    caller that changes the number of epochs (MONAI Label), or runs the engine round after round (federated learning),
    therefore gets a whole span each time. A resumed run continues the span of its checkpoint.

    Attributes:
        name: name of the handler's state in a checkpoint.
        start: number of optimiser steps that were done before the span.
        length: number of optimiser steps of the span, at least 1.
    """

    name: str

    def __init__(self) -> None:
        self.start, self.length, self._restored = 0, 1, False

    @abstractmethod
    def set(self, done: int) -> None:
        """Set the value for the next optimiser step.

        Args:
            done: number of optimiser steps of the span that are done.
        """

    def attach(self, engine: Engine) -> None:
        """Set the value before each iteration of `engine`, a `Trainer` or a `Pretrainer`."""
        stateful(engine)[self.name] = self
        engine.add_event_handler(Events.STARTED, self._begin)
        engine.add_event_handler(Events.ITERATION_STARTED, lambda e: self.set(e.state.optimizer_steps - self.start))

    def state_dict(self) -> dict[str, object]:
        """Return the state for a checkpoint: the optimiser step at which the span began."""
        return {"start": self.start}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Take over the state of a checkpoint, so that the next start of the engine continues the span."""
        self.start, self._restored = state["start"], True

    def _begin(self, engine: Engine) -> None:
        if not self._restored:
            self.start = engine.state.optimizer_steps
        self._restored = False
        ahead = (engine.state.max_epochs * engine.state.epoch_length - engine.state.iteration) // engine.accumulation
        self.length = max(engine.state.optimizer_steps + ahead - self.start, 1)
