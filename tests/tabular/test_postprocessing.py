"Post-processing equals the library that it follows, and Fairlearn's own result."
import logging

import numpy as np, pandas as pd, pytest

from fairness_repair.tabular.postprocessing import (
    CalibratedEqualizedOdds, RejectOption, ThresholdOptimiser, postprocess, privileged_group)


def people(seed, n=3000):
    "Scores that favour one group, labels and groups."
    rng = np.random.default_rng(seed)
    group = (rng.random(n) < .4).astype(int)
    y = rng.random(n) < np.where(group == 1, .5, .3)
    scores = 1/(1 + np.exp(-(rng.normal(size=n) + 1.5*y - .8 + .6*group)))
    return scores, y, group


def aif360_datasets(scores, y, group):
    "The true and the predicted dataset, as AIF360 wants them."
    logging.getLogger().setLevel(logging.ERROR)
    datasets = pytest.importorskip("aif360.datasets")
    frame = pd.DataFrame(dict(y=y.astype(float), group=group.astype(float)))
    true = datasets.BinaryLabelDataset(df=frame, label_names=["y"], protected_attribute_names=["group"])
    predicted = true.copy()
    predicted.scores, predicted.labels = scores[:, None], (scores[:, None] > .5).astype(float)
    return true, predicted


def groups_of(y, group):
    privileged = privileged_group(y, group)
    return dict(unprivileged_groups=[dict(group=1 - privileged)], privileged_groups=[dict(group=privileged)])


@pytest.mark.parametrize("bound", [.05, 1e-9]) # the second cannot be met
def test_reject_option_is_that_of_aif360(bound):
    scores, y, group = people(0, 400)
    true, predicted = aif360_datasets(scores, y, group)
    from aif360.algorithms.postprocessing import RejectOptionClassification
    theirs = RejectOptionClassification(**groups_of(y, group), metric_name="Average odds difference",
                                        metric_ub=bound, metric_lb=-bound, num_class_thresh=100, num_ROC_margin=50)
    theirs.fit(true, predicted)
    ours = RejectOption(bound).fit(scores, y, group)
    t, m, privileged = theirs.classification_threshold, theirs.ROC_margin, privileged_group(y, group)
    np.testing.assert_allclose(ours.thresholds[[privileged, 1 - privileged]], [t + m, t - m], atol=1e-12)
    expected = theirs.predict(predicted).labels[:, 0] == 1
    np.testing.assert_array_equal(ours.predict(scores, group), expected)


@pytest.mark.parametrize("seed", range(5))
def test_calibrated_equalized_odds_is_that_of_aif360(seed):
    scores, y, group = people(seed)
    true, predicted = aif360_datasets(scores, y, group)
    from aif360.algorithms.postprocessing import CalibratedEqOddsPostprocessing
    theirs = CalibratedEqOddsPostprocessing(**groups_of(y, group), seed=0).fit(true, predicted)
    ours = CalibratedEqualizedOdds().fit(scores, y, group)
    privileged = privileged_group(y, group)
    expected = theirs.priv_mix_rate, theirs.unpriv_mix_rate
    np.testing.assert_allclose(ours.mix_rates[[privileged, 1 - privileged]], expected, atol=1e-9)


@pytest.mark.parametrize("objective", ["accuracy_score", "balanced_accuracy_score"])
def test_threshold_optimiser_is_fairlearns_on_a_fitted_model(objective):
    fairlearn = pytest.importorskip("fairlearn.postprocessing")
    from sklearn.linear_model import LogisticRegression
    rng = np.random.default_rng(0)
    _, y, group = people(1)
    X = rng.normal(size=(len(y), 3)) + y[:, None]
    model = LogisticRegression().fit(X, y)
    scores = model.predict_proba(X)[:, 1]
    theirs = fairlearn.ThresholdOptimizer(estimator=model, constraints="equalized_odds", objective=objective,
                                          prefit=True, predict_method="predict_proba")
    theirs.fit(X, y, sensitive_features=group)
    expected = theirs.predict(X, sensitive_features=group, random_state=0) > 0
    found = ThresholdOptimiser(objective).fit(scores, y, group).predict(scores, group, 0)
    np.testing.assert_array_equal(found, expected)
