"""The learning rate over a run: warm-up, then a decay to 0."""

import math
from collections.abc import Callable

from ignite.engine import Engine, Events
from torch.optim import Optimizer

from medcl_monai.engines.state import stateful
from medcl_monai.knobs import knob_types


class Schedule:
    """Scales the optimiser's learning rates: linear warm-up, then `decay` to the end of the run.

    The length is taken anew whenever the engine starts: (max_epochs - epoch) × epoch_length iterations. So whoever
    changes the number of epochs (MONAI Label), or runs the engine round after round (a federation), gets a whole
    schedule each time. A resumed run keeps the start of its schedule; its full learning rates are the optimiser's.

    Args:
        optimizer: whose groups are scaled; their learning rates at this moment are the full ones.
        warm_up: share of the steps, 0 up to 1.
        decay: factor as a function of the share of the remaining steps that is done, from 1 to 0: `cosine`,
            `polynomial`.

    Raises:
        ValueError: `warm_up` out of range.
    """

    @knob_types
    def __init__(
        self, optimizer: Optimizer, warm_up: float = 0.05, decay: Callable[[float], float] | None = None
    ) -> None:
        if not 0 <= warm_up < 1:
            raise ValueError(f"Schedule: warm_up must be a share of the steps, 0 up to 1, got {warm_up}")
        self.optimizer, self.warm_up, self.decay = optimizer, warm_up, cosine if decay is None else decay
        self.full = [group["lr"] for group in optimizer.param_groups]
        self.start, self.length, self._restored = 0, 1, False

    def attach(self, engine: Engine) -> None:
        """Set the learning rate before each iteration of `engine`, a `Trainer`."""
        stateful(engine)["schedule"] = self
        engine.add_event_handler(Events.STARTED, self._begin)
        engine.add_event_handler(Events.ITERATION_STARTED, self._set)

    def factor(self, step: int) -> float:
        """Share of the full learning rate at optimiser step `step` of the schedule, counted from 0."""
        warm = round(self.warm_up * self.length)
        if step < warm:
            return (step + 1) / warm
        return self.decay(min((step - warm) / max(self.length - warm, 1), 1.0))

    def state_dict(self) -> dict[str, object]:
        """For a checkpoint."""
        return {"start": self.start}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """From a checkpoint: the next start of the engine goes on with this schedule."""
        self.start, self._restored = state["start"], True

    def _begin(self, engine: Engine) -> None:
        if not self._restored:
            self.start = engine.state.optimizer_steps
        self._restored = False
        ahead = (engine.state.max_epochs * engine.state.epoch_length - engine.state.iteration) // engine.accumulation
        self.length = max(engine.state.optimizer_steps + ahead - self.start, 1)

    def _set(self, engine: Engine) -> None:
        factor = self.factor(engine.state.optimizer_steps - self.start)
        for group, full in zip(self.optimizer.param_groups, self.full, strict=True):
            group["lr"] = full * factor


def cosine(share: float) -> float:
    """From 1 to 0 along half a cosine.

    Example:
        >>> [round(cosine(share), 2) for share in (0.0, 0.5, 1.0)]
        [1.0, 0.5, 0.0]
    """
    return 0.5 * (1 + math.cos(math.pi * share))


def polynomial(share: float, power: float = 0.9) -> float:
    """From 1 to 0 as ``(1 - share) ** power``."""
    return (1 - share) ** power
