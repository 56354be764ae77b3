"""Two small methods, added by the steps of docs/adding_a_method.md: one pre-trains, one is supervised."""

from collections.abc import Mapping

from monai.inferers import Inferer
from monai.networks.nets import SwinUNETR
from torch import Tensor, nn

from medcl_monai import NTXentLoss, PretrainingNetwork, SegmentationLoss, TermLoss, Watched, encode


class ToySwin(PretrainingNetwork):
    """Contrast of the pooled last map of a Swin encoder."""

    def __init__(self, backbone: SwinUNETR, projection_dim: int = 16) -> None:
        super().__init__()
        self.backbone = backbone
        width = 16 * backbone.swinViT.embed_dim
        self.projector = nn.Linear(width, projection_dim)
        self.freeze_untrained()

    def forward(self, views: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``view_1`` and ``view_2`` (B, projection_dim), and ``features``."""
        pooled = [encode(self.backbone, views[name])[-1].flatten(2).mean(2) for name in ("view_1", "view_2")]
        first, second = map(self.projector, pooled)
        return {"view_1": first, "view_2": second, "features": pooled[0].detach()}

    def watched(self) -> Watched:
        """Pooled features and projections."""
        return Watched(("features", "view_1"), (("view_1", "view_2"),))

    def trained_parts(self) -> tuple[str, ...]:
        """The Swin encoder, without its integer tables."""
        names = self.backbone.state_dict()
        return tuple(name for name in names if name.startswith("swinViT.") and not name.endswith("index"))


class Tap(Inferer):
    """The prediction, and the map of one inner module beside it."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def __call__(self, inputs: Tensor, network: nn.Module, *args: object, **kwargs: object) -> dict[str, Tensor]:
        """``pred`` and ``tap``."""
        kept: list[Tensor] = []
        inner = network.module if isinstance(network, nn.parallel.DistributedDataParallel) else network
        hook = inner.get_submodule(self.name).register_forward_hook(lambda _, __, output: kept.append(output))
        try:
            return {"pred": network(inputs), "tap": kept[0]}
        finally:
            hook.remove()


class TapLoss(TermLoss):
    """Segmentation, and contrast of the two halves of a batch's channels through a projector of the loss's own."""

    contrasts = ("contrast",)

    def __init__(self, segmentation: SegmentationLoss, width: int, weight: float = 0.1) -> None:
        super().__init__()
        self.segmentation, self.weight = segmentation, weight
        self.projector = nn.Linear(width, 8)

    def forward(self, output: Mapping[str, Tensor], target: Tensor) -> dict[str, Tensor]:
        """The terms of the segmentation, and ``contrast``."""
        pooled = output["tap"].flatten(2)
        halves = pooled[..., ::2].mean(2), pooled[..., 1::2].mean(2)
        views = dict(zip(("view_1", "view_2"), map(self.projector, halves), strict=True))
        contrast = NTXentLoss(0.5, self.weight)(views)["contrast"]
        return {**self.segmentation(output["pred"], target), "contrast": contrast}
