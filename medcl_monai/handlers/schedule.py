"""A handler that sets the learning rate over a run: a warm-up, then a decay to 0."""

from collections.abc import Callable

from torch.optim import Optimizer

from medcl_monai.curves import cosine
from medcl_monai.handlers.span import Span
from medcl_monai.knobs import knob_types


class Schedule(Span):
    """Scales the learning rates of an optimiser: a linear warm-up, then `decay` until the end of the run.

    Each start of the engine begins a new schedule, and a resumed run continues the schedule of its checkpoint (`Span`);
    the full learning rates come from the optimiser of the resumed run.

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

    name = "schedule"

    @knob_types
    def __init__(
        self, optimizer: Optimizer, warm_up: float = 0.05, decay: Callable[[float], float] | None = None
    ) -> None:
        super().__init__()
        if not 0 <= warm_up < 1:
            raise ValueError(f"Schedule: warm_up must be a share of the steps, 0 up to 1, got {warm_up}")
        self.optimizer, self.warm_up, self.decay = optimizer, warm_up, cosine if decay is None else decay
        self.full = [group["lr"] for group in optimizer.param_groups]

    def factor(self, step: int) -> float:
        """Return the share of the full learning rate at optimiser step `step` of the schedule, counted from 0."""
        warm = round(self.warm_up * self.length)
        if step < warm:
            return (step + 1) / warm
        return self.decay(min((step - warm) / max(self.length - warm, 1), 1.0))

    def set(self, done: int) -> None:
        """Set the learning rates for the next optimiser step."""
        factor = self.factor(done)
        for group, full in zip(self.optimizer.param_groups, self.full, strict=True):
            group["lr"] = full * factor
