"RQ1, RQ3, RQ4 and RQ5 of Attention Pruning as a user runs them; RQ2 has its own file."
import pytest

from papermill_runs import refusal, run, table


def test_masks_are_measured_on_every_axis(tmp_path):
    "A figure, a table and its record are written; the table has every kind of heads on every axis."
    code, _, stderr = run(tmp_path, "rq4_ap", "seeds", 1, "budget", 60, "controls", 1, "others", "age")
    assert code == 0, stderr[-3000:]
    assert {f"rq4_ap-tiny.{kind}" for kind in ("png", "csv", "md")} <= {p.name for p in (tmp_path/"figures"/"ap").iterdir()}
    record = (tmp_path/"figures"/"ap"/"rq4_ap-tiny.md").read_text()
    for word in ("commit", "versions", "seconds", "answer"): assert f'"{word}"' in record
    assert {(r["measured_on"], r["heads"]) for r in table(tmp_path, "rq4_ap-tiny")} >= {("gender", "gender mask"), ("age", "gender mask"), ("age", "own optimum"), ("age", "random heads")}


@pytest.mark.parametrize("question, parameters, message", [
    ("rq1_ap", ("sates", 60), "Did you mean 'states'?"),
    ("rq3_ap", ("search", 10), "search = 10"),
    ("rq4_ap", ("others", "agee"), "agee"),
], ids=lambda p: str(p[0]) if isinstance(p, tuple) else "")
def test_bad_parameter_is_one_clear_error(question, parameters, message): assert message in refusal(question, *parameters)
