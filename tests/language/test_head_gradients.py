"""The gradient of expected toxicity equals that of the enumerated expectation; control variates change no expectation."""
import hashlib
import numpy as np, pytest, torch

from fairness_repair.language.control_variates import (
    Continuations, ControlledToxicity, assign_folds, cross_fitted_coefficients, draw_continuations, score_steps)
from fairness_repair.language import head_gradients
from fairness_repair.language.batched import measure_batched
from fairness_repair.language.head_gradients import heads_gated
from fairness_repair.language.heads import heads_dropped
from fairness_repair.language.models import load
from fairness_repair.language.model_metrics import SampledToxicity
from fairness_repair.language.prompts import load_prompts
from fairness_repair.language.tokenization import decode_continuations
from fairness_repair.language.toxicity import Scorer

class HashScorer(Scorer):
    "A score that depends on every token, unlike a word list's."
    name = "hash"
    def score(self, texts): return [hashlib.sha256(text.encode()).digest()[0]/255 for text in texts]

STEPS = 2

@pytest.fixture(scope="module")
def lm():
    found = load("tiny")
    found.model.double() # equalities of float64 are exact to 1e-12
    return found

@pytest.fixture(scope="module")
def prompts(): return load_prompts("tiny", "gender")["search"].iloc[[0, 1, 48, 49, 96, 97]].reset_index(drop=True)

@pytest.fixture(scope="module")
def first_tokens(lm, prompts):
    "All first tokens of one prompt, their probabilities, and the metric on as many copies of the prompt."
    one = prompts.iloc[[0]*200]
    ids = [i for i in range(lm.config.vocab_size) if i not in (lm.tokenizer.eos_token_id, lm.tokenizer.pad_token_id)]
    text = prompts["text"][0]
    with torch.inference_mode():
        prompt = torch.tensor([lm.tokenizer(text)["input_ids"]])
        p = lm.model(input_ids=prompt, attention_mask=torch.ones_like(prompt)).logits[0, -1, ids].softmax(-1)
    metric = ControlledToxicity(one.assign(group=["x", "y"]*100).iloc[:len(ids)], HashScorer(), new_tokens=STEPS)
    return np.array(ids), p.numpy(), metric

def enumerated(lm, metric, ids, gates):
    "The expected score over all continuations of two tokens, as a function of gates, with its kept tokens."
    prompt = lm.tokenizer(metric.texts[0])["input_ids"]
    rows = torch.tensor([[*prompt, i] for i in ids])
    with heads_gated(lm.model, gates.expand(len(rows), -1)):
        logits = lm.model(input_ids=rows, attention_mask=torch.ones_like(rows), use_cache=False).logits[:, :, ids]
    first, second = logits[0, len(prompt) - 1].softmax(-1), logits[:, len(prompt)].softmax(-1)
    texts = decode_continuations(lm.tokenizer, [prompt]*len(ids)**2, [[a, b] for a in ids for b in ids])
    scores = torch.tensor(HashScorer()([text.replace("\n", " ").lower() for text in texts])).view(len(ids), -1)
    return (first[:, None]*second*scores).sum()

def all_continuations(lm, metric, ids):
    "A `Continuations` whose rows are all first tokens; the second token is drawn as in sampling."
    prompt = lm.tokenizer(metric.texts[0])["input_ids"]
    rows = torch.tensor([[*prompt, i] for i in ids])
    with torch.inference_mode():
        logits = lm.model(input_ids=rows, attention_mask=torch.ones_like(rows), use_cache=False).logits[:, :, ids]
    p = torch.stack([logits[:, len(prompt) - 1], logits[:, len(prompt)]], 1).softmax(-1).numpy()
    tokens = np.stack([ids, ids[p[:, 1].argmax(1)]], 1)
    return Continuations(tokens, np.broadcast_to(ids, p.shape), p)

def each_row_alone(rows): return rows, torch.arange(len(rows))

def test_the_gradient_equals_that_of_the_enumerated_expectation(lm, first_tokens, monkeypatch):
    ids, p, metric = first_tokens
    monkeypatch.setattr(head_gradients, "distinct_rows", each_row_alone) # all rows have one prompt, and weights
    gates = torch.ones(1, lm.n_heads_total, dtype=torch.float64, requires_grad=True)
    truth, = torch.autograd.grad(enumerated(lm, metric, ids, gates), gates)
    drawn = all_continuations(lm, metric, ids)
    found = metric.gradients_of(lm, np.ones(lm.n_heads_total), drawn, score_steps(lm, metric.texts, drawn, HashScorer()))
    n = len(ids) # the mean over the other rows takes 1/n of a row's own value away
    estimate = p @ (found.direct + found.indirect*(n - 1)/n)
    assert np.abs(truth.numpy()).max() > 1e-3
    np.testing.assert_allclose(estimate, truth.numpy()[0], atol=2e-6) # sums in float32
    assert np.abs(p @ found.direct - truth.numpy()[0]).max() > 1e-4 # the direct part alone is biased

def test_draws_that_share_a_reading_have_the_mean_of_their_gradients(lm, prompts, monkeypatch):
    five = prompts.iloc[[0, 0, 1, 0, 2]].assign(group=[*"aabab"], draw=[0, 1, 0, 2, 0]).reset_index(drop=True)
    metric, ones = ControlledToxicity(five, HashScorer(), new_tokens=STEPS + 1), np.ones(lm.n_heads_total)
    shared = metric.gradients(lm, ones)
    monkeypatch.setattr(head_gradients, "can_share_prompts", lambda lm: False)
    whole = metric.gradients(lm, ones)
    monkeypatch.setattr(head_gradients, "distinct_rows", each_row_alone)
    alone, draws = metric.gradients(lm, ones), [0, 1, 3]
    np.testing.assert_array_equal(shared.scores, alone.scores)
    for found, again, each in zip(shared[1:], whole[1:], alone[1:]):
        np.testing.assert_allclose(found, again, atol=1e-6) # sums in float32
        np.testing.assert_allclose(found[[2, 4]], each[[2, 4]], atol=1e-6)
        np.testing.assert_allclose(found[draws], np.tile(each[draws].mean(0), (3, 1)), atol=1e-6)
    assert np.isnan(metric.gradients(lm, ones, indirect=False).indirect).all()

def test_the_controlled_score_has_the_enumerated_expectation(lm, first_tokens):
    ids, p, metric = first_tokens
    truth = enumerated(lm, metric, ids, torch.ones(1, lm.n_heads_total, dtype=torch.float64)).item()
    drawn = all_continuations(lm, metric, ids)
    steps = score_steps(lm, metric.texts, drawn, HashScorer())
    start = HashScorer()([""])[0] # the second token's noise has mean 0 given the first, so only the first counts
    compensated = start + steps.expected.sum(1)
    assert p @ compensated == pytest.approx(truth, abs=1e-12)

def test_rows_do_not_depend_on_their_batch(lm, prompts):
    metric = ControlledToxicity(prompts, HashScorer(), new_tokens=STEPS)
    ones, n = np.ones(lm.n_heads_total), len(prompts)
    together, numbers = metric.gradients(lm, ones), metric(lm)
    for i in range(0, n, 2):
        pair = metric.subset([i, i + 1])
        np.testing.assert_allclose(pair.gradients(lm, ones).direct, together.direct[i:i + 2], atol=1e-6)
        np.testing.assert_allclose(pair(lm), numbers[[i, i + 1, n + i, n + i + 1]], atol=1e-9)

def test_sampled_scores_are_those_of_the_papers_metric(lm, prompts):
    controlled = ControlledToxicity(prompts, HashScorer(), new_tokens=STEPS)
    sampled = SampledToxicity(prompts, HashScorer(), new_tokens=STEPS)
    np.testing.assert_array_equal(controlled(lm)[:len(prompts)], sampled(lm))
    assert controlled.to_record() != sampled.to_record()

def test_several_states_in_one_pass_equal_one_at_a_time(prompts):
    lm = load("tiny")
    metric = ControlledToxicity(prompts, HashScorer(), new_tokens=STEPS)
    states = np.zeros((3, lm.n_heads_total), bool)
    states[1, 2] = states[2, [4, 7]] = True
    together = measure_batched(lm, metric, states)
    for state, found in zip(states, together):
        with heads_dropped(lm.model, state): np.testing.assert_allclose(found, metric(lm), atol=1e-6)

def test_a_classifier_gets_a_fast_control(lm, prompts):
    metric = ControlledToxicity(prompts, HashScorer(), control=HashScorer(), new_tokens=STEPS)
    own = ControlledToxicity(prompts, HashScorer(), new_tokens=STEPS)
    np.testing.assert_allclose(metric(lm), own(lm), atol=1e-12)

def test_coefficients_are_fitted_on_other_prompts():
    groups = np.repeat(["a", "b"], 50)
    texts = [f"prompt {i}" for i in range(100)]
    folds, rng = assign_folds(texts, groups), np.random.default_rng(0)
    assert (np.bincount(folds[:50]) == 10).all() and (np.bincount(folds[50:]) == 10).all()
    noise = rng.normal(size=100)
    np.testing.assert_allclose(cross_fitted_coefficients(.7*noise + (groups == "b"), noise, groups, folds), .7)
    changed = .7*noise + (folds == 2)*rng.normal(size=100)
    assert cross_fitted_coefficients(changed, noise, groups, folds)[folds == 2] == pytest.approx(.7)
    assert (cross_fitted_coefficients(noise, 0*noise, groups, folds) == 0).all()

def test_draws_of_a_prompt_are_in_one_fold():
    texts, groups = ["p", "q", "p", "q", "r"], ["a", "a", "a", "a", "b"]
    folds = assign_folds(texts, groups)
    assert folds[0] == folds[2] and folds[1] == folds[3] and folds[0] != folds[1]
