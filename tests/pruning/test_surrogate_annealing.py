"Fast annealing of surrogates against the plain one: network sizes, bounds, budgets, threads, and one chain of many."
import math
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np, pandas as pd, pytest, torch

from fairness_repair.pruning import surrogate_annealing as chains
from fairness_repair.pruning.attention_pruning import Objective, Surrogates, first_distinct, fit_surrogates, sample_states, surrogate_search
from fairness_repair.pruning.surrogate_annealing import CompiledGroup, TensorGroup, surrogate_arrays, anneal_surrogates, GROUP_SIZE, round_to_grid
from fairness_repair.core import Budget
from fairness_repair.search import anneal, exhaustive_search
from fairness_repair.states import SearchSpace, random_states
from fairness_repair.pruning.surrogates import MLPSurrogate, Scaling


@pytest.fixture(autouse=True)
def few_rows(monkeypatch): monkeypatch.setattr(TensorGroup, "size", GROUP_SIZE) # thousands only slow a processor down


shapes = {"tiny": (16, (8, 4), (8, 4)), "gpt2": (144, (128, 64), (128, 64)), "uneven": (72, (30, 7), (129, 65)), "llama": (1024, (512, 256), (128, 64))}


def surrogates(n, one=(16, 8), two=(16, 8), *, limit=1.2, seed=0):
    rng = np.random.default_rng(seed)
    X = random_states(SearchSpace(n, 1, max(2, n//3)), 120, rng=rng)
    pull = rng.normal(size=n)/n
    bias = MLPSurrogate(hidden=one, epochs=8).fit(X, .4 + X @ pull)
    perplexity = MLPSurrogate(hidden=two, epochs=8, scaling=Scaling(log=True, max_quantile=.95)).fit(X, 20*np.exp(X.sum(1)/n))
    return Surrogates(bias=bias, perplexity=perplexity, original=dict(bias=.4, perplexity=20.), cost_settings=dict(epsilon=.5, limit=limit))


def same_search(both, space, device, seed):
    "Whether the fast and the plain search end alike; a tie within float32's rounding may part them."
    slow = anneal(both, space, budget=2500, chains=5, rng=seed, n_best=6)
    fast = anneal_surrogates(both, space, budget=2500, chains=5, rng=seed, n_best=6, device=device)
    assert (fast.n_evaluations, fast.stop_reason) == (slow.n_evaluations, slow.stop_reason) == (2500, "states")
    assert all(s in space or not s.any() for s in fast.best_states)
    alike = (fast.best_states == slow.best_states).all(1).mean() >= .5 # equals may change places
    return np.allclose(fast.best_costs, slow.best_costs, rtol=0, atol=2e-5) and alike


@pytest.mark.parametrize("device", [None, "cpu"])
@pytest.mark.parametrize("low, high", [(0, 1), (1, 5), (0, 1.), (.2, .25)])
@pytest.mark.parametrize("name", shapes)
def test_same_search_as_the_plain_one(name, low, high, device):
    n, one, two = shapes[name]
    both = surrogates(n, one, two)
    low, high = (int(x*n) if isinstance(x, float) else x for x in (low, high))
    space = SearchSpace(n, low, max(high, low + 1))
    assert any(same_search(both, space, device, seed) for seed in (2, 3, 4))


def course(kind, both, space, streams, watched):
    "Costs of the start and of 400 proposals of one chain of a group, and the uniform numbers that accept or reject them."
    nets, rule = (surrogate_arrays(both.bias), surrogate_arrays(both.perplexity)), (.5, 1.2, .4, 20., 2.)
    group = kind(nets, rule, space, [np.random.default_rng(s) for s in streams], 5)
    live = len(group.rngs)
    start = group.settle(live)[1][watched]
    costs = group.walk(live, np.full((live, 400), T), False, np.inf)[2][:, watched]
    own = np.random.default_rng(streams[watched])
    own.random(space.n + 1)
    return start, costs, own.random((400, 2))[:, 1]


T = .01
kinds = pytest.mark.parametrize("kind", [CompiledGroup, partial(TensorGroup, device="cpu")], ids=["compiled", "tensors"])


@kinds
@pytest.mark.parametrize("name", shapes)
@pytest.mark.parametrize("watched", [0, 1, 17, GROUP_SIZE - 1])
def test_a_chain_does_not_depend_on_its_companions(name, watched, kind):
    "A group's matrices have a fixed shape, so in its own row a chain's costs are equal to the last bit."
    n, one, two = shapes[name]
    both, space, seeds = surrogates(n, one, two), SearchSpace(n, 1, n//2), np.arange(GROUP_SIZE) + 1000
    others = np.where(np.arange(GROUP_SIZE) == watched, seeds, seeds + 500)
    whole, among, last = (course(kind, both, space, s, watched)[1] for s in (seeds, others, seeds[:watched + 1]))
    np.testing.assert_array_equal(among, whole)
    np.testing.assert_array_equal(last, whole)


@kinds
@pytest.mark.parametrize("name", shapes)
def test_a_chain_goes_the_same_way_in_any_row(name, kind):
    "In another row BLAS may add up in another order: costs agree within rounding, moves agree but for ties."
    n, one, two = shapes[name]
    both, space, seeds = surrogates(n, one, two), SearchSpace(n, 1, n//2), np.arange(GROUP_SIZE) + 1000
    tolerance = 4*np.finfo(np.float32).eps*math.sqrt(max(*one, *two)) # rounding of a sum grows with the root of its terms
    compared = 0
    for watched in (2, 17, 40, GROUP_SIZE - 1):
        (old, whole, tosses), (_, alone, _) = course(kind, both, space, seeds, watched), course(kind, both, space, seeds[watched:watched + 1], 0)
        for a, b, toss in zip(whole, alone, tosses):
            assert abs(a - b) <= tolerance, f"row {watched}"
            compared += 1
            chance = math.exp(min(0, -(a - old)/T))
            if abs(chance - toss) < 2*tolerance/T: break # a tie: from here the two may part
            if toss < chance: old = a
    assert compared >= 200, "ties left too little to compare"


@pytest.mark.parametrize("device", [None, "cpu"])
@pytest.mark.parametrize("chains", [1, 3, GROUP_SIZE, 2*GROUP_SIZE + 5])
@pytest.mark.parametrize("budget", [1, 7, 200, 3000, 20_001])
def test_budget_is_kept_and_the_original_is_a_candidate(chains, budget, device):
    both = surrogates(20)
    found = anneal_surrogates(both, SearchSpace(20, 1, 6), budget=budget, chains=chains, device=device)
    assert (found.n_evaluations, found.stop_reason) == (budget, "states")
    assert found.cost <= found.original_cost
    np.testing.assert_allclose(found.best_costs, both(found.best_states), atol=1e-5)
    assert len(np.unique(found.best_states, axis=0)) == len(found.best_states)


def test_threads_change_nothing_but_the_time(monkeypatch):
    both, before, found, pools = surrogates(60, (32, 16), (32, 16)), torch.get_num_threads(), [], []
    monkeypatch.setattr(chains, "ThreadPoolExecutor", lambda n: pools.append(n) or ThreadPoolExecutor(n))
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(anneal_surrogates(both, SearchSpace(60, 1, 20), budget=60_000, chains=5*GROUP_SIZE, rng=4))
    finally: torch.set_num_threads(before)
    assert pools == [1, 2, 3]
    for other in found[1:]:
        np.testing.assert_array_equal(other.best_states, found[0].best_states)
        np.testing.assert_array_equal(other.best_costs, found[0].best_costs)


def test_a_budget_of_seconds_and_an_interrupt():
    both = surrogates(20)
    found = anneal_surrogates(both, SearchSpace(20, 1, 6), budget=Budget(seconds=.3))
    assert found.stop_reason == "seconds" and found.n_evaluations > 1
    def stop(row): raise KeyboardInterrupt
    stopped = anneal_surrogates(both, SearchSpace(20, 1, 6), budget=10**9, callback=stop)
    assert stopped.stop_reason == "interrupted" and stopped.cost <= stopped.original_cost


def test_sums_on_the_grid_are_exact():
    rng = np.random.default_rng(0)
    weights, bias = round_to_grid(rng.normal(size=(1024, 64)).astype(np.float32), rng.normal(size=64).astype(np.float32))
    z, state = bias.copy(), np.zeros(1024, bool)
    for i in rng.integers(1024, size=20_000):
        z += -weights[i] if state[i] else weights[i]
        state[i] ^= True
    np.testing.assert_array_equal(z, (bias.astype(float) + weights[state].astype(float).sum(0)).astype(np.float32))
    assert round_to_grid(np.zeros((3, 2), np.float32), np.zeros(2, np.float32))[0].sum() == 0


@pytest.mark.parametrize("device", [None, "cpu"])
def test_finds_what_enumeration_finds(device):
    both, space = surrogates(14), SearchSpace(14, 1, 5)
    truth, found = exhaustive_search(both, space), anneal_surrogates(both, space, budget=300_000, n_best=20, device=device)
    np.testing.assert_allclose(found.best_costs, truth.best_costs, atol=1e-5)


def test_attention_pruning_finds_the_same_candidates_either_way():
    def made_up(states):
        s = np.asarray(states, float)
        return pd.DataFrame(dict(bias=.4 - .1*s[:, 2] - .25*s[:, 0]*s[:, 1], perplexity=20*np.exp(.02*s.sum(1) + .3*s[:, 4]*s[:, 5])))
    objective, space = Objective(made_up, free=np.ones(12)), SearchSpace(12, 1, 6)
    found = surrogate_search(objective, space, budget=100, n_candidates=12, search_states=64*32_000)
    sampled = sample_states(objective, space, budget=100)
    surrogates = fit_surrogates(objective, sampled)
    slow = anneal(surrogates, space, budget=64*2000, chains=64, n_best=24)
    np.testing.assert_allclose(surrogates(found), surrogates(first_distinct([sampled[:3], slow.best_states], 12)), atol=1e-5)


def test_bad_input():
    both = surrogates(20)
    with pytest.raises(ValueError, match="the space has 12"): anneal_surrogates(both, SearchSpace(12, 1, 3))
    with pytest.raises(ValueError, match="widen the bounds"): anneal_surrogates(both, SearchSpace(20, 3, 3))
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="no GPU is available"): anneal_surrogates(both, SearchSpace(20, 1, 5), device="cuda")
    X = random_states(SearchSpace(20, 1, 5), 20)
    deep = Surrogates(bias=MLPSurrogate(hidden=(8, 8, 8), epochs=2).fit(X, X.sum(1)), perplexity=both.perplexity, original=both.original, cost_settings=both.cost_settings)
    with pytest.raises(ValueError, match="two hidden layers"): anneal_surrogates(deep, SearchSpace(20, 1, 5))
