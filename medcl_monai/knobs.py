"""A type check of the values in a config: the error names the argument, its value and the expected type."""

import functools
import inspect
from collections.abc import Callable, Sequence
from types import NoneType
from typing import get_args

from beartype import BeartypeConf, beartype

# words for None: MONAI drops an override of None without a message, so the value in the config file would be used
NONE_WORDS = ("none", "null")
BOOLEAN_WORDS = {"true": True, "false": False}  # as configs and the tables of knobs write them
_checked = beartype(conf=BeartypeConf(is_pep484_tower=True))  # accepts an int for a float: JSON writes 1 for 1.0


def knob_types(function: Callable) -> Callable:
    """Decorate a function that configs call, so that each call checks the types of the arguments.

    An argument that may be None also accepts the words "none" and "null", and an argument that is true or false the
    words "true" and "false", so that ``--clip none`` and ``--amp true`` work on a command line. A single string stands
    for a list of this string where strings are listed, because Python would take the string for a list of letters.

    Raises:
        beartype.roar.BeartypeCallHintParamViolation: an argument has a wrong type; the error names the function, the
            argument, the value and the expected type.

    Example:
        >>> @knob_types
        ... def scale(x: float, clip: float | None = 1.0) -> float:
        ...     return x if clip is None else min(x, clip)
        >>> scale(3.0), scale(3.0, clip="none")
        (1.0, 3.0)
    """
    parameters = inspect.signature(function).parameters
    words = {name: meanings for name, parameter in parameters.items() if (meanings := _words(parameter.annotation))}
    listed = {name for name, parameter in parameters.items() if _lists_strings(parameter.annotation)}
    checked, names = _checked(function), list(parameters)

    def meant(name: str, value: object) -> object:
        value = words.get(name, {}).get(value, value) if isinstance(value, str) else value
        return [value] if isinstance(value, str) and name in listed else value

    @functools.wraps(function)
    def with_words(*arguments: object, **named: object) -> object:
        placed = dict(zip(names, arguments, strict=False))
        values = [meant(name, value) for name, value in placed.items()]
        others = {name: meant(name, value) for name, value in named.items()}
        return checked(*values, *arguments[len(names) :], **others)

    return with_words if words or listed else checked


def _words(annotation: object) -> dict[str, object]:
    """Return the words that an argument of this type accepts, with their values."""
    of_none = dict.fromkeys(NONE_WORDS) if NoneType in get_args(annotation) else {}
    return of_none | (BOOLEAN_WORDS if bool in (annotation, *get_args(annotation)) else {})


def _lists_strings(annotation: object) -> bool:
    kinds = (annotation, *get_args(annotation))
    return Sequence[str] in kinds and str not in kinds
