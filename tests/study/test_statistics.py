"""Statistics over draws and subjects: known values, coverage, errors and power on simulated studies."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from simulation import DRAW_HEAVY, MILD, SUBJECT_HEAVY, simulated

from medcl_monai.study.statistics import equivalence, holm, interval, noninferiority, paired, spread, wilcoxon


def example(draws=10, subjects=12):
    k = np.arange(draws * subjects).reshape(draws, subjects)
    return 1 + np.sin(1 + 0.7 * k + 0.013 * k**2)


def covers(x, truth=0.0):
    se, df = spread(x)
    return abs(x.mean() - truth) <= stats.t.ppf(0.975, df) * se


def test_known_values():
    x = example()
    se, df = spread(x)
    found = interval(x)
    assert found.mean == pytest.approx(1.005754501, rel=1e-9)
    assert x.mean(1).var(ddof=1) / 10 == pytest.approx(0.000437665, abs=1e-9)
    assert x.mean(0).var(ddof=1) / 12 == pytest.approx(0.005085333, abs=1e-9)
    assert se == pytest.approx(0.074316880, rel=1e-7)
    assert df == 11
    half = stats.t.ppf(0.975, df) * se
    assert (found.mean - half, found.mean + half) == pytest.approx((0.842184, 1.169325), abs=1e-6)
    assert (found.low, found.high) == pytest.approx((0.8385, 1.1686), abs=0.008)
    assert found.p == pytest.approx(3.349e-08, rel=1e-3)
    shifted = x - 1
    assert interval(shifted).p == pytest.approx(0.9396704, abs=1e-6)
    assert wilcoxon(shifted) == pytest.approx(0.6772461, abs=1e-6)
    assert equivalence(shifted, 0.5) == pytest.approx(1.80433e-05, rel=1e-4)
    assert equivalence(shifted, 0.1) == pytest.approx(0.115462, abs=1e-6)
    first = x[:5]
    assert spread(first) == (pytest.approx(0.111473583, rel=1e-7), 4)
    assert first.mean() == pytest.approx(1.013224587, rel=1e-9)


def test_equal_rows_give_the_t_test_of_a_row_and_equal_columns_that_of_a_column():
    row = example()[0]
    repeated = np.tile(row, (10, 1))
    assert interval(repeated).p == pytest.approx(stats.ttest_1samp(row, 0).pvalue, rel=1e-9)
    assert row.mean() / spread(repeated)[0] == pytest.approx(5.2397895, rel=1e-7)
    column = example()[:, :1]
    assert interval(np.tile(column, (1, 12))).p == pytest.approx(stats.ttest_1samp(column[:, 0], 0).pvalue, rel=1e-9)


def test_differences_without_spread_and_too_few_draws():
    same = interval(np.full((10, 12), 0.5))
    assert (same.low, same.high, same.p) == (0.5, 0.5, 0.0)
    assert equivalence(np.zeros((10, 12)), 0.5) == 0.0
    assert wilcoxon(np.zeros((10, 12))) == 1.0
    alone = interval(example()[:1])
    assert alone.mean == pytest.approx(example()[0].mean())
    assert np.isnan([alone.low, alone.high, alone.se, alone.df, alone.p]).all()


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.randoms(use_true_random=False))
def test_holm_never_lowers_a_p_value_and_keeps_the_order(p, random):
    adjusted = holm(p)
    assert (adjusted >= np.asarray(p) - 1e-15).all()
    assert (adjusted <= 1).all()
    assert (np.diff(adjusted[np.argsort(p, kind="stable")]) >= 0).all()
    order = random.sample(range(len(p)), len(p))
    np.testing.assert_allclose(holm([p[place] for place in order]), adjusted[order])


def test_holm_of_known_values():
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005, 0.5]), [0.04, 0.09, 0.09, 0.025, 0.5])


def test_a_crashed_draw_is_dropped_on_both_sides():
    first, second = example() + 3, example()
    second[2, 5] = np.nan
    first[7] = np.nan
    found = paired(first, second)
    assert found.dropped == 2
    np.testing.assert_allclose(found.difference, 3)
    assert found.difference.shape == (8, 12)
    with pytest.raises(ValueError, match=r"scores \(10, 12\) and \(10, 11\) must be \(draws, subjects\) of one shape"):
        paired(first, second[:, 1:])


@pytest.mark.parametrize(("spreads", "options", "least"), [
    (MILD, {}, 0.93), (DRAW_HEAVY, {}, 0.93), (SUBJECT_HEAVY, {}, 0.93), (MILD, {"skewed": True}, 0.93),
    (MILD, {"draws": 5}, 0.95),
], ids=["mild", "draw-heavy", "subject-heavy", "skewed", "five draws"])
def test_the_interval_covers_the_truth(spreads, options, least):
    random = np.random.default_rng(1)
    assert np.mean([covers(simulated(random, spreads, **options)) for _ in range(2000)]) >= least


def test_the_calibrated_bootstrap_covers_the_truth_and_subjects_alone_do_not():
    random = np.random.default_rng(2)
    studies = [simulated(random, MILD) for _ in range(300)]
    found = [interval(x, resamples=2000) for x in studies]
    assert np.mean([each.low <= 0 <= each.high for each in found]) >= 0.93
    of_subjects = [stats.ttest_1samp(x.mean(0), 0).confidence_interval() for x in studies]
    assert np.mean([each.low <= 0 <= each.high for each in of_subjects]) < 0.85


def test_noninferiority_and_equivalence_keep_their_error_and_have_power():
    random = np.random.default_rng(3)
    calm = {"draw": 0.0, "run": 0.25, "subject": 0.6, "both": 0.3, "rest": 0.6}
    at_margin = [equivalence(simulated(random, calm, subjects=60, effect=0.5), 0.5) < 0.05 for _ in range(1000)]
    assert np.mean(at_margin) <= 0.06
    level = [equivalence(simulated(random, calm, subjects=60), 0.5) < 0.05 for _ in range(500)]
    assert np.mean(level) >= 0.95
    x = example() - 1
    assert noninferiority(x, 1.0) < noninferiority(x, 0.1)
