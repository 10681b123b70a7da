"The estimator as users of scikit-learn and Fairlearn meet it."
import copy, importlib.util

import joblib, numpy as np, pandas as pd, pyarrow as pa, pytest, sklearn, torch
from fairlearn.metrics import MetricFrame, equalized_odds_difference, true_positive_rate
from fairlearn.postprocessing import ThresholdOptimizer
from scipy import sparse
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import StackingClassifier
from sklearn.frozen import FrozenEstimator
from sklearn.inspection import permutation_importance
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, make_scorer
from sklearn.model_selection import GridSearchCV, cross_validate
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import nn

from fairness_repair.core import InputError
from fairness_repair.tabular import estimator
from fairness_repair.tabular.estimator import NeuFairClassifier
from fairness_repair.tabular.networks import TrainingRecipe, as_layers, make_mlp, train_on_rows
from fairness_repair.tabular.neurons import PrunableMLP, forward_logits

needs_skorch = pytest.mark.skipif(not importlib.util.find_spec("skorch"), reason="needs skorch")
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
small = TrainingRecipe((16,), 0., "adam", .03, 15, 64)
quick = dict(recipe=small, budget=300, min_f1_share=.9) # with 600 rows, 0.98 and the margin are nearly all of the F1


def in_pairs(X):
    "Groups that no feature tells: two rows of one, two of the other."
    return np.arange(len(np.asarray(X)))//2%2


def a_small_mlp(**kwargs): return MLPClassifier((16,), learning_rate_init=.03, max_iter=40, random_state=0, **kwargs)


# The groups of `fit` are required, so scikit-learn's checks, which know X and y alone, take them from a function of X.
# Their tables have a few rows only: nothing is held out.
checked = dict(sensitive_columns=in_pairs, budget=60, validation_fraction=0, recipe=small)


@pytest.mark.filterwarnings("ignore")
@parametrize_with_checks([NeuFairClassifier(**checked), NeuFairClassifier(a_small_mlp(), **checked)])
def test_checks_of_scikit_learn(estimator, check): check(estimator)


@pytest.fixture(scope="module")
def loans():
    "Six hundred applicants; the label depends on the sex, which is a feature too."
    rng, n = np.random.default_rng(0), 600
    sex, region = rng.choice(["f", "m"], n), rng.choice(["north", "south"], n)
    X = pd.DataFrame(dict(income=40_000 + 9000*rng.normal(size=n), debt=rng.normal(size=n), male=1.*(sex == "m")))
    y = (X["income"] - 40_000)/9000 - X["debt"] + .9*X["male"] + .5*rng.normal(size=n) > .4
    return X, y.astype(int).to_numpy(), pd.DataFrame(dict(sex=sex, region=region))


@pytest.fixture(scope="module")
def scaled(loans):
    X, y, who = loans
    return StandardScaler().fit_transform(X).astype(np.float32), y, who["sex"]


@pytest.fixture(scope="module")
def fitted(scaled):
    X, y, sex = scaled
    return NeuFairClassifier(**quick).fit(X, y, sensitive_features=sex)


@pytest.fixture
def routing():
    with sklearn.config_context(enable_metadata_routing=True): yield


def skorch_net(binary, **kwargs):
    import skorch
    kind = skorch.NeuralNetBinaryClassifier if binary else skorch.NeuralNetClassifier
    module = make_mlp([3, 16, 1]) if binary else nn.Sequential(make_mlp([3, 16, 2]), nn.Softmax(dim=-1))
    torch.manual_seed(0)
    return kind(module, optimizer=torch.optim.Adam, lr=.02, max_epochs=10, verbose=0, train_split=None, **kwargs)


def two_outputs(network, end):
    "The same network with a logit for each class, or with what `end` makes of its outputs."
    if isinstance(end, nn.Sigmoid): return nn.Sequential(*network, end)
    last = nn.Linear(network[-1].in_features, 2)
    with torch.no_grad():
        last.weight[:], last.bias[:] = torch.cat([-network[-1].weight, network[-1].weight])/2, 0
        last.bias[1] = network[-1].bias[0]
    return nn.Sequential(*network[:-1], last, *([end] if end else []))


def networks(scaled, kind):
    "A network of this kind as it is given, and as it was before the repair."
    X, y, _ = scaled
    if kind.startswith("torch"):
        plain, _ = train_on_rows(X, y == 1, X, y == 1, small)
        ends = {"one logit": "no", "two logits": None, "softmax": nn.Softmax(dim=1), "log softmax": nn.LogSoftmax(dim=1),
                "sigmoid": nn.Sigmoid()}
        end = ends[kind.removeprefix("torch, ")]
        network = plain if end == "no" else two_outputs(plain, end)
        return network, network
    if kind == "MLPClassifier":
        fitted = a_small_mlp().fit(X, y)
        return FrozenEstimator(fitted), fitted
    binary = kind == "skorch, one logit"
    fitted = skorch_net(binary).fit(X, y.astype(np.float32 if binary else np.int64))
    return FrozenEstimator(fitted), fitted


def own_predictions(network, X):
    "What the repaired network says without the estimator."
    if not isinstance(network, nn.Module): return network.predict(X)
    out = network(torch.from_numpy(X)).detach().numpy()
    if out.shape[1] == 2: return out.argmax(1)
    return (out[:, 0] > (.5 if isinstance(network[-1], nn.Sigmoid) else 0)).astype(int)


@pytest.mark.parametrize("kind", [
    "torch, one logit", "torch, two logits", "torch, softmax", "torch, log softmax", "torch, sigmoid", "MLPClassifier",
    pytest.param("skorch, one logit", marks=needs_skorch), pytest.param("skorch, softmax", marks=needs_skorch)])
def test_the_network_comes_out_as_the_kind_that_came_in(scaled, kind):
    X, y, sex = scaled
    given, before = networks(scaled, kind)
    weights = copy.deepcopy(as_layers(before))
    found = NeuFairClassifier(given, **quick).fit(X, y, sensitive_features=sex)
    assert type(found.repaired_) is type(before) and found.drop_mask_.any()
    assert (found.predict(X) == own_predictions(found.repaired_, X)).all()
    for old, new in zip([*weights[0], *weights[1]], [*as_layers(before)[0], *as_layers(before)[1]]):
        assert (old == new).all(), "the given network was changed"
    masked = forward_logits(PrunableMLP(*weights, X, y, in_pairs(X)), found.drop_mask_)
    sure = np.abs(masked) > 1e-5
    assert sure.sum() > 590 and (found.predict(X)[sure] == (masked > 0)[sure]).all()
    incoming, _ = as_layers(found.repaired_)
    assert (np.abs(incoming[0]).sum(1) == 0).tolist() == found.drop_mask_.tolist()


@pytest.mark.parametrize("given", [None, "MLPClassifier", pytest.param("skorch", marks=needs_skorch)])
def test_a_network_that_is_not_fitted_is_fitted_in_a_copy(scaled, given):
    X, y, sex = scaled
    network = dict(MLPClassifier=a_small_mlp(), skorch=None).get(given)
    if given == "skorch": network = skorch_net(True)
    found = NeuFairClassifier(network, **quick).fit(X, np.where(y, "yes", "no"), sensitive_features=sex)
    assert found.score(X, np.where(y, "yes", "no")) > .8
    assert not hasattr(network, "coefs_") and not hasattr(network, "module_")


def test_a_network_that_is_trained_here_reads_raw_features(loans):
    X, y, who = loans
    found = NeuFairClassifier(**quick).fit(X, y, sensitive_features=who["sex"])
    assert found.score(X, y) > .8 and found.feature_names_in_.tolist() == list(X)
    with torch.inference_mode():
        logits = found.repaired_(torch.tensor(X.to_numpy(np.float32)))
    assert (found.predict(X) == (logits[:, 0] > 0).numpy()).all()


def test_the_same_seed_gives_the_same_network_and_predicting_needs_no_group(loans):
    X, y, who = loans
    one, two, other = (NeuFairClassifier(**quick, random_state=seed).fit(X, y, sensitive_features=who["sex"])
                       for seed in (0, 0, 1))
    assert (one.drop_mask_ == two.drop_mask_).all() and (one.predict_proba(X) == two.predict_proba(X)).all()
    assert (one.drop_mask_ != other.drop_mask_).any()
    assert (one.predict(X) == one.predict(X)).all()


def test_joblib_and_clone(loans, tmp_path):
    X, y, who = loans
    torch.manual_seed(0) # some untrained networks predict one class only, and are refused
    found = NeuFairClassifier(make_mlp([3, 12, 1]), **quick)
    with torch.no_grad(): found.estimator[0].weight /= 10_000
    found.fit(X, y, sensitive_features=who["sex"])
    joblib.dump(found, tmp_path/"clf.joblib")
    again = joblib.load(tmp_path/"clf.joblib")
    assert (again.predict_proba(X) == found.predict_proba(X)).all()
    fresh = clone(found)
    assert not hasattr(fresh, "repaired_") and fresh.get_params(deep=False).keys() == found.get_params(deep=False).keys()
    assert (fresh.fit(X, y, sensitive_features=who["sex"]).drop_mask_ == found.drop_mask_).all()


labels = [("no", "yes"), (1, 2), (-1, 1), (False, True), (1., 2.), ("<=50K", ">50K")]


@pytest.mark.parametrize("low, high", labels, ids=map(str, labels))
def test_labels_may_be_any_two_values(scaled, fitted, low, high):
    X, y, sex = scaled
    named = np.where(y == 1, high, low)
    found = NeuFairClassifier(**quick).fit(X, named, sensitive_features=sex)
    assert found.classes_.tolist() == [low, high]
    assert (found.predict(X) == np.where(fitted.predict(X) == 1, high, low)).all()


@pytest.mark.parametrize("form", [
    list, np.asarray, lambda s: s.set_axis(s.index[::-1] + 7), lambda s: s.to_frame(), lambda s: s.astype("category"),
    lambda s: (s == "m").tolist(), lambda s: np.asarray(s)[:, None], lambda s: pa.array(s), lambda s: tuple(s),
    lambda s: pd.DataFrame(dict(sex=s, same=1))])
def test_groups_in_any_form_are_the_same(scaled, fitted, form):
    X, y, sex = scaled
    found = NeuFairClassifier(**quick).fit(X, y, sensitive_features=form(sex))
    assert (found.drop_mask_ == fitted.drop_mask_).all()


def test_several_columns_are_combined_and_metric_frame_agrees_with_the_report(loans):
    X, y, who = loans
    found = NeuFairClassifier(**quick, validation_fraction=0).fit(X, y, sensitive_features=who)
    assert found.group_names_ == ("f, north", "f, south", "m, north", "m, south")
    report = found.report_.loc["search", "repaired"]
    args = dict(y_true=y, y_pred=found.predict(X), sensitive_features=who)
    assert report["eod"] == pytest.approx(equalized_odds_difference(**args))
    assert report["f1"] == pytest.approx(f1_score(y, found.predict(X)))
    assert report["eod_low"] <= report["eod"] <= report["eod_high"]
    frame = MetricFrame(metrics=true_positive_rate, **args)
    assert len(frame.by_group) == 4
    counts = pd.DataFrame(dict(who, y=y)).value_counts()
    assert report["smallest_cell"].endswith(f"{counts.min()} of 600 rows")


def test_rows_that_are_held_out_are_those_that_nothing_saw(scaled, monkeypatch):
    X, y, sex = scaled
    seen = []
    train_rows = estimator.train_on_rows
    def spy(X, y, X_val, y_val, *args, **kwargs):
        seen.append(len(X) + len(X_val))
        return train_rows(X, y, X_val, y_val, *args, **kwargs)
    monkeypatch.setattr(estimator, "train_on_rows", spy)
    found = NeuFairClassifier(**quick).fit(X, y, sensitive_features=sex)
    rows = {name: int(found.report_.loc[(name, "original"), "smallest_cell"].split(" of ")[1].split()[0])
            for name in ("search", "held-out")}
    assert seen == [rows["search"]] and sum(rows.values()) == 600 and abs(rows["held-out"] - 120) <= 2


X4, y4, s4 = np.random.default_rng(0).normal(size=(40, 3)), np.arange(40)%2, np.arange(40)//2%2
frame4 = pd.DataFrame(X4, columns=list("abc"))


@pytest.mark.parametrize("settings, X, y, groups, words", [
    ({}, X4, y4, None, "no groups: give fit(X, y, sensitive_features=...)"),
    ({}, X4, y4, s4[:30], "has the shape (30, 1), X has 40 rows"),
    ({}, X4, y4, "sex", "sensitive_features"),
    ({}, X4, y4, np.where(s4, "a", None), "missing values, by column: {0: 20}"),
    ({}, X4, y4, pd.DataFrame(dict(sex=s4, race=np.where(s4, 1., np.nan))), "{'race': 20}"),
    ({}, X4, y4, np.zeros(40), "only one group"),
    ({}, X4, y4, np.arange(40), "40 groups needs at least 3 rows of each class. Merge groups"),
    ({}, X4, y4, y4, "group '0' has 0 rows of class '1'"),
    ({}, X4, np.arange(40)%3, s4, "Only binary classification is supported"),
    ({}, X4, X4[:, 0], s4, "Unknown label type: continuous"),
    ({}, X4, np.ones(40), s4, "one class"),
    ({}, sparse.csr_matrix(X4), y4, s4, "sparse_threshold=0"),
    ({}, np.where(X4 > 2, np.nan, X4), y4, s4, "NaN"),
    ({}, frame4.assign(d="x"), y4, s4, "OneHotEncoder"),
    (dict(sensitive_columns="q"), frame4, y4, None, "unknown column of X 'q'"),
    (dict(sensitive_columns=3), X4, y4, None, "X has the columns 0 to 2"),
    (dict(sensitive_columns="a"), X4, y4, None, "no column names"),
    (dict(sensitive_columns=0), X4, y4, s4, "given twice"),
    (dict(estimator=LogisticRegression()), X4, y4, s4, "estimator is a LogisticRegression"),
    (dict(estimator=make_pipeline(MLPClassifier())), X4, y4, s4, "the last step"),
    (dict(estimator="mlp"), X4, y4, s4, "estimator is a str"),
    (dict(estimator=MLPClassifier(activation="tanh")), X4, y4, s4, "needs 'relu'"),
    (dict(estimator=FrozenEstimator(MLPClassifier())), X4, y4, s4, "not fitted"),
    (dict(estimator=make_mlp([4, 3, 1])), X4, y4, s4, "reads 4 features, X has 3"),
    (dict(estimator=nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))), X4, y4, s4, "is Tanh"),
    (dict(strategy="SB"), X4, y4, s4, "unknown strategy 'SB'"), (dict(metric="tpr"), X4, y4, s4, "unknown metric"),
    (dict(recipe="quik"), X4, y4, s4, "Did you mean 'quick'"), (dict(recipe=3), X4, y4, s4, "recipe = 3"),
    (dict(random_state="x"), X4, y4, s4, "random_state: 'x'"), (dict(budget=0), X4, y4, s4, "must be above 0"),
    (dict(budget="all"), X4, y4, s4, "budget='all'"), (dict(min_f1_share=98), X4, y4, s4, "min_f1_share=98"),
    (dict(validation_fraction=1), X4, y4, s4, "validation_fraction=1"),
])
def test_what_cannot_be_fitted_is_refused_by_name(settings, X, y, groups, words):
    with pytest.raises(InputError) as caught: NeuFairClassifier(**(quick | settings)).fit(X, y, sensitive_features=groups)
    assert words in str(caught.value)


def test_fitted_networks_are_frozen_or_refused(scaled):
    X, y, sex = scaled
    fitted = a_small_mlp().fit(X, np.where(y, "a", "b"))
    with pytest.raises(InputError, match="FrozenEstimator"): NeuFairClassifier(fitted).fit(X, y, sensitive_features=sex)
    with pytest.raises(InputError, match=r"\['a', 'b'\], now they are \[0, 1\]"):
        NeuFairClassifier(FrozenEstimator(fitted)).fit(X, y, sensitive_features=sex)
    three = MLPClassifier((4,), max_iter=2).fit(X, np.arange(600)%3)
    with pytest.raises(InputError, match="needs two classes"): as_layers(three)
    with pytest.raises(TypeError, match="sample_weight"):
        NeuFairClassifier().fit(X, y, sensitive_features=sex, sample_weight=np.ones(600))


@needs_skorch
def test_a_skorch_net_with_another_threshold_is_refused(scaled):
    X, y, _ = scaled
    net = skorch_net(True, threshold=.3).initialize()
    with pytest.raises(InputError, match="threshold=0.3"): as_layers(net)


# ---- inside scikit-learn's own tools

def applicants(loans):
    X, y, who = loans
    return X.assign(**who), np.where(y, "yes", "no"), who["sex"]


def prepared(**kwargs):
    "A pipeline from a table with texts."
    columns = ColumnTransformer([("region", OneHotEncoder(sparse_output=False), ["region"]),
                                 ("numbers", StandardScaler(), ["income", "debt", "male"])], **kwargs)
    return Pipeline([("prepare", columns), ("repair", NeuFairClassifier(a_small_mlp(), budget=200))])


def yes_is_one(metric):
    return lambda y, predicted, **kwargs: metric(y == "yes", predicted == "yes", **kwargs)


fairness = make_scorer(yes_is_one(equalized_odds_difference), greater_is_better=False)


def test_grid_search_and_cross_validation_hand_the_groups_on(loans, routing):
    X, y, sex = applicants(loans)
    scorer = fairness.set_score_request(sensitive_features=True)
    grid = GridSearchCV(prepared(), {"repair__min_f1_share": [.9, .99], "repair__estimator__alpha": [1e-4]}, cv=2,
                        scoring=dict(fairness=scorer, accuracy="accuracy"), refit="fairness")
    grid.fit(X, y, sensitive_features=sex)
    assert np.isfinite(grid.cv_results_["mean_test_fairness"]).all()
    assert grid.best_estimator_[-1].group_names_ == ("f", "m") and set(grid.predict(X)) == {"no", "yes"}
    scores = cross_validate(prepared(), X, y, cv=2, scoring=scorer, params=dict(sensitive_features=sex), error_score="raise")
    assert (scores["test_score"] <= 0).all()


def test_without_metadata_routing(loans):
    "Groups follow as a step's own argument, or come from a column of X, by its name if the pipeline keeps names."
    X, y, sex = applicants(loans)
    pipeline = prepared().fit(X, y, repair__sensitive_features=sex)
    assert pipeline.score(X, y) > .8
    by_name = prepared().set_output(transform="pandas").set_params(repair__sensitive_columns="numbers__male")
    assert (by_name.fit(X, y)[-1].drop_mask_ == pipeline[-1].drop_mask_).all()
    scores = cross_validate(by_name, X, y, cv=2, error_score="raise")
    assert (scores["test_score"] > .7).all()
    with pytest.raises(InputError, match="enable_metadata_routing"): prepared().fit(X, y)


def test_wrappers_and_tools_take_it_as_any_classifier(scaled, routing):
    X, y, sex = scaled
    plain = NeuFairClassifier(a_small_mlp(), budget=200)
    calibrated = CalibratedClassifierCV(plain, cv=2).fit(X, y, sensitive_features=sex)
    by_column = clone(plain).set_params(sensitive_columns=2) # stacking hands all metadata to its last estimator, too
    stacked = StackingClassifier([("fair", by_column), ("line", LogisticRegression())], cv=2).fit(X, y)
    assert calibrated.score(X, y) > .8 and stacked.score(X, y) > .8
    found = plain.fit(X, y, sensitive_features=sex)
    assert permutation_importance(found, X, y, n_repeats=2).importances_mean.shape == (3,)


def test_a_table_that_is_no_pandas_frame(loans):
    X, y, who = loans
    table = pa.Table.from_pandas(X.assign(male=who["sex"] == "m"))
    expected = NeuFairClassifier(**quick).fit(X.to_numpy(), y, sensitive_features=X["male"])
    for column in (2, "male"):
        found = NeuFairClassifier(**quick, sensitive_columns=column).fit(table, y)
        assert (found.drop_mask_ == expected.drop_mask_).all()


def test_few_rows_with_few_positives_are_trained_by_default(loans):
    "Early stopping must not begin before the first correct positive."
    X, _, who = loans
    y = X["debt"].to_numpy() + .3*X["male"].to_numpy() > 1.4
    found = NeuFairClassifier(budget=100).fit(X[:300], y[:300], sensitive_features=who["sex"][:300])
    assert y[:300].mean() < .15 and found.report_.loc[("held-out", "original"), "f1"] > .4


def test_a_network_that_predicts_no_positive_row_is_refused(scaled):
    X, y, sex = scaled
    network = make_mlp([3, 4, 1])
    with torch.no_grad(): network[-1].bias -= 100
    with pytest.raises(InputError, match="no row of class '1' correctly: scale the features"):
        NeuFairClassifier(network).fit(X, y, sensitive_features=sex)


def test_what_fairlearn_puts_on_top_takes_its_probabilities(scaled, fitted):
    X, y, sex = scaled
    proba = fitted.predict_proba(X)
    assert proba.dtype == float and np.allclose(proba.sum(1), 1) and (proba[:, 1] > .5).tolist() == fitted.predict(X).tolist()
    both = ThresholdOptimizer(estimator=fitted, prefit=True, predict_method="predict_proba").fit(X, y, sensitive_features=sex)
    assert set(both.predict(X, sensitive_features=sex, random_state=0)) == {0, 1}
