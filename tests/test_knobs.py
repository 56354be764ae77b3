"""A wrong argument is named with its value; what JSON can mean is taken."""

from collections.abc import Sequence

import pytest
from beartype.roar import BeartypeCallHintParamViolation

from medcl_monai.knobs import knob_types


@knob_types
def setting(rate: float, size: Sequence[int] = (1,), name: str | None = None) -> float:
    return rate


def test_a_whole_number_is_a_float_and_a_list_a_sequence():
    assert setting(1, [2, 3], None) == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"rate": "high"}, r"parameter rate='high' .* not float or int"),
        ({"rate": 1.0, "size": 128}, "parameter size=128"),
        ({"rate": 1.0, "size": ["x"]}, r"parameter size=\['x'\]"),
        ({"rate": 1.0, "name": 3}, "parameter name=3"),
    ],
)
def test_another_type_is_named_with_its_value(arguments, said):
    with pytest.raises(BeartypeCallHintParamViolation, match=said):
        setting(**arguments)


def test_words_of_the_command_line_stand_for_none_and_for_true_and_false():
    @knob_types
    def switched(amp: bool, clip: float | None = 1.0, gate: bool | None = True, name: str = "x") -> tuple:
        return amp, clip, gate, name

    assert switched("true", "none", "false", "true") == (True, None, False, "true")
    assert switched(amp="false", gate="null") == (False, 1.0, None, "x")
    with pytest.raises(BeartypeCallHintParamViolation, match="amp='yes'"):
        switched("yes")


def test_a_single_string_is_a_list_of_one_where_strings_are_listed():
    @knob_types
    def carried(prefixes: Sequence[str] | None = None, keys: str | Sequence[str] = "image") -> tuple:
        return prefixes, keys

    assert carried("down_", "label") == (["down_"], "label")
    assert carried(prefixes="none") == (None, "image")
    assert carried(["conv_0.", "down_"]) == (["conv_0.", "down_"], "image")
    with pytest.raises(BeartypeCallHintParamViolation, match="prefixes=3"):
        carried(3)
