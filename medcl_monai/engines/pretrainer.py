"""Pre-training without labels."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from medcl_monai.engines.batches import detached, to_device
from medcl_monai.engines.loop import TrainingLoop


class Pretrainer(TrainingLoop):
    """The training loop for a `PretrainingNetwork`: views are made of each batch, the loss reads the network's dict.

    ``state.output`` is a list of one dict: ``loss``, ``terms``, ``views``, ``target``, ``output``. After each
    optimiser step the network's `update` gets the outputs of the step's batches.

    Args:
        views: makes (views, target) of a batch on the device, as `JCLViews` does.
        arguments: of `TrainingLoop`, by name.
    """

    def __init__(self, *, views: Callable[[Mapping[str, Tensor]], tuple[dict, dict]], **arguments: object) -> None:
        self.views = views
        self._outputs: list[dict[str, Tensor]] = []
        super().__init__(**arguments)

    def prepare(
        self, batch: Mapping[str, Tensor], device: torch.device, non_blocking: bool, **_: object
    ) -> tuple[object, object]:
        """Views and target, on the device."""
        return self.views(to_device(batch, device, non_blocking))

    def record(self, inputs: object, target: object, output: object) -> dict[str, object]:
        """``views``, ``target`` and ``output``; the outputs of a step's batches are kept until its end."""
        if (self.state.iteration - 1) % self.accumulation == 0:
            self._outputs = []
        self._outputs.append(detached(output))
        return {"views": inputs, "target": target, "output": self._outputs[-1]}

    def after_step(self) -> None:
        """Let the network change its momentum copy or queue."""
        self.bare_network.update(self._outputs)
