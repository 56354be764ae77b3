"""A check of overrides: a name that no config has is refused, and the error suggests the nearest right name."""

import ast
import difflib
import inspect
import re
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
RULED = {"optimizer::lr": "learning_rate"}  # arguments that a component takes and that something else decides
SPECIAL = {"_target_", "_desc_", "_disabled_", "_requires_", "_mode_"}


def check_overrides(config: Mapping[str, object], names: Iterable[str]) -> None:
    """Refuse ids that neither the config has nor the component around them accepts.

    MONAI takes a new top-level key in silence, so ``--step 1000`` would train with the steps of the file.

    Args:
        config: the merged content of the config files, not yet resolved.
        names: ids of the overrides, such as ``steps``, ``loss::temperature`` or ``train::handlers#0#warm_up``.

    Raises:
        ValueError: an id is unknown; the error names the id, and the nearest id that would be right.
    """
    given = [name.replace("#", "::") for name in names]
    for name in given:
        path = name.split("::")
        if name.startswith("+") or name in OPTIONS | TRACKING or _has(config, path) or _replaced(path, given):
            continue
        accepted = _accepted(_at(config, path[:-1]))
        if name in RULED:
            raise ValueError(f"{name} has no effect: {RULED[name]} sets the rate of every parameter")
        if accepted is None or path[-1] in accepted:
            continue
        known = [*knob_ids(config), *(f"{'::'.join(path[:-1])}::{extra}" for extra in accepted - SPECIAL)]
        near = nearest(name, list(dict.fromkeys(known)))
        hint = f"do you mean {near}?" if near else "python -m medcl_monai knobs BUNDLE lists what there is"
        raise ValueError(f"no config has the knob {name!r}: {hint}")


def nearest(name: str, known: Sequence[str]) -> str:
    """Return the ids that `name` may stand for, quoted; "" if no id is near.

    The last part of an id is what users remember, so ids with the same last part come first, then ids whose last part
    is spelt almost alike, then ids that are spelt almost alike as a whole.

    Example:
        >>> nearest("queue_size", ["view_size", "network_def::queue_size"])
        "'network_def::queue_size'"
        >>> nearest("step", ["steps", "seed"])
        "'steps'"
    """
    last = {knob: knob.split("::")[-1] for knob in known}
    last_part = name.split("::")[-1]
    same = [knob for knob in known if last[knob] == last_part]
    if not same:
        alike = difflib.get_close_matches(last_part, last.values(), n=1, cutoff=0.75)
        same = [knob for knob in known if last[knob] in alike]
    return " or ".join(map(repr, (same or difflib.get_close_matches(name, known, n=1, cutoff=0.75))[:3]))


def check_command_line() -> None:
    """Check the overrides of ``python -m monai.bundle run``; do nothing in a process that was started in another way.

    MONAI Label, federated clients and Python code override what they like. Under torchrun the arguments are the same.

    Raises:
        SystemExit: an override is an id that no config has; or its value is None, which MONAI drops in silence. MONAI
            would bury an exception of another kind under a traceback of fifty lines.
    """
    try:
        _check_arguments()
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error


def _check_arguments() -> None:
    program = Path(sys.argv[0])
    if program.name != "__main__.py" or program.parent.name != "bundle" or "run" not in sys.argv[1:2]:
        return
    arguments = dict(_arguments(sys.argv[2:]))
    if dropped := [name for name, value in arguments.items() if value == "None" and name not in OPTIONS]:
        raise ValueError(f"--{dropped[0]} None: MONAI drops an override of None; write --{dropped[0]} none")
    if "args_file" in arguments:
        arguments = {**ConfigParser.load_config_file(arguments["args_file"]), **arguments}
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


def knob_ids(config: Mapping[str, object]) -> list[str]:
    """Return the ids that a user may want to set: no part of the config language, and no argument that relays an id."""
    return [
        name for name in ids(config)
        if (path := name.split("::"))[-1] not in SPECIAL and not str(_at(config, path)).startswith("@")
    ]


def target_of(component: Mapping[str, object]) -> object:
    """Return the class or function of a component; None where an expression says it."""
    target = ConfigComponent(config=dict(component), id="").resolve_module_name()
    if isinstance(target, str):
        return None if target.startswith("$") else locate(target)
    return target


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


def _replaced(path: Sequence[str], given: Sequence[str]) -> bool:
    """Whether another override replaces a component around the id, or the component's class."""
    above = ["::".join(path[:length]) for length in range(1, len(path))]
    return any(name in given or f"{name}::_target_" in given for name in above)


def _accepted(part: object) -> set[str] | None:
    """Names that a component's class or function takes; None if anything may be taken."""
    if not isinstance(part, Mapping) or "_target_" not in part:
        return set()
    target = target_of(part)
    if not callable(target):  # an expression builds the component
        return None
    classes = target.__mro__ if inspect.isclass(target) else ()
    chain = [base.__init__ for base in classes if "__init__" in vars(base)] or [target]
    names: set[str] = set()
    for function in chain:  # a constructor with **kwargs hands them to the next one
        try:
            parameters = inspect.signature(function).parameters.values()
        except (TypeError, ValueError):  # a builtin without a signature
            return None
        names |= {parameter.name for parameter in parameters if parameter.kind not in VARIADIC}
        if all(parameter.kind is not inspect.Parameter.VAR_KEYWORD for parameter in parameters):
            return (names | SPECIAL) - {"self"}
    return None


VARIADIC = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)


def _arguments(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Names and values of ``--name value``, ``--name=value`` and ``-name value``, as fire reads them."""
    for place, word in enumerate(words):
        if re.match(r"--?[A-Za-z_+]", word):
            name, sign, value = word.lstrip("-").partition("=")
            following = words[place + 1] if place + 1 < len(words) else ""
            yield name.replace("-", "_"), value if sign else following


def _files(config_file: str | Sequence[str]) -> list[str]:
    """The files of ``--config_file``: one path, or several in a list or tuple as Python writes it."""
    if isinstance(config_file, str) and config_file.lstrip().startswith(("[", "(", "'", '"')):
        config_file = ast.literal_eval(config_file)
    return [config_file] if isinstance(config_file, str) else [str(file) for file in config_file]
