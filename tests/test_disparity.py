"""A change of squared disparity is reported honestly: whatever happens to overall toxicity, and with real power."""
import numpy as np, pytest
from scipy.stats import binom

from fairness_repair.disparity import average_draws, disparity_change, root_disparity, squared_disparity, without_each_prompt
from fairness_repair.metrics import bias_change_test

N_CASES, N_GROUPS = 400, 8
TOXIC, CLEAN = 5/7, 1/41 # means of beta(5, 2) and beta(1, 40)
DIRECTION = np.array([1, -1, .5, -.5, .25, -.25, .05, -.05])
BIAS = .09*DIRECTION/np.abs(DIRECTION).sum()/(TOXIC - CLEAN) # of the share of toxic texts: a published bias of .09
SETTINGS = { # share of toxic texts of each group, before and after
    "no group differs":                        (0*BIAS + .08, 0*BIAS + .08),
    "no group differs, toxicity to a quarter": (0*BIAS + .08, 0*BIAS + .02),
    "no group differs, toxicity doubled":      (0*BIAS + .08, 0*BIAS + .16),
    "bias unchanged":                          (BIAS + .08, BIAS + .08),
    "bias unchanged, toxicity halved":         (BIAS + .08, BIAS + .04),
    "bias unchanged, toxicity doubled":        (BIAS + .08, BIAS + .16),
    "bias reversed":                           (BIAS + .08, -BIAS + .08),
}

def draw(rng, share, n):
    toxic = rng.random((len(share), n)) < share[:, None]
    return np.where(toxic, rng.beta(5, 2, toxic.shape), rng.beta(1, 40, toxic.shape)).ravel()

def true_squares(share):
    means = share*TOXIC + (1 - share)*CLEAN
    return ((means - means.mean())**2).sum()

def simulate(before, after, n, n_cases=N_CASES):
    "Count how often a change is called a repair, and how often its interval covers the truth."
    rng, groups = np.random.default_rng(n), np.repeat(np.arange(N_GROUPS), n)
    truth, repaired, covered = true_squares(after) - true_squares(before), 0, 0
    for _ in range(n_cases):
        found = disparity_change(draw(rng, before, n), draw(rng, after, n), groups)
        repaired += found["change_ci_high"] < 0
        covered += found["change_ci_low"] <= truth <= found["change_ci_high"]
    return repaired, covered

@pytest.mark.parametrize("n", [16, 128, pytest.param(1024, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", SETTINGS)
def test_a_null_change_is_called_a_repair_in_at_most_one_case_of_forty(name, n):
    repaired, covered = simulate(*SETTINGS[name], n)
    assert repaired <= binom.ppf(.99, N_CASES, .025)
    assert covered >= binom.ppf(.01, N_CASES, .93)

def test_a_real_change_is_seen_as_often_as_by_the_published_sum():
    n, cases = 1024, 40
    before, after = BIAS + .08, BIAS/3 + .08
    rng, groups, seen = np.random.default_rng(0), np.repeat(np.arange(N_GROUPS), n), []
    for _ in range(cases):
        x, y = draw(rng, before, n), draw(rng, after, n)
        published = bias_change_test(x, y, groups, n_resamples=200)
        seen.append((disparity_change(x, y, groups)["change_ci_high"] < 0, published["change_ci_high"] < 0))
    squares, published = np.sum(seen, axis=0)
    assert squares >= .6*cases and squares >= published - 2*np.sqrt(.25*cases)

def test_leaving_out_equals_the_plain_loop_for_groups_of_any_size():
    rng = np.random.default_rng(0)
    groups = np.repeat(["a", "b", "c"], [3, 4, 11])
    scores = rng.random(len(groups))
    loop = [squared_disparity(np.delete(scores, i), np.delete(groups, i)) for i in range(len(groups))]
    np.testing.assert_allclose(without_each_prompt(scores, groups), loop, atol=1e-12)

def test_draws_of_a_prompt_count_as_one():
    rng, groups = np.random.default_rng(0), np.repeat(np.arange(4), 20)
    x, y = rng.random((2, 80, 3))
    rows = np.repeat(np.arange(80), 3)
    found = disparity_change(x.ravel(), y.ravel(), groups[rows], prompts=rows)
    assert found == pytest.approx(disparity_change(x.mean(1), y.mean(1), groups))

def test_the_estimate_is_the_exact_one_when_scores_do_not_vary():
    groups, scores = np.repeat(["a", "b"], 5), np.repeat([.1, .5], 5)
    assert squared_disparity(scores, groups) == pytest.approx(2*.2**2)
    assert root_disparity(squared_disparity(scores, groups)) == pytest.approx(.2*2**.5)
    found = disparity_change(scores, np.full(10, .1), groups)
    assert found["change_ci_low"] == pytest.approx(found["change_ci_high"]) and found["p"] == 0

@pytest.mark.parametrize("scores, groups, message", [
    ([.1]*4, list("aabb"), "group a has two prompts"), ([.1]*3, list("aaa"), "two groups")])
def test_too_little_data_is_refused(scores, groups, message):
    with pytest.raises(ValueError, match=message): disparity_change(scores, scores, groups)

def test_a_group_of_one_prompt_keeps_its_draws():
    means, groups = average_draws([.0, .4, .1, .5, .7], list("aaabb"), [1, 1, 2, 3, 3])
    assert sorted(zip(groups, means.round(9))) == [("a", .1), ("a", .2), ("b", .5), ("b", .7)]
