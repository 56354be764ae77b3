"""The training loop for pre-training without labels."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from medcl_monai.engines.batches import detached, to_device
from medcl_monai.engines.loop import TrainingLoop


class Pretrainer(TrainingLoop):
    """Trains a `PretrainingNetwork`: makes views of each batch, and gives the output dict of the network to the loss.

    ``state.output`` is a list of one dict with ``loss``, ``terms``, ``views``, ``target`` and ``output``. After each
    optimiser step, `update` of the network gets the outputs of the batches of this step.

    Args:
        views: function that makes (views, target) from a batch on the device, such as `JCLViews`.
        arguments: arguments of `TrainingLoop`, by name.
    """

    def __init__(self, *, views: Callable[[Mapping[str, Tensor]], tuple[dict, dict]], **arguments: object) -> None:
        self.views = views
        self._outputs: list[dict[str, Tensor]] = []
        super().__init__(**arguments)

    def prepare(
        self, batch: Mapping[str, Tensor], device: torch.device, non_blocking: bool, **_: object
    ) -> tuple[object, object]:
        """Return the views and the target, on the device."""
        return self.views(to_device(batch, device, non_blocking))

    def record(self, inputs: object, target: object, output: object) -> dict[str, object]:
        """Return ``views``, ``target`` and ``output``, and keep the outputs until the optimiser step ends."""
        if self.begins_step():
            self._outputs = []
        self._outputs.append(detached(output))
        return {"views": inputs, "target": target, "output": self._outputs[-1]}

    def after_step(self) -> None:
        """Let the network update its momentum copy or its queue."""
        self.bare_network.update(self._outputs)
