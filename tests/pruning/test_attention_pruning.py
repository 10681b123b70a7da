"Attention Pruning: splits without overlap, budgets that hold, collections that survive a kill."
import itertools
from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np, pytest

from fairness_repair.core import InputError
from fairness_repair.language.control_variates import ControlledToxicity
from fairness_repair.language.models import load
from fairness_repair.language.prompts import load_prompts
from fairness_repair.language.subsampling import Subsampling
from fairness_repair.language.texts import load_text
from fairness_repair.pruning.active_search import active_search
from fairness_repair.pruning.attention_pruning import Objective, nothing_to_repair, sample_states
from fairness_repair.pruning.experiment import (ExperimentConfig, PAPER_MODELS, UNPUBLISHED_FIELDS,
                                                build_evaluator, build_evaluators, make_config,
                                                published_config)
from fairness_repair.pruning.replay import TableEvaluator
from fairness_repair.pruning.search_methods import GRADIENT_METHODS, SEARCH_METHODS, propose
from fairness_repair.states import SearchSpace
from fairness_repair.store import Store
from fairness_repair.toy_models.exact_table import load_exact_table

import needs

splits = ("search", "selection", "report")


@pytest.fixture(scope="module")
def tiny(): return load("tiny")


@pytest.fixture(scope="module")
def table():
    truth = load_exact_table("tiny")
    return TableEvaluator(truth.bias["gender"], truth.perplexity)


def no_overlap(parts):
    for (a, left), (b, right) in itertools.combinations(parts.items(), 2):
        assert not set(left) & set(right), f"{a} and {b} overlap"


@pytest.mark.parametrize("axis", ["gender", "race", "nationality", "age"])
def test_purposes_share_no_prompt_and_no_text(tiny, axis):
    evaluators = build_evaluators(make_config("tiny", axis=axis), tiny)
    no_overlap({split: evaluators[split].toxicity.texts for split in splits})
    no_overlap({split: load_text("tiny", split) for split in splits})
    windows = lambda evaluator: [bytes(np.asarray(w.ids, np.int32)) for w in evaluator.text.windows]
    no_overlap({split: windows(evaluators[split]) for split in splits})


def test_purposes_share_no_sampling_noise(tiny):
    settings = make_config("tiny", scorer="words:lazy,dirty", new_tokens=2)
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
    lines = lambda split: {line for doc in load_text("wikitext2", split) for line in doc.split("\n")}
    parts = {split: {line for line in lines(split) if len(line) > 200} for split in splits}
    assert all(parts.values())
    no_overlap(parts)


def test_fractions_are_drawn_from_one_purpose_only(tiny):
    "What a state meets is a part of the search data, whatever the state."
    search = build_evaluators(replace(make_config("tiny"), data_share=.3), tiny)["search"]
    texts = lambda state: search.metrics["toxicity"].for_state(state).texts
    met = {text for state in np.eye(16, dtype=bool) for text in texts(state)}
    assert met <= set(search.toxicity.texts) and len(met) > 24


def test_collection_survives_a_kill(tiny, tmp_path):
    "Ctrl-C after five states: they are in the store, and the next run measures only the others."
    def half(store=None):
        return build_evaluator(make_config("tiny"), tiny, "search", prompts=6, tokens=200, store=store,
                               subsampling=Subsampling(.5, .5))
    class Killed:
        def __init__(self): self.evaluator, self.left = half(Store(tmp_path/"s.sqlite")), 6
        def __call__(self, states):
            self.left -= len(states)
            if self.left < 0: raise RuntimeError("killed")
            return self.evaluator(states)
    space = SearchSpace(16, 1, 8)
    with pytest.raises(RuntimeError): sample_states(Objective(Killed(), free=np.ones(16)), space, budget=12)
    again = half(Store(tmp_path/"s.sqlite"))
    states = sample_states(Objective(again, free=np.ones(16)), space, budget=12)
    assert len(states) == 12 and again.counts.measured == 2*12 - 2*5
    assert (sample_states(Objective(half(), free=np.ones(16)), space, budget=12) == states).all()


@pytest.mark.parametrize("method", [m for m in SEARCH_METHODS if m not in GRADIENT_METHODS])
def test_no_search_overruns_its_budget(table, method):
    measured = set()
    def counting(states):
        measured.update(s.tobytes() for s in states)
        return table(states)
    objective = Objective(counting, free=np.ones(16))
    space = SearchSpace(16, 1, 8)
    search = lambda: SEARCH_METHODS[method](objective, space, budget=40, n_candidates=5, seed=1)
    found = search()
    assert len(measured) <= 40 and len(found) == 5 and len(np.unique(found, axis=0)) == 5
    assert (found.sum(1) <= 8).all()
    assert (search() == found).all(), "the same seed, the same states"


class Recorded:
    "A bench over a table that keeps what searches find."
    def to_record(self): return dict(model="table")
    def __init__(self, table): self.table, self.store = table, Store(":memory:")
    def __call__(self, states): return self.table(states)


def test_longer_search_is_another_question(table):
    "Without `search_states` the stored question is the first version's; with it, it is another one."
    objective, space = Objective(Recorded(table), free=np.ones(16)), SearchSpace(16, 1, 8)
    ask = lambda **more: propose("AP", objective, space, budget=40, n_candidates=5, **more)
    ask()
    longer = ask(search_states=64*100)
    assert objective.evaluator.store.db.execute("select count(*) from outcomes").fetchone() == (2,)
    direct = SEARCH_METHODS["AP"](objective, space, budget=40, n_candidates=5, search_states=64*100)
    assert (longer == direct).all()
    with pytest.raises(ValueError, match="only AP"):
        propose("SA", objective, space, budget=40, search_states=100)
    with pytest.raises(ValueError, match="Did you mean 'genetic'"):
        propose("gentic", objective, space, budget=40)


def test_rounds_go_on_through_broken_states(table):
    "States without a finite perplexity or bias are never proposed and do not stop the search."
    def broken(states):
        rows = table(states)
        rows.loc[states[:, 3], ["bias", "perplexity"]] = np.nan, np.inf
        return rows
    objective = Objective(broken, free=np.ones(16))
    found = active_search(objective, SearchSpace(16, 1, 8), budget=40, n_candidates=3)
    assert not found[:, 3].any()


@pytest.mark.parametrize("name", PAPER_MODELS)
def test_published_settings(name):
    settings = published_config(name)
    ours = {field: getattr(ExperimentConfig(), field) for field in UNPUBLISHED_FIELDS}
    assert {field: getattr(settings, field) for field in ours} == ours, "not published: the project's default"
    assert 0 < settings.data_share <= .2 and settings.epsilon >= .5


def test_settings_are_recorded_under_their_first_names():
    "Folders of `repair` compare settings with those of older versions: a field keeps its stored name."
    names = ("prompts axis text scorer score_on dtype new_tokens search single selection report "
             "search_tokens selection_tokens report_tokens epsilon limit protect least most budget keep "
             "seeds eta").split()
    assert list(ExperimentConfig().to_record()) == names
    only_if_given = ("label", "measure", "draws", "window", "single_head_tokens")
    stored = {name: value for name, value in asdict(ExperimentConfig()).items() if name not in only_if_given}
    assert list(ExperimentConfig().to_record().values()) == list(stored.values())
    assert ExperimentConfig(label="toxic").to_record()["label"] == "toxic"

def test_draws_are_controlled_continuations(tiny):
    with pytest.raises(InputError, match="draws = 2: next word is measured without sampling"):
        make_config("tiny", draws=2)
    settings = make_config("tiny", scorer="words:vile,lazy", draws=2)
    metric = build_evaluator(settings, tiny, "search", prompts=3, tokens=100).toxicity
    assert type(metric) is ControlledToxicity and len(metric.texts) == 2*len(set(metric.texts)) == 24
    assert settings.to_record()["draws"] == 2


@pytest.mark.parametrize("row, interval, says", [
    (.3, dict(squares=-.001, ci_low=-.01, ci_high=.02), None), # no bias is seen, but nothing is certain
    (.3, dict(squares=.00004, ci_low=.00002, ci_high=.00006), "bias is at most 0.0077"),
    (.3, dict(squares=np.nan, ci_low=np.nan, ci_high=np.nan), None),
    (0., dict(squares=0., ci_low=0., ci_high=0.), "bias is 0"),
], ids=["noisy", "small for certain", "unknown", "none"])
def test_nothing_to_repair_needs_certainty(row, interval, says):
    evaluator = SimpleNamespace(lm=SimpleNamespace(n_heads_total=4), row=lambda state: dict(bias=row),
                                bias_interval=lambda state: interval)
    found = nothing_to_repair(evaluator)
    assert found is None if says is None else says in found
