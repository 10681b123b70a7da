"Tables: the authors' files give the authors' splits, and wrong tables are refused for the right reason."
import gzip, hashlib, os

import numpy as np, pandas as pd, pytest

from fairness_repair.core import fetch, paths, registry
from fairness_repair.tabular.tables import (
    ADULT_COLUMNS, DATA_SETS, PAPER_SETTINGS, bank_table, compas_table, load_table, read_adult, read_table)

import needs


def test_embedded_adult_is_the_registered_content():
    content = gzip.decompress((paths.data/"adult"/"adult.data.gz").read_bytes())
    expected = "5b00264637dbfec36bdeaab5676b0b309ff9eb788d63554ca0a249491c86603d"
    assert hashlib.sha256(content).hexdigest() == expected, "not UCI's adult.data"


@needs.data
def test_embedded_adult_is_the_authors_file_row_by_row():
    theirs = pd.read_csv(fetch("tabular/neufair_adult.csv"))
    theirs.columns = ADULT_COLUMNS
    pd.testing.assert_frame_equal(read_adult(), theirs)


@needs.data
@pytest.mark.parametrize("setting", [*PAPER_SETTINGS, ("compas-noleak", "sex")], ids="-".join)
def test_setting(setting):
    rows, features = {
        "adult": (32561, 34), "compas": (7214, 12), "compas-noleak": (7214, 10), "bank": (45211, 32),
        "default": (30000, 30), "meps16": (15675, 138)}[setting[0]]
    table = load_table(*setting, seed=2863102059)
    assert table.X.shape == (rows, features) and table.X.dtype == np.float32
    assert len(table.group_names) == 2 == len(set(table.group_names))
    assert len(table.feature_names) == features
    assert sorted(np.concatenate(list(table.split_indices.values()))) == list(range(rows))
    assert (table.group == -1).any() == (setting[0] == "bank")


@needs.data
def test_bank_compares_the_ages_that_the_names_say():
    ages = pd.read_csv(fetch("tabular/neufair_bank-full.csv"), sep=";")["age"]
    values, groups = bank_table().protected["age"]
    found = {g: (ages[values == g].min(), ages[values == g].max()) for g in groups}
    assert found == {"18-25": (18, 25), "42-48": (42, 48)}


@needs.data
def test_compas_columns_are_what_they_are_called():
    "Every defendant with the label was charged again; the names of the groups agree with ProPublica's table."
    compas = compas_table()
    assert (compas.features.loc[compas.y, "charged again"] == 1).all()
    known = os.path.join(os.environ["FAIRNESS_REPAIR_DATA"], "tabular", "compas-two-years-nonames.csv.gz")
    if not os.path.exists(known): pytest.skip("ProPublica's table is not in FAIRNESS_REPAIR_DATA")
    theirs = pd.read_csv(known)
    assert (theirs["two_year_recid"] == compas.y).all()
    assert (theirs["sex"].str.lower() == compas.protected["sex"][0]).all()
    assert (theirs["race"].eq("Caucasian") == compas.protected["race"][0].eq("Caucasian")).all()
    for ours, name in {
            "juvenile felonies": "juv_fel_count", "decile score": "decile_score", "priors": "priors_count",
            "charged again": "is_recid", "charged again, violent": "is_violent_recid",
            "violence decile score": "v_decile_score"}.items():
        scaled = (theirs[name] - theirs[name].min())/np.ptp(theirs[name])
        assert np.allclose(compas.features[ours], scaled), ours


def test_meps_without_its_file_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setenv("FAIRNESS_REPAIR_DATA", str(tmp_path))
    monkeypatch.setenv("FAIRNESS_REPAIR_CACHE", str(tmp_path/"cache"))
    with pytest.raises(ValueError, match="MEPSDataset21.*FAIRNESS_REPAIR_DATA"): load_table("meps16")


def test_every_setting_has_a_data_set_and_registered_files():
    assert {name for name, _ in PAPER_SETTINGS} <= set(DATA_SETS)
    files = ("adult.csv", "bank-full.csv", "compas", "UCI_Credit_Card.csv")
    assert {f"tabular/neufair_{name}" for name in files} <= set(registry())


@pytest.fixture
def people():
    rng = np.random.default_rng(0)
    n = 300
    return pd.DataFrame(dict(
        age=rng.integers(18, 70, n), city=rng.choice(["Rome", "Oslo", "Cairo"], n),
        sex=rng.choice(["F", "M"], n), member=rng.random(n) < .5,
        paid=rng.choice([0, 1], n), when=pd.date_range("2020-01-01", periods=n)))


given = dict(label="paid", positive=1, protected="sex", drop=["when"])


def test_file_kinds_agree(people, tmp_path):
    people.drop(columns="when").to_csv(tmp_path/"people.csv", index=False)
    people.drop(columns="when").to_csv(tmp_path/"people.csv.gz", index=False)
    people.to_parquet(tmp_path/"people.parquet")
    expected = read_table(people, **given)
    assert expected.feature_names == ("age", "member", "city=Oslo", "city=Rome", "sex=M")
    for name, drop in (("people.csv", ()), ("people.csv.gz", ()), ("people.parquet", "when")):
        found = read_table(tmp_path/name, **given | dict(drop=drop))
        assert found.name == name and (found.X == expected.X).all()
        assert (found.y == expected.y).all() and (found.group == expected.group).all()


def test_text_positive_reaches_a_number(people):
    "From a command line every value is text."
    assert (read_table(people, **given | dict(positive="1")).y == (people.paid == 1)).all()


@pytest.mark.parametrize("change, more, error, words", [
    (dict(), dict(drop=()), ValueError, "'when' holds dates"),
    (dict(), dict(protected="gender"), ValueError, "unknown column of table 'gender'"),
    (dict(), dict(drop=["whn"]), ValueError, "Did you mean 'when'"),
    (dict(), dict(positive=2), ValueError, "Known: "),
    (dict(paid=1), dict(), ValueError, "has 1 values"),
    (dict(paid=range(300)), dict(), ValueError, "has 300 values"),
    (dict(sex="F"), dict(), ValueError, "only one group"),
    (dict(sex=["F"]*299 + ["M"]), dict(), ValueError, "group 'M' has no"),
    (dict(age=[np.nan]*3 + [40.]*297), dict(), ValueError, "3 rows have missing values, in age (3)"),
    (dict(age=[np.inf] + [40.]*299), dict(), ValueError, "beyond 1e30, in age (1)"),
    (dict(city=[f"c{i}" for i in range(300)]), dict(), ValueError, "has 300 different texts"),
    (dict(), dict(protected="age"), ValueError, "name those to compare"),
    (dict(), dict(groups=["F", "m"]), ValueError, "unknown value of 'sex' 'm'"),
    (dict(), dict(seed=-1), ValueError, "seed = -1"),
])
def test_bad_input_is_one_clear_line(people, change, more, error, words):
    with pytest.raises(error) as caught: read_table(people.assign(**change), **given | more)
    assert words in str(caught.value) and "\n" not in str(caught.value)
