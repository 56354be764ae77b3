"""PDCR and UAFS against loops, pooling, an integral image and the plain step: CPU time, one thread."""

import itertools
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from measure import cpu_seconds, peak_megabytes, row, step
from monai.networks.nets import BasicUNet
from torch import Tensor

from medcl_monai import (
    FeatureTaps,
    LabelBoxes,
    PDCRLoss,
    SegmentationLoss,
    affinity,
    balanced_pdcr,
    class_shares,
    insert_uafs,
    pdcr,
)
from medcl_monai.transforms.boxes import box_bounds, cell_places, cells_per_axis

GROUP = ("group", {"num_groups": 4})
SITES = ["upcat_4.convs", "upcat_3.convs", "upcat_2.convs", "upcat_1.convs"]
TAPS = {"down_1": [5, 7, 9], "down_2": [5, 7, 9]}


def grid(label: Tensor, stride: int, sides: Sequence[int], number: int = 64) -> list[tuple[Tensor, Tensor]]:
    """Begin and end of the boxes along each axis, for a map of a stride."""
    size = [extent // stride for extent in label.shape[1:]]
    counts = cells_per_axis(number, size)
    triples = zip(counts, size, label.shape[1:], strict=True)
    return [box_bounds(cell_places(count, side), side, extent, sides, 0.5) for count, side, extent in triples]


def by_loops(label: Tensor, bounds: list[tuple[Tensor, Tensor]], classes: int) -> Tensor:
    """Box by box, each with torch.unique."""
    shape = (len(label), len(bounds[0][0]), len(list(places(bounds))), classes)
    shares_of_boxes = torch.zeros(shape)
    for (b, image), size in itertools.product(enumerate(label), range(shape[1])):
        for n, place in enumerate(places(bounds)):
            box = image[tuple(slice(int(low[size, k]), int(high[size, k]))
                              for (low, high), k in zip(bounds, place, strict=True))]
            values, counts = box.unique(return_counts=True)
            shares_of_boxes[b, size, n, values.long()] = counts / box.numel()
    return shares_of_boxes


def by_pooling(label: Tensor, bounds: list[tuple[Tensor, Tensor]], classes: int) -> Tensor:
    """Average pooling of the one-hot label at every cell of a map of stride 4, then a gather of the chosen cells."""
    side, stride, axes = int((bounds[0][1] - bounds[0][0]).max()), 4, label.ndim - 1
    before = (side - stride) // 2
    one_hot = F.pad(F.one_hot(label.long(), classes).movedim(-1, 1).float(), [before, side] * axes)
    pooled = (F.avg_pool2d if axes == 2 else F.avg_pool3d)(one_hot, side, stride)
    cells = [(high - side + before)[0] // stride for _, high in bounds]  # no chosen box is clipped at its end
    mesh = torch.meshgrid(*cells, indexing="ij")
    counts = pooled[(slice(None), slice(None), *mesh)].flatten(2).mT
    return (counts / counts.sum(-1, keepdim=True))[:, None]


def by_integral_image(label: Tensor, bounds: list[tuple[Tensor, Tensor]], classes: int) -> Tensor:
    """Corner reads of cumulative sums in whole numbers."""
    tables = F.one_hot(label.long(), classes).movedim(-1, 1).to(torch.int32)
    for axis in range(2, tables.ndim):
        tables = tables.cumsum(axis, dtype=torch.int32)
    tables = F.pad(tables, [1, 0] * (label.ndim - 1))
    of_sizes = []
    for size in range(len(bounds[0][0])):
        total = 0
        for corner in itertools.product((0, 1), repeat=len(bounds)):
            mesh = torch.meshgrid(*(pair[end][size] for pair, end in zip(bounds, corner, strict=True)), indexing="ij")
            total = total + (-1) ** (len(bounds) - sum(corner)) * tables[(slice(None), slice(None), *mesh)].flatten(2)
        of_sizes.append(total.mT)
    counts = torch.stack(of_sizes, 1).float()
    return counts / counts.sum(-1, keepdim=True)


def places(bounds: list[tuple[Tensor, Tensor]]) -> itertools.product:
    """All cells of a grid, in row-major order."""
    return itertools.product(*(range(low.shape[1]) for low, _ in bounds))


def blobs(*size: int, classes: int) -> Tensor:
    """Smooth labels."""
    torch.manual_seed(0)
    noise = torch.randn(size[0], 1, *(max(4, side // 16) for side in size[1:]))
    mode = "bilinear" if len(size) == 3 else "trilinear"
    smooth = F.interpolate(noise, size=size[1:], mode=mode)[:, 0]
    return torch.bucketize(smooth, torch.linspace(-0.5, 0.8, classes - 1)).float()  # as samples hold labels


def compare_shares(
    title: str, label: Tensor, stride: int, sides: Sequence[int], classes: int,
    peers: dict[str, tuple[Callable, float]], repeats: int = 3,
) -> None:
    """Show equality first, then the measurement against each peer."""
    bounds = grid(label, stride, sides)

    def ours() -> Tensor:
        return class_shares(label, {"map": bounds}, classes)["map"]

    for name, (peer, bar) in peers.items():
        def theirs(peer: Callable = peer) -> Tensor:
            return peer(label, bounds, classes)

        torch.testing.assert_close(ours(), theirs(), atol=1e-5, rtol=0)
        seconds = cpu_seconds({"ours": ours, name: theirs}, repeats)
        memory = peak_megabytes(ours), peak_megabytes(theirs)
        print(row(title, seconds["ours"], name, seconds[name], bar, memory), flush=True)


def shares() -> None:
    """Class shares of boxes."""
    loops = {"loop over boxes": (by_loops, 1 / 50)}
    compare_shares("shares, 16 x 64^2, 5 7 9", blobs(16, 64, 64, classes=3), 2, [5, 7, 9], 3, loops)
    large, deep = blobs(4, 512, 512, classes=2), blobs(2, 128, 128, 128, classes=4)
    compare_shares("shares, 4 x 512^2, 5 7 9", large, 4, [5, 7, 9], 2, {"loop over boxes": (by_loops, 1 / 4)})
    compare_shares("shares, 4 x 512^2, 32", large, 4, [32], 2, {"loop over boxes": (by_loops, 1 / 2)})
    peers = {"loop over boxes": (by_loops, 1.0), "average pooling": (by_pooling, 1 / 50)}
    compare_shares("shares, 2 x 128^3, 23", deep, 4, [23], 4, {**peers, "integral image": (by_integral_image, 1 / 4)})
    compare_shares("shares, 2 x 128^3, 47", deep, 8, [47], 4, {"loop over boxes": (by_loops, 1 / 5)})


def pair_loops(z: Tensor, a: Tensor, temperature: float = 0.5) -> Tensor:
    """The loss of one image, one pair at a time."""
    n, total = len(z), 0
    for i in range(n):
        s = [(F.cosine_similarity(z[i], z[k], dim=0) - 1) / temperature for k in range(n)]
        push = torch.stack([(1 - a[i, k]) * s[k] for k in range(n)]).logsumexp(0)
        total = total + sum(push - a[i, j] * s[j] for j in range(n))
    return total / n**2


def pairs() -> None:
    """16 images of 64 cells against a double loop over the pairs of one image."""
    torch.manual_seed(0)
    z, a = torch.randn(16, 64, 64), affinity(*[torch.rand(16, 64, 3).softmax(-1)] * 2)
    torch.testing.assert_close(pdcr(z[:1], z[:1], a[:1]), pair_loops(z[0], a[0]), atol=1e-4, rtol=1e-4)
    theirs = step(lambda x: pair_loops(x, a[0]), z[0])
    for form in (pdcr, balanced_pdcr):
        ours = step(lambda x, form=form: form(x, x, a), z)
        seconds = cpu_seconds({"ours": ours, "loops, 1 of the 16 images": theirs}, 3)
        memory = peak_megabytes(ours), peak_megabytes(theirs)
        peer = "loops, 1 of the 16 images"
        print(row(f"{form.__name__}, 16 x 64 cells", seconds["ours"], peer, seconds[peer], 1 / 100, memory), flush=True)


def released() -> None:
    """The whole loss in 3D against the shape of the released code: loops over layers, images, boxes and pairs."""
    label = blobs(2, 128, 128, 128, classes=4)[:, None]
    torch.manual_seed(0)
    maps = {"down_1": torch.randn(2, 32, 32, 32, 32), "down_2": torch.randn(2, 64, 16, 16, 16)}
    boxes = LabelBoxes({"down_1": [23], "down_2": [47]}, 4)
    layers = {name: grid(label[:, 0], 128 // value.shape[2], boxes.sides[name]) for name, value in maps.items()}

    def embeddings(value: Tensor, index: Tensor) -> Tensor:
        return value.flatten(2).gather(2, index[:, None].expand(-1, value.shape[1], -1)).mT

    def ours() -> Tensor:
        cells = boxes(label, {name: value.shape[2:] for name, value in maps.items()})
        values = []
        for name, value in maps.items():
            z, chosen = embeddings(value, cells[name].index), cells[name]
            values.append(pdcr(z, z, affinity(chosen.shares, chosen.shares), 0.5, chosen.valid, chosen.valid))
        return torch.stack(values).mean()

    def theirs() -> Tensor:
        cells, values = boxes(label, {name: value.shape[2:] for name, value in maps.items()}), []
        for name, value in maps.items():
            phi, z = by_loops(label[:, 0], layers[name], 4)[:, 0], embeddings(value, cells[name].index)
            for image in range(2):
                a = torch.stack([1 - (one - other).abs().sum() / 2 for one in phi[image] for other in phi[image]])
                values.append(pair_loops(z[image], a.view(len(z[image]), -1)))
        return torch.stack(values).mean()

    torch.testing.assert_close(ours(), theirs(), atol=1e-4, rtol=1e-4)
    seconds = cpu_seconds({"ours": ours, "loops as released": theirs}, 3)
    memory = peak_megabytes(ours), peak_megabytes(theirs)
    print(row("loss, 2 x 128^3, 2 layers", seconds["ours"], "loops as released", seconds["loops as released"], 1 / 15,
              memory), flush=True)


def steps() -> None:
    """A training step with each part against the plain step."""
    for dims, batch, side in ((2, 16, 64), (3, 2, 48)):
        label = blobs(batch, *[side] * dims, classes=3)[:, None]
        image = torch.randn_like(label)

        def one(sites: Sequence[str], weight: float, d: int = dims, x: Tensor = image, y: Tensor = label) -> Callable:
            torch.manual_seed(0)
            network = BasicUNet(d, 1, 3, features=(16, 32, 64, 128, 128, 16), act=("relu", {"inplace": True}),
                                norm=GROUP)
            insert_uafs(network, sites)
            loss = PDCRLoss(SegmentationLoss(torch.full((3,), 1 / 3)), LabelBoxes(TAPS, 3), weight)
            optimizer, taps = torch.optim.AdamW(network.parameters(), 1e-3), FeatureTaps(TAPS)

            def run() -> None:
                optimizer.zero_grad(set_to_none=True)
                sum(loss(taps(x, network), y).values()).backward()
                optimizer.step()

            return run

        arms = {
            "plain": one([], 0.0), "PDCR": one([], 0.01), "UAFS": one(SITES, 0.0), "both": one(SITES, 0.01),
            "UAFS, not at full size": one(SITES[:-1], 0.0), "both, not at full size": one(SITES[:-1], 0.01),
        }
        seconds = cpu_seconds(arms, 9)
        for name, bar in {"PDCR": 1.08, "UAFS": 1.35, "both": 1.45}.items():
            ratio = seconds[name] / seconds["plain"]
            verdict = f"bar {bar} {'met' if ratio <= bar else 'MISSED'}"
            other = seconds.get(f"{name}, not at full size")
            rest = f"; without the block at full size {other / seconds['plain']:.2f}" if other else ""
            print(f"step, {dims}D, {name:22} {seconds[name] * 1e3:7.0f} ms, plain {seconds['plain'] * 1e3:.0f} ms "
                  f"| ratio {ratio:.2f}, {verdict}{rest}", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for part in (shares, pairs, released, steps):
        part()
