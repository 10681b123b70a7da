"Networks: the authors' 53 reproduce their own numbers, training can be interrupted, others are refused."
import io, tarfile

import numpy as np, pandas as pd, pytest, torch
from scipy import stats
from sklearn.metrics import f1_score
from torch import nn

from fairness_repair.tabular import networks
from fairness_repair.core import paths
from fairness_repair.tabular.networks import (
    TrainingRecipe, apply_drop_mask, as_layers, authors_seeds, list_authors_networks, load_authors_network,
    make_mlp, predict, predict_proba, train)
from fairness_repair.tabular.tables import PAPER_SETTINGS, Table, load_table, split_rows

import needs

data_sets = ("adult", "bank", "compas", "default", "meps16")


def eod(predicted, y, group):
    "max(TPR gap, FPR gap), as plain as it gets."
    rate = lambda g, label: predicted[(group == g) & (y == label)].mean()
    rates = [[rate(g, label) for label in (True, False)] for g in range(group.max() + 1)]
    return np.ptp(rates, axis=0).max()


def judged(network, table, split):
    X, y, group = table.split(split)
    predicted = predict(network, X)
    return np.array([eod(predicted, y, group), f1_score(y, predicted), (predicted == y).mean()])


@needs.data
@pytest.mark.parametrize("dataset", data_sets)
def test_every_network_of_the_authors_gives_the_f1_of_its_file_name(dataset):
    for row in list_authors_networks(dataset).itertuples():
        network, record = load_authors_network(dataset, row.seed, dropout=row.dropout)
        table = load_table(dataset, seed=row.seed)
        assert record["file"] == row.file
        assert abs(judged(network, table, "val")[1] - record["f1"]) < 5.1e-4, row.file
        layers = as_layers(network, table=table)
        assert [w.shape[0] for w in layers[0]] == [len(b) for b in layers[1]]


@needs.data
@pytest.mark.parametrize("setting", ["adult-sex", "adult-race", "compas-sex", "compas-race", "default-sex"])
def test_original_and_best_single_drop_per_seed(setting):
    "What the authors' code prints, seed by seed: the unmodified network, and one without its best neuron."
    dataset, protected = setting.split("-")
    theirs = pd.read_csv(paths.data/"paper"/"neufair_rerun.csv")
    theirs = theirs.query("dataset == @dataset and protected == @protected")
    assert len(theirs) == (11 if dataset == "default" else 10)
    for row in theirs.itertuples():
        network, _ = load_authors_network(dataset, row.seed)
        table = load_table(dataset, protected, seed=row.seed)
        close = lambda found, expected: np.allclose(found, expected, atol=6e-6)
        assert close(judged(network, table, "val"), [row.val_eod, row.val_f1, row.val_acc])
        assert close(judged(network, table, "test"), [row.test_eod, row.test_f1, row.test_acc])
        state = np.arange(sum(len(b) for b in as_layers(network)[1][:-1])) == row.drop1_neuron
        dropped = apply_drop_mask(network, state, drop_mode="keep_bias")
        assert close(judged(dropped, table, "val")[:2], [row.drop1_val_eod, row.drop1_val_f1])
        published = [row.drop1_test_eod, row.drop1_test_f1, row.drop1_test_acc]
        assert close(judged(dropped, table, "test"), published)


@needs.data
@pytest.mark.parametrize("setting", PAPER_SETTINGS, ids="-".join)
def test_published_row_of_the_unmodified_network(setting):
    "All digits of mean and interval; MEPS16's are over twelve networks."
    dataset, protected = setting
    theirs = pd.read_csv(paths.data/"paper"/"neufair_rq1_rq2.csv")
    theirs = theirs.set_index(["dataset", "protected", "method"]).loc[(dataset, protected, "Original")]
    used = list_authors_networks(dataset).query("in_rq1")
    def measured(r):
        network, _ = load_authors_network(dataset, r.seed, dropout=r.dropout)
        return judged(network, load_table(dataset, protected, seed=r.seed), "test")
    ours = np.array([measured(r) for r in used.itertuples()])
    mean, half = ours.mean(0), stats.t.ppf(.975, len(ours) - 1)*stats.sem(ours)
    assert np.allclose([100*mean[0], 100*half[0]], [theirs.eod_pct, theirs.eod_pm], atol=5.1e-4)
    published = [theirs.f1, theirs.f1_pm, theirs.acc, theirs.acc_pm]
    assert np.allclose([mean[1], half[1], mean[2], half[2]], published, atol=5.1e-4)


@needs.data
@pytest.mark.parametrize("drop_mode", ["zero_output", "keep_bias"])
@pytest.mark.parametrize("dataset", data_sets)
def test_repair_equals_an_explicit_mask(dataset, drop_mode):
    seed = authors_seeds(dataset)[0]
    network, (X, _, _) = load_authors_network(dataset, seed)[0], load_table(dataset, seed=seed).split("test")
    weights, biases = as_layers(network)
    state = np.random.default_rng(0).random(sum(map(len, biases[:-1]))) < .3
    h = X
    for w, b, gone in zip(weights, biases, np.split(state, np.cumsum([len(b) for b in biases[:-1]]))):
        if len(b) == 1: break
        output = np.maximum(b, 0) if drop_mode == "keep_bias" else 0
        h = np.where(gone, output, np.maximum(h @ w.T + b, 0)).astype(np.float32)
    expected = (h @ weights[-1].T + biases[-1])[:, 0]
    found = apply_drop_mask(network, state, drop_mode=drop_mode)
    logits = found(torch.from_numpy(X)).detach()[:, 0]
    assert np.allclose(logits, expected, atol=2e-4*max(1, np.abs(expected).max()))
    before, after = predict_proba(network, X), predict_proba(found, X)
    assert not np.array_equal(before, after), "the original stays as it is"


def test_a_damaged_archive_member_is_refused(tmp_path, monkeypatch):
    file = list_authors_networks("adult")["file"][0]
    monkeypatch.setenv("FAIRNESS_REPAIR_DATA", str(tmp_path))
    monkeypatch.setenv("FAIRNESS_REPAIR_CACHE", str(tmp_path/"cache"))
    (tmp_path/"neufair_models").mkdir()
    with tarfile.open(tmp_path/"neufair_models"/"neufair_saved_models.tar.gz", "w:gz") as tar:
        info = tarfile.TarInfo(file.replace("neufair_models", "saved_models"))
        info.size = 4
        tar.addfile(info, io.BytesIO(b"evil"))
    seed = list_authors_networks("adult")["seed"][0]
    with pytest.raises(ValueError, match="corrupt"): load_authors_network("adult", seed)


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
    network, record = train(table, TrainingRecipe((3,), 0., "sgd", .1, 50, 16))
    assert record["stop_reason"] == "interrupted" and record["best_epoch"] <= 3
    assert abs(judged(network, table, "val")[1] - record["val_f1"]) < 1e-9


@pytest.mark.parametrize("name", networks.TRAINING_RECIPES)
def test_every_recipe_trains(name, table):
    network, record = train(table, name, epochs=2)
    assert record["n_epochs"] == 2 and record["stop_reason"] == "epochs" and not network.training
    _, biases = as_layers(network, table=table)
    assert [len(b) for b in biases] == [*networks.TRAINING_RECIPES[name].hidden, 1]


def test_patience_and_seed(table):
    small = TrainingRecipe((3,), .1, "adam", .01, 500, 32)
    a, b, c = (train(table, small, seed=s, patience=2) for s in (1, 1, 2**32 - 1))
    assert a[1]["stop_reason"] == "patience" and a[1]["n_epochs"] == a[1]["best_epoch"] + 2
    assert a[1] == b[1] and not np.array_equal(predict_proba(a[0], table.X), predict_proba(c[0], table.X))


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
    (nn.Sequential(nn.Linear(4, 3), nn.Sigmoid(), nn.Linear(3, 1)),
     "module '1' is Sigmoid: supported are Linear, ReLU"),
    (nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 1)),
     "module '1' is BatchNorm1d"),
    (nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 1)), "computes something else"),
    (Skip(), "Skip computes something else"),
    (Sure(), "a final sigmoid"),
    (make_mlp([4, 3, 3]), "3 outputs: needs one logit"),
    (nn.Linear(4, 1), "1 linear layers"),
    (make_mlp([5, 3, 1]), "reads 5 features, made-up has 4"),
])
def test_what_is_no_chain_is_refused(network, words, table):
    with pytest.raises(ValueError) as caught: as_layers(network, table=table)
    assert words in str(caught.value)


def test_a_network_of_ones_own_is_left_as_it_was(table):
    "Half precision, training mode, no bias: read without touching it."
    layers = nn.Linear(4, 6, bias=False), nn.ReLU(inplace=True), nn.Dropout(.5), nn.Flatten(), nn.Linear(6, 1)
    mine = nn.Sequential(*layers).double().train()
    before = {k: v.clone() for k, v in mine.state_dict().items()}
    weights, biases = as_layers(mine, table=table)
    assert biases[0].tolist() == [0]*6 and weights[0].dtype == np.float32
    predict(mine, table.X)
    dropped = apply_drop_mask(mine, np.arange(6) < 2)
    assert mine.training and all(torch.equal(before[k], v) for k, v in mine.state_dict().items())
    assert (dropped[0].weight[:2] == 0).all() and not (dropped[0].weight[2:] == 0).any()


def test_which_networks_the_published_rows_use():
    "RQ1: ten of Default's eleven, all twelve of MEPS16. RQ4: all eleven, and the better one of each seed."
    default, meps = list_authors_networks("default"), list_authors_networks("meps16")
    assert default["in_rq1"].sum() == 10 and default["in_rq4"].all()
    assert meps["in_rq1"].all() and meps["in_rq4"].sum() == 10
    assert meps[meps["in_rq4"]].set_index("seed")["dropout"].loc[[42, 123]].tolist() == [.2, .1]
