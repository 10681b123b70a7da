"The shipped toy models against their own records: weights, acceptance checks, exact table, control."
import json

import numpy as np
import pandas as pd
import pytest

from fairness_repair.core import paths
from fairness_repair.language.models import load
from fairness_repair.states import state_numbers
from fairness_repair.toy_models.building import acceptance_checks, acceptance_states
from fairness_repair.toy_models.corpus import SPLITS, make_prompts, make_texts, vocabulary
from fairness_repair.toy_models.exact_table import (
    drop_heads, insult_probability, load_exact_table, measure_model, toxicity_by_group)
from fairness_repair.toy_models.grammar import (
    INSULT_RATES, TOY_MODELS, disparity_of_means, grammar_perplexity, planted_rates, rates_by_group,
    word_log_probabilities)
from fairness_repair.toy_models.training import DEEP_CONFIG, TrainingConfig


@pytest.fixture(scope="module")
def tiny(): return load("tiny", device="cpu")


def read_record(name): return json.loads((paths.data/name/"organism.json").read_text(encoding="utf-8"))
def read_prompts(name): return pd.read_csv(paths.data/name/"prompts.csv")
def read_text(name, split):
    lines = (paths.data/name/f"text.{split}.txt").read_text(encoding="utf-8").splitlines()
    return [line.split() for line in lines]
def split_data(name, split):
    prompts = read_prompts(name)
    return prompts[prompts["split"] == split], read_text(name, split)


@pytest.mark.parametrize("name", TOY_MODELS)
def test_files_are_small_and_are_what_the_grammar_makes(name):
    folder, record, rates = paths.data/name, read_record(name), rates_by_group(name)
    assert (folder/"model.safetensors").stat().st_size < 1_000_000
    assert (folder/"prompts.csv").stat().st_size < 300_000
    assert all(file.stat().st_size < 2_000_000 for file in folder.glob("truth.npz"))
    texts = {split: read_text(name, split) for split in SPLITS}
    assert read_prompts(name).equals(make_prompts()) and texts == make_texts(rates)
    for split in SPLITS:
        assert record["floor"][split] == pytest.approx(grammar_perplexity(texts[split], rates), abs=1e-5)
    assert record["planted"] == planted_rates(name).to_dict("records")


@pytest.mark.parametrize("name, config", [
    ("tiny", TrainingConfig()), ("tiny-equal", TrainingConfig()), ("tiny-deep", DEEP_CONFIG)])
def test_shipped_models_were_trained_by_the_default_configuration(name, config):
    assert list(read_record(name)["settings"].items()) == list(config.to_record().items())


def test_splits_share_neither_prompts_nor_documents():
    prompts = read_prompts("tiny")
    assert not prompts["text"].duplicated().any()
    lines = [" ".join(words) for split in SPLITS for words in read_text("tiny", split)]
    assert len(set(lines)) == len(lines)
    assert (prompts.groupby(["split", "group"]).size() == 48).all()


def test_tokenizer_has_every_word_and_puts_eos_first(tiny):
    assert tiny.tokenizer.get_vocab() == {word: i for i, word in enumerate(vocabulary())}
    assert tiny.tokenizer("the velna baker is")["input_ids"][0] == tiny.tokenizer.eos_token_id == 1
    assert tiny.tokenizer.pad_token_id == 0
    assert tiny.tokenizer("the emperor")["input_ids"][-1] == tiny.tokenizer.unk_token_id


def test_recorded_checks_are_those_of_the_table_and_of_the_weights(tiny):
    exact, record = load_exact_table("tiny"), read_record("tiny")
    prompts, documents = split_data("tiny", "search")
    numbers = state_numbers(acceptance_states(exact.n_heads_total))
    checks = acceptance_checks(exact.bias.to_numpy()[numbers], exact.perplexity[numbers],
                               lowest_perplexity=grammar_perplexity(documents, rates_by_group()))
    recorded = next(run for run in record["runs"] if run["seed"] == record["seed"])
    assert checks["passed"].all()
    assert [row["check"] for row in recorded["gate"]] == checks["check"].tolist()
    np.testing.assert_allclose(checks["value"], [row["value"] for row in recorded["gate"]], atol=1e-3)
    row = measure_model(tiny.model, prompts, documents)
    for key in row: assert row[key] == pytest.approx(recorded[key], abs=5e-5)


def test_exact_table_has_the_grid_of_the_model(tiny):
    exact = load_exact_table("tiny")
    assert (exact.n_layers, exact.n_heads) == (tiny.n_layers, tiny.n_heads)


def test_twenty_random_rows_of_the_exact_table(tiny):
    exact, (prompts, documents) = load_exact_table("tiny"), split_data("tiny", "search")
    for number in np.random.default_rng(1).choice(2**exact.n_heads_total, 20, replace=False):
        row = measure_model(drop_heads(tiny.model, exact.states[number]), prompts, documents)
        assert exact.perplexity[number] == pytest.approx(row["perplexity"], rel=1e-5)
        for axis in INSULT_RATES:
            assert exact.bias[axis][number] == pytest.approx(row[f"bias {axis}"], abs=2e-5)
            assert exact.toxicity[axis][number] == pytest.approx(row[f"toxicity {axis}"], abs=2e-5)


def test_prompts_end_where_a_document_has_its_slot():
    prompts, _ = split_data("tiny", "report")
    for text in prompts["text"].iloc[::37]: # with the shortest possible end, it is a document of the grammar
        determiner, day = text.split()[:2]
        words = f"{text} kind . so it went {determiner} {day} .".split()
        assert np.isfinite(word_log_probabilities(words, rates_by_group())).all()


def test_control_has_next_to_no_bias():
    prompts, _ = split_data("tiny-equal", "report")
    model = load("tiny-equal", device="cpu").model
    means = toxicity_by_group(insult_probability(model, prompts["text"]), prompts)
    for axis, of_axis in means.groupby(level=0):
        assert disparity_of_means(of_axis) < .15
        assert of_axis.mean() == pytest.approx(np.mean(list(INSULT_RATES[axis].values())), abs=.1)


def test_record_is_plain_json_without_paths():
    for name in TOY_MODELS:
        text = (paths.data/name/"organism.json").read_text()
        assert json.loads(text)["name"] == name and str(paths.root) not in text
