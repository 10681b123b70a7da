"The benchmarks run from end to end, at their smallest size; how fast anything is, no test says."
import pytest

from papermill_runs import run, table


@pytest.mark.parametrize("notebook, parameters, name", [
    ("benchmarks", ("prompts_per_group", 4, "steps", 4, "growth", 1), "benchmarks-tiny"),
    ("benchmarks_fasp", ("prompts_per_group", 2, "tokens", 64, "layers", 1, "repeats", 1), "benchmarks_fasp-tiny"),
    ("benchmarks_bdb", ("prompts", 4, "variations", 1, "repeats", 1), "benchmarks_bdb-tiny"),
    ("benchmarks_neufair", ("plain_states", 2, "states", 20, "repeats", 1), "benchmarks_neufair-adult"),
], ids=lambda p: p if isinstance(p, str) and "-" not in p else "")
def test_smallest_run(tmp_path, notebook, parameters, name):
    code, _, stderr = run(tmp_path, notebook, *parameters)
    assert code == 0, stderr[-3000:]
    assert all(float(row.get("ratio") or row["seconds / streaming"]) > 0 for row in table(tmp_path, name))
