"""A type check of the values in a config: the error names the argument, its value and the expected type."""

import functools
import inspect
from collections.abc import Callable
from types import NoneType
from typing import get_args

from beartype import BeartypeConf, beartype

# words for None: MONAI drops an override of None without a message, so the value in the config file would be used
NONE_WORDS = ("none", "null")
_checked = beartype(conf=BeartypeConf(is_pep484_tower=True))  # accepts an int for a float: JSON writes 1 for 1.0


def knob_types(function: Callable) -> Callable:
    """Decorate a function that configs call, so that each call checks the types of the arguments.

    An argument that may be None also accepts the words "none" and "null", so that ``--clip none`` works on a command
    line.

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
    optional = {name for name, parameter in parameters.items() if NoneType in get_args(parameter.annotation)}
    checked, names = _checked(function), list(parameters)

    @functools.wraps(function)
    def with_words(*arguments: object, **named: object) -> object:
        placed = dict(zip(names, arguments, strict=False))
        values = [None if name in optional and _is_word(value) else value for name, value in placed.items()]
        others = {name: None if name in optional and _is_word(value) else value for name, value in named.items()}
        return checked(*values, *arguments[len(names) :], **others)

    return with_words if optional else checked


def _is_word(value: object) -> bool:
    return isinstance(value, str) and value in NONE_WORDS
