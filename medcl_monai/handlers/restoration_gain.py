"""A handler that compares a restoration with the corrupted image itself: a network that copies gains nothing."""

import torch
from ignite.engine import Engine
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
        unchanged_weight: weight of an unchanged pixel, as in the loss.
        exponent: exponent of the differences, as in the loss.

    Raises:
        ValueError: `interval` is below 1, or another number is out of range.
    """

    @knob_types
    def __init__(self, interval: int, unchanged_weight: float = 1.0, exponent: float = 2.0) -> None:
        if interval < 1:
            raise ValueError(f"RestorationGain: interval must be at least 1 step, got {interval}")
        self.interval, self.loss = interval, RestorationLoss(1.0, unchanged_weight, exponent)

    def attach(self, engine: Engine) -> None:
        """Look at the batches of `engine`, a `Pretrainer`."""
        # this event comes before the tracker reads the figures at the end of the iteration
        engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self._look)

    @torch.no_grad()
    def _look(self, engine: Engine) -> None:
        (current,) = engine.state.output
        if "restored" not in current["output"] or not engine.due(self.interval):
            return
        target = current["target"]
        losses = [
            self.loss({"restored": image}, target)["restoration"]
            for image in (current["output"]["restored"], current["views"]["corrupted"])
        ]
        if float(losses[1]) > 0:
            engine.state.figures["restoration_gain"] = 1 - float(losses[0]) / float(losses[1])
