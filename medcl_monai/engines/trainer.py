"""The training loop for a segmenter with labels."""

from collections.abc import Mapping

import torch
from torch import Tensor

from medcl_monai.engines.batches import detached, to_device
from medcl_monai.engines.loop import TrainingLoop


class Trainer(TrainingLoop):
    """Trains a segmenter with labels; the arguments are those of `TrainingLoop`.

    The network, or the inferer around the network, returns the prediction, or a dict with the prediction under ``pred``
    and with other values that the loss reads. ``state.output`` is a list of one dict: ``loss``, ``terms``, ``image``,
    ``label``, ``pred``, ``output`` (the output dict of the network; for a plain prediction, a dict of the prediction
    alone) and ``target``. All tensors in the dict are detached from the graph. With postprocessing or a metric,
    ``state.output`` is a list of one such dict per sample, as MONAI's transforms and metrics expect.

    Raises:
        ValueError: the reasons that `TrainingLoop` lists; while running: the network returned a dict without ``pred``.
    """

    def prepare(
        self, batch: Mapping[str, Tensor], device: torch.device, non_blocking: bool, **_: object
    ) -> tuple[object, object]:
        """Return the image and the label, on the device."""
        batch = to_device(batch, device, non_blocking)
        return batch["image"], batch["label"]

    def record(self, inputs: object, target: object, output: object) -> dict[str, object]:
        """Return ``image``, ``label``, ``pred``, ``output`` and ``target`` for ``state.output``."""
        values = detached(output if isinstance(output, Mapping) else {"pred": output})
        if "pred" not in values:
            raise ValueError(f"Trainer: the network returned a dict without the prediction 'pred', with {list(values)}")
        return {"image": inputs, "label": target, "pred": values["pred"], "output": values, "target": target}
