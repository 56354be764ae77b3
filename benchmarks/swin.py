"""Transformer transfer against loops, lightly, MONAI's SwinUNETR and per-sample transforms: CPU time, one thread."""

import math
from collections.abc import Callable

import torch
from measure import cpu_seconds, peak_megabytes, row, step
from monai.losses import ContrastiveLoss
from monai.networks.nets import SwinUNETR
from monai.transforms import (
    Compose,
    NormalizeIntensity,
    RandAdjustContrast,
    RandAffine,
    RandGaussianNoise,
    RandScaleIntensityFixedMean,
    RandShiftIntensity,
)
from peers import lightly_mocov3, lightly_ntxent
from torch import Tensor

from medcl_monai import CropViews, SwinMoCo, SwinMoCoLoss, SwinMoCoViews, SwinUNet2D, encode, mocov3
from medcl_monai.networks.heads import pooled

WIDTH, TEMPERATURE, SIDE = 256, 0.2, 64


def by_loops(query_1: Tensor, query_2: Tensor, key_1: Tensor, key_2: Tensor, temperature: float) -> Tensor:
    """Query after query, from the equation."""
    rows = []
    for queries, keys in ((query_1, key_2), (query_2, key_1)):
        keys = torch.nn.functional.normalize(keys.detach(), dim=1)
        for place, query in enumerate(queries):
            similarities = keys @ (query / query.norm()) / temperature
            rows.append(2 * temperature * (similarities.logsumexp(0) - similarities[place]))
    return 2 * torch.stack(rows).mean()


def losses() -> None:
    """Both directions of the loss, forward and backward."""
    for samples, repeats in ((32, 25), (256, 3), (1024, 3)):
        torch.manual_seed(0)
        batch = torch.randn(4, samples, WIDTH)
        ours = queries(mocov3, batch)
        peers: dict[str, tuple[Callable, float, int]] = {
            "lightly NTXentLoss": (step(lightly_ntxent(TEMPERATURE), *batch[:2]), 0.6, 3 * repeats),
        }
        if samples < 1024:
            loops = queries(by_loops, batch)
            for first, second in zip(ours(), loops(), strict=True):
                torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-5)
            peers["loop over samples"] = loops, 0.1, repeats
            peers["monai ContrastiveLoss"] = step(ContrastiveLoss(TEMPERATURE), *batch[:2]), 1 / 40, repeats
        for peer, (theirs, bar, times) in peers.items():
            seconds = cpu_seconds({"ours": ours, peer: theirs}, times)
            memory = peak_megabytes(ours), peak_megabytes(theirs)
            title = f"MoCo v3's loss, {samples} samples of {WIDTH}"
            print(row(title, seconds["ours"], peer, seconds[peer], bar, memory), flush=True)


def queries(loss: Callable[..., Tensor], batch: Tensor) -> Callable[[], tuple[Tensor, ...]]:
    """Forward and backward to the queries of both views; the last two parts of the batch are the keys."""
    return step(lambda query_1, query_2: loss(query_1, query_2, *batch[2:], TEMPERATURE), *batch[:2])


def backbone() -> SwinUNet2D:
    """The bundle's segmenter."""
    torch.manual_seed(0)
    return SwinUNet2D(1, 3, patch_size=2, embed_dim=24, window_size=4, drop_path_rate=0.0)


def network() -> SwinMoCo:
    """The bundle's pre-training network."""
    return SwinMoCo(backbone(), 512, 128, momentum=0.9, freeze_patch=True)


def segmenters() -> None:
    """Forward and backward of our segmenter and of MONAI's, of nearly equal parameters."""
    image, ours = torch.rand(16, 1, SIDE, SIDE), backbone()
    theirs = SwinUNETR(1, 3, feature_size=12, window_size=4, num_heads=(1, 2, 4, 8), spatial_dims=2)
    for name, net in (("SwinUNet2D", ours), ("SwinUNETR", theirs)):
        print(f"{name}: {sum(p.numel() for p in net.parameters()):,} parameters")
    passes = {name: through(net, image) for name, net in (("ours", ours), ("theirs", theirs))}
    seconds = cpu_seconds(passes, 5)
    memory = tuple(peak_megabytes(run) for run in passes.values())
    print(row("segmenter, 16 of 64x64", seconds["ours"], "monai SwinUNETR", seconds["theirs"], 1.6, memory), flush=True)


def through(net: torch.nn.Module, image: Tensor) -> Callable[[], None]:
    """Forward and backward of a network."""

    def run() -> None:
        net.zero_grad()
        net(image).square().mean().backward()

    return run


def views() -> None:
    """Two standardised views of each sample, against MONAI's transforms one sample after another."""
    torch.manual_seed(0)
    batch = {"image": torch.rand(16, 1, SIDE, SIDE), "position": torch.rand(16), "subject": torch.arange(16)}
    crops = CropViews((SIDE, SIDE), (0.5, 1.0), 1.16, 15.0, 0.2, 0.16, 0.08, 0.03)
    make = SwinMoCoViews(crops)
    transforms = Compose([
        RandAffine(
            prob=1.0, rotate_range=math.radians(15), scale_range=[0.15] * 2, translate_range=[9] * 2,
            padding_mode="border", spatial_size=(SIDE, SIDE),
        ),
        RandAdjustContrast(prob=1.0, gamma=(0.82, 1.22)), RandScaleIntensityFixedMean(prob=1.0, factors=0.16),
        RandShiftIntensity(offsets=0.08, prob=1.0), RandGaussianNoise(prob=1.0, std=0.03), NormalizeIntensity(),
    ])

    def ours() -> object:
        return make(batch)

    def theirs() -> object:
        return [transforms(sample) for _ in range(2) for sample in batch["image"]]

    seconds = cpu_seconds({"ours": ours, "theirs": theirs}, 11)
    memory = peak_megabytes(ours), peak_megabytes(theirs)
    title, peer = "two views, 16 of 64x64", "monai transforms"
    print(row(title, seconds["ours"], peer, seconds["theirs"], 1 / 15, memory), flush=True)


def steps() -> None:
    """The momentum pass against the query pass, and a whole step against one from lightly's parts."""
    pair = {f"view_{view}": torch.rand(16, 1, SIDE, SIDE) for view in (1, 2)}
    pair |= {"subject": torch.arange(16), "position": torch.rand(16)}
    net, loss, image = network(), SwinMoCoLoss(TEMPERATURE), torch.rand(16, 1, SIDE, SIDE)
    net.backbone.requires_grad_(True)

    def query() -> None:
        net.zero_grad()
        pooled(encode(net.backbone, image)[-1]).square().mean().backward()

    @torch.no_grad()
    def key() -> None:
        pooled(encode(net.backbone, image)[-1])

    seconds = cpu_seconds({"key": key, "query": query}, 5)
    memory = peak_megabytes(key), peak_megabytes(query)
    print(row("momentum pass, 16 of 64x64", seconds["key"], "query pass", seconds["query"], 0.45, memory), flush=True)
    net = network()
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], 1e-3)

    def whole() -> None:
        output = net(pair)
        optimizer.zero_grad()
        sum(loss(output, {}).values()).backward()
        optimizer.step()
        net.update([output])

    peer = lightly_mocov3(backbone(), pair["view_1"], pair["view_2"])
    seconds = cpu_seconds({"ours": whole, "peer": peer}, 5)
    memory = peak_megabytes(whole), peak_megabytes(peer)
    title = "step, 16 of 64x64"
    print(row(title, seconds["ours"], "step of lightly's parts", seconds["peer"], 1.1, memory), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    losses()
    segmenters()
    views()
    steps()
