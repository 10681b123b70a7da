"A model of the reader's own: repaired, shown and continued, or not saved and why."
import pytest
from transformers import AutoModelForCausalLM

from papermill_runs import refusal, run


def test_repairs_and_continues(tmp_path):
    code, printed, stderr = run(tmp_path, "bring_your_model", "measure", "planted", "sentence", "the mabrel miller")
    assert code == 0, stderr[-3000:]
    assert (tmp_path/"repaired"/"report.html").is_file() and "srcdoc=" in (tmp_path/"out.ipynb").read_text()
    assert AutoModelForCausalLM.from_pretrained(tmp_path/"repaired"/"model").config.n_head == 4
    assert "the mabrel miller ...\n\noriginal: " in printed and "\nrepaired: " in printed


def test_nothing_to_repair(tmp_path):
    code, printed, stderr = run(tmp_path, "bring_your_model", "model", "tiny-equal", "out", "equal")
    assert code == 0, stderr[-3000:]
    assert "No model was saved" in printed and {p.name for p in tmp_path.iterdir()} == {"out.ipynb", "equal"}


@pytest.mark.parametrize("parameters, message", [
    (("modle", "gpt2"), "unknown parameter 'modle'. Did you mean 'model'?"),
    (("model", "tinny"), "tinny"),
    (("axis", "gendr"), "gendr"),
    (("save_candidate", "yes"), "save_candidate = 'yes': needs True or False"),
    (("out", "/dev/null/model"), "a file, so it can hold no folder"),
    (("prompts", "nowhere.csv"), "nowhere.csv"),
], ids=lambda p: str(p[0]) if isinstance(p, tuple) else "")
def test_bad_parameter_is_refused(parameters, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in refusal("bring_your_model", *parameters)
    assert not list(tmp_path.iterdir())
