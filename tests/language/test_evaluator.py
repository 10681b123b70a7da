"Backends, subsampling and metrics in every combination: the same numbers, each measured once."
import numpy as np, pandas as pd, pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from fairness_repair.disparity import squared_disparity
from fairness_repair.language.ablation import ByLayer, ablate_heads, record_layers
from fairness_repair.language.batched import Batched, measure_batched
from fairness_repair.language.cluster import Distributed
from fairness_repair.language.evaluator import Evaluator, Serial
from fairness_repair.language.model_metrics import Metric, NextTokenToxicity, SampledToxicity, TextPerplexity
from fairness_repair.language.model_metrics import tokenizer_hash
from fairness_repair.language.models import LM, load
from fairness_repair.language.prompts import load_prompts, sample_prompts
from fairness_repair.language.subsampling import Subsampling
from fairness_repair.language.texts import load_text
from fairness_repair.language.toxicity import load_scorer
from fairness_repair.states import SearchSpace, random_states, state_to_hex
from fairness_repair.store import Store
from fairness_repair.toy_models.grammar import INSULTS

single = np.eye(16, dtype=bool)
several = random_states(SearchSpace(16, 2, 8), 5, rng=1)
states = np.concatenate([np.zeros((1, 16), bool), several, single[[3, 0, 9, 8]], single[:1]])
distinct = len({state_to_hex(s) for s in states})
half = Subsampling(eta_bias=.5, eta_ppl=.5, seed=3)


class HereTeam:
    "A team of one worker in this process."
    def __init__(self, lm): self.lm, self.weights_hash, self.workers = lm, lm.weights_hash(), [self]
    def stream(self, jobs, backend):
        for name, metric, some in reversed(jobs): yield from backend.measure(self.lm, {name: (metric, some)})


@pytest.fixture(scope="module")
def lm(): return load("tiny")


@pytest.fixture(scope="module")
def metrics(lm):
    prompts = sample_prompts(load_prompts("tiny", "gender")["search"], 4)
    scorer = load_scorer("words:" + ",".join(INSULTS))
    text = TextPerplexity(lm, load_text("tiny", "search"), tokens=400)
    fasp = TextPerplexity(lm, load_text("tiny", "search"), tokens=400, mode="fasp")
    exact, sampled = NextTokenToxicity(lm, prompts, INSULTS), SampledToxicity(prompts, scorer, new_tokens=3)
    return {"exact": (exact, text), "sampled": (sampled, text), "text only": (None, text),
            "prompts only": (exact, None), "fasp": (None, fasp)}


@pytest.fixture(scope="module")
def plain(lm, metrics):
    measure = lambda kind, part: Evaluator(lm, *metrics[kind], subsampling=part)(states)
    return {(kind, part): measure(kind, part) for kind in metrics for part in (None, half)}


backends = {
    "serial": lambda lm: Serial(), "batched": lambda lm: Batched(), "passes of 3": lambda lm: Batched(3),
    "by layer": lambda lm: ByLayer(), "by layer, small": lambda lm: ByLayer(rows=3, tokens=70),
    "workers": lambda lm: Distributed(HereTeam(lm)),
    "workers, batched": lambda lm: Distributed(HereTeam(lm), inner=Batched(3)),
    "workers, by layer": lambda lm: Distributed(HereTeam(lm), inner=ByLayer())}


def counted(evaluator): return evaluator.counts.measured, evaluator.counts.reused


@pytest.mark.parametrize("part", [None, half], ids=["whole", "half"])
@pytest.mark.parametrize("kind", ["exact", "sampled", "text only", "prompts only", "fasp"])
@pytest.mark.parametrize("name", backends)
def test_every_combination(lm, metrics, plain, name, kind, part):
    evaluator = Evaluator(lm, *metrics[kind], subsampling=part, backend=backends[name](lm))
    table, expected = evaluator(states), plain[kind, part]
    assert list(table) == list(expected) and table["state"].tolist() == expected["state"].tolist()
    numbers, wanted = (t.drop(columns="state").to_numpy(float) for t in (table, expected))
    if part or name in ("serial", "workers"): np.testing.assert_array_equal(numbers, wanted) # the same passes
    np.testing.assert_allclose(numbers, wanted, rtol=1e-5, atol=1e-7)
    pairs = len(evaluator.metrics)
    assert counted(evaluator) == (pairs*distinct, pairs*(len(states) - distinct))
    again = evaluator(states)
    pd.testing.assert_frame_equal(again, table)
    assert counted(evaluator) == (pairs*distinct, pairs*(2*len(states) - distinct))
    assert len(evaluator.recorded()) == distinct


@pytest.mark.parametrize("name", backends)
def test_backends_share_a_store(lm, metrics, name):
    "What one backend has measured, another reads."
    evaluator = Evaluator(lm, *metrics["exact"], backend=backends[name](lm))
    first = evaluator(states)
    for other in backends.values():
        pd.testing.assert_frame_equal(evaluator.using(backend=other(lm))(states), first)
    assert evaluator.counts.measured == 2*distinct


class Interrupted(Exception): pass


@pytest.mark.parametrize("part", [None, half], ids=["whole", "half"])
@pytest.mark.parametrize("name", backends)
def test_interrupted_runs_resume(lm, metrics, plain, name, part, tmp_path):
    "Stopped after some results: these are in the file, and the next run measures the others only."
    def make(callback=None):
        store = Store(tmp_path/"a.sqlite")
        options = dict(store=store, subsampling=part, backend=backends[name](lm), callback=callback)
        return Evaluator(lm, *metrics["exact"], **options)
    rows = []
    def stop(row):
        rows.append(row)
        if len(rows) == 3: raise Interrupted
    first = make(stop)
    with pytest.raises(Interrupted): first(states)
    done = first.counts.measured
    assert 3*2 <= done <= 2*distinct
    first.store.close()
    again = make()
    np.testing.assert_allclose(again(states)["bias"], plain["exact", part]["bias"], rtol=1e-5)
    assert again.counts.measured == 2*distinct - done


def test_callback_sees_every_state_once(lm, metrics):
    seen = []
    evaluator = Evaluator(lm, *metrics["exact"], callback=lambda row: seen.append(row["state"]))
    table = evaluator(states)
    assert sorted(seen) == sorted(set(table["state"]))
    evaluator(states[:2])
    assert len(seen) == distinct + 2, "a stored row is reported, too"


def test_copies_share_their_counts(lm, metrics):
    evaluator = Evaluator(lm, *metrics["exact"])
    evaluator.using(backend=Batched())(states[:3])
    ablate_heads({("gender", 0): evaluator}, heads=[1, 2])
    assert evaluator.counts.measured == 2*(3 + 2)
    assert evaluator.counts.reused == 2, "the unmodified model"


def test_a_state_of_another_model_is_refused(lm, metrics):
    evaluator = Evaluator(lm, *metrics["exact"])
    with pytest.raises(ValueError, match="16 units, got 5"): evaluator(np.zeros((1, 5)))


def swapped(lm):
    "The same model with a tokenizer whose words are in another order."
    vocabulary = lm.tokenizer.get_vocab()
    n = len(vocabulary)
    order = {word: i if i < 5 else 5 + (i - 5 + 1) % (n - 5) for word, i in vocabulary.items()}
    words = Tokenizer(models.WordLevel(order, unk_token=lm.tokenizer.unk_token))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {name: getattr(lm.tokenizer, name) for name in ("eos_token", "pad_token", "unk_token")}
    return LM("swapped", lm.model, PreTrainedTokenizerFast(tokenizer_object=words, **special))


def test_a_second_tokenizer_would_give_wrong_numbers_and_is_refused(lm, metrics):
    "The ids of one tokenizer are other words for the second: numbers without meaning, and no error."
    other, prompts = swapped(lm), sample_prompts(load_prompts("tiny", "gender")["search"], 4)
    exact, text = metrics["exact"]
    message = "another tokenizer than that of swapped: make the metric with this model"
    refused = pytest.raises(ValueError, match=message)
    with refused: Evaluator(other, exact, text)
    for metric in (exact, text):
        with refused: metric(other)
        with refused: measure_batched(other, metric, states[:2])
        with refused: record_layers(other, metric)
    silent = exact.measure(other) # without the check
    right = NextTokenToxicity(other, prompts, INSULTS)
    assert np.abs(silent - right(other)).max() > .1
    evaluator = Evaluator(other, right, TextPerplexity(other, load_text("tiny", "search"), tokens=400))
    assert len(evaluator(states[:2])) == 2
    subsampled = Evaluator(lm, exact, text, subsampling=half).metrics["toxicity"]
    with refused: Evaluator(other, subsampled, None)


def test_sampled_toxicity_takes_any_tokenizer(lm, metrics):
    evaluator = Evaluator(swapped(lm), metrics["sampled"][0], None)
    assert 0 <= evaluator(states[:1])["toxicity"][0] <= 1


def test_tokenizer_hash_does_not_change_by_use(lm):
    tokenizer = load("tiny").tokenizer
    tokenizer(["a longer text", "b"], padding=True, truncation=True, max_length=2)
    assert tokenizer_hash(tokenizer) == tokenizer_hash(lm.tokenizer) != tokenizer_hash(swapped(lm).tokenizer)


class Counting(Metric):
    "The number of a text's tokens: a metric with three methods."
    per_state = True # no pieces: one state after the other
    def __init__(self, texts): self.texts = texts
    def to_record(self): return dict(probe="test", texts=self.texts)
    def measure(self, lm): return np.array([len(ids) for ids in lm.tokenizer(self.texts)["input_ids"]], float)
    def columns(self, numbers): return dict(bias=numbers.mean())


@pytest.mark.parametrize("name", backends)
def test_a_new_metric_is_one_class(lm, name):
    evaluator = Evaluator(lm, Counting(["the man is", "the"]), None, backend=backends[name](lm))
    n_tokens = [len(ids) for ids in lm.tokenizer(["the man is", "the"])["input_ids"]]
    assert evaluator(states)["bias"].tolist() == [np.mean(n_tokens)]*len(states)


def test_squared_disparity_of_a_table_counts_draws_of_a_prompt_as_one(lm, metrics):
    prompts = sample_prompts(load_prompts("tiny", "gender")["search"], 4)
    thrice = pd.concat([prompts.assign(draw=i) for i in range(3)], ignore_index=True)
    sampled = SampledToxicity(thrice, load_scorer("words:" + ",".join(INSULTS)), new_tokens=3)
    evaluator = Evaluator(lm, sampled, None)
    scores = evaluator.scores(states[0]).reshape(3, -1).mean(0)
    expected = squared_disparity(scores, prompts["group"].to_numpy())
    assert evaluator.row(states[0])["squared_disparity"] == pytest.approx(expected)
