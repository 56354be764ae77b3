"""The collapse monitor: its share of a step, injected collapses that it must flag, a bundle's runs that it must not.

``benchmarks/collapse.py share jcl``, ``injected``, ``runs jcl --seeds 20``; one thread.
A run that collapses: ``runs jcl --seeds 1 --learning_rate 1``.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial, wraps
from pathlib import Path

import torch
from ignite.engine import Events
from monai.bundle import create_workflow
from torch import Tensor, nn

from medcl_monai import CollapseMonitor, NTXentLoss, Pretrainer, PretrainingNetwork, Tracker

BUNDLES = Path(__file__).parents[1] / "bundles"
RECORDERS = {f"train::handlers#{k}#_disabled_": True for k in range(2, 7)}  # views, weights, checkpoints, MLflow, bar
ONSET, BAR = 21, 50  # steps
WIDTH, BATCH = 512, 16


def trainer_of(bundle: str, folder: str, **knobs: object) -> Pretrainer:
    """The trainer of a bundle's pretrain.json, with other values of knobs; it writes into `folder`."""
    root = BUNDLES / bundle
    workflow = create_workflow(
        config_file=str(root / "configs" / "pretrain.json"), workflow_type="train", logging_file=False,
        bundle_root=str(root), output_dir=folder, **{"train::handlers#3#path": f"{folder}/pretrained.pt", **knobs},
    )
    workflow.initialize()
    return workflow.parser.get_parsed_content("train::trainer")


def looks(trainer: Pretrainer) -> list[tuple[int, dict[str, float]]]:
    """Filled while the trainer runs: step and figures of each look."""
    looked: list[tuple[int, dict[str, float]]] = []

    @trainer.on(Events.ITERATION_COMPLETED)
    def keep(engine: Pretrainer) -> None:
        if "collapse/alarms" in engine.state.figures:
            looked.append((engine.state.optimizer_steps, dict(engine.state.figures)))
        engine.state.figures.clear()

    return looked


def share(bundle: str, steps: int = 100) -> None:
    """CPU time of the monitor and of its pictures as a share of the bundle's own step, with all handlers."""
    spent, start = [0.0], [0.0]

    def timed(function: Callable) -> Callable:
        @wraps(function)
        def run(*arguments: object) -> object:
            begin = time.process_time()
            try:
                return function(*arguments)
            finally:
                spent[0] += time.process_time() - begin if function is not picture or arguments[1] == "spectrum" else 0

        return run

    picture = Tracker.picture
    Tracker.picture = timed(picture)
    CollapseMonitor._follow = timed(CollapseMonitor._follow)
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(bundle, folder, steps=steps + 10, epochs=(steps + 10) // 10)

        @trainer.on(Events.ITERATION_COMPLETED(once=10))
        def begin() -> None:
            spent[0], start[0] = 0.0, time.process_time()

        trainer.run()
        whole = time.process_time() - start[0]
    part = spent[0] / whole
    print(f"{bundle}: step {whole / steps * 1e3:.0f} ms, monitor {spent[0] / steps * 1e3:.2f} ms | share {part:.2%}, "
          f"bar 2 % {'met' if part <= 0.02 else 'MISSED'}")


class Toy(PretrainingNetwork):
    """Two layers, 512 wide, on vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(64, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH))

    def forward(self, views: dict[str, Tensor]) -> dict[str, Tensor]:
        """``view_1`` and ``view_2`` (B, 512)."""
        return {name: self.backbone(view) for name, view in views.items()}

    def trained_parts(self) -> tuple[str, ...]:
        """All of it."""
        return tuple(self.backbone.state_dict())


def toy_trainer(seed: int, _: str) -> Pretrainer:
    """Contrast of noisy vectors, watched at the default interval."""
    torch.manual_seed(seed)
    batches = [{"image": torch.randn(BATCH, 64)} for _ in range(ONSET + BAR)]
    network = Toy()
    return Pretrainer(
        device="cpu", max_epochs=1, epoch_length=ONSET + BAR, train_data_loader=batches, network=network, seed=seed,
        optimizer=torch.optim.SGD(network.parameters(), 0.05), loss_function=NTXentLoss(),
        views=lambda batch: ({f"view_{k}": batch["image"] + torch.randn(BATCH, 64) / 2 for k in (1, 2)}, {}),
        train_handlers=[CollapseMonitor(10, ["view_1", "view_2"], [["view_1", "view_2"]], ["contrast"])],
    )


def constant(z: Tensor) -> Tensor:
    """All of a batch where its first is: another place at every step."""
    return z * 0 + z[:1].detach()


def low_rank(rank: int) -> Callable[[Tensor], Tensor]:
    """Onto the first `rank` directions of a fixed random basis."""

    def project(z: Tensor) -> Tensor:
        basis = torch.linalg.qr(torch.randn(z.shape[1], rank, generator=torch.Generator().manual_seed(rank)))[0]
        return z @ basis @ basis.T

    return project


def inject(trainer: Pretrainer, collapse: Callable[[Tensor], Tensor], part: str) -> None:
    """From the onset on, what the network gives under names that begin with `part` is collapsed."""

    def hook(_: nn.Module, __: object, output: dict[str, Tensor]) -> dict[str, Tensor]:
        if trainer.state.optimizer_steps < ONSET:
            return output
        return {name: collapse(value) if name.startswith(part) else value for name, value in output.items()}

    trainer.network.register_forward_hook(hook)


def jcl_trainer(seed: int, folder: str, onset: int, **knobs: object) -> Pretrainer:
    """JCL at its defaults, for as long as a collapse from `onset` on may take."""
    return trainer_of("jcl", folder, seed=seed, steps=onset + BAR, epochs=1, **RECORDERS, **knobs)


def injected(seeds: int = 4) -> None:
    """Collapses from step 22 on, and a learning rate of JCL that collapses its image level; each by several seeds."""
    kinds = {
        "constant": (toy_trainer, ONSET, constant, "view"),
        "rank 1 of 512": (toy_trainer, ONSET, low_rank(1), "view"),
        "rank 8 of 512": (toy_trainer, ONSET, low_rank(8), "view"),
        "jcl, image level constant": (partial(jcl_trainer, onset=ONSET), ONSET, constant, "image"),
        "jcl, learning_rate 1": (partial(jcl_trainer, onset=0, learning_rate=1.0), 0, None, ""),
    }
    flagged = 0
    for kind, (make, onset, collapse, part) in kinds.items():
        for seed in range(seeds):
            with tempfile.TemporaryDirectory() as folder:
                trainer = make(seed, folder)
                if collapse is not None:
                    inject(trainer, collapse, part)
                looked = looks(trainer)
                trainer.run()
            first = next((step for step, figures in looked if figures["collapse/alarms"]), None)
            flagged += first is not None and onset < first <= onset + BAR
            after = "never" if first is None else f"after {first - onset} steps"
            print(f"{kind:26} seed {seed}: flagged {after}", flush=True)
    print(f"flagged within {BAR} steps: {flagged} of {seeds * len(kinds)}")


def runs(bundle: str, seeds: range, knobs: dict[str, object]) -> None:
    """A bundle by several seeds: runs with an alarm, and the least that the figures came to."""
    alarmed = 0
    for seed in seeds:
        with tempfile.TemporaryDirectory() as folder:
            trainer = trainer_of(bundle, folder, seed=seed, **knobs, **RECORDERS)
            looked = looks(trainer)
            trainer.run()
        widths = {name: value.shape[1] for name, value in trainer.state.output[0]["output"].items() if value.ndim > 1}
        alarms = sum(figures["collapse/alarms"] > 0 for _, figures in looked)
        alarmed += alarms > 0
        figures = [least(name, looked, widths) for name in looked[0][1] if name.split(".")[-1] in LEAST]
        print(f"{bundle} seed {seed}: alarms at {alarms} of {len(looked)} looks | from step 21 on, at least:", end=" ")
        print(", ".join(figures), flush=True)
    print(f"{bundle}: alarms in {alarmed} of {len(seeds)} runs")


LEAST = ("effective_rank", "numerical_rank", "feature_spread", "within_samples", "from_equal")


OF_START = ("feature_spread", "within_samples")  # figures that are shown as a share of their first value


def least(name: str, looked: list[tuple[int, dict[str, float]]], widths: dict[str, int]) -> str:
    """The smallest value of a figure: a rank as a share of the width, a spread of its start, a distance as it is."""
    key, figure = name.rsplit(".", 1)
    value = min(abs(figures[name]) for step, figures in looked if step > 20)
    if figure == "from_equal":
        return f"{name} {value:.3f}"
    return f"{name} {value / (looked[0][1][name] if figure in OF_START else widths[key]):.1%}"


if __name__ == "__main__":
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["share", "injected", "runs"])
    parser.add_argument("bundle", nargs="?", default="jcl")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--learning_rate", type=float, help="another than the bundle's")
    chosen = parser.parse_args()
    if chosen.what == "share":
        share(chosen.bundle)
    elif chosen.what == "injected":
        injected()
    else:
        other = {} if chosen.learning_rate is None else {"learning_rate": chosen.learning_rate}
        runs(chosen.bundle, range(chosen.first, chosen.first + chosen.seeds), other)
