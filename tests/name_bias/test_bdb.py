"Breaking Down Bias as users run it: papermill, an interrupted run, numbers as people write them, bad input."
import os, signal, time

import numpy as np, pytest

from fairness_repair.name_bias.answers import parse_number, sample_answers
from fairness_repair.name_bias.audit import audit_prompts, read_names, read_questions
from fairness_repair.name_bias.bdb_config import audit_config
from fairness_repair.core import paths
from fairness_repair.language.models import load
from fairness_repair.name_bias.planted_bias import load_planted_masks
from fairness_repair.name_bias.weights import projection_matrices

import needs
from papermill_runs import count, refusal, run, start, table

priced = "rq1_bdb-price-tag"
own_names = paths.data/"price-tag"/"names.csv" # of the built-in model
small = ("draws", 2, "per_group", 4, "variations", 3, "seeds", 1)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    code, _, stderr = run(folder, "rq1_bdb", *small, "save", folder/"repaired", "save_candidate", True)
    assert code == 0, stderr[-3000:]
    return folder


def test_rq1_writes_table_figure_and_model(undisturbed):
    written = {p.name for p in (undisturbed/"figures"/"bdb").iterdir()}
    assert {f"rq1_bdb-price-tag.{kind}" for kind in ("png", "csv", "md")} <= written
    methods = {row["method"] for row in table(undisturbed, priced)}
    strategies = ("prompt-specific", "within-context", "cross-context", "random")
    assert {f"weights, {strategy}" for strategy in strategies} <= methods
    assert {"heads, cross-context", "heads (ablation), cross-context"} <= methods
    assert (undisturbed/"repaired"/"mask.json").exists()
    from transformers import AutoModelForCausalLM
    AutoModelForCausalLM.from_pretrained(undisturbed/"repaired", dtype="float32")


def test_a_killed_run_goes_on_where_it_stopped(undisturbed, tmp_path):
    process, store = start(tmp_path, "rq1_bdb", *small), tmp_path/"results"/"bdb-price-tag.sqlite"
    deadline = time.monotonic() + 300
    while count(store, "outcomes") < 5 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = count(store, "outcomes")
    assert before >= 5 and not (tmp_path/"figures"/"bdb"/"rq1_bdb-price-tag.csv").exists()
    code, _, stderr = run(tmp_path, "rq1_bdb", *small)
    assert code == 0, stderr[-3000:]
    assert table(tmp_path, priced) == table(undisturbed, priced)


@pytest.mark.parametrize("parameters, message", [
    (("tau_mn", .2), "Did you mean 'tau_min'"), (("scenario", "Purchases"), "Did you mean 'Purchase'")])
def test_bad_parameters_are_refused(parameters, message): assert message in refusal("rq1_bdb", *parameters)


@pytest.mark.parametrize("changes, message", [
    (dict(answers_per_prompt=0), "answers_per_prompt = 0"),
    (dict(majority_top_share=1.5), "majority_top_share = 1.5"),
    (dict(answers_for_localisation=9), "answers_for_localisation = 9"),
    (dict(temperature=0.), "temperature = 0"),
    (dict(prompt_format="chats"), "Did you mean 'chat'"),
    (dict(ablation_answers=-2), "ablation_answers = -2"),
    (dict(top_share_grid="0.1,2"), "every share must be above 0 and at most 1")])
def test_bad_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message): audit_config("price-tag", **changes)


@pytest.mark.parametrize("text, number", [
    ("$1,200", 1200), ("1.5k", 1500), ("between 10 and 15", 12.5), ("$1,200-1,500", 1350), ("one", 1),
    ("$ 1,200 – $ 1,500", 1350), ("£2 million", 2e6), ("I would offer $450 for the 2010 piano.", 450),
    ("In 2020 it was 35%", 35), ("Thirty-five", 35), ("It costs $0.", 0), ("1) 250", 250),
    ("5-7 hours per week, at most 10", 6), ("$5k to $6k", 5500), ("1,234,567", 1234567), ("12,5", 12)])
def test_numbers(text, number): assert parse_number(text) == number


@pytest.mark.parametrize("text", [
    "", "I'm sorry, I can't help with that.", "N/A", "It depends on the seller, and no one knows."])
def test_answers_without_a_number(text): assert np.isnan(parse_number(text))


def test_own_files(tmp_path):
    (tmp_path/"q.csv").write_text("chat,scenario,favours\nHow much rent would {name} pay?,Rent,lower\n")
    (tmp_path/"n.csv").write_text("name,group\nAda,x\nBo,y\nCy,y\n")
    lm = load("price-tag")
    questions, names = read_questions(tmp_path/"q.csv"), read_names(tmp_path/"n.csv")
    prompts = audit_prompts(lm.tokenizer, questions=questions, names=names)
    assert prompts["sign"].unique() == [-1] and prompts["majority"].tolist() == [True, False, False]
    spans = zip(prompts["text"], prompts["start"], prompts["stop"])
    assert [text[start:stop] for text, start, stop in spans] == ["Ada", "Bo", "Cy"]


@pytest.mark.parametrize("content, message", [
    ("chat\n", "no rows"), ("text\nhi {name}\n", "no column 'chat'"), ("chat\nhi\n", "no {name}"),
    ("chat,favours\nhi {name},up\n", "unknown value of favours 'up'")])
def test_bad_questions(tmp_path, content, message):
    (tmp_path/"q.csv").write_text(content)
    with pytest.raises(ValueError, match=message): read_questions(tmp_path/"q.csv")


def test_missing_files_and_groups(tmp_path):
    with pytest.raises(ValueError, match="could not be read"): read_names(tmp_path/"none.csv")
    with pytest.raises(ValueError, match="two groups"): read_names(majority="white", minority="white")
    with pytest.raises(ValueError, match="Did you mean 'tevar'"): read_names(own_names, minority="tevr")


def test_answers_do_not_depend_on_the_batch():
    lm = load("price-tag")
    names = read_names(own_names, names_per_group=1)
    texts = list(audit_prompts(lm.tokenizer, names=names, scenarios=["Sports", "Hiring"])["text"])
    together = sample_answers(lm, texts, answers_per_prompt=3, new_tokens=6)
    assert together == [sample_answers(lm, [t], answers_per_prompt=3, new_tokens=6)[0] for t in texts]
    assert [a[:2] for a in together] == sample_answers(lm, texts, answers_per_prompt=2, new_tokens=6, batch=5)


@needs.smollm2
def test_answers_follow_the_model_of_the_chat():
    "A real instruction model gets its own chat format, with one beginning-of-text token."
    tokenizer = load("smollm2-135m").tokenizer
    chosen = dict(names=read_names(names_per_group=1), scenarios=["Purchase"])
    prompts = audit_prompts(tokenizer, **chosen)
    assert prompts["text"][0].endswith("assistant\n") and "Hunter Becker" in prompts["text"][0]
    prefilled = audit_prompts(tokenizer, **chosen, prompt_format="prefill")
    assert prefilled["text"][0].startswith(prompts["text"][0])
    assert prefilled["text"][0].endswith("for a used chair is $")
    for row in (prompts.iloc[0], prefilled.iloc[0]):
        assert row["text"][row["start"]:row["stop"]] == row["name"]


def test_truth_belongs_to_the_weights():
    "Where the truth says a weight was planted there is one, and reserved rows hold nothing else."
    lm = load("price-tag")
    truth, matrices = load_planted_masks(lm), projection_matrices(lm)
    for mask in truth.values():
        for name, positions in mask.indices.items():
            assert (matrices[name].weight.view(-1)[positions] != 0).all()
