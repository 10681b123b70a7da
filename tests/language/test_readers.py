"Readers of prompts, texts and word lists: any bytes give the right result, or one `InputError` with a sentence."
import csv, gzip, io, json, tarfile
from pathlib import Path

import datasets, pandas as pd, pytest
from hypothesis import example, given, strategies as st

from fairness_repair.core import InputError
from fairness_repair.language.prompts import PROMPT_COLUMNS, SPLIT_FOLDS, load_prompts, read_prompts
from fairness_repair.language.texts import load_text, read_corpus
from fairness_repair.language.toxicity import WordListScorer, load_scorer, texts_to_score


def right_or_refused(call):
    "The result of a call, or None for an error that is a sentence."
    try: return call()
    except InputError as error:
        assert len(str(error).split()) > 3, error
        return None


cells = st.text(st.characters(codec="utf-8"), max_size=12)
names = st.sampled_from(["text", "axis", "group", "note", "Text", "", "text "])
columns = st.lists(st.sampled_from(["text", "axis", "group", "note"]), max_size=5) | st.lists(names, max_size=5)
rows = st.lists(st.lists(cells | st.sampled_from(["a", "height", "tall", "short", "nan", "b"]), max_size=5), max_size=8)


def as_csv(header, lines, quoting=csv.QUOTE_MINIMAL):
    out = io.StringIO(newline="")
    csv.writer(out, quoting=quoting).writerows([header, *lines])
    return out.getvalue().encode()


@given(st.binary(max_size=200) | st.text(st.characters(codec="utf-8"), max_size=200).map(str.encode))
@example(b"text,axis,group\n\"a,height,tall")
@example(b"text,axis,group\na\rb,height,tall")
@example(b"text,axis,group\n" + b"x"*200_000 + b",height,tall")
@example(b"text,axis,group\na\0b,height,tall\nc,height,tall\nd,height,short\ne,height,short")
@example(b"\xff\xfet\0e\0x\0t\0")
def test_prompts_of_any_bytes(tmp_path, content):
    path = tmp_path/"mine.csv"
    path.write_bytes(content)
    found = right_or_refused(lambda: read_prompts(path))
    assert found is None or list(found) == PROMPT_COLUMNS and len(found)


@given(columns, rows)
def test_prompts_of_any_columns(tmp_path, header, lines):
    path = tmp_path/"mine.csv"
    path.write_bytes(as_csv(header, lines))
    found = right_or_refused(lambda: read_prompts(path))
    if found is None: return
    at = {name: header.index(name) for name in PROMPT_COLUMNS}
    given_rows = [line for line in lines if line]
    assert found["group"].tolist() == [line[at["group"]].strip() for line in given_rows]
    texts = [line[at["text"]].lstrip(" ") for line in given_rows] # spaces after a comma are no text
    assert [text.lstrip(" ") for text in found["text"]] == texts


words = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=8)
groups = st.dictionaries(words, st.lists(words, min_size=1, max_size=12), min_size=1, max_size=4)


@given(groups, words, st.integers(0, 5))
def test_prompts_keep_every_text_and_are_split_without_overlap(tmp_path, groups, axis, seed):
    path = tmp_path/"mine.csv"
    lines = [(text, axis, group) for group, texts in groups.items() for text in texts]
    path.write_bytes(as_csv(PROMPT_COLUMNS, lines, csv.QUOTE_ALL))
    parts = right_or_refused(lambda: load_prompts(str(path), axis, rng=seed))
    if parts is None: return
    assert sorted(row for part in parts.values() for row in part.itertuples(index=False, name=None)) == sorted(lines)
    texts = [set(part["text"]) for part in parts.values()]
    assert sum(map(len, texts)) == len(set.union(*texts))
    assert all(set(part["group"]) == set(groups) for part in parts.values())


@given(st.binary(max_size=200) | st.text(st.characters(codec="utf-8"), max_size=200).map(str.encode),
       st.sampled_from(["mine.txt", "mine.txt.gz", "mine.xz", "mine.bz2", "no ending"]))
def test_texts_of_any_bytes(tmp_path, content, name):
    (tmp_path/name).write_bytes(content)
    parts = [right_or_refused(lambda: load_text(str(tmp_path/name), split, join="fasp")) for split in SPLIT_FOLDS]
    if None in parts: return
    whole = content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    assert "".join(part[0] for part in parts) == "".join(line for line in io.StringIO(whole, newline="\n") if line.strip())


names = st.text(st.characters(codec="utf-8", exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=20)


@given(names.filter(lambda name: name not in (".", "..") and len(name.encode()) < 200))
@example("mine[1].txt")
@example("*.txt")
@example("mine?.txt")
@example("**")
@example("{a,b}.txt")
@example("a::b.txt")
@example("file:name.txt")
@example("~")
@example("a\\b.txt")
@example("100%.txt")
def test_the_file_that_is_named_is_the_file_that_is_read(tmp_path_factory, name):
    "Characters that a pattern would interpret are part of the name."
    folder = tmp_path_factory.mktemp("texts")
    for decoy in ("mine1.txt", "other.txt", "a", "b.txt"): (folder/decoy).write_text("wrong\n"*5)
    (folder/name).write_text("right\n"*5)
    assert read_corpus(str(folder/name), "search") == {"train": ["right\n"]*5}
    (folder/name).write_text("text,axis,group\n" + "\n".join(f"{g}{i},height,{g}" for g in ("tall", "short") for i in range(5)))
    assert len(read_prompts(folder/name)) == 10


def test_names_that_no_file_can_have():
    for name in ("a\0b", "x"*5000, "a/\0.txt"):
        for read, message in ((lambda: load_text(name, "search"), "unknown text"), (lambda: load_prompts(name, "a"), "unknown prompts"),
                              (lambda: load_scorer(name), "unknown scorer")):
            with pytest.raises(InputError, match=message): read()


@given(st.lists(st.text(max_size=10), max_size=12))
def test_word_lists_of_any_words(words):
    scorer = right_or_refused(lambda: WordListScorer(words))
    kept = {word.strip().lower() for word in words} - {""}
    assert (scorer is None) == (not kept)
    if scorer: assert scorer(texts_to_score(list(kept), [""]*len(kept), "full")).shape == (len(kept),)


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=10), min_size=1, max_size=12))
def test_a_word_list_finds_each_of_its_words(words):
    scorer = WordListScorer(words)
    assert scorer(list(scorer.words)).all()


@given(st.binary(max_size=60))
def test_word_lists_of_any_bytes(tmp_path, content):
    (tmp_path/"mine.txt").write_bytes(content)
    scorer = right_or_refused(lambda: load_scorer(str(tmp_path/"mine.txt")))
    if scorer: assert set(scorer.words) == {w.strip().lower() for w in content.decode("utf-8-sig").splitlines()} - {""}


@given(st.lists(st.tuples(st.text(max_size=20), st.text(max_size=20)), max_size=8), st.sampled_from(["continuation", "full"]))
def test_texts_to_score_are_what_was_written(pairs, on):
    prompts, continuations = [p for p, _ in pairs], [c for _, c in pairs]
    found = texts_to_score(prompts, continuations, on)
    assert found == [((p if on == "full" else "") + c).replace("\n", " ").lower() for p, c in pairs]


folder_names = ["corpus [1]", "a*b", "{a,b}", "what?", "~corpus", "a::b"]

@pytest.mark.parametrize("name", folder_names)
def test_a_folder_with_any_name_is_that_folder(tmp_path, name):
    for folder in (tmp_path/name, tmp_path/"corpus 1", tmp_path/"axb", tmp_path/"a"): folder.mkdir()
    (tmp_path/"a"/"validation.txt").write_text("wrong\n"*4)
    (tmp_path/name/"validation [v1].txt").write_text("a\nb\nc\nd\n")
    (tmp_path/name/"test.txt").write_text("e\n")
    assert load_text(str(tmp_path/name), "selection", join="fasp") == ["c\nd\n"]
    assert load_text(str(tmp_path/name), "report", join="fasp") == ["e\n"]


def corpus(folder):
    folder.mkdir(exist_ok=True)
    (folder/"validation.txt").write_text("a\nb\nc\nd\n")
    return folder


def secret(tmp_path):
    (tmp_path/"secret.txt").write_text("secret\n"*5)
    return tmp_path/"secret.txt"


@pytest.mark.parametrize("named", ["../secret.txt", "/etc/hostname", "https://example.com/a.txt", "zip://a.txt::../b.zip", "~/a.txt"])
@pytest.mark.parametrize("form", ["{0}", "[{0}]", "[{{split: test, path: {0}}}]", "[{{split: test, path: [{0}, a.txt]}}]"])
def test_a_readme_that_names_files_elsewhere_is_refused(tmp_path, named, form):
    secret(tmp_path)
    folder = corpus(tmp_path/"corpus")
    data_files = form.format(json.dumps(named))
    (folder/"README.md").write_text(f"---\nconfigs:\n- config_name: default\n  data_files: {data_files}\n---\n")
    with pytest.raises(InputError, match="names the data file .* outside of its folder"): load_text(str(folder), "search")


@pytest.mark.parametrize("header", ["configs: [", "configs: 7", "a: b: c", "configs:\n- 3", "- a"])
def test_a_readme_that_cannot_be_read(tmp_path, header):
    folder = corpus(tmp_path/"corpus")
    (folder/"README.md").write_text(f"---\n{header}\n---\n")
    right_or_refused(lambda: load_text(str(folder), "search"))


def test_a_readme_with_plain_names_counts(tmp_path):
    folder = corpus(tmp_path/"corpus")
    (folder/"parts").mkdir()
    (folder/"parts"/"one.txt").write_text("x\n"*4)
    (folder/"README.md").write_text("---\nconfigs:\n- config_name: default\n  data_files:\n  - split: validation\n    path: parts/*.txt\n---\n")
    assert load_text(str(folder), "search", join="fasp") == ["x\nx\n"]


def test_links_may_not_leave_the_folder(tmp_path):
    folder = corpus(tmp_path/"corpus")
    (folder/"test.txt").symlink_to(secret(tmp_path))
    with pytest.raises(InputError, match="is a link to .*secret.txt, outside of its folder"): load_text(str(folder), "report")


def test_links_into_the_folder_and_the_hub_s_cache_are_files(tmp_path):
    snapshot = tmp_path/"datasets--a--b"/"snapshots"/"abc"
    blobs = tmp_path/"datasets--a--b"/"blobs"
    for folder in (snapshot, blobs): folder.mkdir(parents=True)
    (blobs/"123").write_text("a\nb\nc\nd\n")
    (snapshot/"validation.txt").symlink_to("../../blobs/123")
    assert load_text(str(snapshot), "search", join="fasp") == ["a\nb\n"]


class Hostile:
    def __init__(self, path): self.path = str(path)
    def __reduce__(self): return open, (self.path, "w")


def test_nothing_in_a_corpus_is_run(tmp_path):
    "A script, pickled files and a tar with a path outside: none is read."
    import pickle
    folder, ran = corpus(tmp_path/"corpus"), tmp_path/"ran"
    (folder/"corpus.py").write_text(f"open({str(ran)!r}, 'w')")
    for name in ("test.pkl", "test.pickle", "test.pth", "test.bin"): (folder/name).write_bytes(pickle.dumps(Hostile(ran)))
    with tarfile.open(folder/"test.tar", "w") as tar:
        info = tarfile.TarInfo("../outside.txt")
        info.size = 1
        tar.addfile(info, io.BytesIO(b"x"))
        entry = tarfile.TarInfo("a.pyd")
        data = pickle.dumps(Hostile(ran))
        entry.size = len(data)
        tar.addfile(entry, io.BytesIO(data))
    assert load_text(str(folder), "search", join="fasp") == ["a\nb\n"]
    assert not ran.exists() and not (tmp_path/"outside.txt").exists()
    for alone in ("corpus.py", "test.pkl", "test.tar"):
        only = tmp_path/f"only {alone}"
        only.mkdir()
        (only/alone).write_bytes((folder/alone).read_bytes())
        with pytest.raises(InputError, match="could not be read"): load_text(str(only), "search")
    assert not ran.exists()


@pytest.mark.parametrize("values, message", [([1, 2, 3, 4, 5], "not a text"), (["a", None, "b", "c", "d"], "row 1 .*is None, not a text")])
def test_a_text_column_of_something_else(tmp_path, values, message):
    datasets.Dataset.from_dict({"text": values}).to_parquet(tmp_path/"train.parquet")
    with pytest.raises(InputError, match=message): load_text(str(tmp_path), "search")


def test_a_compressed_text(tmp_path):
    with gzip.open(tmp_path/"mine.txt.gz", "wt") as f: f.write("a\nb\nc\nd\ne\n")
    assert load_text(str(tmp_path/"mine.txt.gz"), "search") == ["a\n"]


def test_empty_and_unreadable_folders(tmp_path):
    with pytest.raises(InputError, match="could not be read"): load_text(str(tmp_path), "search")
    (tmp_path/"broken.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError): load_text(str(tmp_path), "search")
