"""Engines to MLflow: every term, learning rate, throughput, figures, pictures, metrics."""

import time

import torch
from ignite.engine import Engine, Events
from monai.handlers import MLFlowHandler

from medcl_monai.distributed import world_size
from medcl_monai.engines.state import stateful
from medcl_monai.tracking.tracker import Tracker


class TrainingTracker:
    """Records a training as one run: FINISHED at its end, FAILED when an exception ends it.

    Losses are means over the batches of an optimiser step; the throughput leaves validation out.

    Where MONAI's own MLFlowHandler is attached (``--tracking mlflow``), it stands down, so that one run remains.

    Args:
        tracker: the run's record.
    """

    def __init__(self, tracker: Tracker) -> None:
        self.tracker = tracker
        self._step: list[dict[str, torch.Tensor]] = []
        self._kept: list[tuple[int, list[dict[str, torch.Tensor]], dict[str, float]]] = []
        self._samples, self._since, self._seconds = 0, 0.0, 0.0

    def attach(self, engine: Engine) -> None:
        """Follow `engine`, a `Trainer` or `Pretrainer`."""
        stateful(engine)["tracker"] = self
        engine.add_event_handler(Events.STARTED, self._begin)
        engine.add_event_handler(Events.EPOCH_STARTED, self._start_clock)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._keep)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._send)
        engine.add_event_handler(Events.COMPLETED, self._end)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._fail)

    def state_dict(self) -> dict[str, object]:
        """For a checkpoint. What is kept is sent first: the losses before it are not measured again after a resume."""
        self._send_steps()
        self.tracker.flush()
        return self.tracker.state_dict()

    def load_state_dict(self, state: dict[str, object]) -> None:
        """From a checkpoint."""
        self.tracker.load_state_dict(state)

    def _begin(self, engine: Engine) -> None:
        if not tracked_by_monai(engine):
            self.tracker.begin()
        self.tracker.step = engine.state.optimizer_steps

    def _start_clock(self) -> None:
        self._samples, self._since = 0, time.perf_counter()

    def _keep(self, engine: Engine) -> None:
        """Keep tensors as they are: reading one waits for the device, so that is done once per epoch."""
        state, found = engine.state, engine.state.output[0]
        self.tracker.step = state.optimizer_steps
        if self.tracker.active:
            terms = {f"loss/{name}": value for name, value in found["terms"].items()}
            self._step.append({"loss": found["loss"], **terms})
            self._samples += len(next(iter(state.batch.values())))
            self._seconds = time.perf_counter() - self._since
            for name, figure in state.pictures.items():
                self.tracker.picture(name, figure, state.optimizer_steps)
            if engine.ends_step():
                rates = {f"learning_rate/{k}": group["lr"] for k, group in enumerate(engine.optimizer.param_groups)}
                self._kept.append((state.optimizer_steps, self._step, {**rates, **state.figures}))
                self._step = []
                state.figures.clear()
        state.pictures.clear()

    def _send_steps(self) -> None:
        for step, batches, values in self._kept:
            means = {name: sum(float(batch[name]) for batch in batches) / len(batches) for name in batches[0]}
            self.tracker.log({**means, **values}, step)
        self._kept.clear()

    def _send(self, engine: Engine) -> None:
        self._send_steps()
        if self._samples:
            rate = self._samples * world_size() / max(self._seconds, 1e-9)
            self.tracker.log({"samples_per_second": rate, "epoch": engine.state.epoch}, engine.state.optimizer_steps)
            self._samples = 0
        self.tracker.flush()

    def _end(self, engine: Engine) -> None:
        self._send(engine)
        self.tracker.finish("FINISHED")

    def _fail(self, engine: Engine, error: BaseException) -> None:
        self._send(engine)
        self.tracker.finish("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        raise error


class EvaluationTracker:
    """Records the metrics of an evaluator: in the training's run, at its step, else as a run of its own.

    Args:
        tracker: the run's record.
    """

    def __init__(self, tracker: Tracker) -> None:
        self.tracker, self._own = tracker, False

    def attach(self, engine: Engine) -> None:
        """Follow `engine`, an evaluator."""
        engine.add_event_handler(Events.STARTED, self._begin)
        engine.add_event_handler(Events.COMPLETED, self._end)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._fail)

    def _begin(self, engine: Engine) -> None:
        self._own = not self.tracker.active and not tracked_by_monai(engine)
        if self._own:
            self.tracker.begin()

    def _end(self, engine: Engine) -> None:
        values = {f"validation/{name}": value for name, value in engine.state.metrics.items() if _scalar(value)}
        self.tracker.log(values, self.tracker.step)
        if self._own:
            self.tracker.finish("FINISHED")

    def _fail(self, engine: Engine, error: BaseException) -> None:
        if self._own:
            self.tracker.finish("FAILED")
        raise error


def tracked_by_monai(engine: Engine) -> bool:
    """Whether MONAI's own MLFlowHandler follows the engine; Ignite has no public list of its handlers."""
    handlers = engine._event_handlers[Events.STARTED]
    return any(isinstance(getattr(handler, "__self__", None), MLFlowHandler) for handler, *_ in handlers)


def _scalar(value: object) -> bool:
    return isinstance(value, int | float) or (isinstance(value, torch.Tensor) and value.numel() == 1)
