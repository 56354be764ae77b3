"""A handler that raises the momentum of a momentum copy to 1 over a run."""

from medcl_monai.handlers.span import Span
from medcl_monai.knobs import knob_types
from medcl_monai.networks.momentum import MomentumCopy, momentum_at


class MomentumSchedule(Span):
    """Raises the momentum of a `MomentumCopy` along a cosine from its first value to 1 at the end of the run.

    The update after the k-th optimiser step has the momentum ``momentum_at(k)``. MoCo v3 updates the copy before the
    keys are computed, with the momentum of the step; both orders give the same keys, bit for bit. Each start of the
    engine begins a new schedule, and a resumed run continues the schedule of its checkpoint (`Span`).

    Args:
        copy: the momentum copy; the momentum of the copy at the time of this call is the first value.
    """

    name = "momentum"

    @knob_types
    def __init__(self, copy: MomentumCopy) -> None:
        super().__init__()
        self.copy, self.first = copy, copy.momentum

    def set(self, done: int) -> None:
        """Set the momentum of the update that follows the next optimiser step."""
        self.copy.momentum = momentum_at(done + 1, self.length, self.first)
