"""A handler that compares a restoration with the corrupted image itself: a network that copies gains nothing."""

import torch
from ignite.engine import Engine, Events
from monai.engines.utils import IterationEvents

from medcl_monai.knobs import knob_types
from medcl_monai.losses.restoration import RestorationLoss


class RestorationGain:
    """Writes the figure ``restoration_gain``, 1 - L / L(identity), into the record of a pre-training that restores.

    L is the restoration loss of the current batch, and L(identity) that of the corrupted image itself. 0: the network
    copies its input, or does no better; 1: the restoration is perfect. Where the output has no ``restored``, as in the
    contrast arm, or nothing was corrupted, no figure is written.

    Args:
        interval: number of optimiser steps between two looks, at least 1; the first look is at the first step.

    Raises:
        ValueError: `interval` is below 1; at the start of a run: the loss has no `RestorationLoss` as its
            ``restoration``.
    """

    @knob_types
    def __init__(self, interval: int) -> None:
        if interval < 1:
            raise ValueError(f"RestorationGain: interval must be at least 1 step, got {interval}")
        self.interval = interval

    def attach(self, engine: Engine) -> None:
        """Look at the batches of `engine`, a `Pretrainer`."""
        engine.add_event_handler(Events.STARTED, self._check)
        # this event comes before the tracker reads the figures at the end of the iteration
        engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self._look)

    def _check(self, engine: Engine) -> None:
        loss = engine.loss_function
        if not isinstance(getattr(loss, "restoration", None), RestorationLoss):
            raise ValueError(f"RestorationGain: the loss must have a restoration loss, got {type(loss).__name__}")

    @torch.no_grad()
    def _look(self, engine: Engine) -> None:
        (current,) = engine.state.output
        if "restoration" not in current["terms"] or not engine.due(self.interval):
            return
        corrupted = {"restored": current["views"]["corrupted"]}
        identity = float(engine.loss_function.restoration(corrupted, current["target"])["restoration"])
        if identity > 0:
            engine.state.figures["restoration_gain"] = 1 - float(current["terms"]["restoration"]) / identity
