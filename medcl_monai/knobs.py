"""What a config hands over is checked against the annotations: a knob of the wrong type is named with its value."""

from beartype import BeartypeConf, beartype

NOTHING = (None, "none", "null")  # words too: MONAI drops an override of None, and the file's value would stand
knob_types = beartype(conf=BeartypeConf(is_pep484_tower=True))  # the tower: JSON writes 1 where 1.0 is meant
"""Decorator of what configs call: arguments that are not of the annotated type raise an error that names them.

Raises:
    beartype.roar.BeartypeCallHintParamViolation: with the function, the argument, its value and the type expected.
"""
