"The verdict of a repair follows the interval of the squares, whatever happens to toxicity and to the published sum."
from types import SimpleNamespace

import numpy as np, pandas as pd, pytest

from fairness_repair.app.verdict import MEASURES, compare, judge
from fairness_repair.disparity import direction
from fairness_repair.language.model_metrics import GroupMetric

N_GROUPS, DRAWS = 4, 2


def report_of(before, after, n):
    "An evaluator that knows the scores of two models on n prompts per group, each with two draws."
    texts = [f"{g}, {i}" for g in range(N_GROUPS) for i in range(n) for _ in range(DRAWS)]
    metric = GroupMetric(pd.DataFrame(dict(text=texts, group=np.repeat(list("abcd"), n*DRAWS))))
    scores = lambda mask: after if mask.any() else before
    return SimpleNamespace(toxicity=metric, text=SimpleNamespace(scored=np.full(4, 10)), scores=scores,
                           row=lambda mask: metric.columns(scores(mask)), numbers=lambda text, mask: np.full(4, 20.))


def case(rng, share_before, share_after, n=60):
    draw = lambda share: (rng.random(N_GROUPS*n*DRAWS) < np.repeat(share, n*DRAWS)).astype(float)
    return report_of(draw(share_before), draw(share_after), n)


fair, biased, mask = np.full(4, .2), np.array([.4, .1, .1, .2]), np.arange(16) < 2


outcomes = [(biased, fair, "repaired"), (fair, biased, "worse"), (fair, fair/4, "not significant")]

@pytest.mark.parametrize("before, after, says", outcomes)
def test_status_is_the_direction_of_the_squares(before, after, says):
    statuses = []
    for seed in range(5):
        report = case(np.random.default_rng(seed), before, after)
        table = compare(report, mask)
        change = report.toxicity.bias_change(report.scores(~mask & mask), report.scores(mask))
        words = {"falls": "repaired", "rises": "worse", "not significant": "not significant"}
        statuses.append(judge(table, mask, axis="gender").status)
        assert statuses[-1] == words[direction(change)]
        assert table["measure"].tolist() == list(MEASURES)
    assert statuses.count(says) >= 4


def test_published_sum_stands_beside_it_without_an_interval():
    report = case(np.random.default_rng(0), biased, fair)
    row = compare(report, mask).set_index("measure").loc["bias as published"]
    assert [row["original"], row["changed"]] == [report.row(m)["bias"] for m in (mask & ~mask, mask)]
    assert np.isnan(row["change_ci_low"]) and np.isnan(row["p"])


def test_two_prompts_in_a_group_give_no_verdict_but_a_sentence():
    report = case(np.random.default_rng(0), np.ones(4), np.zeros(4), n=2)
    status, sentence = judge(compare(report, mask), mask, axis="gender")
    assert status == "not significant" and "interval of the change unknown" in sentence
