"Scorers on labelled texts, classifiers of every kind of configuration, and files that must not be trusted."
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast, RobertaConfig,
                          RobertaForMaskedLM, RobertaForSequenceClassification)

from fairness_repair.language import toxicity
from fairness_repair.language.toxicity import (ClassifierScorer, ProfanityScorer, WordListScorer, load_scorer,
                                               texts_to_score)

import needs

data = Path(os.environ.get("FAIRNESS_REPAIR_DATA", "")) / "toxicity"
tiny = dict(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
            max_position_embeddings=20, initializer_range=1.)
texts = ["you are kind", "stupid", "you", "you are stupid you are", "kind kind", "you are "*30]


def classifier(folder, kind=RobertaForSequenceClassification, config=RobertaConfig, **more):
    "A checkpoint of one layer and eight words."
    vocab = {word: i for i, word in enumerate("<s> <pad> </s> <unk> you are kind stupid".split())}
    words = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", unk_token="<unk>")
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    net = kind(config(**tiny, **more)).eval()
    net.save_pretrained(folder)
    return net


@needs.data
@pytest.mark.parametrize("file, text, toxic, n, auc", [
    ("toxicity_nonfuzzed_testset", "comment", lambda t: t["toxic"], 20_000, .987),
    ("bias_madlibs_77k", "Text", lambda t: t["Label"] == "BAD", 20_000, .892)])
def test_the_stand_in_on_labelled_texts(file, text, toxic, n, auc):
    path = next(p for p in (data/f"{file}.csv", data/f"{file}.csv.gz") if p.exists())
    table = pd.read_csv(path, keep_default_na=False)
    table = table.sample(min(n, len(table)), random_state=0)
    scores = ProfanityScorer()(table[text].astype(str))
    assert roc_auc_score(toxic(table), scores) == pytest.approx(auc, abs=.008)


@pytest.mark.parametrize("more, activation", [
    (dict(problem_type="multi_label_classification"), "sigmoid"), ({}, "softmax"),
    (dict(problem_type="single_label_classification"), "softmax"),
    (dict(function_to_apply="sigmoid"), "sigmoid")])
@pytest.mark.parametrize("kind, config", [
    (RobertaForSequenceClassification, RobertaConfig), (BertForSequenceClassification, BertConfig)])
def test_probabilities_equal_the_model_s_own_one_text_at_a_time(tmp_path, kind, config, more, activation):
    labels = {0: "insult", 1: "toxicity", 2: "threat"}
    net = classifier(tmp_path, kind, config, id2label=labels, pad_token_id=1, **more)
    scorer = ClassifierScorer(str(tmp_path), batch_size=4, device="cpu")
    assert scorer.activation == activation and scorer.index == 1
    cut = dict(return_tensors="pt", truncation=True, max_length=18)
    rows = [scorer.tokenizer([text], **cut).input_ids for text in texts]
    with torch.inference_mode(): logits = torch.cat([net(ids).logits for ids in rows])
    expected = logits.sigmoid() if activation == "sigmoid" else logits.softmax(-1)
    np.testing.assert_allclose(scorer(texts), expected[:, 1], atol=1e-6)
    assert scorer(texts[:1]).shape == (1,) and scorer([]).shape == (0,)


def test_one_output_is_a_probability_by_itself(tmp_path):
    classifier(tmp_path, id2label={0: "toxic"})
    assert ClassifierScorer(str(tmp_path), device="cpu").activation == "sigmoid"


def test_the_name_changes_with_weights_and_label(tmp_path):
    net = classifier(tmp_path/"a"/"judge", id2label={0: "toxicity", 1: "insult"})
    first = ClassifierScorer(str(tmp_path/"a"/"judge"), device="cpu").name
    with torch.no_grad(): net.classifier.out_proj.bias += 1
    classifier(tmp_path/"b"/"judge", id2label={0: "toxicity", 1: "insult"})
    net.save_pretrained(tmp_path/"b"/"judge")
    assert ClassifierScorer(str(tmp_path/"b"/"judge"), device="cpu").name != first
    insult = ClassifierScorer(str(tmp_path/"a"/"judge"), label="insult", device="cpu")
    assert insult.name == first.replace("toxicity", "insult")


def test_a_pickled_checkpoint_is_read_as_tensors_only(tmp_path):
    net = classifier(tmp_path, id2label={0: "toxicity", 1: "insult"})
    before = load_scorer(str(tmp_path))(texts)
    (tmp_path/"model.safetensors").unlink()
    torch.save(net.state_dict(), tmp_path/"pytorch_model.bin")
    np.testing.assert_allclose(load_scorer(str(tmp_path))(texts), before, atol=1e-6)


class Hostile:
    def __init__(self, path): self.path = str(path)
    def __reduce__(self): return open, (self.path, "w")


def test_a_pickled_checkpoint_with_code_runs_nothing(tmp_path):
    classifier(tmp_path, id2label={0: "toxicity", 1: "insult"})
    (tmp_path/"model.safetensors").unlink()
    torch.save({"weight": Hostile(tmp_path/"ran")}, tmp_path/"pytorch_model.bin")
    with pytest.raises(ValueError, match="is not a plain checkpoint"): load_scorer(str(tmp_path))
    assert not (tmp_path/"ran").exists()


def test_a_language_model_is_no_classifier(tmp_path):
    classifier(tmp_path, RobertaForMaskedLM)
    message = "not a trained text classifier.*classifier.dense"
    with pytest.raises(ValueError, match=message): load_scorer(str(tmp_path))


def test_a_classifier_without_a_toxic_label(tmp_path):
    classifier(tmp_path)
    with pytest.raises(ValueError, match="Known: LABEL_0, LABEL_1. Say which one"): load_scorer(str(tmp_path))
    assert load_scorer(str(tmp_path), label="LABEL_1").index == 1


def test_a_hub_that_cannot_be_reached_is_one_clear_error(monkeypatch):
    def load(*args, **more): raise OSError("We couldn't connect to the hub.\nMore lines.")
    monkeypatch.setattr(toxicity, "load_classifier", load)
    message = "scorer 'owner/name' could not be read: We couldn't connect to the hub. 'alt-profanity' needs"
    with pytest.raises(ValueError, match=message): load_scorer("owner/name")


@pytest.mark.parametrize("name", ["alt_profanity", "none.txt", "a/b/c", "./folder", "", "words"])
def test_unknown_scorers_are_refused_without_a_network(name):
    with pytest.raises(ValueError, match="unknown scorer"): load_scorer(name)


def test_folders_that_lack_something(tmp_path):
    with pytest.raises(ValueError, match="Unrecognized model in .*config.json"): load_scorer(str(tmp_path))
    config = RobertaConfig(**tiny, id2label={0: "toxicity", 1: "insult"})
    RobertaForSequenceClassification(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has no tokenizer"): load_scorer(str(tmp_path))
    (tmp_path/"model.safetensors").unlink()
    with pytest.raises(ValueError, match="could not be read: .*no file named"): load_scorer(str(tmp_path))


def test_words_are_whole_words():
    scorer = WordListScorer(["ass", "half wit", "f**k", "Über"])
    scores = scorer(["class", "an ass.", "half wits", "half wit", "f**k!", "fook", "ÜBER alles", "übermut"])
    assert list(scores) == [0, 1, 0, 1, 1, 0, 1, 0]
    with pytest.raises(ValueError, match="at least one word"): load_scorer("words:")


def test_blank_texts_score_zero_for_every_scorer(tmp_path):
    classifier(tmp_path, id2label={0: "toxicity", 1: "insult"})
    for name in ("alt-profanity", "words:stupid", str(tmp_path)):
        scores = load_scorer(name)(["", "stupid", " \n\t"])
        assert scores.dtype == np.float64 and scores.shape == (3,)
        assert scores[0] == scores[2] == 0 < scores[1] <= 1


def test_texts_to_score_takes_columns_of_a_table():
    table = pd.DataFrame(dict(text=["A", "B"], continuation=[" x", ""]), index=[5, 7])
    assert texts_to_score(table["text"], table["continuation"], "full") == ["a x", "b"]
    assert texts_to_score(table["text"], table["continuation"], "continuation") == [" x", ""]
