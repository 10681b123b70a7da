"The four notebooks on FASP as a user runs them: published scores without weights, bad parameters, a store that is used again."

import pytest

import needs
from papermill_runs import refusal, run, table



@needs.data
def test_correlations_without_weights(tmp_path):
    code, printed, stderr = run(tmp_path, "rq2_fasp", "model", "gpt2", "scores", "published")
    assert code == 0, stderr[-3000:]
    assert printed.count("66 of 66") == 5
    assert {"rq2_fasp-gpt2-published.png", "rq2_fasp-gpt2-published.md"} <= {p.name for p in (tmp_path/"figures"/"fasp").iterdir()}
    assert abs(float(table(tmp_path, "rq2_fasp-gpt2-published")[0]["pearson"]) - .784) < .01


@needs.data
@pytest.mark.parametrize("model, says", [("gpt2", "Spearman 0.18"), ("gpt-neo-1.3B", "these scores say nothing of heads")])
def test_reliability_without_weights(tmp_path, model, says):
    code, printed, stderr = run(tmp_path, "rq4_fasp", "model", model, "scores", "published")
    assert code == 0, stderr[-3000:]
    assert says in printed


def test_no_data_and_no_network_is_one_clear_error(tmp_path):
    "An address that cannot be reached, an empty cache: the error names file and variable."
    more = dict(FAIRNESS_REPAIR_DATA="", FAIRNESS_REPAIR_CACHE=str(tmp_path/"cache"), https_proxy="http://127.0.0.1:9", HTTPS_PROXY="http://127.0.0.1:9")
    code, _, stderr = run(tmp_path, "rq2_fasp", "model", "gpt2", "scores", "published", **more)
    assert code != 0 and "FAIRNESS_REPAIR_DATA" in stderr and "fasp_reference/" in stderr


@pytest.mark.parametrize("question, parameters, message", [
    ("rq1_fasp", ("scores", "grad"), "Did you mean 'gradient'?"),
    ("rq2_fasp", ("scores", "publishd"), "Did you mean 'published'?"),
    ("rq4_fasp", ("model", "gpt-j-6B", "scores", "published"), "no scores per seed for gpt-j-6B"),
    ("rq1_fasp", ("limit", 0.5), "limit = 0.5"),
    ("rq1_fasp", ("limit", float("inf")), "limit = inf: needs a number; for no limit"),
    ("rq1_fasp", ("alphas", "0.1;0.2"), "alphas = '0.1;0.2': needs a number"),
    ("rq4_fasp", ("seeds", 1), "seeds = 1: needs a whole number of at least 2"),
    ("rq3_fasp", ("alhpa", 0.1), "Did you mean 'alpha'?"),
], ids=lambda p: str(p[0]) if isinstance(p, tuple) else "")
def test_bad_parameter_is_one_clear_error(question, parameters, message): assert message in refusal(question, *parameters)


def test_questions_share_a_store(tmp_path):
    "What one question has measured, the next one finds, and a second run measures nothing."
    code, _, stderr = run(tmp_path, "rq1_fasp", "seeds", 1, "alphas", "0.125,0.25")
    assert code == 0, stderr[-3000:]
    first = table(tmp_path, "rq1_fasp-tiny")
    assert [row["method"] for row in first] == ["FASP", "bias only", "ppl only", "magnitude", "mask gradient", "random"]
    code, printed, stderr = run(tmp_path, "rq1_fasp", "seeds", 1, "alphas", "0.125,0.25")
    assert code == 0 and "measured 0, reused" in printed and table(tmp_path, "rq1_fasp-tiny") == first
