"""Ids of recorded results never change: a renamed name in Python must not rename a stored key.

`record_ids.json` holds the ids as they were first recorded. To add a configuration, add its id there; never change one.
"""
import json, sqlite3

import numpy as np, pytest

from fairness_repair.pruning.attention_pruning import Objective
from fairness_repair.name_bias.bdb_audit import Audit
from fairness_repair.name_bias.bdb_config import Condition, audit_config
from fairness_repair.name_bias.bdb_localiser import Localiser, repaired_answers
from fairness_repair.core import paths
from fairness_repair.language.evaluator import Evaluator
from fairness_repair.language.models import load
from fairness_repair.language.subsampling import Subsampling
from fairness_repair.tabular.neufair import experiment_configs
from fairness_repair.tabular.postprocessing import POSTPROCESSING
from fairness_repair.pruning.experiment import build_evaluator, build_evaluators, make_config
from fairness_repair.pruning.search_methods import propose
from fairness_repair.states import SearchSpace
from fairness_repair.store import Store, protocol_id

import needs

frozen = json.loads((paths.root/"tests"/"record_ids.json").read_text())
stores = sorted((paths.data/"results").glob("*.sqlite"))


class Asked(Exception): pass


class Asking(Store):
    "A store that lists what it is asked for, and measures nothing."
    def __init__(self):
        super().__init__(":memory:")
        self.ids = []
    def get_or_compute(self, question, compute):
        self.ids.append(protocol_id(question))
        raise Asked


def asked(call, *args, **kwargs):
    "The id under which a call looks for its answer."
    store = Asking()
    with pytest.raises(Asked): call(store, *args, **kwargs)
    return store.ids[0]


def metric_ids(evaluator): return {kind: protocol_id(evaluator.record_of(evaluator.metrics[kind])) for kind in ("text", "toxicity")}


def evaluator_ids(lm, name, **changes):
    "Ids of both metrics of every evaluator of a model, and of a subsampled one."
    evaluators = build_evaluators(make_config(name, **changes), lm)
    search = evaluators["search"]
    evaluators["part"] = Evaluator(lm, search.toxicity, search.text, subsampling=Subsampling(eta_bias=.5, eta_ppl=.5, seed=3))
    kinds = dict(text="text", toxicity="prompts")
    return {f"{split} {kinds[kind]}": found for split, e in evaluators.items() for kind, found in metric_ids(e).items()}


def search_id(store, lm, name, method):
    evaluator = build_evaluator(make_config(name), lm, "search", prompts=6, tokens=200)
    objective = Objective(evaluator, free=np.arange(lm.n_heads_total) % 3 > 0, epsilon=.4, limit=1.2)
    evaluator.store = store
    propose(method, objective, SearchSpace(int(objective.free.sum()), 1, 5), budget=20, n_candidates=4, seed=7)


def localiser(store, lm, name): return Localiser(Audit(lm, audit_config(name), store))


def tiny(): return evaluator_ids(load("tiny"), "tiny", axis="race")
def tiny_sampled(): return evaluator_ids(load("tiny"), "tiny", scorer="words:lazy,dirty", new_tokens=3)
def tiny_searches(): return {method: asked(search_id, load("tiny"), "tiny", method) for method in ("AP", "SA", "random")}
def smollm2(): return evaluator_ids(load("smollm2-135m", dtype="bfloat16"), "smollm2-135m", prompts="tiny", text="tiny")
def price_tag():
    lm = load("price-tag")
    calls = {"original": lambda store: localiser(store, lm, "price-tag").audit.original_answers(1),
             "one head": lambda store: localiser(store, lm, "price-tag").ablate(3),
             "weights": lambda store: repaired_answers(localiser(store, lm, "price-tag"), Condition("weights", "original")),
             "one repair": lambda store: localiser(store, lm, "price-tag").facts_per_variation("precision", Condition("weights", "prompt-specific"), None)}
    return {name: asked(call) for name, call in calls.items()}
def neufair():
    configs = experiment_configs("all", networks="quick", seeds=1, strategies=("SA", "SA, paper", "RW, paper"), budget=1000, metric="eod", penalty=2., threshold=.95)
    return {f"{c.dataset} {c.protected} {c.strategy}": protocol_id(c.to_record()) for c in configs}


@pytest.mark.parametrize("configuration", [tiny, tiny_sampled, tiny_searches, price_tag, neufair], ids=lambda f: f.__name__)
def test_ids_are_those_first_recorded(configuration): assert configuration() == frozen[configuration.__name__]


@needs.smollm2
def test_ids_of_a_real_model(): assert smollm2() == frozen["smollm2"]


@pytest.mark.parametrize("path", stores, ids=lambda p: p.stem)
def test_every_recorded_row_lies_under_the_id_of_its_description(path):
    db = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    for table, column in (("protocols", "description"), ("outcomes", "question")):
        for name, text in db.execute(f"select id, {column} from {table}"): assert name == protocol_id(json.loads(text))


def test_recorded_searches_are_found():
    "What a study of the committed store asks is in it."
    with Store(paths.data/"results"/"ap-study.sqlite") as store:
        question = dict(method="AP", budget=30, noise=0., seed=0, study=dict(bench="tiny", axis="gender", states=65536), space=[16, 1, 8], epsilon=.5, limit=1.1)
        assert not store.missing([question])
    with Store(paths.data/"results"/"neufair-authors.sqlite") as store:
        configs = experiment_configs("all", networks="authors", seeds=12, strategies=("SA", "SA, paper", "RW, paper"),
                                     budget=20000, metric="eod", penalty=3., threshold=.98)
        assert not store.missing([config.to_record() for config in configs])
    with Store(paths.data/"results"/"neufair-generalise.sqlite") as store:
        configs = experiment_configs("all", networks="authors", seeds=12, strategies=("SA, cool", *POSTPROCESSING),
                                     rows="train+val", budget=20000, metric="eod", penalty=3., threshold=.98)
        configs += experiment_configs("all", networks="authors", seeds=12, strategies=POSTPROCESSING, rows="val")
        assert not store.missing([config.to_record() for config in configs])
    with Store(paths.data/"results"/"neufair-margin-authors.sqlite") as store:
        settings = dict(networks="authors", seeds=12, strategies=("SA, F1 margin",), budget=20000, metric="eod",
                        penalty=3., threshold=.98)
        configs = [config for more in (dict(rows="train+val", repeats=5), dict(rows="train+val"), dict(rows="val"))
                   for config in experiment_configs("all", **settings, **more)]
        assert len(configs) == 72*7 and not store.missing([config.to_record() for config in configs])
    with Store(paths.data/"results"/"bdb-price-tag.sqlite") as store:
        found = localiser(store, load("price-tag"), "price-tag")
        for condition in found.audit.conditions: repaired_answers(found, condition)
        assert found.audit.n_sampled == 0
