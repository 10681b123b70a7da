"Baselines of models whose layers differ: scores for exactly the heads there are, or one refusal."
import numpy as np, pytest
from families import H, build, small_config, tokenizer

from fairness_repair.core import InputError
from fairness_repair.language.model_metrics import TextPerplexity
from fairness_repair.language.models import LM
from fairness_repair.pruning.baselines import gradient_importance, magnitude_scores


@pytest.mark.parametrize("family", ["jamba", "nemotron_h", "inkling_text"])
def test_scores_of_all_heads(family):
    lm = LM("mine", build(small_config(family)), tokenizer())
    windows = TextPerplexity(lm, ["w5 w6 w7 w8 w9 w10"], window=8).windows
    for scores in (gradient_importance(lm, windows), magnitude_scores(lm.model)):
        assert scores.shape == (lm.n_heads_total,) and (scores > 0).all() and scores.max() == 1

def test_queries_with_gates_are_refused():
    "In Qwen3.5 the query projection also holds a gate: it is twice as wide as the heads."
    with pytest.raises(InputError, match="Qwen3_5Attention: no query, key and value weights in a known place"):
        magnitude_scores(build(small_config("qwen3_5_text")))
