"Networks: the authors' 53 reproduce their own numbers, training can be interrupted, and what is not a ReLU network is refused."
import io, tarfile

import numpy as np, pandas as pd, pytest, torch
from scipy import stats
from sklearn.metrics import f1_score
from torch import nn

from fairness_repair.tabular import networks
from fairness_repair.core import paths
from fairness_repair.tabular.networks import Recipe, as_layers, authors_network, authors_networks, authors_seeds, build, decisions, probabilities, repaired, train
from fairness_repair.tabular.tables import Table, load_table, settings, split_rows

import needs

data_sets = ("adult", "bank", "compas", "default", "meps16")


def eod(chosen, y, group):
    "max(TPR gap, FPR gap), as plain as it gets."
    rates = [[chosen[(group == g) & (y == label)].mean() for label in (True, False)] for g in range(group.max() + 1)]
    return np.ptp(rates, axis=0).max()


def judged(network, table, part):
    X, y, group = table.part(part)
    chosen = decisions(network, X)
    return np.array([eod(chosen, y, group), f1_score(y, chosen), (chosen == y).mean()])


@needs.data
@pytest.mark.parametrize("dataset", data_sets)
def test_every_network_of_the_authors_gives_the_f1_of_its_file_name(dataset):
    for row in authors_networks(dataset).itertuples():
        network, record = authors_network(dataset, row.seed, dropout=row.dropout)
        table = load_table(dataset, seed=row.seed)
        assert record["file"] == row.file
        assert abs(judged(network, table, "val")[1] - record["f1"]) < 5.1e-4, row.file
        layers = as_layers(network, table=table)
        assert [w.shape[0] for w in layers[0]] == [len(b) for b in layers[1]]


@needs.data
@pytest.mark.parametrize("setting", ["adult-sex", "adult-race", "compas-sex", "compas-race", "default-sex"])
def test_original_and_best_single_drop_per_seed(setting):
    "What the authors' code prints, seed by seed: the unmodified network, and the one without the neuron that it picks."
    dataset, protected = setting.split("-")
    theirs = pd.read_csv(paths.data/"paper"/"neufair_rerun.csv").query("dataset == @dataset and protected == @protected")
    assert len(theirs) == (11 if dataset == "default" else 10)
    for row in theirs.itertuples():
        network, table = authors_network(dataset, row.seed)[0], load_table(dataset, protected, seed=row.seed)
        assert np.allclose(judged(network, table, "val"), [row.val_eod, row.val_f1, row.val_acc], atol=6e-6)
        assert np.allclose(judged(network, table, "test"), [row.test_eod, row.test_f1, row.test_acc], atol=6e-6)
        state = np.arange(sum(len(b) for b in as_layers(network)[1][:-1])) == row.drop1_neuron
        dropped = repaired(network, state, drop="weights")
        assert np.allclose(judged(dropped, table, "val")[:2], [row.drop1_val_eod, row.drop1_val_f1], atol=6e-6)
        assert np.allclose(judged(dropped, table, "test"), [row.drop1_test_eod, row.drop1_test_f1, row.drop1_test_acc], atol=6e-6)


@needs.data
@pytest.mark.parametrize("setting", settings, ids="-".join)
def test_published_row_of_the_unmodified_network(setting):
    "All digits of mean and interval; MEPS16's are over twelve networks."
    dataset, protected = setting
    theirs = pd.read_csv(paths.data/"paper"/"neufair_rq1_rq2.csv").query("dataset == @dataset and protected == @protected and method == 'Original'").iloc[0]
    used = authors_networks(dataset).query("paper")
    ours = np.array([judged(authors_network(dataset, r.seed, dropout=r.dropout)[0], load_table(dataset, protected, seed=r.seed), "test") for r in used.itertuples()])
    mean, half = ours.mean(0), stats.t.ppf(.975, len(ours) - 1)*stats.sem(ours)
    assert np.allclose([100*mean[0], 100*half[0]], [theirs.eod_pct, theirs.eod_pm], atol=5.1e-4)
    assert np.allclose([mean[1], half[1], mean[2], half[2]], [theirs.f1, theirs.f1_pm, theirs.acc, theirs.acc_pm], atol=5.1e-4)


@needs.data
@pytest.mark.parametrize("drop", ["neuron", "weights"])
@pytest.mark.parametrize("dataset", data_sets)
def test_repair_equals_an_explicit_mask(dataset, drop):
    seed = authors_seeds(dataset)[0]
    network, (X, _, _) = authors_network(dataset, seed)[0], load_table(dataset, seed=seed).part("test")
    weights, biases = as_layers(network)
    state = np.random.default_rng(0).random(sum(map(len, biases[:-1]))) < .3
    h = X
    for w, b, gone in zip(weights, biases, np.split(state, np.cumsum([len(b) for b in biases[:-1]]))):
        if len(b) == 1: break
        h = np.where(gone, np.maximum(b, 0) if drop == "weights" else 0, np.maximum(h @ w.T + b, 0)).astype(np.float32)
    expected = (h @ weights[-1].T + biases[-1])[:, 0]
    found = repaired(network, state, drop=drop)
    assert np.allclose(found(torch.from_numpy(X)).detach()[:, 0], expected, atol=2e-4*max(1, np.abs(expected).max()))
    assert not np.array_equal(probabilities(found, X), probabilities(network, X)), "the original is left alone"


def test_a_damaged_archive_member_is_refused(tmp_path, monkeypatch):
    file = authors_networks("adult")["file"][0]
    monkeypatch.setenv("FAIRNESS_REPAIR_DATA", str(tmp_path))
    monkeypatch.setenv("FAIRNESS_REPAIR_CACHE", str(tmp_path/"cache"))
    (tmp_path/"neufair_models").mkdir()
    with tarfile.open(tmp_path/"neufair_models"/"neufair_saved_models.tar.gz", "w:gz") as tar:
        info = tarfile.TarInfo(file.replace("neufair_models", "saved_models"))
        info.size = 4
        tar.addfile(info, io.BytesIO(b"evil"))
    with pytest.raises(ValueError, match="corrupt"): authors_network("adult", authors_networks("adult")["seed"][0])


@pytest.fixture
def table():
    X = np.random.default_rng(0).standard_normal((300, 4)).astype(np.float32)
    return Table("made-up", "coin", X, X[:, 0] > 0, np.arange(300)//2 % 2, ("a", "b"), split_rows(300))


def test_interrupted_training_keeps_the_best_so_far(table, monkeypatch):
    calls = []
    def epoch(*args):
        calls.append(1)
        if len(calls) == 4: raise KeyboardInterrupt
        real(*args)
    real = networks._epoch
    monkeypatch.setattr(networks, "_epoch", epoch)
    network, record = train(table, Recipe((3,), 0., "sgd", .1, 50, 16))
    assert record["reason"] == "interrupted" and record["epoch"] <= 3
    assert abs(judged(network, table, "val")[1] - record["f1"]) < 1e-9


@pytest.mark.parametrize("name", networks.recipes)
def test_every_recipe_trains(name, table):
    network, record = train(table, name, epochs=2)
    assert record["epochs"] == 2 and record["reason"] == "epochs" and not network.training
    assert [len(b) for b in as_layers(network, table=table)[1]] == [*networks.recipes[name].hidden, 1]


def test_patience_and_seed(table):
    small = Recipe((3,), .1, "adam", .01, 500, 32)
    a, b, c = (train(table, small, seed=s, patience=2) for s in (1, 1, 2**32 - 1))
    assert a[1]["reason"] == "patience" and a[1]["epochs"] == a[1]["epoch"] + 2
    assert a[1] == b[1] and not np.array_equal(probabilities(a[0], table.X), probabilities(c[0], table.X))


class Skip(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 1)
    def forward(self, x):
        h = torch.relu(self.a(x))
        return self.c(h + torch.relu(self.b(h)))


class Sure(Skip):
    def forward(self, x): return torch.sigmoid(self.c(torch.relu(self.b(torch.relu(self.a(x))))))


@pytest.mark.parametrize("network, words", [
    (nn.Sequential(nn.Linear(4, 3), nn.Sigmoid(), nn.Linear(3, 1)), "module '1' is Sigmoid: supported are Linear, ReLU"),
    (nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 1)), "module '1' is BatchNorm1d"),
    (nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 1)), "computes something else"),
    (Skip(), "Skip computes something else"),
    (Sure(), "a final sigmoid"),
    (build([4, 3, 2]), "2 outputs: needs one logit"),
    (nn.Linear(4, 1), "1 linear layers"),
    (build([5, 3, 1]), "reads 5 features, made-up has 4"),
])
def test_what_is_no_chain_is_refused(network, words, table):
    with pytest.raises(ValueError) as caught: as_layers(network, table=table)
    assert words in str(caught.value)


def test_a_network_of_ones_own_is_left_as_it_was(table):
    "Half precision, training mode, no bias: read without touching it."
    mine = nn.Sequential(nn.Linear(4, 6, bias=False), nn.ReLU(inplace=True), nn.Dropout(.5), nn.Flatten(), nn.Linear(6, 1)).double().train()
    before = {k: v.clone() for k, v in mine.state_dict().items()}
    weights, biases = as_layers(mine, table=table)
    assert biases[0].tolist() == [0]*6 and weights[0].dtype == np.float32
    decisions(mine, table.X)
    dropped = repaired(mine, np.arange(6) < 2)
    assert mine.training and all(torch.equal(before[k], v) for k, v in mine.state_dict().items())
    assert (dropped[0].weight[:2] == 0).all() and not (dropped[0].weight[2:] == 0).any()


def test_which_networks_the_published_rows_use():
    "RQ1: ten of Default's eleven, all twelve of MEPS16. RQ4's single drops: all eleven, and the better one of each seed."
    default, meps = authors_networks("default"), authors_networks("meps16")
    assert default["paper"].sum() == 10 and default["rq4"].all()
    assert meps["paper"].all() and meps[meps["rq4"]].set_index("seed")["dropout"].loc[[42, 123]].tolist() == [.2, .1] and meps["rq4"].sum() == 10
