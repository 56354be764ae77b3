"""The training loop that `Trainer` and `Pretrainer` share."""

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

from medcl_monai.distributed import average_gradients, bare, rank
from medcl_monai.engines.batches import as_terms, detached, per_sample
from medcl_monai.engines.freezing import FrozenEncoder
from medcl_monai.engines.state import restore, snapshot
from medcl_monai.knobs import knob_types
from medcl_monai.networks.statistics import require_statistics
from medcl_monai.seeding import derive_seed

# iterations between two checks of the loss on an accelerator, where each check waits for the device
FINITE_INTERVAL = 20


class TrainingLoop(SupervisedTrainer, ABC):
    """Extends MONAI's supervised trainer: losses of several terms, gradient accumulation, clipping, exact resuming.

    All random numbers of iteration k (samples, augmentation, views, dropout) are derived from (seed, rank, k). On a CPU
    and with a loader from `sample_loader`, a resumed run therefore equals a run without interruption, bit for bit.
    ``state.output`` is a list of one dict with ``loss``, ``terms``, ``output`` (the output dict of the network,
    detached from the graph), ``target`` and the values that the subclass records. ``state.optimizer_steps`` is the
    number of optimiser steps that are done; an iteration is one batch.

    Args:
        device: device on which the network runs, such as ``cpu`` or ``cuda:0``.
        max_epochs: number of epochs of the run.
        train_data_loader: endless loader from `sample_loader`, or any loader of dicts of plain tensors.
        network: the network, plain or wrapped in DistributedDataParallel.
        optimizer: optimiser of the parameters of the network.
        loss_function: function of (output, target) that returns a scalar, or a dict of named, weighted terms, which are
            summed.
        epoch_length: number of iterations per epoch, a multiple of `accumulation`; None: the length of the loader.
        inferer: inferer that runs the network on a batch; None: the network is called once.
        postprocessing: MONAI transforms that are applied to ``pred`` and ``label`` of each sample before the metrics;
            None: no transforms.
        key_train_metric: metric of the training samples, by name; None: no metric.
        train_handlers: MONAI or Ignite handlers, in any order; None: no handlers.
        amp: whether the forward pass runs in bfloat16 autocast, on any device; the losses of this package are computed
            outside autocast.
        clip: largest norm of the gradient, above 0; a larger gradient is scaled down to this norm. None: no clipping.
        accumulation: number of batches per optimiser step, at least 1; the gradient of a step is the mean over its
            batches.
        seed: seed of all random numbers of the training, an integer.
        resume: checkpoint file from which the run continues, or a folder, whose newest undamaged checkpoint is used;
            None: a new run starts.
        frozen: encoder that is frozen in the first epochs; None: no part of the network is frozen.

    Raises:
        ValueError: an argument is out of range, or the length of an epoch is unknown or not a multiple of
            `accumulation`; while running: a batch holds a MetaTensor, the loss is not a scalar or not finite, or a
            frozen batch norm has statistics that were never computed.
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
        if isinstance(loss_function, nn.Module):
            loss_function.to(torch.device(device))  # the parameters stay the objects that the optimiser holds
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
        if frozen is not None:
            self.add_event_handler(Events.COMPLETED, lambda _: frozen.release())

    @abstractmethod
    def prepare(
        self, batch: Mapping[str, Tensor], device: torch.device, non_blocking: bool, **_: object
    ) -> tuple[object, object]:
        """Return the input of the network and the target of the loss, both on the device."""

    @abstractmethod
    def record(self, inputs: object, target: object, output: object) -> dict[str, object]:
        """Return what handlers find in ``state.output`` beside ``loss`` and ``terms``; the tensors are detached."""

    def after_step(self) -> None:
        """Update what the optimiser does not update in a step, such as a queue; by default nothing is updated."""

    @property
    def bare_network(self) -> nn.Module:
        """Return the network without the DistributedDataParallel wrapper."""
        return bare(self.network)

    def run(self) -> None:
        """Train until `max_epochs`, from a checkpoint if `resume` is set; a second call continues the training."""
        length = self.state.epoch_length
        if length is None or length % self.accumulation:
            raise ValueError(f"epoch_length must be a multiple of accumulation={self.accumulation}, got {length}")
        if self.resume is not None:
            self.restore(self.resume)
            self.resume = None
            if self.state.iteration >= self.state.max_epochs * length:
                self.logger.info("the checkpoint is of the last step already: nothing to train")
                # the first run may have been killed before its handlers wrote the results
                self.fire_event(Events.STARTED)
                self.fire_event(Events.COMPLETED)
                return
        super().run()

    def checkpoint(self) -> dict[str, object]:
        """Return everything that a run needs to continue bit for bit; to be called at the end of an optimiser step."""
        self.check_finite()
        return snapshot(self)

    def restore(self, path: str | Path) -> None:
        """Take over the state of a checkpoint, or of the newest undamaged checkpoint in a folder.

        Raises:
            FileNotFoundError: there is no checkpoint at `path`.
            ValueError: the checkpoint belongs to another network, or the file is not a checkpoint.
        """
        restore(self, path)

    def begins_step(self) -> bool:
        """Return whether the current iteration is the first batch of its optimiser step."""
        return (self.state.iteration - 1) % self.accumulation == 0

    def ends_step(self) -> bool:
        """Return whether the current iteration is the last batch of its optimiser step."""
        return self.state.iteration % self.accumulation == 0

    def due(self, interval: int) -> bool:
        """Return whether the current iteration ends the first optimiser step, or an `interval`-th step after it."""
        return self.ends_step() and self.state.optimizer_steps % interval == 0

    def check_finite(self) -> None:
        """Raise a ValueError that names the step and the terms, if a loss since the last check was not finite."""
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
        if sampler is not None and "start" in vars(sampler):  # only the sampler of `sample_loader` has a start
            sampler.start = self.state.iteration

    def _require_statistics(self) -> None:
        self._set_modes()
        require_statistics(self.bare_network)

    def _validate_at_the_end(self) -> None:
        """Validate after the last epoch, whatever the interval, so that a short run keeps its model too."""
        if self.state.epoch == self.state.max_epochs:
            for validation in self.validations:
                if validation.epoch_level and self.state.epoch % validation.interval:
                    validation(self)

    def _iteration(self, engine: SupervisedTrainer, batchdata: Mapping[str, Tensor]) -> list[dict[str, object]]:
        steps = self.ends_step()
        if self.begins_step():
            self.optimizer.zero_grad(set_to_none=True)
        torch.manual_seed(derive_seed(self.seed, rank(), self.state.iteration))
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
        """Fill ``state.output``, and check the loss: in each iteration on a CPU, at intervals on an accelerator."""
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
        if isinstance(self.loss_function, nn.Module):  # DistributedDataParallel wraps the network alone
            average_gradients(self.loss_function.parameters())
        if self.clip is not None:
            parameters = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
            nn.utils.clip_grad_norm_(parameters, self.clip)
        self.optimizer.step()
        self.state.optimizer_steps += 1
        self.after_step()

    def _set_modes(self) -> None:
        """Put the network into train mode, except for a frozen encoder, whose norm statistics must not change."""
        self.network.train()
        if self.frozen is not None:
            self.frozen.set_modes(self.state.epoch)


@knob_types
def epoch_length(steps: int, epochs: int, accumulation: int = 1) -> int:
    """Return the number of iterations per epoch that gives `steps` optimiser steps in the whole run.

    Args:
        steps: number of optimiser steps of the whole run, a positive multiple of `epochs`.
        epochs: number of epochs of the whole run, at least 1.
        accumulation: number of batches per optimiser step, at least 1; the gradient of a step is the mean over its
            batches.

    Raises:
        ValueError: `steps` is not a positive multiple of `epochs`.

    Example:
        >>> epoch_length(steps=150, epochs=10, accumulation=2)
        30
    """
    if steps < 1 or epochs < 1 or steps % epochs:
        raise ValueError(f"steps={steps} must be a positive multiple of epochs={epochs}")
    return steps // epochs * accumulation
