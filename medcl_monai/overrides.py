"""A check of overrides: a name that no config has is refused, and the error suggests the nearest right name."""

import difflib
import inspect
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from monai.bundle import ConfigParser
from monai.bundle.config_item import ConfigComponent
from monai.utils.module import locate

OPTIONS = {  # options of `monai.bundle run` and of its tracking, which are no ids of a config
    "run_id", "init_id", "final_id", "meta_file", "config_file", "logging_file", "tracking", "args_file",
    "save_execute_config", "is_not_rank0", "workflow_type", "workflow_name",
}
TRACKING = {"tracking_uri", "experiment_name", "run_name"}
SPECIAL = {"_target_", "_desc_", "_disabled_", "_requires_", "_mode_"}


def check_overrides(config: Mapping[str, object], names: Iterable[str]) -> None:
    """Refuse overrides with a name that neither the config has nor the component at that place accepts.

    MONAI accepts a new top-level name without a message, so ``--step 1000`` would train with the `steps` of the config
    file.

    Args:
        config: the merged content of the config files, with references and expressions not yet resolved.
        names: names of the overrides, such as ``steps``, ``loss::temperature`` or ``train::handlers#0#warm_up``.

    Raises:
        ValueError: a name is unknown; the error names the override and the nearest right name.
    """
    for name in names:
        path = name.replace("#", "::").split("::")
        if name.startswith("+") or name in OPTIONS | TRACKING or _has(config, path):
            continue
        known = [*ids(config), *(f"{'::'.join(path[:-1])}::{extra}" for extra in _accepted(_at(config, path[:-1])))]
        if "::".join(path) in known:
            continue
        near = difflib.get_close_matches("::".join(path), known, n=1, cutoff=0.5)
        hint = f"do you mean {near[0]!r}?" if near else "python -m medcl_monai knobs BUNDLE lists what there is"
        raise ValueError(f"no config has the knob {name!r}: {hint}")


def check_command_line() -> None:
    """Check the overrides of ``python -m monai.bundle run``; a process that was started in another way is not checked.

    MONAI Label, federated clients and Python code may override what they like. Under torchrun the arguments are the
    same.

    Raises:
        ValueError: an override has an unknown name, or is None, which MONAI drops without a message.
    """
    program = Path(sys.argv[0])
    if program.name != "__main__.py" or program.parent.name != "bundle" or "run" not in sys.argv[1:2]:
        return
    arguments = dict(_arguments(sys.argv[2:]))
    if "args_file" in arguments:
        arguments = {**ConfigParser.load_config_file(arguments["args_file"]), **arguments}
    if dropped := [name for name, value in arguments.items() if value in ("None", None)]:
        raise ValueError(f"--{dropped[0]} None: MONAI drops an override of None; write --{dropped[0]} none")
    if "config_file" in arguments:
        check_overrides(merged(_files(arguments["config_file"])), arguments)


def merged(files: Sequence[str | Path]) -> dict[str, object]:
    """Return the content of config files, merged as MONAI merges config files, before references are resolved."""
    return ConfigParser.load_config_files([str(file) for file in files])


def ids(config: object, above: str = "") -> Iterator[str]:
    """Yield all ids of a config, such as ``steps``, ``loss`` and ``loss::temperature``."""
    members = config.items() if isinstance(config, Mapping) else enumerate(config) if isinstance(config, list) else ()
    for name, value in members:
        yield f"{above}{name}"
        yield from ids(value, f"{above}{name}::")


def _has(config: object, path: Sequence[str]) -> bool:
    return _at(config, path[:-1]) is not None and _member(_at(config, path[:-1]), path[-1]) is not MISSING


MISSING = object()


def _member(part: object, name: str) -> object:
    if isinstance(part, Mapping):
        return part.get(name, MISSING)
    if isinstance(part, list) and name.isdigit() and int(name) < len(part):
        return part[int(name)]
    return MISSING


def _at(config: object, path: Sequence[str]) -> object:
    for name in path:
        config = _member(config, name)
        if config is MISSING:
            return None
    return config


def _accepted(part: object) -> set[str]:
    """Return the names that a component may have: the arguments of its class or function, and MONAI's special names."""
    if not isinstance(part, Mapping) or "_target_" not in part:
        return set()
    target = ConfigComponent(config=dict(part), id="").resolve_module_name()
    target = locate(target) if isinstance(target, str) else target
    try:
        return set(inspect.signature(target).parameters) | SPECIAL
    except (TypeError, ValueError):  # the target is a `$` expression, or a builtin without a signature
        return SPECIAL


def _arguments(words: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """Yield the names and values of ``--name value`` and ``--name=value``, as the package fire reads them."""
    for place, word in enumerate(words):
        if word.startswith("--"):
            name, sign, value = word[2:].partition("=")
            following = words[place + 1] if place + 1 < len(words) else ""
            yield name, value if sign else following


def _files(text: str) -> list[str]:
    """Return the files of ``--config_file``: one path, or a list of paths in Python's notation."""
    import ast

    if not text.lstrip().startswith(("[", "(")):
        return [text]
    return [str(file) for file in ast.literal_eval(text)]
