"""Side-by-side measurement in one process: each candidate in turn; CPU time and growth of peak memory."""

import gc
import multiprocessing
import resource
import time
from collections.abc import Callable
from statistics import median

import torch


def cpu_seconds(candidates: dict[str, Callable[[], object]], repeats: int = 5) -> dict[str, float]:
    """Median process CPU seconds of each candidate, interleaved, after one warm-up of each."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for run in candidates.values():
        run()
    for _ in range(repeats):
        for name, run in candidates.items():
            start = time.process_time()
            run()
            seconds[name].append(time.process_time() - start)
    return {name: median(values) for name, values in seconds.items()}


def peak_megabytes(run: Callable[[], object]) -> float:
    """Growth of the peak memory of a forked process that runs the candidate once."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_peak, args=(run, theirs))
    process.start()
    grown = ours.recv()
    process.join()
    return grown


def _peak(run: Callable[[], object], pipe: object) -> None:
    torch.set_num_threads(1)
    gc.collect()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run()
    pipe.send((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)


def step(loss: Callable[..., torch.Tensor], *inputs: torch.Tensor) -> Callable[[], tuple[torch.Tensor, ...]]:
    """Forward and backward of a loss as a call without arguments; returns the value and the gradients."""

    def run() -> tuple[torch.Tensor, ...]:
        leaves = [x.detach().requires_grad_() for x in inputs]
        value = loss(*leaves)
        return (value.detach(), *torch.autograd.grad(value, leaves))

    return run


def row(title: str, ours: float, peer: str, theirs: float, bar: float, memory: tuple[float, float]) -> str:
    """One line: times in ms, our share of the peer's, the bar, peak memory of both in MB."""
    verdict = "met" if ours <= bar * theirs else "MISSED"
    return (
        f"{title:34} ours {ours * 1e3:9.2f} ms {memory[0]:7.0f} MB"
        f" | {peer:24} {theirs * 1e3:9.2f} ms {memory[1]:7.0f} MB"
        f" | ratio {ours / theirs:7.4f}, bar {bar:.4f} {verdict}"
    )
