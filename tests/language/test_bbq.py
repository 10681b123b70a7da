"BBQ and lm-evaluation-harness: its log-likelihoods give its scores, and the model gives its log-likelihoods."
import json
from pathlib import Path

import numpy as np, pytest

import needs
from fairness_repair.language.bbq import BBQ, score_answers
from fairness_repair.language.bbq_questions import list_categories, make_question, read_bbq
from fairness_repair.language.models import load
from fairness_repair.language.sentence_pairs import load_pairs

recorded = json.loads((Path(__file__).parent/"bbq_by_harness.json").read_text(encoding="utf-8"))
questions = [make_question(row) for row in recorded["rows"]]
numbers = np.array(recorded["log_likelihoods"])


def equal(a, b): return a == b or np.isnan(a) and np.isnan(b)


def test_prompts_are_those_of_the_harness(): assert [q.prompt for q in questions] == recorded["prompts"]


def test_scores_are_those_of_the_harness():
    "Accuracy and bias scores, in all and by category, to the last digit."
    metric, theirs = BBQ(load("tiny"), questions), recorded["scores"]
    ours = score_answers(metric.answers(numbers)) | dict(acc=metric.answers(numbers)["right"].mean())
    for category, row in metric.by_category(numbers).iterrows():
        ours |= {f"{kind}_{category}": row[kind] for kind in ("amb_bias_score", "disamb_bias_score")}
    assert len(ours) == 5 + 2*6
    for name, value in ours.items(): assert equal(value, theirs[name]), (name, value, theirs[name])


@needs.smollm2
def test_log_likelihoods_are_those_of_the_harness():
    "Sums of at most 20 float32 log-probabilities near 10: equal to a few units in the fourth place."
    lm = load(recorded["model"], dtype=recorded["dtype"])
    assert lm.weights_hash() == recorded["weights"]
    assert np.abs(BBQ(lm, questions[::12])(lm).reshape(-1, 12) - numbers[::12]).max() < 5e-4


@needs.data
def test_pairs_are_the_ambiguous_questions():
    "Each has one answer that follows the stereotype; templates of search, selection and report are disjoint."
    pairs, ambiguous = load_pairs("bbq"), [q for c in list_categories() for q in read_bbq(c) if q.ambiguous]
    assert sum(map(len, pairs.values())) == len(ambiguous) == 5978
    assert all(len(q.biased) == 1 and q.right == set(range(2, 12)) for q in ambiguous)
    templates = [set(part["template"]) for part in pairs.values()]
    assert sum(map(len, templates)) == len(set.union(*templates)) == 150
    sides = {q.prompt: {f"{q.prompt} {q.choices[i]}" for i in (0, 1)} for q in ambiguous}
    for more, less in pairs["report"][["more", "less"]].itertuples(index=False):
        assert {more, less} == sides[more.rpartition("A:")[0] + "A:"]
