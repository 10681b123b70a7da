"NeuFair as a user runs it; and, with the authors' networks at hand, its published digits."
import os, signal, time

import numpy as np, pandas as pd, pytest

from fairness_repair.core import paths
from fairness_repair.metrics import half_width
from fairness_repair.tabular.networks import authors_networks
from fairness_repair.tabular.neufair import best_single, instances, measure, problem, questions, single_drops
from fairness_repair.tabular.neurons import Neurons, cost_of
from fairness_repair.tabular.tables import settings

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
    assert {f"rq1_neufair-adult.{kind}" for kind in ("png", "pdf", "csv", "md")} <= {p.name for p in (tmp_path/"whole"/"figures").iterdir()}


@pytest.mark.parametrize("parameters, message", [(("budgte", 10), "Did you mean 'budget'"), (("dataset", "adlt"), "Did you mean 'adult'")])
def test_bad_parameters_are_refused(parameters, message): assert message in refusal("rq1_neufair", *parameters)


@pytest.mark.parametrize("more, message", [
    (dict(networks="author"), "Did you mean 'authors'"), (dict(by=["RV"]), "unknown strategy 'RV'"), (dict(threshold=98.), "threshold = 98"),
    (dict(metric="eodd"), "Did you mean 'eod'"), (dict(budget=-5), "must be above 0"), (dict(penalty=-1.), "must not be negative")])
def test_questions_are_checked_before_any_work(more, message):
    with pytest.raises(ValueError, match=message): questions("adult", **more)


def originals_and_singles(dataset, protected, networks=None, threshold=.98):
    "Per network: metrics of the original on both parts, and of the published single drop."
    rows = []
    for instance in networks or instances(dataset, "authors", 99):
        (weights, biases), data, reference = problem(dataset, protected, instance["seed"], "authors", instance.get("dropout"))
        neurons = Neurons(weights, biases, *data.part("val"), drop="weights")
        single = best_single(single_drops(neurons, cost_of(neurons, kind="paper", reference=reference, threshold=threshold)))
        found = measure(weights, biases, data, {"original": np.zeros(neurons.n, bool), "single": single}, drop="weights")
        rows.append(instance | dict(neuron=int(single.argmax())) | {f"{part} {name} {m}": found.loc[(part, name), m] for part, name in found.index for m in ("eod", "f1", "accuracy")})
    return pd.DataFrame(rows)


@needs.data
@pytest.mark.parametrize("dataset, protected", list(settings))
def test_published_originals_and_single_drops(dataset, protected):
    ours = originals_and_singles(dataset, protected)
    paper = pd.read_csv(paths.data/"paper"/"neufair_rq1_rq2.csv").query("dataset == @dataset and protected == @protected and method == 'Original'").iloc[0]
    for column, value in dict(eod_pct=100*ours["test original eod"].mean(), eod_pm=100*half_width(ours["test original eod"]), f1=ours["test original f1"].mean(),
                              f1_pm=half_width(ours["test original f1"]), acc=ours["test original accuracy"].mean(), acc_pm=half_width(ours["test original accuracy"])).items():
        assert value == pytest.approx(paper[column], abs=.00051), column
    rerun = pd.read_csv(paths.data/"paper"/"neufair_rerun.csv").query("dataset == @dataset and protected == @protected").set_index("seed")
    for _, row in ours.iterrows():
        if row["seed"] not in rerun.index: continue
        known = rerun.loc[row["seed"]]
        assert row["neuron"] == known["drop1_neuron"]
        for column, name in dict(val_eod="val original eod", val_f1="val original f1", test_eod="test original eod", test_acc="test original accuracy",
                                 drop1_val_eod="val single eod", drop1_test_eod="test single eod", drop1_test_f1="test single f1").items():
            assert row[name] == pytest.approx(known[column], abs=6e-6), (row["seed"], column)
    if dataset in ("adult", "compas", "bank"): check_dice(dataset, protected, ours)


def check_dice(dataset, protected, ours):
    claim = pd.read_csv(paths.data/"paper"/"neufair_rq4_dice.csv").query("dataset == @dataset and protected == @protected").iloc[0]
    assert 100*ours["test single eod"].mean() == pytest.approx(claim["dice_eod_pct"], abs=.00051)
    assert 100*half_width(ours["test single eod"]) == pytest.approx(claim["dice_pm"], abs=.00051)


@needs.data
@pytest.mark.parametrize("dataset, protected, threshold", [("default", "sex", .97), ("meps16", "race", .98)])
def test_two_published_single_drops_are_of_other_networks(dataset, protected, threshold):
    chosen = authors_networks(dataset).query("rq4")[["seed", "dropout"]].to_dict("records")
    check_dice(dataset, protected, originals_and_singles(dataset, protected, chosen, threshold))


def own_table():
    "A table of three groups in which the smallest is judged by other features."
    rng = np.random.default_rng(0)
    n = 3000
    region = rng.choice(["north", "south", "east"], n, p=[.5, .3, .2])
    score, age = rng.normal(size=n), rng.integers(18, 80, n)
    approved = score + .8*(region == "north") - .8*(region == "east") + rng.normal(size=n)*.5 > .3
    return pd.DataFrame(dict(score=score, age=age, region=region, home=rng.choice(["rent", "own"], n), approved=np.where(approved, "yes", "no")))


def test_own_table_own_network_three_groups():
    import torch
    from fairness_repair.tabular.networks import decisions, repaired
    from fairness_repair.tabular.neufair import repair
    from fairness_repair.tabular.tables import read_table
    table = read_table(own_table(), label="approved", positive="yes", protected="region", seed=1)
    assert len(table.groups) == 3
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(table.X.shape[1], 24), torch.nn.ReLU(), torch.nn.Linear(24, 1))
    X, y = torch.tensor(table.part("train")[0]), torch.tensor(table.part("train")[1], dtype=torch.float32)
    optimiser = torch.optim.Adam(network.parameters(), .01)
    for _ in range(200):
        optimiser.zero_grad()
        torch.nn.functional.binary_cross_entropy_with_logits(network(X)[:, 0], y).backward()
        optimiser.step()
    fixed = repair(network, table, budget=2000, metric="spd")
    assert fixed.metrics.loc[("val", "repaired"), "spd"] <= fixed.metrics.loc[("val", "original"), "spd"]
    assert fixed.metrics.loc[("val", "repaired"), "f1"] >= .98*fixed.metrics.loc[("val", "original"), "f1"]
    X, y, group = table.part("test")
    plain = decisions(repaired(network, fixed.state), X)
    assert fixed.metrics.loc[("test", "repaired"), "accuracy"] == pytest.approx((plain == y).mean())
