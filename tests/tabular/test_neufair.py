"NeuFair as a user runs it; and, with the authors' networks at hand, its published digits."
import os, signal, time

import numpy as np, pandas as pd, pytest

from fairness_repair.core import paths
from fairness_repair.metrics import ci_half_width
from fairness_repair.tabular.networks import list_authors_networks
from fairness_repair.tabular.neufair import (
    best_single_neuron, evaluate_drop_masks, experiment_configs, load_problem, network_configs,
    single_neuron_costs)
from fairness_repair.tabular.neurons import PrunableMLP, make_cost
from fairness_repair.tabular.tables import PAPER_SETTINGS

import needs
from papermill_runs import count, refusal, run, start, table


small = ("budget", 300, "seeds", 2, "strategies", "SA; RW, paper")


def test_killed_in_mid_run_and_started_again_gives_the_same_table(tmp_path):
    (tmp_path/"whole").mkdir(), (tmp_path/"killed").mkdir()
    code, _, stderr = run(tmp_path/"whole", "rq1_neufair", *small)
    assert code == 0, stderr[-3000:]
    store = tmp_path/"killed"/"results"/"neufair-quick.sqlite"
    process = start(tmp_path/"killed", "rq1_neufair", *small, "workers", 1)
    deadline = time.time() + 300
    while time.time() < deadline and process.poll() is None and not count(store, "outcomes"): time.sleep(.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    kept = count(store, "outcomes")
    assert kept >= 1
    code, _, stderr = run(tmp_path/"killed", "rq1_neufair", *small)
    assert code == 0, stderr[-3000:]
    assert count(store, "outcomes") == 4
    assert table(tmp_path/"killed", "rq1_neufair-adult") == table(tmp_path/"whole", "rq1_neufair-adult")
    written = {p.name for p in (tmp_path/"whole"/"figures"/"neufair").iterdir()}
    assert {f"rq1_neufair-adult.{kind}" for kind in ("png", "csv", "md")} <= written


@pytest.mark.parametrize("parameters, message", [
    (("budgte", 10), "Did you mean 'budget'"), (("dataset", "adlt"), "Did you mean 'adult'")])
def test_bad_parameters_are_refused(parameters, message):
    assert message in refusal("rq1_neufair", *parameters)


@pytest.mark.parametrize("more, message", [
    (dict(networks="author"), "Did you mean 'authors'"), (dict(strategies=["RV"]), "unknown strategy 'RV'"),
    (dict(threshold=98.), "threshold = 98"), (dict(metric="eodd"), "Did you mean 'eod'"),
    (dict(budget=-5), "must be above 0"), (dict(penalty=-1.), "must not be negative")])
def test_configurations_are_checked_before_any_work(more, message):
    with pytest.raises(ValueError, match=message): experiment_configs("adult", **more)


def originals_and_singles(dataset, protected, networks=None, threshold=.98):
    "Per network: metrics of the original on both splits, and of the published single drop."
    rows = []
    for instance in networks or network_configs(dataset, "authors", 99):
        seed, dropout = instance["seed"], instance.get("dropout")
        (weights, biases), data, reference = load_problem(dataset, protected, seed, "authors", dropout)
        mlp = PrunableMLP(weights, biases, *data.split("val"), drop_mode="keep_bias")
        cost = make_cost(mlp, penalty_shape="step", reference_f1=reference, threshold=threshold)
        single = best_single_neuron(single_neuron_costs(mlp, cost))
        masks = {"original": np.zeros(mlp.n, bool), "single": single}
        found = evaluate_drop_masks(weights, biases, data, masks, drop_mode="keep_bias")
        values = {f"{split} {name} {metric}": value
                  for (split, name), row in found.iterrows() for metric, value in row.items()}
        rows.append(instance | dict(neuron=int(single.argmax())) | values)
    return pd.DataFrame(rows)


@needs.data
@pytest.mark.parametrize("dataset, protected", list(PAPER_SETTINGS))
def test_published_originals_and_single_drops(dataset, protected):
    ours = originals_and_singles(dataset, protected)
    paper = pd.read_csv(paths.data/"paper"/"neufair_rq1_rq2.csv")
    paper = paper.set_index(["dataset", "protected", "method"]).loc[(dataset, protected, "Original")]
    columns = dict(eod=("eod_pct", "eod_pm", 100), f1=("f1", "f1_pm", 1), accuracy=("acc", "acc_pm", 1))
    for metric, (mean, half, scale) in columns.items():
        values = scale*ours[f"test original {metric}"]
        assert values.mean() == pytest.approx(paper[mean], abs=.00051), mean
        assert ci_half_width(values) == pytest.approx(paper[half], abs=.00051), half
    rerun = pd.read_csv(paths.data/"paper"/"neufair_rerun.csv")
    rerun = rerun.query("dataset == @dataset and protected == @protected").set_index("seed")
    for _, row in ours.iterrows():
        if row["seed"] not in rerun.index: continue
        known = rerun.loc[row["seed"]]
        assert row["neuron"] == known["drop1_neuron"]
        for column, name in dict(
                val_eod="val original eod", val_f1="val original f1",
                test_eod="test original eod", test_acc="test original accuracy",
                drop1_val_eod="val single eod", drop1_test_eod="test single eod",
                drop1_test_f1="test single f1").items():
            assert row[name] == pytest.approx(known[column], abs=6e-6), (row["seed"], column)
    if dataset in ("adult", "compas", "bank"): check_dice(dataset, protected, ours)


def check_dice(dataset, protected, ours):
    claim = pd.read_csv(paths.data/"paper"/"neufair_rq4_dice.csv")
    claim = claim.query("dataset == @dataset and protected == @protected").iloc[0]
    assert 100*ours["test single eod"].mean() == pytest.approx(claim["dice_eod_pct"], abs=.00051)
    assert 100*ci_half_width(ours["test single eod"]) == pytest.approx(claim["dice_pm"], abs=.00051)


@needs.data
@pytest.mark.parametrize("dataset, protected, threshold", [("default", "sex", .97), ("meps16", "race", .98)])
def test_two_published_single_drops_are_of_other_networks(dataset, protected, threshold):
    chosen = list_authors_networks(dataset).query("in_rq4")[["seed", "dropout"]].to_dict("records")
    check_dice(dataset, protected, originals_and_singles(dataset, protected, chosen, threshold))


def own_table():
    "A table of three groups in which the smallest is judged by other features."
    rng = np.random.default_rng(0)
    n = 3000
    region = rng.choice(["north", "south", "east"], n, p=[.5, .3, .2])
    score, age = rng.normal(size=n), rng.integers(18, 80, n)
    approved = score + .8*(region == "north") - .8*(region == "east") + rng.normal(size=n)*.5 > .3
    home = rng.choice(["rent", "own"], n)
    approved = np.where(approved, "yes", "no")
    return pd.DataFrame(dict(score=score, age=age, region=region, home=home, approved=approved))


def test_own_table_own_network_three_groups():
    import torch
    from fairness_repair.tabular.networks import apply_drop_mask, predict
    from fairness_repair.tabular.neufair import repair_classifier
    from fairness_repair.tabular.tables import read_table
    table = read_table(own_table(), label="approved", positive="yes", protected="region", seed=1)
    assert len(table.group_names) == 3
    torch.manual_seed(0)
    n_features = table.X.shape[1]
    network = torch.nn.Sequential(torch.nn.Linear(n_features, 24), torch.nn.ReLU(), torch.nn.Linear(24, 1))
    X, y = torch.tensor(table.split("train")[0]), torch.tensor(table.split("train")[1], dtype=torch.float32)
    optimiser = torch.optim.Adam(network.parameters(), .01)
    for _ in range(200):
        optimiser.zero_grad()
        torch.nn.functional.binary_cross_entropy_with_logits(network(X)[:, 0], y).backward()
        optimiser.step()
    fixed = repair_classifier(network, table, budget=2000, metric="spd")
    assert fixed.metrics.loc[("val", "repaired"), "spd"] <= fixed.metrics.loc[("val", "original"), "spd"]
    assert fixed.metrics.loc[("val", "repaired"), "f1"] >= .98*fixed.metrics.loc[("val", "original"), "f1"]
    X, y, group = table.split("test")
    plain = predict(apply_drop_mask(network, fixed.drop_mask), X)
    assert fixed.metrics.loc[("test", "repaired"), "accuracy"] == pytest.approx((plain == y).mean())


def adult_network(neurons=12):
    "A small network on Adult, trained in a second."
    from fairness_repair.tabular.networks import TrainingRecipe, train
    from fairness_repair.tabular.tables import load_table
    table = load_table("adult", "sex", seed=3)
    return train(table, TrainingRecipe((neurons,), 0., "adam", .01, 2, 512), seed=0)[0], table


def test_rows_of_the_search():
    import dataclasses
    from fairness_repair.tabular.neufair import repair_classifier
    network, table = adult_network()
    splits = table.split_indices
    by_default = repair_classifier(network, table, budget=300)
    assert (by_default.rows, by_default.n_rows) == ("train+val", len(splits["train"]) + len(splits["val"]))
    named = repair_classifier(network, table, rows="val", budget=300)
    own = repair_classifier(network, table, rows=splits["val"], budget=300)
    assert (named.rows, own.rows, named.n_rows) == ("val", "own", len(splits["val"]))
    np.testing.assert_array_equal(named.drop_mask, own.drop_mask)
    _, y, group = table.split("val")
    counts = {(g, label): int(((group == i) & (y == label)).sum()) for i, g in enumerate(table.group_names) for label in (0, 1)}
    fewest = min(counts, key=counts.get)
    assert named.smallest_cell == (*fewest, counts[fewest])
    low, high = named.eod_interval
    assert low <= named.metrics.loc[("test", "repaired"), "eod"] <= high
    assert "of Female with label 1" in repr(named) and "(val)" in repr(named)
    without = dataclasses.replace(table, split_indices={name: splits[name] for name in ("val", "test")})
    told = repair_classifier(network, without, budget=300)
    assert told.rows == "val"
    np.testing.assert_array_equal(told.drop_mask, named.drop_mask)


@pytest.mark.parametrize("rows, message", [
    ("tset", "unknown rows 'tset'"), ("test", "unknown rows 'test'"), (np.arange(20000), "are test rows"), ([.5], "needs row numbers"),
    ([], "needs row numbers"), ([-1, 3], "has rows 0..32560"), ("first", "with label 1")])
def test_rows_that_no_search_may_use(rows, message):
    from fairness_repair.core import InputError
    from fairness_repair.tabular.neurons import select_rows
    from fairness_repair.tabular.tables import load_table
    table = load_table("adult", "sex", seed=3)
    if isinstance(rows, str) and rows == "first": rows = table.split_indices["train"][~table.y[table.split_indices["train"]]]
    with pytest.raises(InputError, match=message): select_rows(table, rows)


def test_post_processing_is_recorded_like_a_repair():
    from fairness_repair.store import Store
    from fairness_repair.tabular.neufair import run_experiment
    store = Store(":memory:")
    network, table = adult_network()
    from fairness_repair.tabular.networks import as_layers
    from fairness_repair.tabular.neufair import RepairProblem
    configs = experiment_configs("adult", seeds=1, strategies=["reject option", "SA, cool"], budget=200, rows="train+val")
    assert configs[0].to_record() == dict(dataset="adult", protected="sex", networks="quick", seed=0, rows="train+val", by="reject option")
    found = run_experiment(store, configs, load=lambda *args: RepairProblem(as_layers(network), table, None))
    assert found["test original eod"].nunique() == 1 and found["test repaired eod"].notna().all()
    assert found["n_rows"].tolist()[1] == len(table.split_indices["train"]) + len(table.split_indices["val"])
    again = run_experiment(store, configs, load=None)
    pd.testing.assert_frame_equal(again, found)


def test_validation_rows_are_recorded_as_before():
    plain = experiment_configs("adult", seeds=1, budget=200)
    assert experiment_configs("adult", seeds=1, budget=200, rows="val") == plain and "rows" not in plain[0].to_record()
    with pytest.raises(ValueError, match="unknown rows 'tset'"): experiment_configs("adult", rows="tset")


def test_further_searches_share_the_network_and_differ_in_random_numbers():
    from fairness_repair.store import Store
    from fairness_repair.tabular.networks import as_layers
    from fairness_repair.tabular.neufair import RepairProblem, run_experiment
    network, table = adult_network()
    load = lambda *args: RepairProblem(as_layers(network), table, None)
    first, = experiment_configs("adult", seeds=1, budget=200)
    further = experiment_configs("adult", seeds=1, budget=200, repeats=2)
    assert "repeat" not in first.to_record() # as recorded before there were further searches
    assert [config.to_record() for config in further] == [first.to_record() | dict(repeat=n) for n in (1, 2)]
    found = run_experiment(Store(":memory:"), [first, *further], load=load)
    assert found["test original eod"].nunique() == 1 and found["state"].nunique() == 3
