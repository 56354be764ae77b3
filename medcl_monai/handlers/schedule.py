"""A handler that sets the learning rate over a run: a warm-up, then a decay to 0."""

import math
from collections.abc import Callable

from ignite.engine import Engine, Events
from torch.optim import Optimizer

from medcl_monai.engines.state import stateful
from medcl_monai.knobs import knob_types


class Schedule:
    """Scales the learning rates of an optimiser: a linear warm-up, then `decay` until the end of the run.

    Each start of the engine begins a new schedule over the iterations that remain: (max_epochs - epoch) × epoch_length.
    A caller that changes the number of epochs (MONAI Label), or runs the engine round after round (federated learning),
    therefore gets a whole schedule each time. A resumed run continues the schedule of its checkpoint; the full learning
    rates come from the optimiser of the resumed run.

    Args:
        optimizer: the optimiser whose parameter groups are scaled; the learning rates of the groups at the time of this
            call are the full learning rates.
        warm_up: share of the optimiser steps over which the learning rate rises linearly to its full value, 0 (no
            warm-up) up to but not including 1.
        decay: function that gives the factor of the learning rate after the warm-up, `cosine` or `polynomial`. The
            argument of the function is the share of the steps after the warm-up that are done, 0 to 1; the factor falls
            from 1 to 0. None: `cosine`.

    Raises:
        ValueError: `warm_up` is out of range.
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
        """Set the learning rates before each iteration of `engine`, a `Trainer` or a `Pretrainer`."""
        stateful(engine)["schedule"] = self
        engine.add_event_handler(Events.STARTED, self._begin)
        engine.add_event_handler(Events.ITERATION_STARTED, self._set)

    def factor(self, step: int) -> float:
        """Return the share of the full learning rate at optimiser step `step` of the schedule, counted from 0."""
        warm = round(self.warm_up * self.length)
        if step < warm:
            return (step + 1) / warm
        return self.decay(min((step - warm) / max(self.length - warm, 1), 1.0))

    def state_dict(self) -> dict[str, object]:
        """Return the state for a checkpoint: the optimiser step at which the schedule began."""
        return {"start": self.start}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Take over the state of a checkpoint, so that the next start of the engine continues the schedule."""
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
    """Return a factor that falls from 1 to 0 along half a cosine while `share` rises from 0 to 1.

    Example:
        >>> [round(cosine(share), 2) for share in (0.0, 0.5, 1.0)]
        [1.0, 0.5, 0.0]
    """
    return 0.5 * (1 + math.cos(math.pi * share))


def polynomial(share: float, power: float = 0.9) -> float:
    """Return the factor ``(1 - share) ** power``, which falls from 1 to 0 while `share` rises from 0 to 1."""
    return (1 - share) ** power
