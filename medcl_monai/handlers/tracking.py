"""Handlers that record engines in MLflow: losses, learning rates, throughput, figures, pictures and metrics."""

import time

import torch
from ignite.engine import Engine, Events
from monai.handlers import MLFlowHandler

from medcl_monai.distributed import world_size
from medcl_monai.engines.state import stateful
from medcl_monai.tracking.tracker import Tracker
from medcl_monai.transfer.load import Transfer


class TrainingTracker:
    """Records a training run as one MLflow run, which ends as FINISHED, or as FAILED after an exception.

    A training run that the user interrupts ends as KILLED. The recorded losses are means over the batches of an
    optimiser step. The recorded throughput leaves out the time of validation.

    If MONAI's own MLFlowHandler is attached to the engine (``--tracking mlflow``), this handler records nothing, so
    that there is only one MLflow run.

    Args:
        tracker: the tracker that writes the MLflow run.
        transfer: report on the weights that the training started from, whose names of tensors are stored with the run
            as ``transfer.txt``; None: no such file.
    """

    def __init__(self, tracker: Tracker, transfer: Transfer | None = None) -> None:
        self.tracker, self.transfer = tracker, transfer
        self._step: list[dict[str, torch.Tensor]] = []
        self._kept: list[tuple[int, list[dict[str, torch.Tensor]], dict[str, float]]] = []
        self._samples, self._since, self._seconds = 0, 0.0, 0.0

    def attach(self, engine: Engine) -> None:
        """Record the run of `engine`, a `Trainer` or a `Pretrainer`."""
        stateful(engine)["tracker"] = self
        engine.add_event_handler(Events.STARTED, self._begin)
        engine.add_event_handler(Events.EPOCH_STARTED, self._start_clock)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._keep)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._send)
        engine.add_event_handler(Events.COMPLETED, self._end)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._fail)

    def state_dict(self) -> dict[str, object]:
        """Send all values that are kept, and return the state for a checkpoint: the id of the MLflow run.

        The values are sent first, because a resumed run does not compute the losses before the checkpoint again.
        """
        self._send_steps()
        self.tracker.flush()
        return self.tracker.state_dict()

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Take over the id of the MLflow run from a checkpoint."""
        self.tracker.load_state_dict(state)

    def _begin(self, engine: Engine) -> None:
        if not tracked_by_monai(engine):
            self.tracker.begin()
            if self.transfer is not None:
                self.tracker.text("transfer.txt", self.transfer.listing())
        self.tracker.step = engine.state.optimizer_steps

    def _start_clock(self) -> None:
        self._samples, self._since = 0, time.perf_counter()

    def _keep(self, engine: Engine) -> None:
        """Keep the losses as tensors: reading a tensor waits for the device, so tensors are read once per epoch."""
        state, output = engine.state, engine.state.output[0]
        self.tracker.step = state.optimizer_steps
        if self.tracker.active:
            terms = {f"loss/{name}": value for name, value in output["terms"].items()}
            self._step.append({"loss": output["loss"], **terms})
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
    """Records the metrics of an evaluator in the MLflow run of the training, at the current optimiser step.

    An evaluation outside a training run gets an MLflow run of its own.

    Args:
        tracker: the tracker that writes the MLflow run.
    """

    def __init__(self, tracker: Tracker) -> None:
        self.tracker, self._own = tracker, False

    def attach(self, engine: Engine) -> None:
        """Record the metrics of `engine`, an evaluator."""
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
    """Return whether MONAI's own MLFlowHandler is attached to the engine.

    Ignite has no public list of the handlers of an engine, so this function reads a private attribute.
    """
    handlers = engine._event_handlers[Events.STARTED]
    return any(isinstance(getattr(handler, "__self__", None), MLFlowHandler) for handler, *_ in handlers)


def _scalar(value: object) -> bool:
    return isinstance(value, int | float) or (isinstance(value, torch.Tensor) and value.numel() == 1)
