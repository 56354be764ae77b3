"""The state of a run: what a checkpoint holds, and how a run takes over a checkpoint."""

import logging
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from ignite.engine import Engine
from torch import Tensor, nn

logger = logging.getLogger(__name__)
# entries of a parameter group that are not settings: the parameters, and the rates that a schedule changes
STEPPED = ("params", "lr", "initial_lr")
UNREADABLE = (zipfile.BadZipFile, pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, OSError)


def stateful(engine: Engine) -> dict[str, object]:
    """Return the handlers of an engine whose state belongs in a checkpoint, by name.

    Each such handler adds itself to this dict, under a name of its own.
    """
    return vars(engine.state).setdefault("stateful", {})


def snapshot(trainer: Engine) -> dict[str, object]:
    """Return the state of a trainer and of all its handlers at the end of an optimiser step.

    The handlers of the trainer's validation are included.
    """
    state = {
        "iteration": trainer.state.iteration,
        "accumulation": trainer.accumulation,
        "optimizer_steps": trainer.state.optimizer_steps,
        "network": trainer.bare_network.state_dict(),
        "optimizer": trainer.optimizer.state_dict(),
        "handlers": {name: part.state_dict() for name, part in _parts(trainer).items()},
        "best_metrics": [[float(e.state.best_metric), e.state.best_metric_epoch] for e in _engines(trainer)],
    }
    if isinstance(trainer.loss_function, nn.Module):
        state["loss"] = trainer.loss_function.state_dict()
    return state


def restore(trainer: Engine, path: str | Path) -> None:
    """Set a trainer to the state of a checkpoint, or of the newest undamaged checkpoint in a folder.

    Raises:
        FileNotFoundError: there is no checkpoint at `path`.
        ValueError: the checkpoint belongs to another network, optimiser, loss or accumulation, or the file is not a
            checkpoint.
    """
    path, state = load_checkpoint(path, trainer.bare_network.state_dict())
    if state.get("accumulation", trainer.accumulation) != trainer.accumulation:
        raise ValueError(
            f"{path} was written with accumulation={state['accumulation']}, this run has {trainer.accumulation}: "
            "its batches would not add up to the same steps"
        )
    try:
        _load_optimizer(trainer.optimizer, state["optimizer"], path)
        if isinstance(trainer.loss_function, nn.Module):
            trainer.loss_function.load_state_dict(state["loss"])
        for name, part in _parts(trainer).items():
            if name in state["handlers"]:
                part.load_state_dict(state["handlers"][name])
    except (KeyError, RuntimeError, ValueError) as error:
        raise ValueError(f"{path} is of another optimiser, loss or handler: {error}") from error
    trainer.bare_network.load_state_dict(state["network"])
    for engine, (metric, epoch) in zip(_engines(trainer), state["best_metrics"], strict=False):
        engine.state.best_metric, engine.state.best_metric_epoch = metric, epoch
    trainer.state.iteration, trainer.state.optimizer_steps = state["iteration"], state["optimizer_steps"]
    trainer.state.epoch = trainer.state.iteration // trainer.state.epoch_length
    trainer.logger.info("resumed %s at step %s", path, trainer.state.optimizer_steps)


def _load_optimizer(optimizer: torch.optim.Optimizer, state: dict, path: Path) -> None:
    """Take over moments and step counts from a checkpoint; settings such as weight decay stay those of this run."""
    wanted = [{name: value for name, value in group.items() if name not in STEPPED} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, settings in zip(optimizer.param_groups, wanted, strict=True):
        if changed := sorted(name for name, value in settings.items() if group.get(name, value) != value):
            logger.warning("%s: %s are taken from this run, not from the checkpoint", path, changed)
        group.update(settings)


def _engines(trainer: Engine) -> list[Engine]:
    return [trainer, *(validation.validator for validation in trainer.validations if validation.validator is not None)]


def _parts(trainer: Engine) -> dict[str, object]:
    trainer_engine, *validators = _engines(trainer)
    parts = dict(stateful(trainer_engine))
    for number, validator in enumerate(validators):
        parts |= {f"validation {number}: {name}": part for name, part in stateful(validator).items()}
    return parts


def checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoint files in a folder, newest first."""
    files = [path for path in folder.glob("checkpoint_*.pt") if re.fullmatch(r"checkpoint_\d+", path.stem)]
    return sorted(files, key=lambda path: (path.stat().st_mtime_ns, int(path.stem.split("_")[1])), reverse=True)


def load_checkpoint(path: str | Path, network: Mapping[str, Tensor]) -> tuple[Path, dict]:
    """Load a checkpoint, or the newest undamaged checkpoint in a folder, and check that the checkpoint fits `network`.

    Args:
        path: checkpoint file, or folder of checkpoint files.
        network: tensors of the network, by name.

    Returns:
        The path of the checkpoint file, and the content of the file.

    Raises:
        FileNotFoundError: there is no such file, or the folder holds no checkpoint.
        ValueError: no checkpoint can be read, or the checkpoint belongs to another network.
    """
    path = Path(path)
    candidates = checkpoints(path) if path.is_dir() else [path]
    if not candidates or not candidates[0].is_file():
        raise FileNotFoundError(f"{path}: no checkpoint to resume from; set resume to null to start anew")
    for candidate in candidates:
        try:
            state = _read(candidate)
        except UNREADABLE as error:
            logger.warning("%s cannot be read, an older one is tried: %s", candidate, error)
            continue
        _check(candidate, state, network)
        return candidate, state
    raise ValueError(f"{path}: no checkpoint can be read (tried {[file.name for file in candidates]})")


def _read(path: Path) -> object:
    with zipfile.ZipFile(path) as archive:  # torch.load compares no checksums, so a flipped bit would go unnoticed
        if damaged := archive.testzip():
            raise zipfile.BadZipFile(f"check sum of {damaged} is wrong")
    return torch.load(path, map_location="cpu", weights_only=True)


def _check(path: Path, state: object, network: Mapping[str, Tensor]) -> None:
    if not isinstance(state, dict) or not {"iteration", "network", "optimizer", "handlers"} <= set(state):
        holds = list(state)[:4] if isinstance(state, dict) else type(state).__name__
        raise ValueError(f"{path} is no checkpoint of a run: it holds {holds}")
    stored = state["network"]
    for name in [*network, *stored]:
        ours, theirs = (tuple(part[name].shape) if name in part else "absent" for part in (network, stored))
        if ours != theirs:
            raise ValueError(f"{path} is of another network: tensor {name!r} is {theirs} there, {ours} is expected")
