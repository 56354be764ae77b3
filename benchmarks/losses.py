"""Contrastive losses against MONAI's, lightly's and a loop over sites: forward and backward, one thread."""

import torch
from measure import cpu_seconds, peak_megabytes, row, step
from monai.losses import ContrastiveLoss
from peers import lightly_ntxent

from medcl_monai.losses.ntxent import ntxent
from medcl_monai.losses.positional import positional_contrast

TEMPERATURE = 0.1


def batch(samples: int, width: int = 128) -> tuple[torch.Tensor, torch.Tensor]:
    """Two batches of projections."""
    torch.manual_seed(0)
    return torch.randn(samples, width), torch.randn(samples, width)


def equal(ours: tuple[torch.Tensor, ...], theirs: tuple[torch.Tensor, ...]) -> None:
    """Stop unless value and gradients are equal to 1e-5."""
    for first, second in zip(ours, theirs, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-5)


def compare(title: str, ours: object, peer: str, theirs: object, bar: float, repeats: int) -> None:
    """Show equality first, then the measurement."""
    equal(ours(), theirs())
    seconds = cpu_seconds({"ours": ours, peer: theirs}, repeats)
    memory = peak_megabytes(ours), peak_megabytes(theirs)
    print(row(title, seconds["ours"], peer, seconds[peer], bar, memory), flush=True)


def pooled() -> None:
    """Image level, distinct positions."""
    for samples, bar in ((16, 1 / 3), (128, 1 / 50), (512, 1 / 50)):
        ours = step(lambda a, b: ntxent(a, b, TEMPERATURE), *batch(samples))
        peers = {
            "monai ContrastiveLoss": (step(ContrastiveLoss(TEMPERATURE), *batch(samples)), bar, 3 + 160 // samples),
            "lightly NTXentLoss": (step(lightly_ntxent(TEMPERATURE), *batch(samples)), 1.0, 20000 // samples),
        }
        for peer, (theirs, its_bar, repeats) in peers.items():
            compare(f"pooled, {samples} samples of 128", ours, peer, theirs, its_bar, repeats)


def dense() -> None:
    """Pixel level: all sites in one product, against a loop over sites written from the equation."""
    for sites, width, bar in ((64, 64, 1 / 10), (64, 128, 1 / 10), (1024, 128, 1 / 8)):
        torch.manual_seed(0)
        embeddings, position = torch.randn(sites, 32, width), torch.rand(16).repeat(2).double()

        def loop(x: torch.Tensor, position: torch.Tensor = position) -> torch.Tensor:
            return torch.stack([one_site(site, position) for site in x]).mean()

        def ours(x: torch.Tensor, position: torch.Tensor = position) -> torch.Tensor:
            return positional_contrast(x, position, TEMPERATURE, 0.1)

        title = f"dense, {sites} sites, width {width}"
        compare(title, step(ours, embeddings), "loop over sites", step(loop, embeddings), bar, 3)


def one_site(rows: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    """The equation, one anchor after another."""
    unit = torch.nn.functional.normalize(rows, dim=1)
    values = []
    for a in range(len(rows)):
        others = torch.arange(len(rows)) != a
        logits = unit[others] @ unit[a] / TEMPERATURE
        near = (position[others] - position[a]).abs() < 0.1 - 1e-6
        values.append(logits.logsumexp(0) - logits[near].mean())
    return torch.stack(values).mean()


if __name__ == "__main__":
    torch.set_num_threads(1)
    pooled()
    dense()
