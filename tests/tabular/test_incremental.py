"The fast walk against the plain measurement: the five network shapes of the paper, both rules of dropping, several groups."
import numpy as np, pytest

from fairness_repair.tabular.incremental import _chain, _net, _rule, _walk, _work, anneal_flips
from fairness_repair.tabular.neurons import Neurons, cost_of, count, logits
from fairness_repair.search import anneal
from fairness_repair.states import Space

shapes = dict(adult=(34, 64, 128, 64, 1), bank=(32, 32, 32, 1), compas=(12, 32, 32, 1), default=(30, 16, 16, 16, 1), meps16=(138, 128, 128, 128, 1), shallow=(5, 9, 1))


def network(sizes, *, rows=1500, groups=2, drop="neuron", seed=0):
    rng = np.random.default_rng(seed)
    weights = [rng.normal(size=(b, a))*np.sqrt(1.8/a) for a, b in zip(sizes, sizes[1:])]
    biases = [rng.normal(size=b)*.2 for b in sizes[1:]]
    return Neurons(weights, biases, rng.normal(size=(rows, sizes[0])), rng.integers(0, 2, rows), rng.integers(-1, groups, rows), drop=drop)


def walked(state, units, accepted):
    "The states that a walk evaluated."
    states = []
    for unit, accept in zip(units, accepted):
        proposed = state.copy()
        proposed[unit] ^= True
        states.append(proposed)
        if accept: state = proposed
    return np.array(states)


@pytest.mark.parametrize("drop", ["neuron", "weights"])
@pytest.mark.parametrize("name", shapes)
@pytest.mark.parametrize("always", [True, False])
def test_counts_equal_the_plain_measurement(name, drop, always):
    neurons = network(shapes[name], groups=3, drop=drop)
    state = np.arange(neurons.n) % 4 == 0
    chain, rng = _chain(neurons, state), np.random.default_rng(1)
    cost = cost_of(neurons)
    chain.cost[:] = cost(count(neurons, [state]), neurons.total)
    units, accepted, costs, counts = _walk(_net(neurons), chain, _rule(cost), 1, neurons.n//2, rng.random((600, 2)), np.full(600, .01), always, _work(_net(neurons)))
    states = walked(state, units, accepted)
    plain = count(neurons, states)
    for i in np.flatnonzero((plain != counts).any((1, 2))): # only a logit of almost exactly 0 may fall on the other side
        assert np.sort(np.abs(logits(neurons, states[i])))[:np.abs(plain[i] - counts[i]).sum()].max() < 1e-4
    np.testing.assert_allclose(costs, cost(counts, neurons.total), atol=1e-12)
    np.testing.assert_allclose(chain.logit, logits(neurons, chain.state), atol=1e-3)
    assert states.sum(1).max() <= neurons.n//2


@pytest.mark.parametrize("kind", ["graded", "paper"])
@pytest.mark.parametrize("metric", ["eod", "spd", "eopp", "ppd"])
def test_same_search_as_the_plain_one(kind, metric):
    neurons = network((8, 12, 10, 1), rows=700)
    cost, space = cost_of(neurons, metric=metric, kind=kind), Space(neurons.n, 2, 9)
    plain = anneal(lambda states: cost(count(neurons, states), neurons.total), space, budget=700, warm_up=60, rng=3)
    fast = anneal_flips(neurons, cost, space, budget=700, warm_up=60, rng=3, block=128)
    np.testing.assert_array_equal(fast.candidates, plain.candidates)
    np.testing.assert_allclose(fast.costs, plain.costs, atol=1e-12)
    assert (fast.evaluated, fast.reason) == (plain.evaluated, plain.reason) == (700, "states")


def test_original_is_a_candidate_and_interrupts_give_the_best_so_far():
    neurons = network((8, 12, 10, 1), rows=700)
    space = Space(neurons.n, 2, 9)
    kept = anneal_flips(neurons, cost_of(neurons, threshold=1., penalty=100.), space, budget=50)
    assert kept.cost <= kept.original
    def stop(row): raise KeyboardInterrupt
    stopped = anneal_flips(neurons, cost_of(neurons), space, budget=10**7, callback=stop)
    assert stopped.reason == "interrupted" and stopped.cost <= stopped.original


def test_budget_in_seconds():
    from fairness_repair.core import Budget
    neurons = network((8, 12, 10, 1), rows=700)
    found = anneal_flips(neurons, cost_of(neurons), Space(neurons.n, 2, 9), budget=Budget(seconds=.5))
    assert found.reason == "seconds" and found.evaluated > 1
