"Breaking Down Bias as a user runs it: papermill, a run that is killed, answers as people write them, bad input."
import os, signal, time

import numpy as np, pytest

from fairness_repair.name_bias.answers import ask, parse_number
from fairness_repair.name_bias.audit import audit_prompts, read_names, read_questions
from fairness_repair.name_bias.bdb import design
from fairness_repair.core import paths
from fairness_repair.language.models import load
from fairness_repair.name_bias.planted_bias import load_planted_masks

import needs
from papermill_runs import count, refusal, run, start, table

priced = "rq1_bdb-price-tag"
small = ("draws", 2, "per_group", 4, "variations", 3, "seeds", 1)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    code, _, stderr = run(folder, "rq1_bdb", *small, "save", folder/"repaired")
    assert code == 0, stderr[-3000:]
    return folder


def test_rq1_writes_table_figure_and_model(undisturbed):
    written = {p.name for p in (undisturbed/"figures").iterdir()}
    assert {f"rq1_bdb-price-tag.{kind}" for kind in ("png", "pdf", "csv", "md")} <= written
    assert {"weights, prompt-specific", "weights, within-context", "weights, cross-context", "weights, random", "heads, cross-context"} <= {row["method"] for row in table(undisturbed, priced)}
    assert (undisturbed/"repaired"/"mask.json").exists()
    from transformers import AutoModelForCausalLM
    AutoModelForCausalLM.from_pretrained(undisturbed/"repaired", dtype="float32")


def test_a_killed_run_goes_on_where_it_stopped(undisturbed, tmp_path):
    process, store = start(tmp_path, "rq1_bdb", *small), tmp_path/"results"/"bdb-price-tag.sqlite"
    deadline = time.monotonic() + 300
    while count(store, "outcomes") < 5 and process.poll() is None and time.monotonic() < deadline: time.sleep(.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = count(store, "outcomes")
    assert before >= 5 and not (tmp_path/"figures"/"rq1_bdb-price-tag.csv").exists()
    code, _, stderr = run(tmp_path, "rq1_bdb", *small)
    assert code == 0, stderr[-3000:]
    assert table(tmp_path, priced) == table(undisturbed, priced)


@pytest.mark.parametrize("parameters, message", [(("tau_mn", .2), "Did you mean 'tau_min'"), (("scenario", "Purchases"), "Did you mean 'Purchase'")])
def test_bad_parameters_are_refused(parameters, message): assert message in refusal("rq1_bdb", *parameters)


@pytest.mark.parametrize("changes, message", [(dict(draws=0), "draws = 0"), (dict(tau_maj=1.5), "tau_maj = 1.5"), (dict(heard=9), "heard = 9"), (dict(temperature=0.), "temperature = 0"),
                                              (dict(form="chats"), "Did you mean 'chat'"), (dict(knocks=-2), "knocks = -2")])
def test_bad_designs_are_refused(changes, message):
    with pytest.raises(ValueError, match=message): design("price-tag", **changes)


@pytest.mark.parametrize("text, number", [
    ("$1,200", 1200), ("1.5k", 1500), ("between 10 and 15", 12.5), ("$1,200-1,500", 1350), ("$ 1,200 – $ 1,500", 1350), ("£2 million", 2e6),
    ("I would offer $450 for the 2010 piano.", 450), ("In 2020 it was 35%", 35), ("Thirty-five", 35), ("one", 1), ("It costs $0.", 0),
    ("1) 250", 250), ("5-7 hours per week, at most 10", 6), ("$5k to $6k", 5500), ("1,234,567", 1234567), ("12,5", 12)])
def test_numbers(text, number): assert parse_number(text) == number


@pytest.mark.parametrize("text", ["", "I'm sorry, I can't help with that.", "N/A", "It depends on the seller, and no one knows."])
def test_refusals(text): assert np.isnan(parse_number(text))


def test_own_files(tmp_path):
    (tmp_path/"q.csv").write_text("chat,scenario,favours\nHow much rent would {name} pay?,Rent,lower\n")
    (tmp_path/"n.csv").write_text("name,group\nAda,x\nBo,y\nCy,y\n")
    lm = load("price-tag")
    prompts = audit_prompts(lm.tokenizer, questions=read_questions(tmp_path/"q.csv"), names=read_names(tmp_path/"n.csv"))
    assert prompts["sense"].unique() == [-1] and prompts["majority"].tolist() == [True, False, False]
    assert [t[a:b] for t, a, b in zip(prompts["text"], prompts["start"], prompts["stop"])] == ["Ada", "Bo", "Cy"]


@pytest.mark.parametrize("content, message", [("chat\n", "no rows"), ("text\nhi {name}\n", "no column 'chat'"), ("chat\nhi\n", "no {name}"), ("chat,favours\nhi {name},up\n", "unknown value of favours 'up'")])
def test_bad_questions(tmp_path, content, message):
    (tmp_path/"q.csv").write_text(content)
    with pytest.raises(ValueError, match=message): read_questions(tmp_path/"q.csv")


def test_missing_files_and_groups(tmp_path):
    with pytest.raises(ValueError, match="could not be read"): read_names(tmp_path/"none.csv")
    with pytest.raises(ValueError, match="two groups are needed"): read_names(majority="white", minority="white")
    with pytest.raises(ValueError, match="Did you mean 'tevar'"): read_names(paths.data/"price-tag"/"names.csv", minority="tevr")


def test_company_changes_no_answer():
    lm = load("price-tag")
    texts = list(audit_prompts(lm.tokenizer, names=read_names(paths.data/"price-tag"/"names.csv", per_group=1), scenarios=["Sports", "Hiring"])["text"])
    together = ask(lm, texts, draws=3, new_tokens=6)
    assert together == [ask(lm, [t], draws=3, new_tokens=6)[0] for t in texts]
    assert [a[:2] for a in together] == ask(lm, texts, draws=2, new_tokens=6, batch=5)


@needs.smollm2
def test_answers_follow_the_model_of_the_chat():
    "On a real instruction model: the prompt is its own chat form, with one beginning."
    tokenizer = load("smollm2-135m").tokenizer
    prompts = audit_prompts(tokenizer, names=read_names(per_group=1), scenarios=["Purchase"])
    assert prompts["text"][0].endswith("assistant\n") and "Hunter Becker" in prompts["text"][0]
    begun = audit_prompts(tokenizer, names=read_names(per_group=1), scenarios=["Purchase"], form="begun")
    assert begun["text"][0].startswith(prompts["text"][0]) and begun["text"][0].endswith("for a used chair is $")
    for row in (prompts.iloc[0], begun.iloc[0]): assert row["text"][row["start"]:row["stop"]] == row["name"]


def test_truth_belongs_to_the_weights():
    "Where the truth says a weight was planted there is one, and reserved rows hold nothing else."
    from fairness_repair.name_bias.weights import projections
    lm = load("price-tag")
    truth, sites = load_planted_masks(lm), projections(lm)
    for mask in truth.values():
        for name, at in mask.indices.items(): assert (sites[name].weight.view(-1)[at] != 0).all()
