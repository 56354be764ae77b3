"""Statistics of a comparison of two arms over draws and subjects, on arrays alone.

A difference x is a matrix (draws, subjects): the Dice of one arm minus that of another, in points from 0 to 100. A draw
is one choice of labelled people with its own pre-training; all subjects of a draw share its luck, and all draws share
the subjects. Both are therefore sampled, and an interval has to cover both (Owen and Eckles 2012,
https://doi.org/10.1214/12-AOAS547).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

FEW_DRAWS = 8  # below, the degrees of freedom are those of the smaller side: Satterthwaite's are too many


class Interval(NamedTuple):
    """A mean with its interval; entries other than the mean are NaN for fewer than 2 draws or subjects.

    Attributes:
        mean: the mean over draws and subjects.
        low: lower end of the interval.
        high: upper end of the interval.
        se: standard error of the mean.
        df: degrees of freedom.
        p: two-sided p value of a mean of 0, by Student's t.
    """

    mean: float
    low: float
    high: float
    se: float
    df: float
    p: float


class Paired(NamedTuple):
    """The difference of two arms.

    Attributes:
        difference: (draws, subjects), of the draws that both arms finished.
        dropped: number of draws that only one arm finished, or neither.
    """

    difference: np.ndarray
    dropped: int


def paired(scores: np.ndarray, against: np.ndarray) -> Paired:
    """Subtract the scores of two arms, draw by draw and subject by subject.

    Args:
        scores: scores of an arm (draws, subjects); NaN where a run crashed.
        against: scores of the other arm, of the same draws and subjects.

    Raises:
        ValueError: the arms have other numbers of draws or subjects.
    """
    if scores.shape != against.shape or scores.ndim != 2:
        raise ValueError(f"paired: scores {scores.shape} and {against.shape} must be (draws, subjects) of one shape")
    difference = scores - against
    whole = np.isfinite(difference).all(1)
    return Paired(difference[whole], int((~whole).sum()))


def spread(x: np.ndarray) -> tuple[float, float]:
    """Return the standard error of the mean of a difference, and its degrees of freedom.

    The squared standard error is the variance of the draws' means over the number of draws plus that of the subjects'
    means over the number of subjects; the degrees of freedom are Satterthwaite's, between those of the smaller and of
    the larger side, and those of the smaller side for fewer than 8 draws.

    Args:
        x: differences (draws, subjects), at least 2 of each.
    """
    draws, subjects = x.shape
    of_draws, of_subjects = x.mean(1).var(ddof=1) / draws, x.mean(0).var(ddof=1) / subjects
    squared = of_draws + of_subjects
    smaller, larger = min(draws, subjects) - 1.0, max(draws, subjects) - 1.0
    if draws < FEW_DRAWS or squared == 0:
        return math.sqrt(squared), smaller
    df = squared**2 / (of_draws**2 / (draws - 1) + of_subjects**2 / (subjects - 1))
    return math.sqrt(squared), float(np.clip(df, smaller, larger))


def interval(x: np.ndarray, level: float = 0.95, resamples: int = 10_000, seed: int = 0) -> Interval:
    """Return the mean of a difference with an interval that covers draws and subjects.

    A bootstrap that draws draws and subjects independently gives the shape of the interval, and Student's t with
    `spread` gives its width.

    Args:
        x: differences (draws, subjects).
        level: coverage of the interval, above 0 to below 1.
        resamples: number of bootstrap samples.
        seed: seed of the bootstrap.
    """
    mean = float(x.mean()) if x.size else math.nan
    if min(x.shape) < 2:
        return Interval(mean, *[math.nan] * 5)
    se, df = spread(x)
    if se == 0:
        return Interval(mean, mean, mean, se, df, float(mean == 0))
    random = np.random.default_rng(seed)
    draws, subjects = (random.multinomial(count, np.full(count, 1 / count), resamples) / count for count in x.shape)
    deviations = np.einsum("rd,ds,rs->r", draws, x, subjects, optimize=True) - mean
    tail = (1 - level) / 2
    scale = se / deviations.std(ddof=1) * stats.t.ppf(1 - tail, df) / stats.norm.ppf(1 - tail)
    low, high = mean + scale * np.quantile(deviations, [tail, 1 - tail])
    return Interval(mean, float(low), float(high), se, df, float(2 * stats.t.sf(abs(mean) / se, df)))


def noninferiority(x: np.ndarray, margin: float) -> float:
    """Return the one-sided p value of a mean difference of -margin or less.

    Args:
        x: differences (draws, subjects), at least 2 of each.
        margin: largest loss that counts as none, in points, above 0.
    """
    se, df = spread(x)
    return float(stats.t.sf(_standardised(float(x.mean()) + margin, se), df))


def equivalence(x: np.ndarray, margin: float) -> float:
    """Return the p value of two one-sided tests for a mean difference outside ±margin (Schuirmann 1987).

    Args:
        x: differences (draws, subjects), at least 2 of each.
        margin: largest difference that counts as none, in points, above 0.
    """
    return max(noninferiority(x, margin), noninferiority(-x, margin))


def wilcoxon(x: np.ndarray) -> float:
    """Return the two-sided p value of Wilcoxon's signed-rank test over subjects, of their means over draws."""
    means = x.mean(0)
    return float(stats.wilcoxon(means).pvalue) if np.any(means) else 1.0


def holm(p: Sequence[float]) -> np.ndarray:
    """Adjust p values for their number (Holm 1979); the adjusted values have the order of `p`.

    Example:
        >>> holm([0.01, 0.04, 0.03, 0.005, 0.5]).round(3).tolist()
        [0.04, 0.09, 0.09, 0.025, 0.5]
    """
    values = np.asarray(p, dtype=float)
    order = np.argsort(values, kind="stable")
    stepped = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def _standardised(value: float, se: float) -> float:
    if se == 0:
        return math.copysign(math.inf, value) if value else 0.0
    return value / se
