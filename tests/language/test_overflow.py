"Models and scorers whose numbers are not finite are refused, with the layer; a drop mask that overflows ends no search."
import warnings

import numpy as np, pandas as pd, pytest, torch

from fairness_repair.core import InputError
from fairness_repair.language.ablation import ByLayer
from fairness_repair.language.batched import Batched
from fairness_repair.language.evaluator import Evaluator, Serial
from fairness_repair.language.generation import generate
from fairness_repair.language.heads import attention_output_projections, heads_dropped
from fairness_repair.language.likelihood import sliding_windows, window_nll
from fairness_repair.language.model_metrics import NextTokenToxicity, SampledToxicity, TextPerplexity
from fairness_repair.language.models import LM
from fairness_repair.language.toxicity import Scorer, load_scorer
from fairness_repair.metrics import (bias_change_test, bias_p_value, group_disparity, group_means, noise_corrected_bias,
                                     noise_floor, paired_change_test, perplexity)
from fairness_repair.name_bias.answers import sample_answers
from fairness_repair.pruning.attention_pruning import Objective
from fairness_repair.pruning.baselines import gradient_importance
from fairness_repair.search import random_search
from fairness_repair.states import SearchSpace
from fairness_repair.store import Store

from families import build, tokenizer

prompts = pd.DataFrame(dict(text=[f"w{i} w{i + 1}" for i in range(5, 9)], group=list("aabb")))
text = " ".join(f"w{i}" for i in range(4, 10))


def model(kind="llama", dtype=torch.float32): return LM("mine", build(kind).to(dtype), tokenizer())


def overflowing(kind="llama"):
    "Finite float16 weights; the second layer's feed-forward block leaves float16's range."
    lm = model(kind, torch.float16)
    names = [n for n, m in lm.model.named_modules() if n.split(".")[-1] in ("down_proj", "c_proj", "dense_4h_to_h") and "mlp" in n]
    with torch.no_grad(): dict(lm.model.named_modules())[names[1]].weight.sign_().mul_(6e4)
    return lm


def metrics(lm):
    return {"sampled": SampledToxicity(prompts, load_scorer("words:bad"), new_tokens=2),
            "exact": NextTokenToxicity(lm, prompts, ["w40", "w41"]), "text": TextPerplexity(lm, [text])}


@pytest.mark.parametrize("name", ["sampled", "exact", "text"])
@pytest.mark.parametrize("kind, layer", [("llama", "layer 1, model.layers.1.mlp"), ("gpt2", "layer 1, transformer.h.1.mlp")])
def test_a_float16_model_that_overflows_is_refused(kind, layer, name):
    lm = overflowing(kind)
    metric = metrics(lm)[name]
    message = f"in float16: they first appear in {layer}.*load it as bfloat16 or float32"
    with pytest.raises(InputError, match=message): metric(lm)
    evaluator = Evaluator(lm, None, metric) if name == "text" else Evaluator(lm, metric, None)
    with pytest.raises(InputError, match=message): evaluator(np.zeros((1, 8), bool))
    with pytest.raises(InputError, match=message): evaluator(np.eye(8, dtype=bool)[:1]) # not the mask's fault


@pytest.mark.parametrize("dtype, advice", [(torch.bfloat16, "load it as float32"), (torch.float32, "use another checkpoint")])
def test_a_damaged_weight_is_named(dtype, advice):
    lm = model(dtype=dtype)
    with torch.no_grad(): lm.model.model.layers[1].mlp.up_proj.weight[0, 0] = torch.nan
    message = f"the weight model.layers.1.mlp.up_proj.weight is not finite.*{advice}"
    for metric in metrics(lm).values():
        with pytest.raises(InputError, match=message): metric(lm)
    with pytest.raises(InputError, match=message): generate(lm, ["w5"], new_tokens=2)
    with pytest.raises(InputError, match=message): sample_answers(lm, ["w5"], answers_per_prompt=2)
    with pytest.raises(InputError, match=message): gradient_importance(lm, TextPerplexity(lm, [text]).windows)


def test_no_hook_stays_and_nothing_changes():
    lm = overflowing()
    before = lm.weights_hash()
    with pytest.raises(InputError): TextPerplexity(lm, [text])(lm)
    assert lm.weights_hash() == before and not any(m._forward_hooks for m in lm.model.modules())


def test_generated_text_is_refused_at_whatever_step():
    "The fault needs not be in the first token."
    lm = model("gpt2")
    with torch.no_grad(): lm.model.transformer.wpe.weight[4:] = torch.inf
    assert generate(lm, ["w5 w6"], new_tokens=3)
    with pytest.raises(InputError, match="the weight transformer.wpe.weight is not finite"):
        generate(lm, ["w5 w6"], new_tokens=4)


def fragile(head=3):
    "A model that overflows only where one head is dropped."
    lm = model("gpt2")
    site = attention_output_projections(lm.model)[0]
    forward = site.module.forward
    def watched(x):
        dropped = (x.unflatten(-1, (4, 8))[..., head, :] == 0).all(-1, keepdim=True)
        return forward(torch.where(dropped, torch.inf, x))
    site.module.forward = watched
    return lm


backends = {"serial": Serial, "batched": lambda: Batched(3), "by layer": ByLayer}

@pytest.mark.parametrize("name", ["sampled", "exact"])
@pytest.mark.parametrize("backend", backends)
def test_a_mask_that_overflows_is_infinitely_bad_and_the_others_are_measured(backend, name):
    lm, masks = fragile(), np.vstack([np.zeros(8, bool), np.eye(8, dtype=bool)])
    found = metrics(lm)
    evaluator = Evaluator(lm, found[name], found["text"], backend=backends[backend]())
    with pytest.warns(UserWarning, match="mine overflows in float32 with 1 of 8 heads dropped.*infinitely bad"): table = evaluator(masks)
    broken = np.arange(9) == 4
    for column in ("bias", "perplexity", "toxicity", "noise_floor"):
        assert np.isinf(table[column][broken]).all() and np.isfinite(table[column][~broken]).all(), column
    pd.testing.assert_frame_equal(evaluator(masks), table) # read again from the store
    assert evaluator.counts.measured == 18
    with pytest.raises(InputError, match="overflows with 1 of 8 heads dropped: there are no numbers to compare"): evaluator.scores(masks[4])


def test_a_search_goes_on_past_a_mask_that_overflows():
    lm = fragile()
    evaluator = Evaluator(lm, metrics(lm)["exact"], metrics(lm)["text"])
    objective = Objective(evaluator, free=np.ones(8, bool), epsilon=.5)
    with warnings.catch_warnings(record=True): found = random_search(objective, SearchSpace(8, 1, 2), budget=30, rng=0)
    assert np.isfinite(found.cost) and not found.state[3] and found.n_evaluations == 30


def test_a_huge_perplexity_is_a_result():
    assert perplexity([700.]) == pytest.approx(np.exp(700)) and perplexity([1e6]) == np.inf
    assert perplexity([709.]) < np.inf
    lm = model("gpt2")
    with torch.no_grad(): lm.model.lm_head.weight.mul_(1e4)
    row = Evaluator(lm, None, TextPerplexity(lm, [text]))
    with pytest.raises(InputError, match="perplexity of mine is too large for a number"): row(np.zeros((1, 8), bool))
    assert row(np.ones((1, 8), bool))["perplexity"].notna().all()


def test_padding_may_be_anything():
    "What stands in the padding of a batch is not scored, finite or not."
    lm = model("gpt2")
    with torch.no_grad(): lm.model.transformer.wpe.weight[6:] = torch.nan
    windows = sliding_windows([4, 5, 6, 7, 8, 9], window=6, stride=6) + sliding_windows([4, 5, 6], window=6, stride=6)
    assert np.isfinite(window_nll(lm, windows)).all()


class Returns(Scorer):
    def __init__(self, value): self.name, self.value = "returns", value
    def score(self, texts): return [self.value]*len(texts)

@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1.5, -.1, 2])
def test_scores_that_are_no_probabilities_are_refused(value):
    with pytest.raises(InputError, match="scorer 'returns' gives .* to the text 'a'"): Returns(value)(["", "a"])
    def plain(texts): return np.full(len(texts), value) # any function with a name is a scorer
    plain.name = "plain"
    with pytest.raises(InputError, match="scorer 'plain' gives"): SampledToxicity(prompts, plain, new_tokens=1)(model())


def test_a_scorer_must_return_one_number_per_text():
    def short(texts): return np.zeros(len(texts) - 1)
    short.name = "short"
    with pytest.raises(InputError, match=r"returned shape \(3,\) for 4 texts"): SampledToxicity(prompts, short, new_tokens=1)(model())


groups = list("aabb")
tests = {"means": lambda s, g: group_means(s, g), "bias": lambda s, g: group_disparity(s, g), "floor": lambda s, g: noise_floor(s, g),
         "corrected": lambda s, g: noise_corrected_bias(s, g), "p": lambda s, g: bias_p_value(s, g, n_permutations=9),
         "change": lambda s, g: bias_change_test(s, s, g, n_resamples=9)}

@pytest.mark.parametrize("name", tests)
def test_metrics_refuse_what_is_no_number(name):
    call = tests[name]
    for bad in (np.nan, np.inf, -np.inf):
        with pytest.raises(InputError, match="number 2 of 4 is"): call([0, 1, bad, 1], groups)
    with pytest.raises(InputError): call([0, 1, 1], groups)
    with pytest.raises(InputError): call([], [])
    if name == "change": return
    with pytest.raises(InputError, match="at least two groups"): call([0, 1], ["a", "a"])
    with pytest.raises(InputError, match="group b has one prompt"): call([0, 1, 1], ["a", "a", "b"])
    with pytest.raises(InputError, match="a prompt has no group"): call([0, 1, 1, 1], ["a", "a", None, None])
    with pytest.raises(InputError, match="a prompt has no group"): call([0, 1, 1, 1], [1., 1., np.nan, np.nan])
    with pytest.raises(InputError, match="mix text and numbers"): call([0, 1, 1, 1], pd.Series(["a", "a", 1, 1], dtype=object))


def test_perplexity_refuses_what_is_no_number():
    for bad in ([np.nan], [1, np.inf], [-np.inf]):
        with pytest.raises(InputError, match="all must be finite"): perplexity(bad)
    for call in (lambda: perplexity([]), lambda: perplexity([1.], 0)):
        with pytest.raises(InputError, match="no token to score"): call()
    with pytest.raises(InputError, match="nothing to compare"): paired_change_test([], [], None, strata=[])


def test_a_store_is_not_shared_by_two_tokenizers(tmp_path):
    "The same weights and prompts, but a tokenizer that puts another token before each prompt."
    from tokenizers import processors
    lm, other = model(), model()
    store = Store(tmp_path/"a.sqlite")
    scorer, none = load_scorer("words:w40,w41"), np.zeros((1, 8), bool)
    first = Evaluator(lm, SampledToxicity(prompts, scorer, new_tokens=2), None, store=store)
    first(none)
    template = processors.TemplateProcessing(single="w1 $A", special_tokens=[("w1", 1)])
    other.tokenizer.backend_tokenizer.post_processor = template
    with pytest.raises(InputError, match="results of mine with another tokenizer: use another store"):
        Evaluator(other, SampledToxicity(prompts, scorer, new_tokens=2), None, store=store)
    again = Evaluator(model(), SampledToxicity(prompts, scorer, new_tokens=2), None, store=store)
    assert again(none).equals(first(none)) and again.counts.measured == 0
    lm.tokenizer.backend_tokenizer.post_processor = template
    with pytest.raises(InputError, match="tokenizer of mine has changed"): first(none)


def test_two_models_in_one_process_keep_nothing_of_each_other():
    "Numbers of each model alone, then of both in turn, with shared store, scorer and metrics."
    from tokenizers_of_each_family import families
    own = families["byte level"]()
    a, b = model("gpt2"), LM("other", build("gpt2", vocab_size=len(own)), own)
    texts = pd.DataFrame(dict(text=["the man is", "the woman", "they are", "she is"], group=list("aabb")))
    def evaluate(lm, data, document, store=None):
        sampled = SampledToxicity(data, load_scorer("words:good,w40"), new_tokens=3)
        return Evaluator(lm, sampled, TextPerplexity(lm, [document]), store=store)(np.eye(8, dtype=bool)[:2])
    alone = [evaluate(a, prompts, text), evaluate(b, texts, "the man is a good doctor")]
    shared = Store(":memory:")
    for _ in range(2):
        for lm, data, document, expected in ((a, prompts, text, alone[0]), (b, texts, "the man is a good doctor", alone[1])):
            pd.testing.assert_frame_equal(evaluate(lm, data, document, shared), expected)
    moving = SampledToxicity(texts, load_scorer("words:good,w40"), new_tokens=3) # holds texts only: both may use it
    np.testing.assert_array_equal(moving(b), moving(b)); moving(a); np.testing.assert_array_equal(moving(b), moving(b))
    exact = NextTokenToxicity(b, texts, ["is"])
    with pytest.raises(InputError, match="token ids of another tokenizer"): exact(a)


@pytest.mark.parametrize("returned", [["high"]*4, [None]*4, [[1], [1, 2], [1], [1]], None, "high"])
def test_scores_that_are_no_numbers_are_refused(returned):
    def wrong(texts): return returned
    wrong.name = "wrong"
    with pytest.raises(InputError, match="scorer 'wrong'"): SampledToxicity(prompts, wrong, new_tokens=1)(model())
    with pytest.raises(InputError): group_disparity(returned, groups)
