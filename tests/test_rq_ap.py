"RQ1, RQ3, RQ4 and RQ5 of Attention Pruning as a user runs them; RQ2 has its own file."
import csv, os, subprocess, sys
from pathlib import Path

import nbformat, pytest

from fairness_repair.core import paths

papermill = Path(sys.executable).with_name("papermill")


def run(question, folder, *parameters):
    env = os.environ | dict(FAIRNESS_REPAIR_FIGURES=str(folder/"figures"), FAIRNESS_REPAIR_RESULTS=str(folder/"results"), OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1")
    flat = [str(p) for pair in zip(parameters[::2], parameters[1::2]) for p in ("-p", *pair)]
    done = subprocess.run([str(papermill), str(paths.nbs/f"{question}.ipynb"), str(folder/"out.ipynb"), *flat], cwd=folder, env=env, capture_output=True, text=True, timeout=300)
    printed = "\n".join(o.get("text", "") for c in nbformat.read(folder/"out.ipynb", 4).cells for o in c.get("outputs", []) if o.get("name") == "stdout") if (folder/"out.ipynb").exists() else ""
    return done.returncode, printed, done.stderr


def table(folder, name):
    with open(folder/"figures"/f"{name}.csv") as f: return list(csv.DictReader(f))


def test_writes_figure_table_and_record(tmp_path):
    code, printed, stderr = run("rq4_ap", tmp_path, "seeds", 1, "budget", 60)
    assert code == 0, stderr[-3000:]
    assert {f"rq4_ap-tiny.{kind}" for kind in ("png", "pdf", "csv", "md")} <= {p.name for p in (tmp_path/"figures").iterdir()}
    record = (tmp_path/"figures"/"rq4_ap-tiny.md").read_text()
    for word in ("commit", "versions", "seconds", "answer"): assert f'"{word}"' in record


def test_masks_are_measured_on_every_axis(tmp_path):
    code, _, stderr = run("rq4_ap", tmp_path, "seeds", 1, "budget", 60, "controls", 1, "others", "age")
    assert code == 0, stderr[-3000:]
    assert {(r["measured_on"], r["heads"]) for r in table(tmp_path, "rq4_ap-tiny")} >= {("gender", "gender mask"), ("age", "gender mask"), ("age", "own optimum"), ("age", "random heads")}


@pytest.mark.parametrize("question, parameters, message", [
    ("rq1_ap", ("sates", 60), "Did you mean 'states'?"),
    ("rq3_ap", ("search", 10), "search = 10"),
    ("rq4_ap", ("others", "agee"), "agee"),
], ids=lambda p: str(p[0]) if isinstance(p, tuple) else "")
def test_bad_parameter_is_one_clear_error(tmp_path, question, parameters, message):
    code, _, stderr = run(question, tmp_path, *parameters)
    assert code != 0 and message in stderr
