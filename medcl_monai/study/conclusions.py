"""What may be said of a comparison: the verdict by a fixed rule, and the one function that writes the sentence."""

from dataclasses import dataclass

from medcl_monai.study.statistics import Interval

BETTER, WORSE, SMALL = "better", "worse", "difference below {:g} Dice"
EQUIVALENT, NOTHING, INCOMPLETE = "equivalent within ±{:g} Dice", "no difference shown", "incomplete"


@dataclass(frozen=True)
class Rule:
    """When a difference may be called one.

    Attributes:
        smallest_effect: Dice points below which nothing is called better or worse.
        equivalence_margin: Dice points within which two arms may be called equivalent.
        alpha: level of the adjusted tests.
        draws: least number of complete draws.
        subjects: least number of test subjects.
        crashed: largest share of draws that may have crashed.
    """

    smallest_effect: float = 1.0
    equivalence_margin: float = 0.5
    alpha: float = 0.05
    draws: int = 5
    subjects: int = 6
    crashed: float = 0.1


@dataclass(frozen=True)
class Comparison:
    """An arm against another in one cell of a study.

    Attributes:
        arm: name of the arm.
        against: name of the arm that it is compared with.
        labelled: number of labelled people.
        all_labels: whether these are all labelled people of the pool.
        interval: the mean difference with its interval, in Dice points.
        draws: number of complete draws.
        subjects: number of test subjects.
        dropped: number of draws that crashed in one arm or both.
        p_holm: p value of Student's t, adjusted over all comparisons of the study.
        wilcoxon_p_holm: p value of Wilcoxon's test over subjects, adjusted alike.
        tost_p: p value of the tests of equivalence.
        control: whether the arm is a control, which never gets a verdict.
    """

    arm: str
    against: str
    labelled: int
    all_labels: bool
    interval: Interval
    draws: int
    subjects: int
    dropped: int
    p_holm: float
    wilcoxon_p_holm: float
    tost_p: float
    control: bool = False


def verdict(comparison: Comparison, rule: Rule) -> str:
    """Return the first verdict of the rule that holds; a control has the empty verdict."""
    if comparison.control:
        return ""
    lost = comparison.dropped / max(comparison.draws + comparison.dropped, 1)
    if comparison.draws < rule.draws or comparison.subjects < rule.subjects or lost > rule.crashed:
        return INCOMPLETE
    low, high, mean = comparison.interval.low, comparison.interval.high, comparison.interval.mean
    clear = (low > 0 or high < 0) and max(comparison.p_holm, comparison.wilcoxon_p_holm) < rule.alpha
    if clear and abs(mean) >= rule.smallest_effect:
        return BETTER if mean > 0 else WORSE
    if clear:
        return SMALL.format(rule.smallest_effect)
    if comparison.all_labels and comparison.tost_p < rule.alpha:
        return EQUIVALENT.format(rule.equivalence_margin)
    return NOTHING


def statement(comparison: Comparison, rule: Rule) -> str:
    """Return one sentence on a comparison; no other function of the package calls an arm better."""
    value = comparison.interval
    people = f"{comparison.labelled} labelled {'person' if comparison.labelled == 1 else 'people'}"
    where = f"With {people}, {comparison.arm} minus {comparison.against} is {value.mean:+.1f} Dice"
    span = f" [{value.low:+.1f}, {value.high:+.1f}]" if value.low == value.low else ""
    counts = f"{comparison.draws} draws, {comparison.subjects} test subjects"
    found = verdict(comparison, rule)
    said = {
        BETTER: f"{comparison.arm} is better than {comparison.against}",
        WORSE: f"{comparison.arm} is worse than {comparison.against}",
        INCOMPLETE: "too few complete runs for a verdict", "": "a control, without a verdict",
    }.get(found, found)
    return f"{where}{span} ({counts}): {said}."
