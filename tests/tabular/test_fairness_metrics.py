"Group metrics against fairlearn and scikit-learn, on random decisions."
import itertools

import numpy as np, pytest
from fairlearn import metrics as fairlearn
from sklearn import metrics as sklearn

from fairness_repair.tabular.fairness_metrics import (
    accuracy_score, count_by_group_label, demographic_parity_difference, equal_opportunity_difference,
    equalized_odds_difference, equalized_odds_interval, equalized_odds_noise_floor, f1_score, group_label_codes,
    predictive_parity_difference, smallest_cell)


@pytest.mark.parametrize("groups", [2, 3, 7])
@pytest.mark.parametrize("rate", [.02, .3, .9])
def test_agrees_with_fairlearn_and_scikit_learn(groups, rate):
    rng = np.random.default_rng(groups)
    y, predicted, group = rng.random(900) < .3, rng.random(900) < rate, rng.integers(0, groups, 900)
    codes = group_label_codes(y, group, groups)
    positives, totals = (count_by_group_label(rows, codes, groups) for rows in (predicted, np.ones(900)))
    args = dict(y_true=y, y_pred=predicted, sensitive_features=group)
    for ours in (equalized_odds_difference, demographic_parity_difference, equal_opportunity_difference):
        theirs = getattr(fairlearn, ours.__name__)
        assert ours(positives, totals) == pytest.approx(theirs(**args)), ours.__name__
    precision_score = lambda a, b: sklearn.precision_score(a, b, zero_division=0)
    precision = fairlearn.MetricFrame(metrics=precision_score, **args)
    assert predictive_parity_difference(positives, totals) == pytest.approx(precision.difference())
    assert f1_score(positives, totals) == pytest.approx(sklearn.f1_score(y, predicted, zero_division=0))
    assert accuracy_score(positives, totals) == pytest.approx(sklearn.accuracy_score(y, predicted))


def test_rows_outside_the_comparison_count_for_utility_only():
    rng = np.random.default_rng(0)
    y, predicted, group = rng.random(600) < .4, rng.random(600) < .5, rng.integers(-1, 2, 600)
    codes, inside = group_label_codes(y, group, 2), group >= 0
    positives, totals = (count_by_group_label(rows, codes, 2) for rows in (predicted, np.ones(600)))
    compared = dict(sensitive_features=group[inside])
    expected = fairlearn.equalized_odds_difference(y[inside], predicted[inside], **compared)
    assert equalized_odds_difference(positives, totals) == pytest.approx(expected)
    assert f1_score(positives, totals) == pytest.approx(sklearn.f1_score(y, predicted))


@pytest.mark.parametrize("rates, rows", [
    ([[.1, .6], [.1, .6]], [[500, 60], [900, 200]]), ([[.1, .6], [.2, .5]], [[500, 60], [900, 200]]),
    ([[.1, .5], [.1, .9]], [[50, 20], [90, 20]]), ([[.1, .6], [.1, .6], [.15, .7]], [[100, 30], [100, 40], [50, 20]])])
def test_interval_of_equalized_odds_covers_the_truth(rates, rows):
    rng, totals, rates = np.random.default_rng(0), np.array([*rows, [0, 0]]), np.array(rates)
    truth, covered = np.ptp(rates, axis=0).max(), []
    for _ in range(1000):
        positives = np.array([*rng.binomial(rows, rates), [0, 0]])
        low, high = equalized_odds_interval(positives, totals)
        assert low <= equalized_odds_difference(positives, totals) <= high
        covered.append(low <= truth <= high)
    assert np.mean(covered) > .935


def test_interval_of_a_rate_without_rows_is_everything_and_the_smallest_cell_is_named():
    totals = np.array([[5, 0], [7, 3], [0, 0]])
    assert smallest_cell(totals) == (0, 1, 0)
    assert equalized_odds_interval(np.array([[1, 0], [1, 3], [0, 0]]), totals)[1] == 1


def test_noise_floor_equals_the_enumerated_mean():
    "Mean over all outcomes of binomial counts, weighted by their probabilities; uncompared rows do not matter."
    from scipy.stats import binom
    totals, positives = np.array([[3, 2], [4, 3], [9, 9]]), np.array([[1, 2], [2, 1], [9, 0]])
    rates = positives[:2].sum(0)/totals[:2].sum(0)
    cells = [(totals[g, label], rates[label]) for g in (0, 1) for label in (0, 1)]
    mean = squares = 0.
    for counts in itertools.product(*(range(n + 1) for n, _ in cells)):
        chance = np.prod([binom.pmf(k, n, rate) for k, (n, rate) in zip(counts, cells)])
        drawn = np.vstack([np.reshape(counts, (2, 2)), [0, 0]])
        eod = equalized_odds_difference(drawn, totals)
        mean, squares = mean + chance*eod, squares + chance*eod**2
    n = 20_000
    error = np.sqrt((squares - mean**2)/n)
    assert abs(equalized_odds_noise_floor(positives, totals, n_draws=n) - mean) < 5*error


@pytest.mark.parametrize("totals", [[[1000, 40], [1000, 4000]], [[200, 64], [3000, 700]], [[30, 50], [20, 9]]])
def test_interval_is_that_of_two_different_groups(totals):
    "Newcombe's upper bound of both labels and both orders; a small cell is not compared with itself."
    from scipy.stats import binomtest
    totals = np.array([*totals, [0, 0]])
    positives = totals//2
    bounds = []
    for label, a, b in itertools.product((0, 1), (0, 1), (0, 1)):
        if a == b: continue
        (p, _, u), (q, l, _) = ((t.statistic, *t.proportion_ci(.95, method="wilson")) for t in (
            binomtest(int(positives[g, label]), int(totals[g, label])) for g in (a, b)))
        bounds.append(p - q + np.sqrt((u - p)**2 + (q - l)**2))
    np.testing.assert_allclose(equalized_odds_interval(positives, totals)[1], max(bounds), rtol=1e-6)
