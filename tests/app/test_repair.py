"From a model to a saved fairer one: what is saved, what is refused, what survives being stopped."
from dataclasses import replace
import csv, errno, importlib, json, os, re, shutil, signal, sqlite3, subprocess, sys, time, tomllib
from pathlib import Path

import numpy as np, pandas as pd, pytest, torch
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, MistralConfig

from fairness_repair.core import InputError, hold_folder, paths
from fairness_repair.language.heads import heads_dropped
from fairness_repair.language.mean_ablation import with_mean_ablation
from fairness_repair.language.models import load
from fairness_repair.language.texts import load_text
from fairness_repair.language.tokenization import n_positions
from fairness_repair.app import repair
from fairness_repair.app import pipeline
from fairness_repair.app.command_line import main
from fairness_repair.app.job import check_job
from fairness_repair.app.selection import build_repair_evaluators, choose_heads
from fairness_repair.store import Store

command = [sys.executable, "-c", "from fairness_repair.app.command_line import main; main()"]
small = ("tiny", "--out", "repaired", "--budget", "60", "--method", "AP")


def start(folder, *arguments):
    env = os.environ | dict(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1")
    listen = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL) # also where pytest runs in the background
    return subprocess.Popen([*command, *map(str, arguments)], cwd=folder, env=env, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True, preexec_fn=listen)


def finish(process):
    stdout, stderr = process.communicate(timeout=200)
    return process.returncode, stdout, stderr


def kept(folder):
    "How many measurements are on disk."
    store = folder/"repaired"/"measured.sqlite"
    if not store.exists(): return 0
    with sqlite3.connect(f"file:{store}?mode=ro", uri=True) as db:
        try: return db.execute("select count(*) from measurements").fetchone()[0]
        except sqlite3.OperationalError: return 0


def record(folder): return json.loads((folder/"repaired"/"result.json").read_text())


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    code, stdout, stderr = finish(start(folder, *small))
    assert code == 0, stderr[-3000:]
    return folder, stdout, stderr


def test_console_script_and_templates_are_declared():
    "Both are named in pyproject.toml, which no import would notice."
    settings = tomllib.loads((paths.root/"pyproject.toml").read_text())
    module, name = settings["project"]["scripts"]["repair"].split(":")
    assert getattr(importlib.import_module(module), name) is main
    app, declared = paths.root/"fairness_repair"/"app", settings["tool"]["setuptools"]["package-data"]
    packed = {p.name for pattern in declared["fairness_repair.app"] for p in app.glob(pattern)}
    assert packed == {p.name for p in app.iterdir() if p.is_file() and p.suffix != ".py"}


def test_console_says_what_it_did(undisturbed):
    folder, stdout, stderr = undisturbed
    assert stdout.startswith("Repaired: without ")
    assert "fairer model: repaired/model" in stdout and "candidate" not in stdout
    assert "report card: repaired/report.html" in stdout
    assert "search" in stderr and "states" in stderr, "progress"
    assert record(folder)["measured"] == kept(folder)


def test_report_card_needs_nothing_else(undisturbed):
    folder, _, _ = undisturbed
    text = (folder/"repaired"/"report.html").read_text()
    assert text.count('src="data:image/png;base64,') == text.count("<img") == 3
    assert set(re.findall(r'(?:src|href)="(?!data:)(.*?)"', text)) == {"model/"}
    assert "{{" not in text and "{%" not in text
    for tag in ("table", "figure", "div", "main", "details"):
        assert len(re.findall(f"<{tag}[ >]", text)) == text.count(f"</{tag}>")
    assert str(folder) not in text


def test_model_card(undisturbed):
    yaml = pytest.importorskip("yaml")
    folder = undisturbed[0]/"repaired"/"model"
    _, head, body = (folder/"README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(head)["library_name"] == "transformers"
    figures = re.findall(r"\]\((.+?)\)", body)
    assert len(figures) == 2 and all((folder/f).exists() for f in figures)
    headings = re.findall("^## (.*)$", body, re.M)
    assert headings == ["What was changed", "Before and after", "How it was measured", "Limits", "Use"]
    assert "the probability that the next word is an insult" in body


alone = """
import sys, json, torch
sys.modules["fairness_repair"] = None  # an import would fail
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, dtype, text = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
ids = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")["input_ids"]
options = dict(attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12)
print(json.dumps(model.generate(ids, **options).tolist()))
"""


def tokens_alone(folder, dtype, text, cwd):
    "What plain transformers makes of a saved model, in a process that cannot import this package."
    arguments = [sys.executable, "-c", alone, str(folder), dtype, text]
    env = os.environ | dict(HF_HUB_OFFLINE="1")
    run = subprocess.run(arguments, cwd=cwd, capture_output=True, text=True, env=env)
    assert run.returncode == 0, run.stderr[-2000:]
    return json.loads(run.stdout)


def tokens_masked(lm, heads, text):
    drop_mask = np.zeros((lm.n_layers, lm.n_heads), bool)
    for layer, head in heads: drop_mask[layer, head] = True
    ids = lm.tokenizer(text, return_tensors="pt")["input_ids"]
    options = dict(attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12)
    with heads_dropped(lm.model, drop_mask): return lm.model.generate(ids, **options).tolist()


def test_saved_model_says_what_the_masked_one_says(undisturbed, tmp_path):
    folder = undisturbed[0]/"repaired"
    heads = json.loads((folder/"model"/"state.json").read_text())["dropped"]
    assert heads and heads == record(undisturbed[0])["dropped"]
    alone = tokens_alone(folder/"model", "float32", "the doctor said", tmp_path)
    assert alone == tokens_masked(load("tiny"), heads, "the doctor said")


def test_stopped_and_killed_runs_go_on(undisturbed, tmp_path):
    "Ctrl-C, then a kill, then to the end: the same result, and no state measured twice."
    enough = 0
    for how, code in ((signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)):
        process, before, deadline = start(tmp_path, *small), enough, time.monotonic() + 300
        while kept(tmp_path) < before + 20 and time.monotonic() < deadline and process.poll() is None:
            time.sleep(.01)
        process.send_signal(how)
        try: process.wait(5)
        except subprocess.TimeoutExpired: process.send_signal(how) # Python ignores a Ctrl-C in a finalizer
        found, _, stderr = finish(process)
        enough = kept(tmp_path)
        done = f"{enough} of {kept(undisturbed[0])} measurements"
        assert found == code, f"{done}, {stderr[:300]} ... {stderr[-300:]}"
        assert before + 20 <= enough < kept(undisturbed[0]), "the run was to be stopped in mid-measurement"
        assert not (tmp_path/"repaired"/"report.html").exists()
        if how == signal.SIGINT: assert "to continue from here" in stderr and "Traceback" not in stderr
    assert finish(start(tmp_path, *small))[0] == 0
    whole, resumed = record(undisturbed[0]), record(tmp_path)
    assert resumed["measured"] == whole["measured"] - enough
    for name in ("verdict", "dropped", "table"): assert resumed[name] == whole[name]


@pytest.fixture
def unloaded(monkeypatch):
    def fail(*args, **kwargs): raise AssertionError("a model was loaded before everything was checked")
    monkeypatch.setattr("fairness_repair.app.pipeline.load", fail)


@pytest.mark.parametrize("given, message", [
    (dict(epsilon=2.), "epsilon = 2"),
    (dict(model="tinny"), "Did you mean 'tiny'?"),
    (dict(method="FAPS"), "unknown method 'FAPS'. Did you mean 'FASP'?"),
    (dict(axis="gendre"), "Did you mean 'gender'?"),
    (dict(budget=5), "budget = 5"),
    (dict(method="ap"), "unknown method 'ap'. Did you mean 'AP'?"),
    (dict(method="SA", rounds=4), "rounds = 4: only active, active MLP, gradient take it; leave it out for SA"),
    (dict(rounds=0), "rounds = 0: needs a whole number of at least 1"),
    (dict(method="AP", search_states=10), "search_states = 10: needs a whole number of at least 10000"),
    (dict(seed=-1), "seed = -1: needs a whole number of at least 0"),
    (dict(seed=True), "seed = True: needs a whole number"),
    (dict(budget="60"), "budget = '60': needs a whole number: write 60"),
    (dict(epsilon=float("nan")), "epsilon = nan: needs a number"),
    (dict(save_candidate="no"), "save_candidate = 'no': needs True or False"),
    (dict(ablation="means"), "unknown ablation 'means'. Did you mean 'mean'?"),
    (dict(model="x"*300), "the name is too long"),
    (dict(model="~nobody-of-this-name/x"), "unknown model '~nobody-of-this-name/x'"),
    (dict(prompts="x"*300), "unknown prompts 'xxx"),
    (dict(out="/dev/null/out"), "/dev/null is a file, so it can hold no folder"),
    (dict(out="x"*300), "the name is too long"),
    (dict(out="a\0b"), "a path cannot hold a null character"),
    (dict(dtype="int8"), "unknown dtype 'int8'"),
    (dict(scorer="profanity"), "Did you mean 'alt-profanity'?"),
    (dict(prompts="nowhere.csv"), "nowhere.csv"),
    (dict(text="nowhere.txt"), "nowhere.txt"),
], ids=lambda x: next(iter(x)) if isinstance(x, dict) else "")
def test_bad_input_is_one_error_before_loading(unloaded, monkeypatch, tmp_path, given, message):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match=re.escape(message)):
        repair(**dict(model="tiny", out=tmp_path/"out") | given)
    assert not (tmp_path/"out").exists(), "nothing may be left behind"


def test_folder_with_something_else(unloaded, undisturbed, tmp_path):
    (tmp_path/"thesis.tex").touch()
    with pytest.raises(ValueError, match="holds something else"): repair("tiny", tmp_path)
    with pytest.raises(ValueError, match="is a file"): repair("tiny", tmp_path/"thesis.tex")
    with pytest.raises(ValueError, match="epsilon = 0.5, this one has 0.9: name another folder"):
        repair("tiny", undisturbed[0]/"repaired", budget=60, method="AP", epsilon=.9)
    with pytest.raises(ValueError, match="holds a repair with model = 'tiny', this one has '.*tiny-deep'"):
        check_job(str(paths.data/"tiny-deep"), undisturbed[0]/"repaired", prompts="tiny", text="tiny")
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("arguments, message", [
    (["tiny", "--bugdet", "60"], "unknown option '--bugdet'. Did you mean '--budget'?"),
    (["tiny", "--budg", "60"], "unknown option '--budg'"),
    (["tiny", "--budget", "many"], "repair: budget = 'many': needs a whole number, such as 60"),
    (["tiny", "--budget", "1,000"], "repair: budget = '1,000': needs a whole number: write 1000"),
    (["tiny", "--epsilon", "0,5"], "repair: epsilon = '0,5': needs a number: write 0.5"),
    (["tiny", "--epsilon", "inf"], "repair: epsilon = inf: needs a number"),
    (["tiny", "--method", "ap"], "Did you mean 'AP'?"),
    (["tiny", "--save_candidate"], "unknown option '--save_candidate'. Did you mean '--save-candidate'?"),
    (["tiny", "--epsilon", "2"], "repair: epsilon = 2"),
    ([], "required: model"),
])
def test_bad_command_is_one_line(unloaded, capsys, arguments, message):
    with pytest.raises(SystemExit) as stop: main(arguments)
    assert stop.value.code == 2 and message in capsys.readouterr().err


@pytest.fixture(scope="module")
def my_gpt2(tmp_path_factory):
    "A GPT-2 with random weights, and prompts and text of its own."
    folder, tokenizer = tmp_path_factory.mktemp("mine"), AutoTokenizer.from_pretrained(paths.data/"tiny")
    torch.manual_seed(0)
    end = tokenizer.eos_token_id
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=128, n_embd=32, n_layer=2, n_head=8,
                        initializer_range=.3, bos_token_id=end, eos_token_id=end)
    GPT2LMHeadModel(config).save_pretrained(folder/"my-gpt2")
    tokenizer.save_pretrained(folder/"my-gpt2")
    words, rng = sorted(w for w in tokenizer.get_vocab() if w.isalpha()), np.random.default_rng(0)
    rows = [dict(text=" ".join([group, *rng.choice(words, 5)]), axis="gender", group=group)
            for group in ("she", "he") for _ in range(30)]
    pd.DataFrame(rows).to_csv(folder/"mine.csv", index=False)
    (folder/"mine.txt").write_text("\n".join(" ".join(rng.choice(words, 12)) for _ in range(200)))
    files = dict(model="my-gpt2", prompts="mine.csv", text="mine.txt")
    files = {name: str(folder/file) for name, file in files.items()}
    return folder, files | dict(scorer="words:" + ",".join(words[:8]), dtype="float32", progress=False)


@pytest.mark.parametrize("method", ["AP", "FASP", "random", "gradient"])
def test_local_folder_with_own_data(my_gpt2, tmp_path, method):
    folder, mine = my_gpt2
    result = repair(out=tmp_path/"out", method=method, budget=16, save_candidate=True, **mine)
    assert result.drop_mask.sum() <= 8 and result.report.exists()
    if method != "random": return
    assert result.saved, "the seeds of this test were chosen so that something is saved"
    alone = tokens_alone(result.checkpoint, "float32", "the doctor said", tmp_path)
    assert alone == tokens_masked(load(mine["model"]), result.heads, "the doctor said")
    card = (result.checkpoint/"README.md").read_text()
    assert "base_model" not in card and "a list of words" in card
    saved = [file for file in result.checkpoint.rglob("*") if file.is_file()]
    assert not [file for file in saved if str(folder).encode() in file.read_bytes()], "a path of this machine"


def test_changed_model_is_noticed(my_gpt2, tmp_path):
    folder, mine = my_gpt2
    repair(out=tmp_path/"out", method="random", budget=16, **mine)
    with open(mine["prompts"], "a", newline="") as f:
        csv.writer(f).writerows([["she said", "gender", "she"], ["he said", "gender", "he"]])
    with pytest.raises(ValueError, match="have changed since"):
        repair(out=tmp_path/"out", method="random", budget=16, **mine)


def test_mean_ablation(tmp_path, monkeypatch, capsys):
    "The saved model says what the masked one says, and the cards and the record name the ablation."
    monkeypatch.chdir(tmp_path)
    main(["tiny", "--ablation", "mean", "--method", "random", "--budget", "26", "--save-candidate", "--out", "out"])
    found = json.loads((tmp_path/"out"/"result.json").read_text())
    assert found["config"]["ablation"] == "mean" and found["dropped"]
    folder = next(f for f in (tmp_path/"out"/"model", tmp_path/"out"/"candidate") if f.exists())
    assert json.loads((folder/"state.json").read_text())["ablation"] == "mean"
    assert "part of the biases (mean ablation)" in (folder/"README.md").read_text()
    report = (tmp_path/"out"/"report.html").read_text()
    assert "keep their mean output over the part of tiny that is for search" in report
    lm = with_mean_ablation(load("tiny"), load_text("tiny", "search"))
    alone = tokens_alone(folder, "float32", "the doctor said", tmp_path)
    assert alone == tokens_masked(lm, found["dropped"], "the doctor said")
    with pytest.raises(InputError, match="with ablation = 'mean', this one has 'zero'"):
        check_job("tiny", tmp_path/"out", method="random", budget=26, save_candidate=True)


def test_model_that_cannot_keep_means_is_refused_before_loading(unloaded, tmp_path, capsys):
    MistralConfig(num_hidden_layers=1).save_pretrained(tmp_path/"mistral")
    options = ["--prompts", "tiny", "--text", "tiny", "--scorer", "next word", "--out", str(tmp_path/"out")]
    with pytest.raises(SystemExit): main([str(tmp_path/"mistral"), "--ablation", "mean", *options])
    assert "MistralForCausalLM cannot keep the means of dropped heads" in capsys.readouterr().err
    check_job(str(tmp_path/"mistral"), tmp_path/"out", prompts="tiny", text="tiny", scorer="next word") # zero ablation


def test_report_data_decide_nothing():
    "Whether to search, and what to choose, is known before the report data are looked at."
    job, lm = check_job("tiny", "nowhere", method="FASP"), load("tiny")
    evaluators = build_repair_evaluators(job.settings, lm, store=Store(":memory:"))
    del evaluators["report"]
    assert choose_heads(job, evaluators).drop_mask.any()


@pytest.fixture(scope="module")
def candidate(my_gpt2, tmp_path_factory):
    "A finished repair whose change is not significant."
    folder, mine = my_gpt2
    for seed in range(6): # a small random model: most seeds end so
        out = tmp_path_factory.mktemp("candidate")/"out"
        result = repair(out=out, method="random", budget=16, seed=seed, **mine)
        if result.status == "not significant": break
    return result, mine | dict(seed=seed)


def test_candidate_is_saved_only_when_asked(candidate):
    result, mine = candidate
    out, record = result.job.out, json.loads((result.job.out/"result.json").read_text())
    assert result.status == record["status"] == "not significant", "the seeds of this test were chosen so"
    assert not result.saved and not (out/"model").exists() and not (out/"candidate").exists()
    assert "candidate" in record["table"][0] and "repaired" not in record["table"][0]
    again = repair(out=out, method="random", budget=16, save_candidate=True, **mine)
    assert again.record["measured"] == 0 and again.checkpoint == out/"candidate"
    assert json.loads((out/"candidate"/"state.json").read_text())["dropped"] == record["dropped"]
    assert (out/"candidate"/"README.md").read_text().split("# ")[1].startswith("my-gpt2, candidate")


STEPS = ("save_figures", "save_pruned", "write_model_card", "write_report_card")
no_space = "No space left on device"


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, no_space), Exception(f"I/O error: {no_space} (os error 28)"), KeyError("a fault")], ids=str)
def test_failing_save_leaves_the_result_and_says_so(candidate, monkeypatch, step, error):
    def fail(*args, **kwargs): raise error
    for name in STEPS: monkeypatch.setattr(pipeline, name, fail if name == step else lambda *args, **kwargs: {})
    result = replace(candidate[0], job=replace(candidate[0].job, save_candidate=True))
    (result.job.out/"result.json").unlink()
    with pytest.raises(KeyError if isinstance(error, KeyError) else InputError) as failed: pipeline._save_result(result, load("tiny"))
    said = str(failed.value) + "".join(getattr(failed.value, "__notes__", []))
    assert "result.json' already, with the dropped heads" in said
    if not isinstance(error, KeyError): assert "the disk is full" in said and str(result.job.out) in said and "MB are needed" in said
    assert json.loads((result.job.out/"result.json").read_text())["dropped"] == result.record["dropped"]


def test_settings_that_transformers_refuses_to_save(candidate, tmp_path):
    "A temperature without sampling, as some published models have it: saved as it was."
    result, mine = candidate
    copy = shutil.copytree(mine["model"], tmp_path/"copy")
    settings = json.loads((copy/"generation_config.json").read_text())
    settings.pop("pad_token_id", None)
    (copy/"generation_config.json").write_text(json.dumps(settings | dict(temperature=.7, top_p=.9)))
    lm = load(str(copy))
    with pytest.raises(ValueError, match="temperature"): lm.model.save_pretrained(tmp_path/"plain")
    asked = replace(result, job=replace(result.job, out=tmp_path, save_candidate=True))
    pipeline._try_saving(asked.job, lm)
    pipeline._save_result(asked, lm)
    assert json.loads((asked.checkpoint/"generation_config.json").read_text())["temperature"] == .7
    assert not list(tmp_path.glob(".trial*"))


def test_model_that_cannot_be_saved_is_refused_before_measuring(my_gpt2, tmp_path, monkeypatch):
    folder, mine = my_gpt2
    def fail(*args, **kwargs): raise RuntimeError("shared tensors\n" + "x"*1000)
    monkeypatch.setattr(GPT2LMHeadModel, "save_pretrained", fail)
    with pytest.raises(InputError, match="could not be saved after a repair: shared tensors") as refused: repair(out=tmp_path/"out", method="random", budget=16, **mine)
    assert len(str(refused.value)) < 600 and "\n" not in str(refused.value)
    monkeypatch.setattr(pipeline, "_weight_bytes", lambda lm: 10**18)
    with pytest.raises(InputError, match="the disk is full .1,000,000,000,000 MB are needed"): repair(out=tmp_path/"out", method="random", budget=16, **mine)
    with Store(tmp_path/"out"/"measured.sqlite") as store: assert str(store).startswith("0 measurements")


def test_second_run_in_a_folder_is_told_at_once(unloaded, tmp_path, capsys):
    (tmp_path/"out").mkdir()
    with hold_folder(tmp_path/"out"), pytest.raises(SystemExit) as stop: main(["tiny", "--out", str(tmp_path/"out")])
    told = capsys.readouterr().err
    assert stop.value.code == 2 and f"is in use by process {os.getpid()} on " in told and told.count("\n") == 1
    assert check_job("tiny", tmp_path/"out").out.exists(), "free again"


def test_edited_config_is_refused(unloaded, tmp_path):
    for text in ("", "[1]", "{"):
        (tmp_path/"config.json").write_text(text)
        with pytest.raises(InputError, match="or its config.json was changed"): repair("tiny", tmp_path)


def test_text_from_all_over(tmp_path):
    "Heads are priced on short pieces; searches aim below the limit."
    sizes = dict(window=16, search_tokens=320, single_head_tokens=160)
    job = check_job("tiny", tmp_path/"repaired", **sizes, protected_share=.25)
    lm = load("tiny")
    evaluators = build_repair_evaluators(job.settings, lm)
    read = {name: evaluator.text for name, evaluator in evaluators.items()}
    assert [read[name].mode for name in ("search", "selection", "report")] == ["spread"]*3
    half = n_positions(lm)//2
    assert read["search"].context == half and len(read["search"].windows) == -(-320//half)
    assert len(read["reader"].windows) == 10
    assert read["reader"].to_record() == read["single"].to_record() == evaluators["search"].price_text.to_record()
    choice = choose_heads(job, evaluators)
    assert choice.search.cost_settings == dict(epsilon=.5, limit=pytest.approx(1 + .1*2/3), penalty=10.)
    assert choice.drop_mask.any() and choice.reason is None
    ratio = evaluators["selection"]([np.zeros(16, bool), choice.drop_mask])["perplexity"]
    assert ratio[1]/ratio[0] < 1.1
    plain = check_job("tiny", tmp_path/"plain").settings
    assert plain.search_limit == plain.max_perplexity_ratio and plain.penalty is None
    assert "window" not in plain.to_record()
