"""A handler that detects a collapse of the embeddings during pre-training, and says what to do about the collapse."""

import logging
import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence

import torch
from ignite.engine import Engine, Events
from jaxtyping import Float
from monai.engines.utils import IterationEvents
from torch import Tensor, nn

from medcl_monai.diagnostics.figures import (
    alignment,
    entropy_rank,
    feature_spread,
    numerical_rank,
    participation_ratio,
    spectrum,
    uniformity,
    within_sample_share,
)
from medcl_monai.diagnostics.pictures import spectrum_picture
from medcl_monai.distributed import rank, total, world_size
from medcl_monai.engines.batches import as_terms, rebuilt
from medcl_monai.engines.state import stateful
from medcl_monai.knobs import knob_types
from medcl_monai.losses.terms import TermLoss
from medcl_monai.methods.base import PretrainingNetwork

logger = logging.getLogger(__name__)
RANK_BAR = 0.05  # alarm if the numerical rank is below this share of the width
START_BAR = 0.01  # alarm if the spread, or the share of variance within samples, is below this share of its first value
# alarm if a term differs from its value for equal embeddings by less than this share of the value, for so many steps
TERM_BAR, TERM_STEPS = 0.006, 20
# least number of rows that are pooled for a rank (a fifth of the width if that is more); most rows taken from one step
ROWS, ROWS_PER_STEP = 128, 64
PAIRS = 256  # most rows of each view that alignment and uniformity use
PICTURE_LOOKS = 5  # number of looks between two pictures: drawing a picture takes longer than the rest of a look
REMEDY = "lower learning_rate, or raise batch_size; see docs/diagnostics.md"


class CollapseMonitor:
    """Watches the embeddings and the loss terms of the training batches, and warns when the embeddings collapse.

    Every `interval` optimiser steps the monitor takes a look at the current batch. A look writes figures into
    ``engine.state.figures``. The first look, every fifth look after that, and every look with a new alarm also draw the
    spectra into ``engine.state.pictures["spectrum"]``. The tracker records the figures and the spectra. A look raises
    an alarm for

    * an embedding whose numerical rank is below 5 % of its width. One batch has too few rows for this test, so the
      monitor pools the rows of the last steps: at least 128 rows, or a fifth of the width if that is more. With fewer
      rows than a fifth of the width, the monitor does not judge the rank.
    * an embedding whose spread is below 1 % of its spread at the first look.
    * a feature map in which each sample has nearly the same vector at all positions: the share of the variance that
      lies within samples is below 1 % of that share at the first look.
    * a loss term that stays near its value for equal embeddings for 20 steps. Near means that the difference is less
      than 0.6 % of that value. The value for equal embeddings is the value that the loss returns if one unit vector
      replaces all embeddings in the same output. The monitor computes this value at every look, and at every step after
      a step at which the term was near this value.

    The figure ``collapse/alarms`` is the number of alarms of a look. Each alarm is logged as a warning the first time.
    Training gives the same weights with and without the monitor, bit for bit. A resumed run keeps the values of the
    first look and the counts of steps, and pools its rows anew.

    Args:
        interval: number of optimiser steps between two looks at the batch for signs of collapse, at least 1.
        keys: names of the embeddings (N, C) or feature maps (N, C, *S) in the network's output whose rank and spread
            are watched. A name that is not in the output is left out, such as the name of a level that is switched off.
            None: the names that the `PretrainingNetwork` gives, or else the names that the `TermLoss` gives.
        pairs: pairs of names of the embeddings of two views in the network's output, for alignment and uniformity.
            None: the pairs that the `PretrainingNetwork` gives.
        terms: names of the loss terms that contrast embeddings. A term that the loss does not return is left out. A
            distance does not belong in this list, because a distance is smallest if the embeddings are equal. None: the
            terms that the `TermLoss` gives.

    Raises:
        ValueError: `interval` is below 1, or `keys` or `terms` is a single name instead of a list of names; at the
            start of a run: `keys` is None, and neither the network nor the loss says what to watch.
    """

    @knob_types
    def __init__(
        self,
        interval: int,
        keys: Sequence[str] | None = None,
        pairs: Sequence[Sequence[str]] | None = None,
        terms: Sequence[str] | None = None,
    ) -> None:
        if interval < 1:
            raise ValueError(f"CollapseMonitor: interval must be at least 1 step, got {interval}")
        if isinstance(keys, str) or isinstance(terms, str):
            raise ValueError(f"CollapseMonitor: keys {keys!r} and terms {terms!r} must be lists of names")
        self.interval, self.keys, self.pairs, self.terms = interval, keys, pairs, terms
        self._rows: dict[str, deque[Tensor]] = {}
        self._at_start: dict[str, float] = {}
        self._steps_near: dict[str, int] = {}
        self._warned: set[str] = set()

    def attach(self, engine: Engine) -> None:
        """Follow the optimiser steps of `engine`, a `Pretrainer` or a `Trainer`."""
        stateful(engine)["collapse"] = self
        # this event comes before the output is split into samples, and before the tracker reads the figures
        engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self._follow)
        engine.add_event_handler(Events.STARTED, self._ask)  # the engine gets its network after its handlers

    def state_dict(self) -> dict[str, object]:
        """Return the state for a checkpoint: the values of the first look and the counts of steps near a collapse."""
        return {"at_start": dict(self._at_start), "steps_near": dict(self._steps_near)}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Take over the state that a checkpoint holds."""
        self._at_start, self._steps_near = dict(state["at_start"]), dict(state["steps_near"])

    def _ask(self, engine: Engine) -> None:
        """Ask the network and the loss what to watch, where the arguments of the monitor do not say it."""
        network, loss = engine.bare_network, engine.loss_function
        if isinstance(network, PretrainingNetwork):
            watched = network.watched()
            self.keys = watched.keys if self.keys is None else self.keys
            self.pairs = watched.pairs if self.pairs is None else self.pairs
        if self.keys is None and isinstance(loss, TermLoss) and loss.watched:
            self.keys = loss.watched
        if self.keys is None:
            both = f"{type(network).__name__} and {type(loss).__name__}"
            raise ValueError(f"CollapseMonitor: {both} do not say what to watch: give keys")
        self.pairs = self.pairs or ()
        if self.terms is None:
            self.terms = loss.contrasts if isinstance(loss, TermLoss) else ()

    def _follow(self, engine: Engine) -> None:
        if not engine.ends_step():
            return
        (current,) = engine.state.output
        due = engine.due(self.interval)
        self._compare(engine, current, due)
        for key in self.keys:
            if isinstance(current["output"].get(key), Tensor):
                pool(self._rows.setdefault(key, deque()), evenly(current["output"][key], ROWS_PER_STEP))
        if due:
            self._look(engine, current["output"])

    def _compare(self, engine: Engine, current: Mapping[str, object], due: bool) -> None:
        """Count the consecutive steps at which each term is near its value for equal embeddings."""
        names = [name for name in self.terms if name in current["terms"]]
        if not names or not (due or any(self._steps_near.values())):
            return
        equal = terms_of_equal_embeddings(engine.loss_function, current["output"], current["target"])
        pairs = torch.stack([torch.stack([current["terms"][name], equal[name]]) for name in names])
        pairs = total(pairs) / world_size()  # all processes must decide alike, or one would wait for ever
        for name, (value, collapsed) in zip(names, pairs.tolist(), strict=True):
            gap = value - collapsed
            engine.state.figures[f"{name}.from_equal"] = gap
            near = abs(gap) <= TERM_BAR * abs(collapsed)
            self._steps_near[name] = self._steps_near.get(name, 0) + 1 if near else 0

    def _look(self, engine: Engine, output: Mapping[str, Tensor]) -> None:
        state, step = engine.state, engine.state.optimizer_steps + 1
        spectra = {key: self._measure(key, output.get(key), state.figures) for key in self._rows}
        self._measure_pairs(output, state.figures)
        alarms = {}
        for key in self._rows:
            alarms |= self._judge(key, state.figures)
        for name, steps in self._steps_near.items():
            if steps >= TERM_STEPS:
                near = f"within {TERM_BAR:.1%} of its value for equal embeddings for {steps} steps"
                alarms[f"{name}.from_equal"] = f"the term {name} has been {near}"
        state.figures["collapse/alarms"] = float(len(alarms))
        fresh = self._warn(alarms, step)
        if spectra and (fresh or (step - 1) // self.interval % PICTURE_LOOKS == 0):
            state.pictures["spectrum"] = spectrum_picture(spectra)

    def _measure(self, key: str, latest: Tensor | None, figures: dict[str, float]) -> Float[Tensor, " values"]:
        """Write the figures of one key into `figures`, and return the spectrum of the key.

        The computation runs in fp64, so that rounding errors do not count as directions. Values that are not finite are
        set to 0, because the engine itself reports such values.
        """
        rows = torch.cat(tuple(self._rows[key])).cpu().double().nan_to_num(0, 0, 0)
        values = spectrum(rows)
        figures[f"{key}.effective_rank"] = float(entropy_rank(values))
        figures[f"{key}.numerical_rank"] = float(numerical_rank(values))
        figures[f"{key}.participation_ratio"] = float(participation_ratio(rows))
        figures[f"{key}.feature_spread"] = float(feature_spread(self._rows[key][-1]))
        if latest is not None and latest.ndim > 2:
            figures[f"{key}.within_samples"] = float(within_sample_share(latest))
        for name in (f"{key}.feature_spread", f"{key}.within_samples"):
            if math.isfinite(figures.get(name, math.nan)):
                self._at_start.setdefault(name, figures[name])
        return values

    def _measure_pairs(self, output: Mapping[str, Tensor], figures: dict[str, float]) -> None:
        for first, second in self.pairs:
            if first in output and second in output:
                a, b = evenly(output[first], PAIRS), evenly(output[second], PAIRS)
                figures[f"{first}.alignment"] = float(alignment(a, b))
                figures[f"{first}.uniformity"] = float(uniformity(a))

    def _judge(self, key: str, figures: Mapping[str, float]) -> dict[str, str]:
        """Return the alarms of one key, as a dict from the name of a figure to the text of its alarm."""
        rows, width = sum(map(len, self._rows[key])), self._rows[key][0].shape[1]
        directions, alarms = figures[f"{key}.numerical_rank"], {}
        if rows >= rows_for_rank(width) and directions < RANK_BAR * width:
            alarms[f"{key}.numerical_rank"] = (
                f"{key} has a numerical rank of {directions:.0f}, below {RANK_BAR:.0%} of its width {width}"
            )
        for name, what in (("feature_spread", "a spread"), ("within_samples", "a share of variance within samples")):
            figure, start = figures.get(f"{key}.{name}", math.inf), self._at_start.get(f"{key}.{name}", 0.0)
            if figure < START_BAR * start:
                alarms[f"{key}.{name}"] = (
                    f"{key} has {what} of {figure:.2g}, below {START_BAR:.0%} of the {start:.2g} at the start"
                )
        return alarms

    def _warn(self, alarms: Mapping[str, str], step: int) -> bool:
        """Log the alarms that were not logged before, and return whether there was a new alarm."""
        fresh = [cause for cause in alarms if cause not in self._warned]
        self._warned.update(fresh)
        for cause in fresh if rank() == 0 else ():
            logger.warning("collapse at step %s: %s: %s", step, alarms[cause], REMEDY)
        return bool(fresh)


def evenly(embeddings: Float[Tensor, "batch dim *sites"], most: int) -> Float[Tensor, "rows dim"]:
    """Return at most `most` evenly spaced embeddings, or evenly spaced positions of a map over all samples.

    For two views of the same shape, the function takes the same samples and positions.
    """
    flat = embeddings[..., None] if embeddings.ndim == 2 else embeddings.flatten(2)
    sites, count = flat.shape[2], len(flat) * flat.shape[2]
    taken = min(most, count)
    place = torch.arange(taken, device=flat.device) * (count - 1) // max(taken - 1, 1)
    return flat[place // sites, :, place % sites]


def rows_for_rank(width: int) -> int:
    """Return the least number of rows from which a rank is judged: a fifth of the width.

    This number of rows is four times the bar of the alarm, which is 5 % of the width.
    """
    return math.ceil(width / 5)


def pool(steps: deque[Tensor], rows: Float[Tensor, "rows dim"]) -> None:
    """Append the rows of a step, and drop the oldest steps as long as enough rows remain."""
    steps.append(rows)
    enough = max(ROWS, rows_for_rank(rows.shape[1]))
    while sum(map(len, steps)) - len(steps[0]) >= enough:
        steps.popleft()


def terms_of_equal_embeddings(loss: Callable, output: Mapping[str, Tensor], target: object) -> dict[str, Tensor]:
    """Return the terms that a loss gives if one unit vector replaces all embeddings and all vectors of the maps.

    Args:
        loss: the loss, a function of (output, target).
        output: the output of the network. Tensors of whole numbers and tensors with fewer than two axes stay as they
            are.
        target: the target that the loss reads.
    """
    with torch.no_grad(), torch.random.fork_rng():  # training keeps its random numbers
        if isinstance(loss, nn.Module):  # and the loss its running statistics: only copies of them change
            copies = {name: buffer.clone() for name, buffer in loss.named_buffers()}
            return as_terms(torch.func.functional_call(loss, copies, (_equal(output), target)))
        return as_terms(loss(_equal(output), target))


def _equal(values: object) -> object:
    """Return an output, as deep as its dicts, lists and tuples go, with one unit vector in place of all embeddings."""
    if isinstance(values, Tensor) and values.ndim > 1 and values.is_floating_point():
        return torch.full_like(values, values.shape[1] ** -0.5)
    if isinstance(values, Mapping):
        return {name: _equal(value) for name, value in values.items()}
    if isinstance(values, list | tuple):
        return rebuilt(values, map(_equal, values))
    return values
