"""The verb `knobs`: every knob of a bundle with its value and its meaning, from the configs and the docstrings."""

import inspect
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from medcl_monai.bundles import COMPLETE, bundle_folder
from medcl_monai.overrides import RULED, target_of

METHOD = ("network_def", "views", "loss", "parameters", "optimizer")  # components whose literal arguments are knobs
WRITTEN_ALONE = {"parameters"}  # what a config leaves out here is an object, or has no effect without one
FUNCTION = re.compile(r"\$medcl_monai\.\w+")  # a function of this package as an argument, which is a choice like others
PLUMBING = {"_desc_", "imports", "num_classes"}


@dataclass(frozen=True)
class Knob:
    """One knob of a config.

    Attributes:
        name: as a command line says it after ``--``.
        value: as the config holds it, JSON; of an argument that the config leaves out, the default of the code.
        meaning: with unit or range.
        written: whether the config holds the knob.
        library: name of the library's class that takes the argument, and whose words `meaning` has; "": our own.
    """

    name: str
    value: str
    meaning: str
    written: bool = True
    library: str = ""


def knobs(bundle: str, markdown: bool = False) -> str:
    """List every knob of a bundle's configs: name, value, meaning with unit or range.

    The knobs that all bundles have come first; then the arguments of network, views and loss. An argument that the
    config leaves out is listed with the default of the code, in brackets, and may be given all the same.

    Args:
        bundle: name of a bundle in ./bundles, or its folder.
        markdown: write Markdown tables, as the pages of the methods hold them.

    Returns:
        The list as text.

    Raises:
        FileNotFoundError: no such bundle.
    """
    configs = bundle_folder(bundle) / "configs"
    lines = []
    for path in (configs / name for name in COMPLETE):
        if path.is_file():
            rows = list(knobs_of(json.loads(path.read_text(encoding="utf-8"))))
            lines += [f"**{path.name}**", "", *_table(rows), ""] if markdown else [path.name, *_list(rows), ""]
    return "\n".join(lines).rstrip()


def knobs_of(config: Mapping[str, object]) -> Iterator[Knob]:
    """The knobs of one config, in its order."""
    notes = config.get("_desc_", {})
    components = False
    for name, value in config.items():
        components = components or name in METHOD
        literal = not isinstance(value, Mapping | list) and not str(value).startswith(("$", "@"))
        if name not in PLUMBING and (literal or not components):
            yield Knob(name, shown(value), notes.get(name) or meaning_of(config, name))
    for name in METHOD:
        if isinstance(config.get(name), Mapping):
            yield from arguments_of(name, config[name])


def arguments_of(name: str, component: Mapping[str, object]) -> Iterator[Knob]:
    """The literal arguments of a component and of the components inside it, then what its code takes beside them."""
    target = target_of(component)
    meanings = argument_meanings(target)
    if target is None:  # an expression builds the component
        return
    ours = target.__module__.startswith("medcl_monai.")
    library = "" if ours else f"{target.__module__.split('.')[0]}'s {target.__name__}"
    for key, value in component.items():
        if isinstance(value, Mapping) and "_target_" in value:
            yield from arguments_of(f"{name}::{key}", value)
        elif not key.startswith("_") and (FUNCTION.fullmatch(str(value)) or not str(value).startswith(("@", "$"))):
            yield Knob(f"{name}::{key}", shown(value), meanings.get(key, ""), library=library)
    for key, parameter in inspect.signature(target).parameters.items():
        optional = key not in component and parameter.default is not parameter.empty
        if optional and key in meanings and name not in WRITTEN_ALONE and f"{name}::{key}" not in RULED:
            yield Knob(f"{name}::{key}", shown(parameter.default), meanings[key], False, library)


def meaning_of(config: object, name: str) -> str:
    """What the first component of this package that takes ``@name`` says of the argument."""
    members = config.values() if isinstance(config, Mapping) else config if isinstance(config, list) else ()
    if isinstance(config, Mapping) and str(config.get("_target_")).startswith("medcl_monai."):
        for key, value in config.items():
            if value == f"@{name}" and (meaning := argument_meanings(target_of(config)).get(key)):
                return meaning
    return next(filter(None, (meaning_of(member, name) for member in members)), "")


def argument_meanings(target: object) -> dict[str, str]:
    """Argument to meaning, from the section ``Args:`` of a class's or a function's docstring, and of its base's."""
    if target is None:
        return {}
    inherited = argument_meanings(target.__base__) if inspect.isclass(target) and target.__base__ is not object else {}
    sections = re.finditer(r"\n( *)Args:\n((?:\1 +.*\n|\s*\n)*)", f"{_text(target)}\n")
    meanings: dict[str, str] = {}
    for section in sections:
        indent = len(re.match(r"\s*", section[2])[0])
        for line in section[2].splitlines():
            named = re.match(rf"\s{{{indent}}}(\w+)(?: \([^)]*\))?: ?(.*)", line)
            if named:
                last = named[1]
                meanings[last] = named[2].strip()
            elif meanings:
                meanings[last] = f"{meanings[last]} {line.strip()}"
    return {**inherited, **{name: " ".join(_words(text)) for name, text in meanings.items()}}


def shown(value: object) -> str:
    """A value as a config writes it; what is computed says so."""
    if isinstance(value, str) and value.startswith("$") and not FUNCTION.fullmatch(value):
        return f"computed: {value[1:]}"
    if value is None:
        return "none"  # the word that a command line takes
    try:
        return json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)
    except TypeError:
        return getattr(value, "__name__", str(value))


def _words(text: str) -> list[str]:
    """The words of a meaning without marks of a docstring, and with the word that a command line takes for None."""
    return re.sub(r"\bNone\b", "none", text.replace("`", "")).split()


def _text(target: object) -> str:
    """The docstring; of a class that explains its arguments in the constructor, as MONAI's networks do, both."""
    of_constructor = inspect.getdoc(target.__init__) if inspect.isclass(target) else None
    return "\n".join(["", inspect.getdoc(target) or "", "", of_constructor or ""])


def _list(of_config: list[Knob]) -> list[str]:
    width = max(len(knob.name) for knob in of_config) + 2
    return [f"  --{knob.name:{width}}{_value(knob)}\n{'':6}{knob.meaning}".rstrip() for knob in of_config]


def _table(of_config: list[Knob]) -> list[str]:
    kept = [knob for knob in of_config if knob.written or not knob.library]  # a page holds our own words alone
    meanings = [f"an argument of {knob.library}" if knob.library else knob.meaning for knob in kept]
    rows = [f"| `{knob.name}` | {_value(knob, '`')} | {text} |" for knob, text in zip(kept, meanings, strict=True)]
    return ["| knob | value | meaning |", "|---|---|---|", *rows]


def _value(knob: Knob, quote: str = "") -> str:
    value = f"{quote}{knob.value}{quote}"
    return value if knob.written else f"({value})"


__all__ = ["Knob", "knobs", "knobs_of"]
