"Scorers on labelled texts, classifiers of every kind of configuration, and files that must not be trusted."
import json, os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (BertConfig, BertForSequenceClassification, GPT2Config, GPT2ForSequenceClassification,
                          LlamaConfig, LlamaForSequenceClassification, PreTrainedTokenizerFast, RobertaConfig,
                          RobertaForMaskedLM, RobertaForSequenceClassification, XLNetConfig, XLNetForSequenceClassification)

from fairness_repair.core import InputError
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
    before = load_scorer(f"unchecked:{tmp_path}")(texts)
    (tmp_path/"model.safetensors").unlink()
    torch.save(net.state_dict(), tmp_path/"pytorch_model.bin")
    np.testing.assert_allclose(load_scorer(f"unchecked:{tmp_path}")(texts), before, atol=1e-6)


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
    message = "Known: LABEL_0, LABEL_1. Say which one means toxic: label= in Python, --label in a shell, -p label"
    with pytest.raises(InputError, match=message): load_scorer(str(tmp_path))
    assert load_scorer(f"unchecked:{tmp_path}", label="LABEL_1").index == 1


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
    for name in ("alt-profanity", "words:stupid", f"unchecked:{tmp_path}"):
        scores = load_scorer(name)(["", "stupid", " \n\t"])
        assert scores.dtype == np.float64 and scores.shape == (3,)
        assert scores[0] == scores[2] == 0 < scores[1] <= 1


def test_texts_to_score_takes_columns_of_a_table():
    table = pd.DataFrame(dict(text=["A", "B"], continuation=[" x", ""]), index=[5, 7])
    assert texts_to_score(table["text"], table["continuation"], "full") == ["a x", "b"]
    assert texts_to_score(table["text"], table["continuation"], "continuation") == [" x", ""]


def ranking(folder, good="nice", bad="stupid", **more):
    "A classifier of two words: it looks at nothing but which of them a text has."
    words = [*"<s> <pad> </s> <unk>".split(), good, bad]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>").save_pretrained(folder)
    config = GPT2Config(vocab_size=6, n_embd=2, n_layer=0, n_head=1, n_positions=64, pad_token_id=1, **more)
    net = GPT2ForSequenceClassification(config)
    with torch.no_grad():
        net.transformer.wpe.weight.zero_(); net.transformer.wte.weight.zero_(); net.score.weight.zero_()
        net.transformer.wte.weight[:, 0] = 1.
        net.transformer.wte.weight[5] = torch.tensor([0., 1.])
        net.score.weight[-1] = torch.tensor([-1., 1.])
    net.save_pretrained(folder)
    return str(folder)


def test_a_scorer_is_tried_on_two_texts(tmp_path, monkeypatch):
    monkeypatch.setattr(toxicity, "HARMLESS", "that is nice")
    monkeypatch.setattr(toxicity, "INSULT", "you are stupid")
    folder = ranking(tmp_path)
    assert load_scorer(folder, label="LABEL_1").index == 1
    message = "LABEL_0' gives .* to the insult 'you are stupid' .*does not mean toxic.*label=, --label or -p label.*'unchecked:'"
    with pytest.raises(InputError, match=message): load_scorer(folder, label="LABEL_0")
    other = load_scorer(f"unchecked:{folder}", label="LABEL_0")
    assert other.name == load_scorer(folder, label="LABEL_1").name.replace("LABEL_1", "LABEL_0")


def test_every_built_in_scorer_ranks_the_two_texts():
    toxicity.check_ranking(ProfanityScorer())
    with pytest.raises(InputError, match="only a classifier has labels"): load_scorer("alt-profanity", label="toxic")


shape = dict(vocab_size=8, num_labels=2)
deep = dict(num_hidden_layers=1, hidden_size=8, num_attention_heads=2, intermediate_size=8)
unpadded = {
    "gpt2": (GPT2ForSequenceClassification, GPT2Config(n_embd=8, n_layer=1, n_head=2, n_positions=64, **shape)),
    "llama": (LlamaForSequenceClassification, LlamaConfig(**deep, **shape)),
    "bert": (BertForSequenceClassification, BertConfig(**deep, **shape)),
    "xlnet": (XLNetForSequenceClassification, XLNetConfig(d_model=8, n_layer=1, n_head=2, d_inner=8, **shape))}


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("special", [{}, dict(eos_token="</s>"), dict(pad_token="<pad>")], ids=["none", "end", "padding"])
@pytest.mark.parametrize("kind", unpadded)
def test_a_classifier_without_a_padding_token_or_a_limit(tmp_path, kind, special, side):
    "Texts of a batch get the score that each has alone."
    make, config = unpadded[kind]
    vocab = {word: i for i, word in enumerate("<s> <pad> </s> <unk> you are kind stupid".split())}
    words = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", padding_side=side, **special).save_pretrained(tmp_path)
    torch.manual_seed(0)
    net = make(config)
    with torch.no_grad():
        for p in net.parameters(): p.normal_(0, .3)
    net.eval().save_pretrained(tmp_path)
    scorer = ClassifierScorer(str(tmp_path), label="LABEL_1", device="cpu")
    given = ["you are kind", "stupid", "you are stupid you are"]
    rows = [torch.tensor([words.encode(text).ids]) for text in given]
    with torch.inference_mode():
        expected = [scorer.model(input_ids=row).logits.softmax(-1)[0, 1] for row in rows]
    np.testing.assert_allclose(scorer(given), expected, atol=1e-5)
    assert 0 < scorer.max_tokens <= 2**20


@pytest.mark.parametrize("more, activation", [
    (dict(num_labels=1), "sigmoid"), (dict(num_labels=1, problem_type="regression"), "none"),
    (dict(num_labels=3, problem_type="multi_label_classification"), "sigmoid"), (dict(function_to_apply="none"), "none")])
def test_heads_of_every_kind(tmp_path, more, activation):
    net = classifier(tmp_path, **more)
    scorer = ClassifierScorer(str(tmp_path), label="LABEL_0", device="cpu")
    assert scorer.activation == activation
    ids = scorer.tokenizer(["you are kind"], return_tensors="pt").input_ids
    with torch.inference_mode(): logit = net(ids).logits[0, 0].item()
    if activation == "none":
        with pytest.raises(InputError, match="toxicity lies between 0 and 1. Use a classifier"):
            with torch.no_grad(): scorer.model.classifier.out_proj.bias += 9
            scorer(["you are kind"])
    else: assert scorer(["you are kind"])[0] == pytest.approx(1/(1 + np.exp(-logit)), abs=1e-5)


def test_a_classifier_that_gives_nan_is_named_with_its_layer(tmp_path):
    net = classifier(tmp_path, id2label={0: "toxicity", 1: "insult"})
    with torch.no_grad(): net.roberta.encoder.layer[0].output.dense.weight[0] = torch.nan
    net.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="not finite.*in float32: the weight roberta.encoder.layer.0.output.dense.weight"):
        load_scorer(str(tmp_path))
    scorer = ClassifierScorer(str(tmp_path), device="cpu")
    with torch.no_grad(): scorer.model.roberta.encoder.layer[0].output.dense.weight[0] = 3e38
    with torch.no_grad(): scorer.model.roberta.encoder.layer[0].intermediate.dense.weight[:] = 3e38
    with pytest.raises(InputError, match="first appear in layer 0, roberta.encoder.layer.0.intermediate.dense"): scorer(["you"])


def test_a_classifier_with_code_of_its_own_is_refused(tmp_path):
    classifier(tmp_path, id2label={0: "toxicity", 1: "insult"})
    ran = tmp_path/"ran"
    (tmp_path/"own.py").write_text(f"open({str(ran)!r}, 'w')")
    config = json.loads((tmp_path/"config.json").read_text())
    auto = dict(AutoConfig="own.Config", AutoModelForSequenceClassification="own.Model")
    (tmp_path/"config.json").write_text(json.dumps(config | dict(auto_map=auto, model_type="own")))
    with pytest.raises(InputError, match="needs code from its own repository, which is never run"): load_scorer(str(tmp_path))
    assert not ran.exists()


def test_a_word_list_may_be_any_file(tmp_path):
    path = tmp_path/"bad [1]*.txt"
    path.write_bytes("\ufeffdumm\nblöd\n".encode())
    assert load_scorer(str(path)).words == ("blöd", "dumm")
    path.write_bytes(b"caf\xe9")
    with pytest.raises(InputError, match="is not UTF-8"): load_scorer(str(path))
    assert load_scorer("words:\udc80").name == "words:\udc80" and len(WordListScorer(["\udc80", *"abcdefgh"]).name) == 16


def test_the_label_reaches_every_interface(tmp_path, monkeypatch):
    "Python, the command and papermill; records of a repair without a label are as before."
    import inspect
    from fairness_repair.app.job import check_job
    from fairness_repair.app.pipeline import repair
    from fairness_repair.core import literal_assignments, paths
    from fairness_repair.pruning.experiment import make_config
    monkeypatch.setattr(toxicity, "HARMLESS", "that is nice")
    monkeypatch.setattr(toxicity, "INSULT", "you are stupid")
    folder = ranking(tmp_path/"judge")
    given = dict(axis="gender", prompts="tiny", text="tiny", scorer=folder)
    with pytest.raises(InputError, match="Say which one means toxic: label="): check_job("tiny", tmp_path/"out", **given)
    with pytest.raises(InputError, match="does not mean toxic"): check_job("tiny", tmp_path/"out", **given, label="LABEL_0")
    job = check_job("tiny", tmp_path/"out", **given, label="LABEL_1")
    assert job.config["label"] == "LABEL_1" and "label" not in check_job("tiny", tmp_path/"out").config
    with pytest.raises(InputError, match="only a classifier has labels"): make_config("tiny", label="toxic")
    assert inspect.signature(repair).parameters["label"].default == ""
    for path in sorted(paths.nbs.glob("rq*.ipynb")):
        cells = ["".join(c["source"]) for c in json.loads(path.read_text())["cells"] if "parameters" in c["metadata"].get("tags", [])]
        declared = literal_assignments(cells[0])
        assert ("scorer" in declared) == ("label" in declared), path.name
