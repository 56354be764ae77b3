"""Whether the embeddings of a pre-training collapse: figures of its own batches, and alarms that say what to do."""

import logging
import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence

import torch
from ignite.engine import Engine, Events
from jaxtyping import Float
from monai.engines.utils import IterationEvents
from torch import Tensor

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
from medcl_monai.engines.batches import as_terms
from medcl_monai.engines.state import stateful
from medcl_monai.knobs import knob_types
from medcl_monai.losses.terms import TermLoss
from medcl_monai.methods.base import PretrainingNetwork

logger = logging.getLogger(__name__)
RANK_BAR = 0.05  # of the width
START_BAR = 0.01  # of the spread, and of the variance within samples, at the start
TERM_BAR, TERM_STEPS = 0.006, 20  # so near the value for equal embeddings, as a share of it, for so many steps
ROWS, ROWS_PER_STEP = 128, 64  # pooled for a rank; more where a fifth of the width is more
PAIRS = 256  # rows of two views, for alignment and uniformity
PICTURE_LOOKS = 5  # looks from picture to picture: drawing one takes longer than all the rest
REMEDY = "lower learning_rate, or raise batch_size; see docs/diagnostics.md"


class CollapseMonitor:
    """Looks at the training batches' own embeddings and terms, and warns when they collapse.

    A look puts figures into ``engine.state.figures``, and now and then the spectra into
    ``engine.state.pictures["spectrum"]``, where the tracker finds them. It raises an alarm for

    * an embedding whose numerical rank is below 5 % of its width. A batch has too few rows to tell, so the rows of the
      last steps are pooled: 128, or a fifth of the width if that is more. From fewer than a fifth no rank is judged.
    * an embedding whose spread is below 1 % of the spread at the first look;
    * a map that is nearly one vector at all places of each sample: the share of its variance that lies within samples
      is below 1 % of that share at the first look;
    * a term that is nearer to its value for equal embeddings than 0.6 % of that value, for 20 steps. The value is what
      the loss makes of the same output with one unit vector in place of all embeddings. The monitor asks for it at
      looks, and at every step after a step that found the term so near.

    ``collapse/alarms`` counts the alarms of the look; each is logged as a warning the first time. Training stays as
    it is, bit for bit. A resumed run goes on with what it saw at the start and its counts, and pools its rows anew.

    Args:
        interval: optimiser steps between two looks, at least 1.
        keys: of the network's output: embeddings (N, C) or maps (N, C, *S), for rank and spread. A key that the
            network does not give (a level that is off) is left out. None: what the `PretrainingNetwork` says itself.
        pairs: pairs of keys of two views' embeddings, for alignment and uniformity. None: what the network says.
        terms: of the loss, those that contrast embeddings; a term that the loss does not give is left out. A distance
            does not belong here: it is least where embeddings are equal. None: what the `TermLoss` says itself.

    Raises:
        ValueError: `interval` below 1, or a name where a list of names is expected; at the start of a run: no
            `keys`, and a network that does not say what to watch.
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
        # within the iteration, before its output is cut into samples and before the tracker reads the figures
        engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self._follow)
        engine.add_event_handler(Events.STARTED, self._ask)  # handlers are attached before the engine has its network

    def state_dict(self) -> dict[str, object]:
        """For a checkpoint."""
        return {"at_start": dict(self._at_start), "steps_near": dict(self._steps_near)}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """From a checkpoint."""
        self._at_start, self._steps_near = dict(state["at_start"]), dict(state["steps_near"])

    def _ask(self, engine: Engine) -> None:
        """What to watch, where nobody said it: of the network and the loss."""
        network, loss = engine.bare_network, engine.loss_function
        if isinstance(network, PretrainingNetwork):
            watched = network.watched()
            self.keys = watched.keys if self.keys is None else self.keys
            self.pairs = watched.pairs if self.pairs is None else self.pairs
        if self.keys is None:
            raise ValueError(f"CollapseMonitor: {type(network).__name__} does not say what to watch: give keys")
        self.pairs = self.pairs or ()
        if self.terms is None:
            self.terms = loss.contrasts if isinstance(loss, TermLoss) else ()

    def _follow(self, engine: Engine) -> None:
        if not engine.ends_step():
            return
        (current,) = engine.state.output
        due = engine.state.optimizer_steps % self.interval == 0
        self._compare(engine, current, due)
        for key in self.keys:
            if key in current["output"]:
                pool(self._rows.setdefault(key, deque()), evenly(current["output"][key], ROWS_PER_STEP))
        if due:
            self._look(engine, current["output"])

    def _compare(self, engine: Engine, current: Mapping[str, object], due: bool) -> None:
        """Count the steps at which each term is near its value for equal embeddings."""
        names = [name for name in self.terms if name in current["terms"]]
        if not names or not (due or any(self._steps_near.values())):
            return
        equal = terms_of_equal_embeddings(engine.loss_function, current["output"], current["target"])
        pairs = torch.stack([torch.stack([current["terms"][name], equal[name]]) for name in names])
        pairs = total(pairs) / world_size()  # or one process would ask again, and wait for the others for ever
        for name, (value, collapsed) in zip(names, pairs.tolist(), strict=True):
            gap = value - collapsed
            engine.state.figures[f"{name}.from_equal"] = gap
            near = abs(gap) < TERM_BAR * abs(collapsed)
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
        """Figures of a key; returns its spectrum.

        In fp64, so that rounding does not count as a direction; what is not finite is the engine's to report.
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
        """The alarms of a key: figure to what is wrong."""
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
        """Log what has not been logged before; whether there was any."""
        fresh = [cause for cause in alarms if cause not in self._warned]
        self._warned.update(fresh)
        for cause in fresh if rank() == 0 else ():
            logger.warning("collapse at step %s: %s: %s", step, alarms[cause], REMEDY)
        return bool(fresh)


def evenly(embeddings: Float[Tensor, "batch dim *sites"], most: int) -> Float[Tensor, "rows dim"]:
    """At most so many embeddings, or sites of a map over all samples, evenly spaced; of two views the same."""
    flat = embeddings[..., None] if embeddings.ndim == 2 else embeddings.flatten(2)
    sites, count = flat.shape[2], len(flat) * flat.shape[2]
    taken = min(most, count)
    place = torch.arange(taken, device=flat.device) * (count - 1) // max(taken - 1, 1)
    return flat[place // sites, :, place % sites]


def rows_for_rank(width: int) -> int:
    """Rows from which a rank is judged: a fifth of the width, four times the bar."""
    return math.ceil(width / 5)


def pool(steps: deque[Tensor], rows: Float[Tensor, "rows dim"]) -> None:
    """Add the rows of a step; the oldest steps go as long as enough rows stay."""
    steps.append(rows)
    enough = max(ROWS, rows_for_rank(rows.shape[1]))
    while sum(map(len, steps)) - len(steps[0]) >= enough:
        steps.popleft()


def terms_of_equal_embeddings(loss: Callable, output: Mapping[str, Tensor], target: object) -> dict[str, Tensor]:
    """Terms that a loss would have given with one unit vector in place of all embeddings and maps.

    Args:
        loss: of (output, target).
        output: of the network. Whole numbers, and what has one axis or none, stay as they are.
        target: of the loss.
    """
    equal = {
        name: torch.full_like(value, value.shape[1] ** -0.5) if value.ndim > 1 and value.is_floating_point() else value
        for name, value in output.items()
    }
    devices = {value.device for value in equal.values() if value.is_cuda}
    with torch.no_grad(), torch.random.fork_rng(devices):  # a loss that draws numbers leaves training as it is
        return as_terms(loss(equal, target))
