"""The one training loop: what `Trainer` and `Pretrainer` share."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from ignite.engine import Events
from ignite.metrics import Metric
from monai.engines import SupervisedTrainer
from monai.engines.utils import IterationEvents
from monai.handlers import ValidationHandler
from monai.inferers import Inferer, SimpleInferer
from torch import Tensor, nn

from medcl_monai.distributed import bare, rank
from medcl_monai.engines.batches import as_terms, detached, per_sample
from medcl_monai.engines.freezing import FrozenEncoder
from medcl_monai.engines.state import restore, snapshot
from medcl_monai.knobs import knob_types
from medcl_monai.networks.statistics import require_statistics
from medcl_monai.seeding import derive_seed

FINITE_INTERVAL = 20  # iterations between two looks at the loss on an accelerator, where a look waits for the device


class TrainingLoop(SupervisedTrainer, ABC):
    """MONAI's supervised trainer with an iteration of our own: dict losses, accumulation, clipping, exact resuming.

    All randomness of iteration k (its samples, augmentation, views, dropout) comes from (seed, rank, k), so a resumed
    run goes on bit for bit on a CPU, given a loader of `sample_loader`. ``state.output`` is a list of one dict with
    ``loss``, ``terms``, ``output`` (the network's dict, without its graph), ``target`` and what the subclass records.
    ``state.optimizer_steps`` counts optimiser steps; an iteration is one batch.

    Args:
        device: where the network is.
        max_epochs: number of epochs.
        train_data_loader: an endless loader from `sample_loader`, or any loader of dicts of plain tensors.
        network: the network, wrapped for several processes or not.
        optimizer: of its parameters.
        loss_function: of (output, target): a scalar, or a dict of named, weighted terms.
        epoch_length: iterations per epoch (see `epoch_length`); None: the loader's length.
        inferer: runs the network on a batch; None: one plain call.
        postprocessing: MONAI transforms of each sample's ``pred`` and ``label``, for the metrics.
        key_train_metric: name to metric of the training samples.
        train_handlers: MONAI or Ignite handlers, in any order.
        amp: forward pass in bfloat16 autocast, on any device. Losses leave autocast.
        clip: largest norm of the gradient; None: no clipping.
        accumulation: batches per optimiser step.
        seed: of all randomness.
        resume: a checkpoint, or a folder whose newest whole one is taken, at the first `run`; None: start anew.
        frozen: an encoder that stands still in the first epochs; None: everything learns.

    Raises:
        ValueError: a knob out of range, or an epoch whose length is unknown or no multiple of `accumulation`; while
            running: a MetaTensor in a batch, a loss that is no scalar or not finite, a frozen batch norm whose
            statistics were never computed.
        FileNotFoundError: `resume` holds no checkpoint.
    """

    @knob_types
    def __init__(
        self,
        device: torch.device | str,
        max_epochs: int,
        train_data_loader: Iterable,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        loss_function: Callable,
        epoch_length: int | None = None,
        inferer: Inferer | None = None,
        postprocessing: Callable | None = None,
        key_train_metric: dict[str, Metric] | None = None,
        train_handlers: Sequence | None = None,
        amp: bool = False,
        clip: float | None = None,
        accumulation: int = 1,
        seed: int = 0,
        resume: str | Path | None = None,
        frozen: FrozenEncoder | None = None,
    ) -> None:
        if accumulation < 1 or (clip is not None and clip <= 0):
            raise ValueError(f"accumulation {accumulation} must be at least 1, clip {clip} above 0 or null")
        self.autocast, self.clip, self.accumulation, self.seed, self.resume = amp, clip, accumulation, seed, resume
        self.frozen = frozen
        self.validations = [handler for handler in train_handlers or () if isinstance(handler, ValidationHandler)]
        self._decollates = postprocessing is not None or key_train_metric is not None
        self._unchecked: list[tuple[str, Tensor, dict[str, Tensor]]] = []
        super().__init__(
            device=torch.device(device),
            max_epochs=max_epochs,
            train_data_loader=train_data_loader,
            network=network,
            optimizer=optimizer,
            loss_function=loss_function,
            epoch_length=epoch_length,
            inferer=SimpleInferer() if inferer is None else inferer,
            postprocessing=postprocessing,
            key_train_metric=key_train_metric,
            prepare_batch=self.prepare,
            train_handlers=train_handlers,
            decollate=False,
        )
        self.state.optimizer_steps, self.state.figures, self.state.pictures = 0, {}, {}
        self.add_event_handler(Events.STARTED, self._start_stream)
        self.add_event_handler(Events.EPOCH_STARTED, self._require_statistics)
        self.add_event_handler(Events.EPOCH_COMPLETED, self._validate_at_the_end)

    @abstractmethod
    def prepare(
        self, batch: Mapping[str, Tensor], device: torch.device, non_blocking: bool, **_: object
    ) -> tuple[object, object]:
        """What the network reads and what the loss reads, on the device."""

    @abstractmethod
    def record(self, inputs: object, target: object, output: object) -> dict[str, object]:
        """What handlers find in ``state.output`` beside ``loss`` and ``terms``; tensors without their graph."""

    def after_step(self) -> None:
        """What changes after an optimiser step, outside of the optimiser; by default nothing."""

    @property
    def bare_network(self) -> nn.Module:
        """The network without the wrapper for several processes."""
        return bare(self.network)

    def run(self) -> None:
        """Train to `max_epochs`, from a checkpoint if `resume` is set; called again, it goes on."""
        length = self.state.epoch_length
        if length is None or length % self.accumulation:
            raise ValueError(f"epoch_length must be a multiple of accumulation={self.accumulation}, got {length}")
        if self.resume is not None:
            self.restore(self.resume)
            self.resume = None
            if self.state.iteration >= self.state.max_epochs * length:
                self.logger.info("the checkpoint is of the last step already: nothing to train")
                self.fire_event(Events.STARTED)  # whoever writes results at the end may not have come to it
                self.fire_event(Events.COMPLETED)
                return
        super().run()

    def checkpoint(self) -> dict[str, object]:
        """Everything that a run needs to go on bit for bit, at the end of an optimiser step."""
        self.check_finite()
        return snapshot(self)

    def restore(self, path: str | Path) -> None:
        """Take over the state of a checkpoint, or of the newest whole one of a folder.

        Raises:
            FileNotFoundError: no checkpoint there.
            ValueError: it is of another network, or no checkpoint.
        """
        restore(self, path)

    def ends_step(self) -> bool:
        """Whether the running iteration is the last batch of its optimiser step."""
        return self.state.iteration % self.accumulation == 0

    def check_finite(self) -> None:
        """Raise ValueError, naming step and terms, unless every loss since the last look was finite."""
        unchecked, self._unchecked = self._unchecked, []
        if not unchecked:
            return
        finite = torch.isfinite(torch.stack([loss for _, loss, _ in unchecked])).tolist()
        if not all(finite):
            place, _, terms = unchecked[finite.index(False)]
            values = {name: float(value) for name, value in terms.items()}
            raise ValueError(
                f"the loss is not finite at {place}: {values}; "
                "lower learning_rate, or look for NaN or extreme values in the images"
            )

    def _start_stream(self) -> None:
        sampler = getattr(self.data_loader, "batch_sampler", None)
        if sampler is not None and "start" in vars(sampler):  # only our endless stream has a place to start from
            sampler.start = self.state.iteration

    def _require_statistics(self) -> None:
        self._set_modes()
        require_statistics(self.bare_network)

    def _validate_at_the_end(self) -> None:
        """Validate after the last epoch whatever the interval: a training of few epochs keeps its model too."""
        if self.state.epoch == self.state.max_epochs:
            for validation in self.validations:
                if validation.epoch_level and self.state.epoch % validation.interval:
                    validation(self)

    def _iteration(self, engine: SupervisedTrainer, batchdata: Mapping[str, Tensor]) -> list[dict[str, object]]:
        iteration, steps = self.state.iteration, self.ends_step()
        if (iteration - 1) % self.accumulation == 0:
            self.optimizer.zero_grad(set_to_none=True)
        torch.manual_seed(derive_seed(self.seed, rank(), iteration))
        self._set_modes()
        inputs, target = self.prepare_batch(batchdata, self.state.device, self.non_blocking, **self.to_kwargs)
        with nullcontext() if steps or self.network is self.bare_network else self.network.no_sync():
            with torch.autocast(self.state.device.type, torch.bfloat16, enabled=self.autocast):
                output = self.inferer(inputs, self.network)
                self.fire_event(IterationEvents.FORWARD_COMPLETED)
                terms = as_terms(self.loss_function(output, target))
            loss = torch.stack(list(terms.values())).sum()
            self._record(inputs, target, output, terms, loss.detach())
            (loss / self.accumulation).backward()
        self.fire_event(IterationEvents.BACKWARD_COMPLETED)
        if steps:
            self._step()
        if self._decollates:
            self.state.output = per_sample(self.state.output[0])
        self.fire_event(IterationEvents.MODEL_COMPLETED)
        return self.state.output

    def _record(self, inputs: object, target: object, output: object, terms: dict[str, Tensor], loss: Tensor) -> None:
        """Leave what handlers read, and look at the loss: at once on a CPU, now and then where a look waits."""
        iteration, detached_terms = self.state.iteration, detached(terms)
        self.state.output = [{**self.record(inputs, target, output), "terms": detached_terms, "loss": loss}]
        self.fire_event(IterationEvents.LOSS_COMPLETED)
        place = f"step {self.state.optimizer_steps} (iteration {iteration})"
        self._unchecked.append((place, loss, detached_terms))
        at_once = self.state.device.type == "cpu" or iteration % self.state.epoch_length == 0
        if at_once or iteration % FINITE_INTERVAL == 0:
            self.check_finite()

    def _step(self) -> None:
        if self.frozen is not None:
            self.frozen.drop_gradients(self.state.epoch)
        if self.clip is not None:
            parameters = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
            nn.utils.clip_grad_norm_(parameters, self.clip)
        self.optimizer.step()
        self.state.optimizer_steps += 1
        self.after_step()

    def _set_modes(self) -> None:
        """Train mode, except for a frozen encoder, whose norm statistics must not move either."""
        self.network.train()
        if self.frozen is not None:
            self.frozen.set_modes(self.state.epoch)


@knob_types
def epoch_length(steps: int, epochs: int, accumulation: int = 1) -> int:
    """Iterations per epoch for so many optimiser steps in all.

    Raises:
        ValueError: `steps` is not a positive multiple of `epochs`.

    Example:
        >>> epoch_length(steps=150, epochs=10, accumulation=2)
        30
    """
    if steps < 1 or epochs < 1 or steps % epochs:
        raise ValueError(f"steps={steps} must be a positive multiple of epochs={epochs}")
    return steps // epochs * accumulation
