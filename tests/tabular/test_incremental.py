"The fast walk equals the plain measurement: the paper's network shapes, both drop modes, several groups."
import numpy as np, pytest

from fairness_repair.tabular.incremental import (
    _chain_state, _cost_rule, _net_arrays, _walk, _workspace, anneal_incremental)
from fairness_repair.tabular.neurons import PrunableMLP, count_positives, forward_logits, make_cost
from fairness_repair.search import anneal
from fairness_repair.states import SearchSpace

shapes = dict(adult=(34, 64, 128, 64, 1), bank=(32, 32, 32, 1), compas=(12, 32, 32, 1),
              default=(30, 16, 16, 16, 1), meps16=(138, 128, 128, 128, 1), shallow=(5, 9, 1))


def network(sizes, *, rows=1500, groups=2, drop_mode="zero_output", seed=0):
    rng = np.random.default_rng(seed)
    weights = [rng.normal(size=(b, a))*np.sqrt(1.8/a) for a, b in zip(sizes, sizes[1:])]
    biases = [rng.normal(size=b)*.2 for b in sizes[1:]]
    X, y, group = rng.normal(size=(rows, sizes[0])), rng.integers(0, 2, rows), rng.integers(-1, groups, rows)
    return PrunableMLP(weights, biases, X, y, group, drop_mode=drop_mode)


def walked(state, units, accepted):
    "The states that a walk evaluated."
    states = []
    for unit, accept in zip(units, accepted):
        proposed = state.copy()
        proposed[unit] ^= True
        states.append(proposed)
        if accept: state = proposed
    return np.array(states)


@pytest.mark.parametrize("drop_mode", ["zero_output", "keep_bias"])
@pytest.mark.parametrize("name", shapes)
@pytest.mark.parametrize("accept_all", [True, False])
def test_counts_equal_the_plain_measurement(name, drop_mode, accept_all):
    mlp = network(shapes[name], groups=3, drop_mode=drop_mode)
    state = np.arange(mlp.n) % 4 == 0
    chain, rng = _chain_state(mlp, state), np.random.default_rng(1)
    cost, net = make_cost(mlp), _net_arrays(mlp)
    chain.cost[:] = cost(count_positives(mlp, [state]), mlp.totals)
    u, T = rng.random((600, 2)), np.full(600, .01)
    units, accepted, costs, counts = _walk(
        net, chain, _cost_rule(cost), 1, mlp.n//2, u, T, accept_all, _workspace(net))
    states = walked(state, units, accepted)
    plain = count_positives(mlp, states)
    for i in np.flatnonzero((plain != counts).any((1, 2))): # only logits of almost exactly 0 may change sign
        differing = np.abs(plain[i] - counts[i]).sum()
        assert np.sort(np.abs(forward_logits(mlp, states[i])))[:differing].max() < 1e-4
    np.testing.assert_allclose(costs, cost(counts, mlp.totals), atol=1e-12)
    np.testing.assert_allclose(chain.logit, forward_logits(mlp, chain.state), atol=1e-3)
    assert states.sum(1).max() <= mlp.n//2


@pytest.mark.parametrize("penalty_shape", ["graded", "step"])
@pytest.mark.parametrize("metric", ["eod", "spd", "eopp", "ppd"])
def test_same_search_as_the_plain_one(penalty_shape, metric):
    mlp = network((8, 12, 10, 1), rows=700)
    cost, space = make_cost(mlp, metric=metric, penalty_shape=penalty_shape), SearchSpace(mlp.n, 2, 9)
    settings = dict(budget=700, n_temperature_steps=60, rng=3)
    plain = anneal(lambda states: cost(count_positives(mlp, states), mlp.totals), space, **settings)
    fast = anneal_incremental(mlp, cost, space, steps_per_block=128, **settings)
    np.testing.assert_array_equal(fast.best_states, plain.best_states)
    np.testing.assert_allclose(fast.best_costs, plain.best_costs, atol=1e-12)
    for found in (fast, plain): assert (found.n_evaluations, found.stop_reason) == (700, "states")


def test_original_is_a_candidate_and_interrupts_give_the_best_so_far():
    mlp = network((8, 12, 10, 1), rows=700)
    space = SearchSpace(mlp.n, 2, 9)
    kept = anneal_incremental(mlp, make_cost(mlp, threshold=1., penalty=100.), space, budget=50)
    assert kept.cost <= kept.original_cost
    def stop(row): raise KeyboardInterrupt
    stopped = anneal_incremental(mlp, make_cost(mlp), space, budget=10**7, callback=stop)
    assert stopped.stop_reason == "interrupted" and stopped.cost <= stopped.original_cost


def test_budget_in_seconds():
    from fairness_repair.core import Budget
    mlp = network((8, 12, 10, 1), rows=700)
    found = anneal_incremental(mlp, make_cost(mlp), SearchSpace(mlp.n, 2, 9), budget=Budget(seconds=.5))
    assert found.stop_reason == "seconds" and found.n_evaluations > 1


def test_a_budget_may_end_before_any_step():
    "Time can run out between two steps: the search returns the best so far, without an error."
    mlp = network((8, 12, 10, 1), rows=700)
    for states in (1, 2, 3):
        found = anneal_incremental(mlp, make_cost(mlp), SearchSpace(mlp.n, 2, 9), budget=states, T0=.1)
        assert found.n_evaluations == states and found.cost <= found.original_cost
