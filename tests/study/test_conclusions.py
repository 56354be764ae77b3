"""Verdicts: the rule, its errors and its power on simulated studies, and the words."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulation import MILD, simulated

from medcl_monai.study.conclusions import Comparison, Rule, statement, verdict
from medcl_monai.study.statistics import Interval, equivalence, holm, interval, wilcoxon

RULE = Rule()
CLEAR = Comparison(
    "joint", "scratch", 2, False, Interval(2.0, 1.2, 2.8, 0.4, 9, 0.001), 10, 40, 0, 0.01, 0.01, 0.9
)


def compared(studies, all_labels=False):
    """Comparisons of one study, adjusted together."""
    found = [interval(x, resamples=500) for x in studies]
    p, w = holm([each.p for each in found]), holm([wilcoxon(x) for x in studies])
    return [
        Comparison("a", "b", 2, all_labels, one, *x.shape, 0, *adjusted, equivalence(x, 0.5))
        for x, one, *adjusted in zip(studies, found, p, w, strict=True)
    ]


def negated(comparison):
    value = comparison.interval
    return replace(comparison, interval=value._replace(mean=-value.mean, low=-value.high, high=-value.low))


@pytest.mark.parametrize(("changes", "expected"), [
    ({}, "better"),
    ({"interval": Interval(0.6, 0.2, 1.0, 0.2, 9, 0.01)}, "difference below 1 Dice"),
    ({"interval": Interval(2.0, -0.1, 4.1, 1.0, 9, 0.06)}, "no difference shown"),
    ({"p_holm": 0.06}, "no difference shown"),
    ({"wilcoxon_p_holm": 0.06}, "no difference shown"),
    ({"draws": 4}, "incomplete"),
    ({"subjects": 5}, "incomplete"),
    ({"dropped": 2}, "incomplete"),
    ({"dropped": 1}, "better"),
    ({"control": True}, ""),
    ({"p_holm": 0.5, "all_labels": True, "tost_p": 0.01}, "equivalent within ±0.5 Dice"),
    ({"p_holm": 0.5, "all_labels": False, "tost_p": 0.01}, "no difference shown"),
])
def test_the_first_verdict_that_holds(changes, expected):
    assert verdict(replace(CLEAR, **changes), RULE) == expected


@given(
    st.floats(-5, 5), st.floats(0, 3), st.floats(0, 0.2), st.floats(0, 0.2), st.integers(3, 12), st.integers(0, 3),
    st.booleans(),
)
def test_the_word_better_needs_every_condition_and_the_other_sign_is_worse(mean, half, p, w, draws, dropped, control):
    value = Interval(mean, mean - half, mean + half, half / 2, 9, p)
    comparison = replace(
        CLEAR, interval=value, p_holm=p, wilcoxon_p_holm=w, draws=draws, dropped=dropped, control=control
    )
    said = statement(comparison, RULE)
    if "better" in said:
        assert verdict(comparison, RULE) == "better"
        assert value.low > 0
        assert mean >= 1
        assert max(p, w) < 0.05
        assert draws >= 5
        assert dropped / (draws + dropped) <= 0.1
        assert not control
        assert "worse" in statement(negated(comparison), RULE)


def test_a_sentence():
    assert statement(CLEAR, RULE) == (
        "With 2 labelled people, joint minus scratch is +2.0 Dice [+1.2, +2.8] (10 draws, 40 test subjects): "
        "joint is better than scratch."
    )
    alone = replace(CLEAR, labelled=1, draws=1, interval=Interval(2.0, *[float("nan")] * 5))
    assert statement(alone, RULE) == (
        "With 1 labelled person, joint minus scratch is +2.0 Dice (1 draws, 40 test subjects): "
        "too few complete runs for a verdict."
    )


def test_without_an_effect_a_study_of_twelve_comparisons_seldom_claims_one():
    random = np.random.default_rng(4)
    better = claims = 0
    for _ in range(150):
        found = [verdict(each, RULE) for each in compared([simulated(random, MILD) for _ in range(12)])]
        better += any(word in ("better", "worse") for word in found)
        claims += any(word != "no difference shown" for word in found)
    assert better / 150 <= 0.05
    assert claims / 150 <= 0.08 + 0.03  # of 150 studies, two more may be luck


def test_two_points_are_found():
    random = np.random.default_rng(5)
    found = [verdict(compared([simulated(random, MILD, effect=2.0)])[0], RULE) for _ in range(100)]
    assert found.count("better") >= 95
