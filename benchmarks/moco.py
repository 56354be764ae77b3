"""Queue, whitening, local term and whole step of Decorrelated MoCo against stock code and lightly; one thread."""

import torch
import torch.nn.functional as F
from measure import cpu_seconds, peak_megabytes, row, step
from monai.losses import ContrastiveLoss
from monai.networks.nets import FlexibleUNet
from peers import lightly_memory_bank, lightly_moco

from medcl_monai.losses.infonce import queue_infonce
from medcl_monai.losses.local import local_infonce, near_regions
from medcl_monai.methods.decorrelated_moco import DecorrelatedMoCo, DecorrelatedMoCoLoss, DecorrelatedMoCoViews
from medcl_monai.networks.whitening import WhitenZCA, inverse_root_eigh, inverse_root_newton
from medcl_monai.transforms.crop_views import CropViews
from medcl_monai.transforms.regions import sample_regions

TEMPERATURE = 0.2


def unit(*shape: int) -> torch.Tensor:
    """Random unit vectors."""
    return F.normalize(torch.randn(*shape), dim=-1)


def show(title: str, ours: object, peer: str, theirs: object, bar: float, repeats: int = 5) -> None:
    """One line: both times, the ratio, the bar, growth of peak memory of both."""
    seconds = cpu_seconds({"ours": ours, peer: theirs}, repeats)
    memory = peak_megabytes(ours), peak_megabytes(theirs)
    print(row(title, seconds["ours"], peer, seconds[peer], bar, memory), flush=True)


def stock(query: torch.Tensor, key: torch.Tensor, queue: torch.Tensor) -> torch.Tensor:
    """MoCo as it is written: a clone of the queue, the logits side by side, cross entropy."""
    positive = torch.einsum("nc,nc->n", query, key)[:, None]
    negative = query @ queue.clone().T
    logits = torch.cat([positive, negative], dim=1) / TEMPERATURE
    return F.cross_entropy(logits, torch.zeros(len(query), dtype=torch.long))


def loop(query: torch.Tensor, key: torch.Tensor, queue: torch.Tensor) -> torch.Tensor:
    """The equation, one query after another."""
    values = []
    for q, k in zip(query, key, strict=True):
        logits = torch.cat([(q @ k)[None], queue @ q]) / TEMPERATURE
        values.append(logits.logsumexp(0) - logits[0])
    return torch.stack(values).mean()


def queues() -> None:
    """Loss, gradient to the queries and, where the peer does it too, the push."""
    for samples, length in ((64, 65536), (256, 65536), (64, 1024)):
        torch.manual_seed(0)
        query, key, queue = unit(samples, 128), unit(samples, 128), unit(length, 128)
        ours = step(lambda q, k=key, bank=queue: queue_infonce(q, k, bank, TEMPERATURE), query)
        stocks = step(lambda q, k=key, bank=queue: stock(q, k, bank), query)
        for first, second in zip(ours(), stocks(), strict=True):
            torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-5)
        title = f"queue of {length}, {samples} queries"
        show(title, ours, "stock MoCo", stocks, 1.1, 9)
        bank = lightly_memory_bank(query, key, length)
        show(f"{title}, push", pushing(query, key, length), "lightly NTXentLoss", bank, 1.1, 9)
        if (samples, length) == (64, 65536):
            loops = step(lambda q, k=key, bank=queue: loop(q, k, bank), query)
            show(title, ours, "loop over queries", loops, 1 / 5, 5)
        if length == 1024:
            monai = step(lambda q, k=key: ContrastiveLoss(TEMPERATURE)(q, k), query)
            show(title, ours, "monai ContrastiveLoss", monai, 1 / 8, 5)


def pushing(query: torch.Tensor, key: torch.Tensor, length: int) -> object:
    """Our loss and push on a queue of that length."""
    from medcl_monai.networks.momentum import FeatureQueue

    queue, subject = FeatureQueue(length, query.shape[1]), torch.arange(len(query))

    def run() -> tuple[torch.Tensor, ...]:
        gradients = step(lambda q: queue_infonce(q, key, queue.features, TEMPERATURE), query)()
        queue.push(key, subject, subject)
        return gradients

    return run


def local() -> None:
    """Sampling, contrast and gradient of 20 regions of 64 samples, against a loop over samples and regions."""
    torch.manual_seed(0)
    maps = [torch.randn(64, 128, 20, 20) for _ in range(2)]
    _, target = DecorrelatedMoCoViews(CropViews((64, 64)))(
        {"image": torch.rand(64, 1, 64, 64), "position": torch.rand(64), "subject": torch.arange(64)}
    )
    regions = target["regions"]
    near = near_regions(regions, (20, 20), 1.0)

    def ours(query: torch.Tensor) -> torch.Tensor:
        pair = sample_regions(query, regions.points_1), sample_regions(maps[1], regions.points_2)
        return local_infonce(*pair, regions.valid, near, TEMPERATURE)

    def theirs(query: torch.Tensor) -> torch.Tensor:
        values = []
        for n in range(64):
            a, b = (
                F.normalize(sample_regions(x[n : n + 1], points[n : n + 1])[0], dim=1)
                for x, points in ((query, regions.points_1), (maps[1], regions.points_2))
            )
            for r in range(20):
                if regions.valid[n, r]:
                    chosen = [s for s in range(20) if s == r or (regions.valid[n, s] and not near[n, r, s])]
                    logits = torch.stack([a[r] @ b[s] for s in chosen]) / TEMPERATURE
                    values.append(logits.logsumexp(0) - logits[chosen.index(r)])
        return torch.stack(values).mean()

    pair = step(ours, maps[0]), step(theirs, maps[0])
    for first, second in zip(pair[0](), pair[1](), strict=True):
        torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-5)
    show("local, 64 samples, 20 regions", pair[0], "loops", pair[1], 1 / 50, 3)


def one_group_iternorm(x: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """IterNorm (Huang et al. 2019) of all channels together, derived from its equations."""
    rows = x.movedim(1, 0).flatten(1)
    rows = rows - rows.mean(1, keepdim=True)
    covariance = rows @ rows.T / rows.shape[1] + 1e-5 * torch.eye(len(rows))
    trace = covariance.diagonal().sum()
    root, scaled = torch.eye(len(rows)), covariance / trace
    for _ in range(steps):
        root = 1.5 * root - 0.5 * root @ root @ root @ scaled
    return (root / trace.sqrt() @ rows).unflatten(1, (len(x), *x.shape[2:])).movedim(0, 1)


def whitening() -> None:
    """Of resnet50's last map, against its encoder, batch norm and IterNorm; the methods and group sizes beside it."""
    torch.manual_seed(0)
    x, upstream = torch.randn(16, 2048, 10, 10).relu(), torch.randn(16, 2048, 10, 10)
    backbone, image = FlexibleUNet(1, 2, "resnet50"), torch.randn(16, 1, 320, 320)

    def of(layer: object) -> object:
        return step(lambda x: (layer(x) * upstream).sum(), x)

    def encoder() -> None:
        backbone.zero_grad(set_to_none=True)
        backbone.encoder(image)[-1].mean().backward()

    ours = of(WhitenZCA(2048, 64))
    show("whitening, 2048 channels by 64", ours, "resnet50 encoder at 320", encoder, 0.03, 1)
    show("whitening, 2048 channels by 64", ours, "BatchNorm2d", of(torch.nn.BatchNorm2d(2048)), 8.0, 5)
    show("whitening, 2048 channels by 64", ours, "IterNorm, one group", of(one_group_iternorm), 1 / 40, 1)
    small, heights = torch.randn(64, 512, 2, 2).relu(), torch.randn(64, 512, 2, 2)
    for size in (16, 32, 64):
        eigh, newton = (
            step(lambda x, layer=layer: (layer(x) * heights).sum(), small)
            for layer in (WhitenZCA(512, size, inverse_root=root) for root in (inverse_root_eigh, inverse_root_newton))
        )
        show(f"whitening, 512 channels by {size}, eigh", eigh, "newton", newton, 1.0, 9)


def whole_steps() -> None:
    """Small profile, 64 views of 64 x 64: whitening on and off, group sizes, and MoCo v2 from lightly's parts."""
    torch.manual_seed(0)
    batch = {"image": torch.rand(64, 1, 96, 96), "position": torch.rand(64).double(), "subject": torch.arange(64)}
    views, target = DecorrelatedMoCoViews(CropViews((64, 64)))(batch)

    def ours(local_weight: float, group_size: int | None = None, key_splits: int = 2) -> object:
        torch.manual_seed(0)
        network = DecorrelatedMoCo(
            FlexibleUNet(1, 2, "resnet10"), None if group_size is None else WhitenZCA(512, group_size),
            local_level="layer2" if local_weight > 0 else None, queue_size=512, momentum=0.99, key_splits=key_splits,
        )
        loss = DecorrelatedMoCoLoss(local_weight=local_weight)
        optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], 0.03, 0.9)

        def run() -> None:
            output = network(views)
            value = sum(loss(output, target).values())
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            network.update([{name: x.detach() for name, x in output.items()}])

        return run

    plain = ours(0.0, key_splits=1)
    theirs = lightly_moco(FlexibleUNet(1, 2, "resnet10"), views["view_1"], views["view_2"], 512)
    show("step, MoCo v2 of our parts", plain, "MoCo of lightly's parts", theirs, 1.0, 7)
    whole = ours(0.5, 32)
    seconds = cpu_seconds({"ours": whole, "theirs": theirs}, 7)
    ratio = seconds["ours"] / seconds["theirs"]
    print(f"step, Decorrelated MoCo against lightly's MoCo, without its two parts: ratio {ratio:.3f}", flush=True)
    show("step, Decorrelated MoCo", whole, "without whitening", ours(0.5), 1.1, 7)
    for size in (16, 32, 64):
        splits = 1 if size == 64 else 2  # 64 needs 128 samples in a chunk
        pair = ours(0.5, size, splits), ours(0.5, None, splits)
        seconds = cpu_seconds({"on": pair[0], "off": pair[1]}, 7)
        print(f"{f'whitening by {size}, share of the step':38} {1 - seconds['off'] / seconds['on']:.1%}", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    queues()
    local()
    whitening()
    whole_steps()
