"WikiText-2's exact joins, and texts that are wrong."

import datasets
import numpy as np, pytest, torch

from fairness_repair.core import InputError
from fairness_repair.language import texts
from fairness_repair.language.model_metrics import TextPerplexity
from fairness_repair.language.models import MODELS_WITH_PROMPTS, load
from fairness_repair.language.texts import load_text

import needs



@needs.data
def test_wikitext2_joins_are_exact():
    [fasp] = load_text("wikitext2", "report", join="fasp")
    assert len(fasp.encode()) == 1_287_656  # the size of the file in FASP's repository
    [recipe] = load_text("wikitext2", "report")
    assert len(recipe.encode()) == 1_287_656 + 2*(4358 - 1)  # two bytes between 4,358 lines
    assert recipe.startswith("\n\n = Robert Boulter = \n\n\n\n\n Robert Boulter is an English film")


@needs.data
def test_wikitext2_halves_of_the_validation_file():
    halves = [load_text("wikitext2", split, join="fasp")[0] for split in ("search", "selection")]
    assert len("".join(halves).encode()) == 1_144_248
    lines = [{line for line in half.splitlines() if not line.startswith(" =")} for half in halves]
    assert not lines[0] & lines[1]
    assert .45 < len(halves[0])/len("".join(halves)) < .55


@pytest.mark.parametrize("source", MODELS_WITH_PROMPTS)
def test_embedded_texts(source):
    parts = [load_text(source, split) for split in ("search", "selection", "report")]
    assert all(len(part) > 10 and all(line.strip() and "\n" not in line for line in part) for part in parts)


@pytest.fixture
def corpus(tmp_path):
    files = {"validation": [" a \n", "", " b \n", " c \n"], "test": [" d \n"]}
    for name, lines in files.items():
        datasets.Dataset.from_dict({"text": lines}).to_parquet(tmp_path/f"{name}.parquet")
    return tmp_path


def test_a_corpus_with_validation_and_test_files(corpus):  # a hub id takes the same way through `datasets`
    assert load_text(corpus, "search", join="fasp") == [" a \n"]
    assert load_text(corpus, "selection", join="fasp") == [" b \n c \n"]
    assert load_text(corpus, "report") == [" d \n"]
    (corpus/"test.parquet").unlink()
    with pytest.raises(ValueError, match="has validation but no test file"): load_text(corpus, "report")


def test_a_hub_id_is_split_into_name_and_configuration(monkeypatch):
    asked = []
    def load(*where, **how):
        asked.append((where, how))
        lines = {name: [f"{name} {i}\n" for i in range(4)] for name in ("train", "validation", "test")}
        return {name: datasets.Dataset.from_dict({"text": part}) for name, part in lines.items()}
    monkeypatch.setattr(texts, "load_dataset", load)
    assert load_text("owner/name:config", "search", join="fasp") == ["validation 0\nvalidation 1\n"]
    assert asked == [(("owner/name", "config"), {"cache_dir": None})]


def test_a_hub_that_cannot_be_reached_is_one_clear_error(monkeypatch):
    def load(*where, **how): raise ConnectionError("Couldn't reach 'owner/name' on the Hub")
    monkeypatch.setattr(texts, "load_dataset", load)
    message = "text 'owner/name' could not be read: Couldn't reach"
    with pytest.raises(ValueError, match=message): load_text("owner/name", "report")


@pytest.mark.parametrize("content, message", [
    (b"", "holds no UTF-8 text"), (b"caf\xe9\n", "holds no UTF-8 text"), (b"one line", "too few lines"),
    (b"\n"*9, "too few lines")])
def test_wrong_files_get_one_clear_error(tmp_path, content, message):
    (tmp_path/"mine.txt").write_bytes(content)
    with pytest.raises(ValueError, match=message): load_text(tmp_path/"mine.txt", "search")


def test_a_corpus_without_a_text_column(tmp_path):
    datasets.Dataset.from_dict({"texts": ["a"]}).to_parquet(tmp_path/"test.parquet")
    message = "unknown column 'text'. Did you mean 'texts'"
    with pytest.raises(ValueError, match=message): load_text(tmp_path, "report")


def test_only_line_feeds_end_a_line(tmp_path):
    (tmp_path/"mine.txt").write_bytes("a\u2028a\r\nb\nc\nd\ne".encode())
    splits = ("search", "selection", "report")
    parts = [load_text(tmp_path/"mine.txt", split, join="fasp")[0] for split in splits]
    assert parts == ["a\u2028a\n", "b\n", "c\nd\ne"]


def test_a_changed_file_is_read_again(tmp_path):
    for word in ("old", "new"):
        (tmp_path/"mine.txt").write_text(f"{word}\n"*5)
        assert load_text(tmp_path/"mine.txt", "search") == [f"{word}\n"]


@pytest.mark.parametrize("source", ["wikitext", "no/such/file.txt", "none.txt", ""])
def test_unknown_sources_are_refused_without_a_network(source):
    with pytest.raises(ValueError, match="unknown text.*Or a text file"): load_text(source, "search")


def nll_of(lm, ids):
    "Of each token but the first, one forward pass."
    with torch.inference_mode(): logits = lm.model(torch.tensor([ids])).logits[0]
    return -logits.double().log_softmax(-1)[np.arange(len(ids) - 1), list(ids[1:])].numpy()


def test_windows_from_all_over_a_text():
    "Each starts anew; together they are as many tokens as wanted; a text of one window is read as always."
    lm, documents = load("tiny"), load_text("tiny", "search")
    bos = [lm.tokenizer.bos_token_id]
    every = TextPerplexity(lm, documents, window=8, mode="spread")
    spread = TextPerplexity(lm, documents, window=8, mode="spread", tokens=80)
    assert len(spread.windows) == 10 and all(len(w.ids) <= 8 and list(w.ids[:1]) == bos for w in spread.windows)
    at = [every.windows.index(w) for w in spread.windows]
    assert at[0] == 0 and at[-1] == len(every.windows) - 1 and np.ptp(np.diff(at)) <= 1
    assert spread.part(3*8).windows == [spread.windows[i] for i in (0, 4, 9)]
    late = TextPerplexity(lm, documents, window=8, mode="spread", tokens=80, context=3)
    assert len(late.windows) == 16 and {w.start for w in late.windows} == {1, 3} # of documents, and within them
    np.testing.assert_allclose(late(lm), [nll_of(lm, w.ids)[w.start - 1:].sum() for w in late.windows], rtol=1e-5)
    short = documents[0][:20]
    one, same = TextPerplexity(lm, [short], mode="spread"), TextPerplexity(lm, [short])
    assert one.windows == same.windows
    with pytest.raises(InputError, match="mode 'spraed'.*Did you mean 'spread'"):
        TextPerplexity(lm, documents, mode="spraed")
