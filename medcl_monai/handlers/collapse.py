"""Figures that show whether the embeddings of a pre-training collapse."""

from collections.abc import Sequence

import torch
from ignite.engine import Engine, Events

from medcl_monai.diagnostics.figures import (
    alignment,
    effective_rank,
    feature_spread,
    participation_ratio,
    uniformity,
)
from medcl_monai.knobs import knob_types


class CollapseMonitor:
    """Puts figures of the training batches' own embeddings into ``engine.state.figures``, where the tracker finds them.

    Args:
        interval: optimiser steps between two looks, at least 1.
        keys: of the network's output: embeddings (N, C) or maps (N, C, *S), for rank and spread. A key that the
            network does not give (a level that is off) is left out.
        pairs: pairs of keys of two views' embeddings, for alignment and uniformity.

    Raises:
        ValueError: `interval` below 1.
    """

    @knob_types
    def __init__(
        self, interval: int, keys: Sequence[str] = ("features",), pairs: Sequence[Sequence[str]] = ()
    ) -> None:
        if interval < 1:
            raise ValueError(f"CollapseMonitor: interval must be at least 1 step, got {interval}")
        self.interval, self.keys, self.pairs = interval, tuple(keys), tuple(map(tuple, pairs))

    def attach(self, engine: Engine) -> None:
        """Look after optimiser steps of `engine`, a `Pretrainer`."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._look)

    @torch.no_grad()
    def _look(self, engine: Engine) -> None:
        state = engine.state
        if state.iteration % engine.accumulation or (state.optimizer_steps - 1) % self.interval:
            return
        output = state.output[0]["output"]
        for key in self.keys:
            if key in output:
                for figure in (effective_rank, participation_ratio, feature_spread):
                    state.figures[f"{key}.{figure.__name__}"] = float(figure(output[key]))
        for first, second in self.pairs:
            if first in output and second in output:
                state.figures[f"{first}.alignment"] = float(alignment(output[first], output[second]))
                state.figures[f"{first}.uniformity"] = float(uniformity(output[first]))
