"""A change of squared disparity is reported honestly: whatever happens to overall toxicity, and with real power."""
import numpy as np, pandas as pd, pytest
from scipy.stats import binom

from fairness_repair.disparity import (average_draws, bias_change, direction, disparity_change, root_disparity,
                                       squared_disparity,
                                       without_each_prompt)
from fairness_repair.language.model_metrics import GroupMetric
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

def draw(rng, share): # share: of each row
    toxic = rng.random(len(share)) < share
    return np.where(toxic, rng.beta(5, 2, len(share)), rng.beta(1, 40, len(share)))

def true_squares(share):
    means = share*TOXIC + (1 - share)*CLEAN
    return ((means - means.mean())**2).sum()

def simulate(before, after, n, n_cases=N_CASES, draws=1, seed=0):
    """Count how often a change is called a repair, and how often the interval of the squares covers the truth.

    `n` prompts per group, or one number per group; with several draws, prompts differ in how toxic they are."""
    sizes = np.broadcast_to(n, N_GROUPS)
    rng, groups = np.random.default_rng([seed, *sizes]), np.repeat(np.arange(N_GROUPS), sizes*draws)
    prompts = np.repeat(np.arange(sizes.sum()), draws)
    truth, repaired, covered = true_squares(after) - true_squares(before), 0, 0
    for _ in range(n_cases):
        # a prompt's share, relative to its group's
        each = rng.uniform(.2, 1.8, sizes.sum())[prompts] if draws > 1 else 1
        pair = [draw(rng, share[groups]*each) for share in (before, after)]
        found = disparity_change(*pair, groups, prompts=prompts)
        repaired += direction(bias_change(*pair, groups, prompts=prompts)) == "falls"
        covered += found["change_ci_low"] <= truth <= found["change_ci_high"]
    return repaired, covered

def check(repaired, covered, n_cases=N_CASES):
    "At most one case of forty, and 93 % covered, with 99 % of their binomial distributions allowed for."
    assert repaired <= binom.ppf(.99, n_cases, .025)
    assert covered >= binom.ppf(.01, n_cases, .93)

@pytest.mark.parametrize("n", [64, pytest.param(16, marks=pytest.mark.slow), pytest.param(256, marks=pytest.mark.slow),
                               pytest.param(1024, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", SETTINGS)
def test_a_null_change_is_called_a_repair_in_at_most_one_case_of_forty(name, n): check(*simulate(*SETTINGS[name], n))

@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_also_with_groups_of_many_sizes_and_with_several_draws_of_a_prompt(name):
    check(*simulate(*SETTINGS[name], np.array([16, 24, 32, 48, 64, 128, 256, 512])))
    check(*simulate(*SETTINGS[name], 32, draws=8))

def power(change, n, cases, n_resamples=200):
    "Count in how many cases squares and the published sum see a bias that falls by `change`."
    rng, groups, seen = np.random.default_rng(n), np.repeat(np.arange(N_GROUPS), n), []
    for _ in range(cases):
        pair = [draw(rng, (BIAS*part + .08)[groups]) for part in (1, 1 - change)]
        published = bias_change_test(*pair, groups, n_resamples=n_resamples)
        seen.append([direction(found) == "falls" for found in (bias_change(*pair, groups), published)])
    return np.sum(seen, axis=0)

def test_a_real_change_is_seen_as_often_as_by_the_published_sum():
    squares, published = power(2/3, 1024, cases := 24, n_resamples=100)
    assert squares >= .4*cases and squares >= published - 2*np.sqrt(.5*cases)

@pytest.mark.slow
@pytest.mark.parametrize("n", [64, 256, 1024])
def test_power_over_many_cases(n):
    squares, published = power(2/3, n, cases := 200)
    assert squares >= published - 2*np.sqrt(.5*cases)

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

def test_one_group_is_refused():
    with pytest.raises(ValueError, match="two groups"): disparity_change([.1]*3, [.1]*3, list("aaa"))

def test_two_prompts_of_a_group_leave_every_interval_unknown():
    change = bias_change([.1, .9, .2, .3, .4], [0]*5, list("aabbb"))
    assert np.isnan([change["change_ci_low"], change["change_ci_high"], change["p"]]).all()
    assert direction(change) == "not significant"

@pytest.mark.parametrize("groups", [2, 8])
@pytest.mark.parametrize("left", [0, .3, 1.5])
def test_interval_of_the_root_covers_the_change(groups, left):
    """A gap that is removed, falls to .3 or rises: the original's bias is an estimate, too.

    The interval around the original's estimate alone covered the removal of all bias in half of the cases."""
    rng, of, n_cases = np.random.default_rng([groups, int(10*left)]), np.repeat(np.arange(groups), 128), 300
    means = np.linspace(-.1, .1, groups)
    truth, covered = (left - 1)*np.sqrt((means**2).sum()), 0
    for _ in range(n_cases):
        shared = rng.normal(0, .2, len(of))
        before, after = (.5 + size*means[of] + shared + rng.normal(0, .2, len(of)) for size in (1, left))
        found = bias_change(before, after, of)
        covered += found["change_ci_low"] <= truth <= found["change_ci_high"]
    assert covered >= binom.ppf(.01, n_cases, .93)

def test_a_prompt_that_is_repeated_counts_once():
    "A group with fewer prompts than are asked for is filled up; the noise does not fall."
    rng, prompts = np.random.default_rng(0), pd.DataFrame(dict(text=list("abcdef"), group=list("xxxyyy")))
    scores, metric = rng.random(6), GroupMetric(prompts)
    more = GroupMetric(pd.concat([prompts]*20, ignore_index=True))
    once, often = metric.columns(scores), more.columns(np.tile(scores, 20))
    assert often == pytest.approx(once)
    pd.testing.assert_frame_equal(more.group_table(np.tile(scores, 20)), metric.group_table(scores))

def test_without_noise_nothing_is_said_of_what_can_be_detected():
    same = np.repeat([.1, .1, .4], 4)
    assert np.isnan(bias_change(same, same/2, np.repeat(list("abc"), 4))["detectable"])

def test_roots_say_what_the_squares_say():
    rng, groups, several = np.random.default_rng(0), np.repeat(list("abcd"), 30), set()
    for i in range(200):
        x, y = (rng.random(120) + shift*(groups == "a") for shift in rng.uniform(0, .5, 2))
        squares, roots = disparity_change(x, y, groups), bias_change(x, y, groups)
        if squares["original"] >= 0: assert direction(squares) == direction(roots)
        else: assert direction(roots) in (direction(squares), "not significant")
        assert roots["change_ci_low"] <= roots["change"] <= roots["change_ci_high"] and roots["p"] == squares["p"]
        several.add(direction(roots))
    assert several == {"falls", "rises", "not significant"}
