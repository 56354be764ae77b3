"""What a config hands over is checked against the annotations: a knob of the wrong type is named with its value."""

import functools
import inspect
from collections.abc import Callable
from types import NoneType
from typing import get_args

from beartype import BeartypeConf, beartype

NONE_WORDS = ("none", "null")  # MONAI drops an override of None in silence, and the value of the file would stand
_checked = beartype(conf=BeartypeConf(is_pep484_tower=True))  # the tower: JSON writes 1 where 1.0 is meant


def knob_types(function: Callable) -> Callable:
    """Decorator of what configs call: arguments of a wrong type raise an error that names them.

    An argument that may be None also takes the words "none" and "null", so that a command line can say
    ``--clip none``.

    Raises:
        beartype.roar.BeartypeCallHintParamViolation: with the function, the argument, its value and the type expected.

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
