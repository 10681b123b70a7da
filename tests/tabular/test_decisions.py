"Group metrics against fairlearn and scikit-learn, on random decisions."
import numpy as np, pytest
from fairlearn.metrics import MetricFrame, demographic_parity_difference, equal_opportunity_difference, equalized_odds_difference
from sklearn.metrics import accuracy_score, f1_score, precision_score

from fairness_repair.tabular.decisions import accuracy, cells, equal_opportunity, equalized_odds, f1, predictive_parity, statistical_parity, tally


@pytest.mark.parametrize("groups", [2, 3, 7])
@pytest.mark.parametrize("rate", [.02, .3, .9])
def test_agrees_with_fairlearn_and_scikit_learn(groups, rate):
    rng = np.random.default_rng(groups)
    y, yes, group = rng.random(900) < .3, rng.random(900) < rate, rng.integers(0, groups, 900)
    cell = cells(y, group, groups)
    positive, total = tally(yes, cell, groups), tally(np.ones(900), cell, groups)
    sensitive = dict(sensitive_features=group)
    assert equalized_odds(positive, total) == pytest.approx(equalized_odds_difference(y, yes, **sensitive))
    assert statistical_parity(positive, total) == pytest.approx(demographic_parity_difference(y, yes, **sensitive))
    assert equal_opportunity(positive, total) == pytest.approx(equal_opportunity_difference(y, yes, **sensitive))
    precision = MetricFrame(metrics=lambda a, b: precision_score(a, b, zero_division=0), y_true=y, y_pred=yes, **sensitive)
    assert predictive_parity(positive, total) == pytest.approx(precision.difference())
    assert f1(positive, total) == pytest.approx(f1_score(y, yes, zero_division=0))
    assert accuracy(positive, total) == pytest.approx(accuracy_score(y, yes))


def test_rows_outside_the_comparison_count_for_utility_only():
    rng = np.random.default_rng(0)
    y, yes, group = rng.random(600) < .4, rng.random(600) < .5, rng.integers(-1, 2, 600)
    cell, inside = cells(y, group, 2), group >= 0
    positive, total = tally(yes, cell, 2), tally(np.ones(600), cell, 2)
    assert equalized_odds(positive, total) == pytest.approx(equalized_odds_difference(y[inside], yes[inside], sensitive_features=group[inside]))
    assert f1(positive, total) == pytest.approx(f1_score(y, yes))
