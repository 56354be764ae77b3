"""Training of a segmenter with labels."""

from collections.abc import Mapping

import torch
from torch import Tensor

from medcl_monai.engines.batches import detached, to_device
from medcl_monai.engines.loop import TrainingLoop


class Trainer(TrainingLoop):
    """The training loop for a segmenter; see `TrainingLoop` for the arguments.

    The network, or the inferer around it, returns the prediction, or a dict with the prediction under ``pred`` and
    whatever else the loss reads. ``state.output`` is a list of one dict: ``loss``, ``terms``, ``image``, ``label``,
    ``pred``, ``output`` (the network's dict; of a plain prediction a dict of it alone) and ``target``; nothing in it
    holds a graph. With postprocessing or a metric it is a list of one such dict per sample, as MONAI's transforms and
    metrics expect.

    Raises:
        ValueError: see `TrainingLoop`; while running: a dict without ``pred``.
    """

    def prepare(
        self, batch: Mapping[str, Tensor], device: torch.device, non_blocking: bool, **_: object
    ) -> tuple[object, object]:
        """Image and label, on the device."""
        batch = to_device(batch, device, non_blocking)
        return batch["image"], batch["label"]

    def record(self, inputs: object, target: object, output: object) -> dict[str, object]:
        """``image``, ``label`` and ``pred``; ``output`` and ``target``."""
        values = detached(output if isinstance(output, Mapping) else {"pred": output})
        if "pred" not in values:
            raise ValueError(f"Trainer: the network returned a dict without the prediction 'pred', with {list(values)}")
        return {"image": inputs, "label": target, "pred": values["pred"], "output": values, "target": target}
