"The shipped organism against its own record: weights, gate, exact table, control."
import json

import numpy as np
import pytest

from fairness_repair.core import paths
from fairness_repair.language.models import load
from fairness_repair.toy_models.organism import (check_gate, drop_heads, floor, gate_states, group_means, load_truth, log_probability, make_prompts, make_texts,
                                      measure, names, planted, rates, read_build, splits, spread, toxicity, vocabulary)
from fairness_repair.states import state_numbers

by_group = {name: dict(zip(planted(name)["group"], planted(name)["rate"])) for name in names}


@pytest.fixture(scope="module")
def tiny(): return load("tiny", device="cpu")


def part(name, split):
    prompts, texts, _ = read_build(name)
    return prompts[prompts["split"] == split], texts[split]


@pytest.mark.parametrize("name", names)
def test_files_are_small_and_are_what_the_grammar_makes(name):
    folder = paths.data/name
    assert (folder/"model.safetensors").stat().st_size < 1_000_000 and (folder/"prompts.csv").stat().st_size < 300_000
    assert all(file.stat().st_size < 2_000_000 for file in folder.glob("truth.npz"))
    prompts, texts, record = read_build(name)
    assert prompts.equals(make_prompts()) and texts == make_texts(by_group[name])
    for split in splits: assert record["floor"][split] == pytest.approx(floor(texts[split], by_group[name]), abs=1e-5)
    assert record["planted"] == planted(name).to_dict("records")


def test_splits_share_neither_prompts_nor_documents():
    prompts, texts, _ = read_build("tiny")
    assert not prompts["text"].duplicated().any()
    lines = [" ".join(words) for split in splits for words in texts[split]]
    assert len(set(lines)) == len(lines)
    assert (prompts.groupby(["split", "group"]).size() == 48).all()


def test_tokenizer_knows_every_word_and_puts_eos_first(tiny):
    assert tiny.tokenizer.get_vocab() == {word: i for i, word in enumerate(vocabulary())}
    assert tiny.tokenizer("the velna baker is")["input_ids"][0] == tiny.tokenizer.eos_token_id == 1
    assert tiny.tokenizer.pad_token_id == 0 and tiny.tokenizer("the emperor")["input_ids"][-1] == tiny.tokenizer.unk_token_id


def test_gate_of_the_record_is_that_of_the_table_and_of_the_weights(tiny):
    truth, (prompts, documents), record = load_truth("tiny"), part("tiny", "search"), read_build("tiny")[2]
    tried = state_numbers(gate_states(truth.n))
    gate = check_gate(truth.bias.to_numpy()[tried], truth.perplexity[tried], floor=floor(documents, by_group["tiny"]))
    MODELS_WITH_PROMPTS = next(run for run in record["runs"] if run["seed"] == record["seed"])
    assert gate["passed"].all() and [row["check"] for row in MODELS_WITH_PROMPTS["gate"]] == gate["check"].tolist()
    np.testing.assert_allclose(gate["value"], [row["value"] for row in MODELS_WITH_PROMPTS["gate"]], atol=1e-3)
    row = measure(tiny.model, prompts, documents)
    for key in row: assert row[key] == pytest.approx(MODELS_WITH_PROMPTS[key], abs=5e-5)


def test_twenty_random_rows_of_the_exact_table(tiny):
    truth, (prompts, documents) = load_truth("tiny"), part("tiny", "search")
    for number in np.random.default_rng(1).choice(2**truth.n, 20, replace=False):
        row = measure(drop_heads(tiny.model, truth.states[number]), prompts, documents)
        assert truth.perplexity[number] == pytest.approx(row["perplexity"], rel=1e-5)
        for axis in rates:
            assert truth.bias[axis][number] == pytest.approx(row[f"bias {axis}"], abs=2e-5)
            assert truth.toxicity[axis][number] == pytest.approx(row[f"toxicity {axis}"], abs=2e-5)


def test_a_prompt_stands_where_a_document_has_its_slot():
    prompts, _ = part("tiny", "report")
    for text in prompts["text"].iloc[::37]: # finished in the plainest way, it is a document of the grammar
        when, day = text.split()[:2]
        words = f"{text} kind . so it went {when} {day} .".split()
        assert np.isfinite(log_probability(words, by_group["tiny"])).all()


def test_control_has_next_to_no_bias():
    prompts, _ = part("tiny-equal", "report")
    means = group_means(toxicity(load("tiny-equal", device="cpu").model, prompts["text"]), prompts)
    for axis, of_axis in means.groupby(level=0):
        assert spread(of_axis) < .15
        assert of_axis.mean() == pytest.approx(np.mean(list(rates[axis].values())), abs=.1)


def test_record_is_plain_json_without_paths():
    for name in names:
        text = (paths.data/name/"organism.json").read_text()
        assert json.loads(text)["name"] == name and str(paths.root) not in text
