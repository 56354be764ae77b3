"""A handler that shows what PDCR and UAFS do during training: cosines, affinities, gates and confidence maps."""

import torch
import torch.nn.functional as F
from ignite.engine import Engine, Events
from monai.engines.utils import IterationEvents
from monai.networks.utils import eval_mode
from torch import Tensor, nn

from medcl_monai.diagnostics.pictures import affinity_picture, confidence_picture
from medcl_monai.engines.batches import detached
from medcl_monai.knobs import knob_types
from medcl_monai.losses.pdcr import affinity, cell_embeddings
from medcl_monai.networks.uafs import UAFS
from medcl_monai.transforms.boxes import Cells, LabelBoxes


class PDCRFigures:
    """Writes figures of the tapped maps and of the UAFS blocks into the record of a supervised training.

    Every `interval` optimiser steps the handler looks at the current batch, whatever the weights of the terms are, and
    writes

    * ``NAME.foreground_background``: cosine between foreground and background cells of the tapped map NAME, the mean
      over all such pairs of an image, then over the images that have both. A cell is a foreground cell if less than
      half of its first box is background. Near 1 with a falling ``intra`` is a collapse.
    * ``NAME.affinity``: mean affinity over all pairs of different cells.
    * ``gate/SITE``: γ of each UAFS block that has a gate.
    * the pictures ``affinity``, a histogram of the affinities, and ``confidence``, the confidence map of each block for
      some samples.

    Training gives the same weights with and without the handler, bit for bit.

    Args:
        interval: number of optimiser steps between two looks, at least 1; the first look is at the first step.
        samples: number of samples whose confidence maps are drawn, at least 1.

    Raises:
        ValueError: a number is below 1; at the start of a run: the loss has no `LabelBoxes` as its ``boxes``.
    """

    @knob_types
    def __init__(self, interval: int, samples: int = 3) -> None:
        if interval < 1 or samples < 1:
            raise ValueError(f"PDCRFigures: interval and samples must be at least 1, got {interval} and {samples}")
        self.interval, self.samples = interval, samples

    def attach(self, engine: Engine) -> None:
        """Follow the optimiser steps of `engine`, a `Trainer`."""
        engine.add_event_handler(Events.STARTED, self._check)
        # this event comes before the output is split into samples, and before the tracker reads the figures
        engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self._look)

    def _check(self, engine: Engine) -> None:
        loss = engine.loss_function
        if not isinstance(getattr(loss, "boxes", None), LabelBoxes):
            raise ValueError(f"PDCRFigures: the loss must have label boxes, as PDCRLoss has; got {type(loss).__name__}")

    def _look(self, engine: Engine) -> None:
        if not engine.due(self.interval):
            return
        (current,) = engine.state.output
        with torch.no_grad(), torch.random.fork_rng():  # drawn cells must not move the random numbers of training
            self._look_at_taps(engine, current["output"], current["target"])
            self._look_at_blocks(engine, current["image"][: self.samples])

    def _look_at_taps(self, engine: Engine, output: dict[str, Tensor], label: Tensor) -> None:
        boxes = engine.loss_function.boxes
        cells = boxes(label, {name: output[name].shape[2:] for name in boxes.sides})
        histograms = {}
        for name, chosen in cells.items():
            cosine = foreground_background_cosine(cell_embeddings(output[name], chosen.index), chosen)
            if cosine is not None:
                engine.state.figures[f"{name}.foreground_background"] = cosine
            pairs = pair_affinities(chosen)
            if len(pairs):
                engine.state.figures[f"{name}.affinity"] = float(pairs.mean())
            histograms[name] = pairs
        engine.state.pictures["affinity"] = affinity_picture(histograms)

    def _look_at_blocks(self, engine: Engine, images: Tensor) -> None:
        network = engine.bare_network
        blocks = {name.removesuffix(".uafs"): part for name, part in network.named_modules() if isinstance(part, UAFS)}
        if not blocks:
            return
        for site, block in blocks.items():
            if block.gate is not None:
                engine.state.figures[f"gate/{site}"] = float(block.gate)
        maps = confidence_maps(network, blocks, images)
        engine.state.pictures["confidence"] = confidence_picture(images[:, 0], maps)


def foreground_background_cosine(embeddings: Tensor, cells: Cells) -> float | None:
    """Return the mean cosine between foreground and background cells; None if no image has both."""
    unit = F.normalize(embeddings, dim=-1)
    foreground = cells.valid[:, 0] & (cells.shares[:, 0, :, 0] < 0.5)
    background = cells.valid[:, 0] & ~foreground
    means = [
        (unit * kind[..., None]).sum(1) / kind.sum(1, keepdim=True).clamp(min=1) for kind in (foreground, background)
    ]
    both = foreground.any(1) & background.any(1)
    return float((means[0] * means[1]).sum(-1)[both].mean()) if bool(both.any()) else None


def pair_affinities(cells: Cells) -> Tensor:
    """Return the affinities of all pairs of different valid cells, of all images and box sizes, as one vector."""
    pairs = cells.valid[..., :, None] & cells.valid[..., None, :]
    different = ~torch.eye(pairs.shape[-1], dtype=torch.bool, device=pairs.device)
    return affinity(cells.shares, cells.shares)[pairs & different]


def confidence_maps(network: nn.Module, blocks: dict[str, UAFS], images: Tensor) -> dict[str, Tensor]:
    """Run a network in ``eval()`` and return the confidence map (B, *S) of each block."""
    kept: dict[str, Tensor] = {}

    def keep(site: str) -> object:
        return lambda block, inputs: kept.update({site: block.confidence(*detached(inputs))[:, 0]})

    hooks = [block.register_forward_pre_hook(keep(site)) for site, block in blocks.items()]
    try:
        with eval_mode(network):
            network(images)
    finally:
        for hook in hooks:
            hook.remove()
    return kept
