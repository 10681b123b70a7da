"All measurements on another device: no tensor is left on the processor, and the numbers are the same."
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import numpy as np, pytest, torch
from transformers import LlamaConfig, LlamaForCausalLM

from fairness_repair.pruning.attention_pruning import Surrogates
from fairness_repair.name_bias.bdb_audit import Audit
from fairness_repair.name_bias.bdb_config import Condition, audit_config
from fairness_repair.name_bias.bdb_localiser import Localiser, repaired_answers
from fairness_repair.pruning.surrogate_annealing import anneal_surrogates
from fairness_repair.language.generation import generate
from fairness_repair.language.heads import prune, heads_dropped
from fairness_repair.language.ablation import ablate_heads
from fairness_repair.language.models import LM, load
from fairness_repair.pruning.experiment import build_evaluator, make_config
from fairness_repair.states import SearchSpace, random_states
from fairness_repair.store import Store
from fairness_repair.pruning.surrogates import MLPSurrogate, Scaling
from fairness_repair.language.batched import measure_batched
from fairness_repair.name_bias.weights import WeightMask, weights_dropped, projection_matrices

state, *states = random_states(SearchSpace(16, 1, 8), 4, rng=1)


def llama():
    "Rotary positions, grouped queries."
    torch.manual_seed(0)
    tokenizer = load("tiny").tokenizer
    config = LlamaConfig(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=4,
                         num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128)
    return LM("llama", LlamaForCausalLM(config).eval(), tokenizer)

def evaluator(lm): return build_evaluator(make_config("tiny"), lm, "search", prompts=12, tokens=600)

def measured(lm): return evaluator(lm)(states).drop(columns="state").to_numpy()

def sampled(lm):
    with heads_dropped(lm.model, state): return generate(lm, ["the man is", "a woman was", "they are", "he"], new_tokens=8)

def together(lm):
    return [measure_batched(lm, metric, np.array(states)) for metric in evaluator(lm).metrics.values()]

def ablated(lm):
    table = ablate_heads({("gender", 0): evaluator(lm)}, heads=[0, 5, 6])
    return table.drop(columns=["state", "axis"]).to_numpy(float)

def pruned(lm):
    prune(lm.model, state)
    return lm.weights_hash()

def without_weights(lm):
    shapes = {name: site.shape for name, site in projection_matrices(lm).items()}
    with weights_dropped(lm, WeightMask(shapes, {name: np.arange(7) for name in shapes})): inside = lm.weights_hash()
    return inside, lm.weights_hash()

def audited(lm):
    config = audit_config("price-tag", variations=2, variations_per_source=1, sweep_variations=1, top_share_grid="0.15")
    localiser = Localiser(Audit(lm, config, Store(":memory:")))
    conditions = (Condition("weights", "original"), Condition("weights", "prompt-specific"), Condition("heads", "prompt-specific"))
    return [repaired_answers(localiser, condition)["value"].to_numpy() for condition in conditions], localiser.ablate(1)


def done_elsewhere(task, make, *args):
    "What a task gives with the model on a device that PyTorch learns of in this process."
    from elsewhere import Lists, carry
    carry((lm := make(*args)).model)
    with Lists(): return task(lm)

def annealed(device):
    X = random_states(SearchSpace(30, 1, 10), 100)
    bias, perplexity = MLPSurrogate(hidden=(16, 8), epochs=9).fit(X, X[:, 0] + X.sum(1)), MLPSurrogate(hidden=(8, 8), epochs=9, scaling=Scaling(log=True)).fit(X, 20 + X.sum(1))
    both = Surrogates(bias, perplexity, dict(bias=10., perplexity=20.), dict(epsilon=.5, limit=1.5))
    found = anneal_surrogates(both, SearchSpace(30, 1, 10), budget=9000, chains=40, device=device)
    return found.best_states, found.best_costs

def annealed_elsewhere():
    from elsewhere import there
    return annealed(str(there))

def mixed():
    from elsewhere import there
    return torch.zeros(2).to(there) + torch.zeros(2)


@pytest.fixture(scope="module")
def process():
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool: yield pool


@pytest.mark.parametrize("task, make, args", [
    (measured, load, ["tiny"]), (measured, llama, []), (sampled, llama, []), (together, load, ["tiny"]),
    (together, llama, []), (ablated, load, ["tiny"]), (ablated, llama, []),
    (pruned, load, ["tiny"]), (without_weights, load, ["price-tag"]), (audited, load, ["price-tag"])])
def test_the_device_does_not_matter(process, task, make, args):
    np.testing.assert_equal(process.submit(done_elsewhere, task, make, *args).result(timeout=300), task(make(*args)))


def test_chains_walk_anywhere(process): np.testing.assert_equal(process.submit(annealed_elsewhere).result(timeout=300), annealed("cpu"))


def test_a_tensor_left_behind_is_an_error(process):
    with pytest.raises(RuntimeError, match="a tensor on the processor meets one that is elsewhere"): process.submit(mixed).result(timeout=300)
