"Attention Pruning beyond its notebooks: data that must not overlap, budgets that must hold, collections that survive a kill."
import itertools
from dataclasses import replace

import numpy as np, pytest

from fairness_repair.pruning.active_search import by_rounds, searches
from fairness_repair.pruning.attention_pruning import Objective, collect
from fairness_repair.language.models import load
from fairness_repair.language.subsampling import Subsampling
from fairness_repair.toy_models.exact_table import load_exact_table
from fairness_repair.pruning.experiment import Protocol, as_published, build_evaluator, build_evaluators, never_published, paper_models, protocol
from fairness_repair.language.prompts import load_prompts
from fairness_repair.states import Space
from fairness_repair.store import Store
from fairness_repair.pruning.replay import Lookup
from fairness_repair.language.texts import load_text

import needs

splits = ("search", "selection", "report")


@pytest.fixture(scope="module")
def tiny(): return load("tiny")


@pytest.fixture(scope="module")
def table():
    truth = load_exact_table("tiny")
    return Lookup(truth.bias["gender"], truth.perplexity)


def no_overlap(parts):
    for (a, left), (b, right) in itertools.combinations(parts.items(), 2): assert not set(left) & set(right), f"{a} and {b} overlap"


@pytest.mark.parametrize("axis", ["gender", "race", "nationality", "age"])
def test_purposes_share_no_prompt_and_no_text(tiny, axis):
    evaluators = build_evaluators(protocol("tiny", axis=axis), tiny)
    no_overlap({split: evaluators[split].toxicity.texts for split in splits})
    no_overlap({split: load_text("tiny", split) for split in splits})
    no_overlap({split: [bytes(np.asarray(w.ids, np.int32)) for w in evaluators[split].text.windows] for split in splits})


def test_purposes_share_no_sampling_noise(tiny):
    settings = protocol("tiny", scorer="words:lazy,dirty", new_tokens=2)
    evaluators = build_evaluators(settings, tiny)
    seeds = [evaluators[split].toxicity.seed for split in splits]
    assert len(set(seeds)) == 3


@needs.data
@pytest.mark.parametrize("axis", ["gender", "race", "nationality", "sexual_orientation", "age"])
def test_holistic_bias_is_cut_in_three(axis):
    parts = load_prompts("holistic-bias-v1.1", axis)
    no_overlap({split: parts[split]["text"] for split in splits})


@needs.data
def test_wikitext_is_cut_in_three():
    parts = {split: {line for doc in load_text("wikitext2", split) for line in doc.split("\n") if len(line) > 200} for split in splits}
    assert all(parts.values())
    no_overlap(parts)


def test_fractions_are_drawn_from_one_purpose_only(tiny):
    "What a state meets is a part of the search data, whatever the state."
    search = build_evaluators(replace(protocol("tiny"), eta=.3), tiny)["search"]
    met = {text for state in np.eye(16, dtype=bool) for text in search.metrics["toxicity"].for_state(state).texts}
    assert met <= set(search.toxicity.texts) and len(met) > 24


def test_collection_survives_a_kill(tiny, tmp_path):
    "Ctrl-C after five states: they are in the store, and the next run measures only the others."
    def half(store=None):
        return build_evaluator(protocol("tiny"), tiny, "search", prompts=6, tokens=200, store=store, subsampling=Subsampling(.5, .5))
    class Killed:
        def __init__(self): self.evaluator, self.left = half(Store(tmp_path/"s.sqlite")), 6
        def __call__(self, states):
            self.left -= len(states)
            if self.left < 0: raise RuntimeError("killed")
            return self.evaluator(states)
    space = Space(16, 1, 8)
    with pytest.raises(RuntimeError): collect(Objective(Killed(), free=np.ones(16)), space, budget=12)
    again = half(Store(tmp_path/"s.sqlite"))
    states = collect(Objective(again, free=np.ones(16)), space, budget=12)
    assert len(states) == 12 and again.counts.measured == 2*12 - 2*5
    assert (collect(Objective(half(), free=np.ones(16)), space, budget=12) == states).all()


@pytest.mark.parametrize("method", searches)
def test_no_search_overruns_its_budget(table, method):
    asked = set()
    def counting(states):
        asked.update(s.tobytes() for s in states)
        return table(states)
    objective = Objective(counting, free=np.ones(16))
    found = searches[method](objective, Space(16, 1, 8), samples=40, keep=5, rng=1)
    assert len(asked) <= 40 and len(found) == 5 and len(np.unique(found, axis=0)) == 5
    assert (found.sum(1) <= 8).all()
    assert (searches[method](objective, Space(16, 1, 8), samples=40, keep=5, rng=1) == found).all(), "the same seed, the same states"


def test_rounds_go_on_through_broken_states(table):
    "States without a finite perplexity or bias are never proposed and do not stop the search."
    def broken(states):
        rows = table(states)
        rows.loc[states[:, 3], ["bias", "perplexity"]] = np.nan, np.inf
        return rows
    found = by_rounds(Objective(broken, free=np.ones(16)), Space(16, 1, 8), samples=40, keep=3)
    assert not found[:, 3].any()


@pytest.mark.parametrize("name", paper_models)
def test_published_settings(name):
    settings = as_published(name)
    ours = {field: getattr(Protocol(), field) for field in never_published}
    assert all(getattr(settings, field) == value for field, value in ours.items()), "what was never published is the project's default"
    assert 0 < settings.eta <= .2 and settings.epsilon >= .5
