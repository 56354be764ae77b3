"""A handler that draws the views of a pre-training for the record of the run."""

from ignite.engine import Engine
from monai.engines.utils import IterationEvents

from medcl_monai.diagnostics.pictures import views_picture
from medcl_monai.knobs import knob_types


class ViewsPicture:
    """Draws the views of some samples into ``engine.state.pictures["views"]``, which the tracker records.

    Args:
        interval: number of optimiser steps between two pictures, at least 1; the first picture is drawn at the first
            step.
        samples: number of samples of the batch that are drawn, at least 1.
    """

    @knob_types
    def __init__(self, interval: int, samples: int = 4) -> None:
        if interval < 1:
            raise ValueError(f"ViewsPicture: interval must be at least 1 step, got {interval}")
        self.interval, self.samples = interval, samples

    def attach(self, engine: Engine) -> None:
        """Draw the views while `engine`, a `Pretrainer`, runs."""
        # this event comes before the tracker reads the pictures at the end of the iteration
        engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self._draw)

    def _draw(self, engine: Engine) -> None:
        if not engine.due(self.interval):
            return
        views = engine.state.output[0]["views"]
        images = {name: view[: self.samples, 0] for name, view in views.items() if view.ndim > 2}
        engine.state.pictures["views"] = views_picture(images)
