"""Where the time of a pre-training step goes, and what the step costs beside two encoder passes; one thread."""

import tempfile
import time
from pathlib import Path

import torch
from ignite.engine import Events
from measure import cpu_seconds, step
from monai.bundle import create_workflow
from monai.engines.utils import IterationEvents

from medcl_monai.methods.jcl import JCL, JCLLoss, JCLViews
from medcl_monai.networks.encode import encode

BUNDLE = Path(__file__).parents[1] / "bundles" / "jcl"
WARM_UP, STEPS = 5, 40


def passes() -> None:
    """A step with n = 2 against two full-resolution encoder passes, forward and backward."""
    torch.manual_seed(0)
    parser = create_workflow(config_file=str(BUNDLE / "configs" / "pretrain.json"), workflow_type="train",
                             logging_file=False, bundle_root=str(BUNDLE)).parser
    network: JCL = parser.get_parsed_content("network_def")
    images, position = torch.randn(16, 1, 128, 128), torch.rand(16).double()
    batch = {"image": images, "position": position, "subject": torch.zeros(16, dtype=torch.long)}
    views, target = JCLViews()(batch)
    loss = JCLLoss()

    def whole() -> None:
        network.zero_grad(set_to_none=True)
        sum(loss(network(views), target).values()).backward()

    def encoders() -> None:
        network.zero_grad(set_to_none=True)
        for view in ("aligned_2", "view_2"):
            encode(network.backbone, views[view])[-1].mean().backward()

    def losses() -> object:
        return step(lambda *maps: sum(loss(dict(zip(names, maps, strict=True)), target).values()), *maps_of_views)()

    names, maps_of_views = zip(*network(views).items(), strict=True)
    maps_of_views = [x.detach() for x in maps_of_views]
    names = tuple(names)
    used = [k for k, name in enumerate(names) if name != "features"]
    names, maps_of_views = tuple(names[k] for k in used), [maps_of_views[k] for k in used]
    seconds = cpu_seconds(
        {"step": whole, "encoders": encoders, "losses": losses, "views": lambda: JCLViews()(batch)}, 5
    )
    ratio = seconds["step"] / seconds["encoders"]
    print(f"step with n = 2                    {seconds['step'] * 1e3:8.0f} ms, two encoder passes "
          f"{seconds['encoders'] * 1e3:.0f} ms | ratio {ratio:.3f}, bar 1.3 {'met' if ratio <= 1.3 else 'MISSED'}")
    for name, bar in (("views", 0.03), ("losses", 1.0)):
        share = seconds[name] / (seconds["step"] + seconds["views"])
        verdict = "" if bar == 1.0 else f", bar {bar:.0%} {'met' if share <= bar else 'MISSED'}"
        print(f"{name + ' in a step':34} {seconds[name] * 1e3:8.1f} ms | share {share:.2%}{verdict}", flush=True)


def shares() -> None:
    """Network and optimiser as a share of the bundle's own run, with all its handlers and tracking."""
    spent = {"forward": 0.0, "backward": 0.0, "optimiser": 0.0}
    marks: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        workflow = create_workflow(
            config_file=str(BUNDLE / "configs" / "pretrain.json"), workflow_type="train", logging_file=False,
            bundle_root=str(BUNDLE), output_dir=folder, steps=WARM_UP + STEPS, epochs=(WARM_UP + STEPS) // 5,
            **{"train::handlers#3#path": f"{folder}/pretrained.pt"},
        )
        workflow.initialize()
        parser = workflow.parser
        trainer, network, optimizer = (parser.get_parsed_content(x) for x in ("train::trainer", "network", "optimizer"))

        def begin(*_: object) -> None:
            marks["begin"] = time.process_time()

        def end(name: str) -> None:
            if trainer.state.iteration > WARM_UP:
                spent[name] += time.process_time() - marks["begin"]

        network.register_forward_pre_hook(begin)
        network.register_forward_hook(lambda *_: end("forward"))
        trainer.add_event_handler(IterationEvents.LOSS_COMPLETED, begin)
        trainer.add_event_handler(IterationEvents.BACKWARD_COMPLETED, lambda: end("backward"))
        optimizer.register_step_pre_hook(begin)
        optimizer.register_step_post_hook(lambda *_: end("optimiser"))

        @trainer.on(Events.ITERATION_COMPLETED(once=WARM_UP))
        def start() -> None:
            marks["start"] = time.process_time()

        trainer.run()
        whole = time.process_time() - marks["start"]
    share = sum(spent.values()) / whole
    parts = ", ".join(f"{name} {seconds / whole:.1%}" for name, seconds in spent.items())
    print(f"pre-training step, all included    {whole / STEPS * 1e3:8.0f} ms | {parts} | "
          f"network and optimiser {share:.1%}, bar 85 % {'met' if share >= 0.85 else 'MISSED'}", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    passes()
    shares()
