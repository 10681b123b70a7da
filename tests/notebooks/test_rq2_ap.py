"The main job as a user runs it: papermill from the shell, its output, its errors, its recovery from being killed."
import csv, os, signal, time

import nbformat, numpy as np, pytest, torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from fairness_repair.core import paths

from papermill_runs import count, processes_with, refusal, run, start, table


def methods(folder, name="rq2_ap-tiny"): return {row["method"]: row for row in table(folder, name)}


small = ("model", "tiny", "budget", 60, "seeds", 1)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    code, _, stderr = run(folder, "rq2_ap", *small, "save", folder/"repaired")
    assert code == 0, stderr[-3000:]
    return folder


def test_writes_figures_and_table(undisturbed):
    written = {p.name for p in (undisturbed/"figures"/"ap").iterdir()}
    assert {"rq2_ap-tiny.png", "rq2_ap-tiny.csv", "rq2_ap-tiny.md"} <= written
    assert {"original", "AP", "SA", "random", "FASP"} <= set(methods(undisturbed))
    record = (undisturbed/"figures"/"ap"/"rq2_ap-tiny.md").read_text()
    for word in ("commit", "versions", "seconds", "hardware", "protocol"): assert f'"{word}"' in record


def test_repair_is_a_plain_checkpoint(undisturbed):
    model = AutoModelForCausalLM.from_pretrained(undisturbed/"repaired", dtype=torch.float32)
    AutoTokenizer.from_pretrained(undisturbed/"repaired")
    zeroed = sum(int((block.attn.c_proj.weight.unflatten(0, (model.config.n_head, -1)).abs().amax((1, 2)) == 0).sum()) for block in model.transformer.h)
    assert zeroed > 0


def test_second_run_measures_nothing(undisturbed):
    "Without a path for the notebook it is written to the output, to be piped."
    before = methods(undisturbed)
    code, stdout, stderr = run(undisturbed, "rq2_ap", *small, out=None)
    assert code == 0, stderr[-3000:]
    assert nbformat.reads(stdout, 4).cells and "measured 0, reused" in stdout
    assert methods(undisturbed) == before


def test_killed_and_restarted_gives_the_same_table(undisturbed, tmp_path):
    process, store = start(tmp_path, "rq2_ap", *small), tmp_path/"results"/"rq2_ap-tiny.sqlite"
    deadline = time.monotonic() + 400
    while count(store) < 40 and time.monotonic() < deadline and process.poll() is None: time.sleep(.2)
    os.killpg(process.pid, signal.SIGKILL)
    for pid in processes_with(f"FAIRNESS_REPAIR_RESULTS={tmp_path}/results"): os.kill(pid, signal.SIGKILL) # the kernel that papermill leaves behind
    process.communicate()
    assert count(store) >= 40 and not (tmp_path/"figures"/"ap"/"rq2_ap-tiny.csv").exists(), "the run was to be killed in mid-measurement"
    code, _, stderr = run(tmp_path, "rq2_ap", *small)
    assert code == 0, stderr[-3000:]
    assert methods(tmp_path) == methods(undisturbed)


def test_bad_parameter_stops_the_run_with_one_clear_error(tmp_path):
    code, _, stderr = run(tmp_path, "rq2_ap", "bugdet", 60)
    assert code != 0 and "unknown parameter 'bugdet'. Did you mean 'budget'?" in stderr
    assert not list(tmp_path.glob("results/*.sqlite")), "nothing may be measured before the parameters are checked"


@pytest.mark.parametrize("parameters, message", [
    (("bugdet", 60), "unknown parameter 'bugdet'. Did you mean 'budget'?"),
    (("budget", "many"), "budget = 'many': needs a whole number"),
    (("seeds", -3), "seeds = -3: needs a whole number of at least -1"),
    (("save", "/dev/null/model"), "a file, so it can hold no folder"),
    (("budget", 0), "budget = 0"),
    (("epsilon", 1.5), "epsilon = 1.5"),
    (("model", "tinny"), "tinny"),
    (("axis", "gendr"), "gendr"),
], ids=lambda p: str(p[0]) if isinstance(p, tuple) else "")
def test_bad_parameter_is_refused(parameters, message, tmp_path, monkeypatch):
    monkeypatch.setenv("FAIRNESS_REPAIR_RESULTS", str(tmp_path))
    assert message in refusal("rq2_ap", *parameters)


def test_prompts_without_groups(tmp_path, monkeypatch):
    monkeypatch.setenv("FAIRNESS_REPAIR_RESULTS", str(tmp_path))
    (tmp_path/"mine.csv").write_text("text,axis\nhello,gender\n")
    assert "group" in refusal("rq2_ap", *small, "prompts", str(tmp_path/"mine.csv"), "scorer", "words:bad")


def test_nothing_to_repair(tmp_path):
    code, printed, stderr = run(tmp_path, "rq2_ap", "model", "tiny-equal", "budget", 60, "seeds", 1)
    assert code == 0, stderr[-3000:]
    assert "nothing to repair" in printed
    assert set(methods(tmp_path, "rq2_ap-tiny-equal")) == {"original"}


def test_folder_with_random_gpt2_runs_like_gpt2(tmp_path):
    "What `-p model gpt2` does after its download, with the user's own prompts and text."
    tokenizer = AutoTokenizer.from_pretrained(paths.data/"tiny")
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=128, n_embd=32, n_layer=2, n_head=8, bos_token_id=tokenizer.eos_token_id, eos_token_id=tokenizer.eos_token_id)
    GPT2LMHeadModel(config).save_pretrained(tmp_path/"my-gpt2")
    tokenizer.save_pretrained(tmp_path/"my-gpt2")
    words = sorted(w for w in tokenizer.get_vocab() if w.isalpha())
    rng = np.random.default_rng(0)
    with open(tmp_path/"mine.csv", "w", newline="") as f:
        rows = csv.writer(f)
        rows.writerow(["text", "axis", "group"])
        for group in ("a", "b"):
            for _ in range(30): rows.writerow([" ".join(rng.choice(words, 6)), "gender", group])
    (tmp_path/"mine.txt").write_text("\n".join(" ".join(rng.choice(words, 12)) for _ in range(200)))
    scorer = "words:" + ",".join(words[:5])
    mine = ("model", tmp_path/"my-gpt2", "prompts", tmp_path/"mine.csv", "text", tmp_path/"mine.txt", "budget", 20)
    code, _, stderr = run(tmp_path, "rq2_ap", *mine, "scorer", scorer)
    assert code == 0, stderr[-3000:]
    first = table(tmp_path, "rq2_ap-my-gpt2")
    assert {"original", "AP", "FASP"} <= set(methods(tmp_path, "rq2_ap-my-gpt2"))
    code, printed, stderr = run(tmp_path, "rq2_ap", *mine, "scorer", "words:nowhere")
    assert code == 0, stderr[-3000:]
    assert "nothing to repair" in printed, "no group is ever toxic: a bias of exactly 0"
    assert table(tmp_path, "rq2_ap-my-gpt2") == first, "other parameters do not overwrite a table"
    assert table(tmp_path, "rq2_ap-my-gpt2-scorer-words-nowhere")
