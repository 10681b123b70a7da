"Own tables: each file and DataFrame gives the table that it means, or one sentence that says what is wrong."
import gzip, bz2, io, lzma, os, warnings, zipfile

import numpy as np, pandas as pd, pytest

from fairness_repair.core import InputError
from fairness_repair.tabular import reading
from fairness_repair.tabular.columns import fill_missing
from fairness_repair.tabular.reading import read_file
from fairness_repair.tabular.tables import Table, read_table, split_rows

n, rng = 200, np.random.default_rng(0)
people = pd.DataFrame(dict(
    age=rng.integers(18, 70, n), pay=rng.integers(100, 999, n)/10, city=rng.choice(["Rom", "Köln", "Oslo"], n),
    sex=rng.choice(["F", "M"], n), paid=rng.choice(["ja", "nein"], n)))
coded = people[["age", "pay"]].assign(sex=rng.integers(1, 3, n), paid=rng.integers(1, 3, n))
given = dict(label="paid", positive="ja", protected="sex")
given_codes = given | dict(positive=2)
text, german = people.to_csv(index=False), people.to_csv(index=False, sep=";", decimal=",")


@pytest.fixture(scope="module")
def expected(): return read_table(people, **given)


def excel(**sheets):
    buffer = io.BytesIO()
    with pd.ExcelWriter(buffer) as writer:
        for name, frame in sheets.items(): frame.to_excel(writer, sheet_name=name, index=False)
    return buffer.getvalue()


def zipped(*names):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as z:
        for name in names: z.writestr(name, text)
    return buffer.getvalue()


def with_cells(column, *values):
    frame = people.astype({column: object})
    frame.loc[:len(values) - 1, column] = values
    return frame.to_csv(index=False)


def inserted(line): return "\n".join([*text.split("\n")[:5], line, *text.split("\n")[5:]])
def same(a, b): return (a.X == b.X).all() and (a.y == b.y).all() and (a.group == b.group).all()


def refused(words, *args, **kwargs):
    with warnings.catch_warnings(), pytest.raises(InputError) as caught:
        warnings.simplefilter("error")
        read_table(*args, **kwargs)
    message = str(caught.value)
    assert words in message and "\n" not in message and len(message) < 400, message


# ---- the file of this name

@pytest.mark.parametrize("name", [
    "x[abc].csv", "x*?.csv", "~people.csv", "my %20 people.csv", "Bürger 人 {x} $HOME.csv", "-x.csv", "PEOPLE.CSV", "people",
    "sex=F/people.csv"])
def test_a_name_is_taken_literally(name, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for other in ("xa.csv", "xb.csv", "xab.csv"): (tmp_path/other).write_text("pay,sex,paid\n1,F,no\n")
    (tmp_path/name).parent.mkdir(exist_ok=True)
    (tmp_path/name).write_text(text)
    assert same(read_table(name, **given), expected) and same(read_table(tmp_path/name, **given), expected)


def test_parquet_in_a_folder_called_like_a_column(expected, tmp_path):
    (tmp_path/"sex=F").mkdir()
    people.to_parquet(tmp_path/"sex=F"/"people.parquet")
    assert same(read_table(tmp_path/"sex=F"/"people.parquet", **given), expected)


def test_where_there_is_no_file_the_error_says_where_it_looked(expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path/"people.csv").write_text(text)
    for link, target in (("link.csv", "people.csv"), ("broken.csv", "gone.csv"), ("loop.csv", "loop.csv")):
        os.symlink(target, tmp_path/link)
    os.mkfifo(tmp_path/"pipe.csv")
    assert same(read_table("link.csv", **given), expected)
    for name, words in {
            "peple.csv": "peple.csv' does not exist. Did you mean 'people.csv'?", "": "is a folder", ".": "is a folder",
            "broken.csv": "is a link to 'gone.csv', where there is no file", "loop.csv": "is a link to", "pipe.csv": "is not a regular file",
            "a/b.csv": "there is no folder", "people.csv/x": "does not exist", "~/x.csv": "\"~\" is not replaced",
            "https://example.org/people.csv": "is an address: download", "a\0b": "does not exist", "x"*5000: "cannot be looked up"}.items():
        with pytest.raises(InputError) as caught: read_table(name, **given)
        assert words in str(caught.value)
        assert "://" in name or str(tmp_path) in str(caught.value)
    for source in (5, None, dict(people), [1], b"people.csv"): refused("give the path of a file, or a DataFrame", source, **given)


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    (tmp_path/"people.csv").write_text(text)
    def refuse(path): raise PermissionError(13, "Permission denied")
    monkeypatch.setattr("pathlib.Path.read_bytes", refuse)
    refused("people.csv' cannot be read", tmp_path/"people.csv", **given)


# ---- its content

right = {
    "semicolon, decimal comma": german, "semicolon, Windows-1252": german.encode("cp1252"),
    "tab": text.replace(",", "\t"), "bar": text.replace(",", "|"), "sep= line of Excel": "sep=;\r\n" + german,
    "byte order mark": text.encode("utf-8-sig"), "UTF-16": text.encode("utf-16"), "UTF-32": text.encode("utf-32"),
    "Windows line ends": text.replace("\n", "\r\n"), "old Mac line ends": text.replace("\n", "\r"),
    "blank lines": text.replace("\n", "\n\n \n"), "empty rows of a sheet": text + ",,,,\n"*3, "no line end": text.strip(),
    "blanks around values": text.replace(",", " , "), "separator at the end": text.replace("\n", ",\n"),
    "quotes": '"' + text.strip().replace(",", '","').replace("\n", '"\n"') + '"',
    "gzip": gzip.compress(text.encode()), "bzip2": bz2.compress(text.encode()), "xz": lzma.compress(text.encode()),
    "zip": zipped("people.csv"), "zip of a Mac": zipped("people.csv", "__MACOSX/._people.csv"),
    "Excel": excel(people=people, notes=pd.DataFrame()), "Parquet": people.to_parquet(), "gzip of Parquet": gzip.compress(people.to_parquet()),
    "label with blank and point": text.replace(",ja\n", ", ja.\n").replace(",nein\n", ", nein.\n"),
    "label with and without point": text.replace(",ja\n", ", ja.\n", 30),
    "plus signs and exponents": people.assign(age=people.age.map("+{}".format), pay=people.pay.map("{:e}".format)).to_csv(index=False)}


@pytest.mark.parametrize("kind", right)
def test_content_is_read(kind, expected, tmp_path):
    content = right[kind]
    (tmp_path/"people.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    found = read_table(tmp_path/"people.csv", **given)
    assert same(found, expected) and found.name == "people.csv" and found.notes[0].startswith("read as ")


@pytest.mark.parametrize("content, words", [
    (b"", "it is empty"), (b"\n \n\n", "it is empty"), (b"\xef\xbb\xbf", "it is empty"), (gzip.compress(b""), "it is empty"),
    (text.split("\n")[0], "no rows below its header"), ("\n".join(text.split("\n")[:2]), "label 'paid' has 1 values"),
    ("age\n1\n2", "the header has one column"), ("a,b;c\n1,2;3\n", "several separators (comma, semicolon)"),
    (text.encode("utf-16-le"), "control character '\\x00'"), (text.replace("Rom", "R\0m", 1), "line 3 holds the control character"),
    (text.encode() + b"\xf6", "line 202 holds a byte that is not UTF-8"),
    ("name,sex\n日本、,F\n".encode("shift-jis"), "not text in UTF-8 or Windows-1252"), (b"\xff\xfea", "not text in UTF-16"),
    (text.replace("Rom", '"Rom', 1), "line 3: a quote (\") is left open"), (text.replace("Rom", '"Rom"e', 1), "line 3: a quote"),
    (text.replace("Rom", "R"*200_000, 1), "line 3: a quote"), ('"age,pay\n1,2', "line 1: a quote"),
    (inserted("20,30"), "line 6 has 2 fields, the header 5"), (inserted("20,30,Rom,F,ja,1"), "line 6 has 6 fields, the header 5"),
    ("sep=,\n" + inserted("20,30"), "line 7 has 2 fields"), (text.replace("age,pay", "sex,pay"), "columns occur twice: sex"),
    (people.to_csv(), "a column has no name; it begins with 0, 1, 2"),
    (with_cells("pay", "?", "NA", " n/a ", ""), "4 rows have missing values, in pay (4)"),
    (with_cells("pay", "n.a.", "-", "-"), "'pay' holds numbers, but also '-' (2 rows), 'n.a.' (1 rows)"),
    (with_cells("pay", "inf", "1e400"), "'pay' holds numbers, but also 'inf'"), (with_cells("pay", "1e400"), "beyond 1e30, in pay (1)"),
    (people.assign(pay=[f"{i:,}" for i in range(1000, 1200)]).to_csv(index=False), "'pay' holds '1,000': is its mark decimal"),
    (people.assign(pay=[f"{i} %" for i in range(n)]).to_csv(index=False), "'pay' holds numbers, but also '0 %'"),
    (people.assign(pay=[f"{i}.5" if i < 100 else f"{i},5" for i in range(n)]).to_csv(index=False), "'pay' holds numbers, but also"),
    (people.assign(when=["2020-01-01", "1.5.2021"]*100).to_csv(index=False), "'when' holds dates"),
    (people.assign(id=[f"p{i}" for i in range(n)]).to_csv(index=False), "'id' has 200 different texts"),
    (zipped("a.csv", "b.csv"), "a zip of 2 files (a.csv, b.csv)"), (zipped(), "control character"), (gzip.compress(text.encode())[:200], "cannot be read"),
    (excel(a=people, b=people), "2 sheets have content (a, b)"), (excel(a=pd.DataFrame()), "no sheet has content"),
    (excel(a=people)[:500], "cannot be read"), (people.to_parquet()[:300] + b"PAR1", "cannot be read"), (b"PAR1", "cannot be read"),
    (b"\xd0\xcf\x11\xe0" + bytes(99), "an old Excel file"), (people.to_json(), "JSON"), (people.to_json(orient="records"), "JSON"),
    (people.to_html(), "HTML"), (b"<!DOCTYPE html>", "HTML"), (b"%PDF-1.4", "a PDF"), (b"\x80\x04\x95", "a pickle")])
def test_content_is_refused(content, words, tmp_path):
    (tmp_path/"people.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    refused(words, tmp_path/"people.csv", **given)


def test_excel_without_its_package_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "find_spec", lambda name: None)
    (tmp_path/"people.xlsx").write_bytes(excel(people=people))
    refused("pip install \"fairness_repair[xlsx]\"", tmp_path/"people.xlsx", **given)


# ---- numbers, missing values

def pay(*values): return read_table_pay(pd.DataFrame(dict(pay=values)))
def read_table_pay(frame):
    from fairness_repair.tabular.columns import clean_frame
    return clean_frame(frame)["pay"].tolist()


@pytest.mark.parametrize("texts, numbers", [
    (["1", "02"], [1, 2]), (["1.5", ".5", "2."], [1.5, .5, 2]), (["1,5", ",5", "0,125"], [1.5, .5, .125]),
    (["1.234,5", "1.234.567"], [1234.5, 1234567]), (["1,234.5", "1,234"], [1234.5, 1234]), (["1.234", "2.345"], [1.234, 2.345]),
    (["1.234.567"], [1234567]), (["1,234,567", "1,5"], ["1,234,567", "1,5"]), (["1_000"], ["1_000"]), (["0x1F"], ["0x1F"]), (["."], ["."]),
    (["9"*30, "1"], [1e30, 1]), ([1, "2", 3.5], [1, 2, 3.5]), (["True", "FALSE"], [True, False]), (["1e5", "-2E-1"], [1e5, -.2])])
def test_texts_become_numbers(texts, numbers): assert pay(*texts) == numbers


def test_another_column_tells_the_decimal_mark():
    frame = pd.DataFrame(dict(pay=["1,234", "5"], debt=["1,5", "2"]))
    assert read_table_pay(frame) == [1.234, 5]
    assert read_table_pay(frame.assign(debt=["1.5", "2"])) == [1234, 5]
    with pytest.raises(InputError, match="'pay' holds '1.234'"): read_table_pay(frame.assign(pay=["1.234", "5"]))


def test_missing_values_are_filled_from_the_training_rows_only():
    gaps = people.assign(pay=people.pay.where(people.age < 60), city=people.city.where(people.age > 20), m=pd.array([True, None]*100, "boolean"))
    gaps.loc[:4, "sex"] = None
    found = read_table(gaps, **given, missing="indicate", drop="age")
    assert found.feature_names == ("pay", "m", "city=Oslo", "city=Rom", "city=missing", "sex=M", "sex=missing", "pay is missing", "m is missing")
    assert (found.group[:5] == -1).all() and (found.group[5:] >= 0).all()
    train, missing = found.split_indices["train"], gaps["pay"].isna().to_numpy()
    assert (found.X[:, 7] == missing).all() and (found.X[:, 4] == (people.age <= 20)).all()
    complete = gaps.assign(pay=gaps.pay.fillna(gaps.pay.iloc[train].median()))
    assert (found.X[:, 0] == read_table(complete, **given, missing="indicate", drop="age").X[:, 0]).all()
    assert "5 rows without sex are in no group" in found.notes and "pay (" in found.notes[1]
    changed = gaps.assign(pay=gaps.pay.where(gaps.index.isin(train), gaps.pay*1e6)) # other rows change nothing
    assert (read_table(changed, **given, missing="indicate", drop="age").X[train] == found.X[train]).all()


def test_missing_values_that_cannot_be_filled():
    empty = people.assign(pay=np.nan)
    refused("no training row has a value in pay", empty, **given, missing="indicate")
    refused("label 'paid' is missing in 2 rows", people.assign(paid=["", None, *people.paid[2:]]), **given, missing="indicate")
    refused("beyond 1e30, in pay (1)", people.assign(pay=[np.inf, *people.pay[1:]]), **given, missing="indicate")
    refused("unknown choice of missing 'drop'", people, **given, missing="drop")


# ---- label, groups, types of pandas

def test_label_without_its_good_outcome():
    "The error lists the two values."
    with pytest.raises(InputError, match="positive is missing: .* 'paid' is the good outcome, 'ja' or 'nein'"):
        read_table(people.assign(paid=["ja", "nein"]*(len(people)//2)), label="paid", protected="sex")


@pytest.mark.parametrize("label, positive", [
    (people.paid == "ja", True), (people.paid == "ja", "true"), (people.paid == "ja", 1), (people.paid.map({"ja": 2, "nein": 1}), 2),
    (people.paid.map({"ja": 2, "nein": 1}), "2"), (people.paid.map({"ja": 2., "nein": 1.}), 2), (people.paid.map({"ja": "2", "nein": "1"}), 2.),
    (people.paid.map({"ja": 1, "nein": 0}), True), ((people.paid == "ja").astype("boolean"), True), (people.paid.astype("category"), " ja "),
    (people.paid.map({"ja": 1, "nein": 2}).astype("Int64"), 1), (people.paid.map({"ja": " ja", "nein": "nein."}), "ja.")])
def test_label(label, positive, expected):
    assert same(read_table(people.assign(paid=label), **given | dict(positive=positive)), expected)


@pytest.mark.parametrize("frame, more, words", [
    (people.assign(paid=rng.choice(list("abc"), n)), dict(positive="a"), "label 'paid' has 3 values"), (people.assign(paid="ja"), {}, "has 1 values"),
    (people, dict(positive="JA"), "Known: nein, ja"), (people.assign(sex="F"), {}, "only one group"),
    (people, dict(protected="paid"), "label and protected are both 'paid'"), (people, dict(protected=["sex", "city"]), "unknown column"),
    (people, dict(groups=["F", "X"]), "unknown value of 'sex' 'X'"), (people, dict(groups=["F", "F"]), "is in two groups"),
    (people, dict(protected="city", groups=dict(a=["Rom", "Oslo"], b=["Oslo", "Köln"])), "'Oslo' of 'city' is in two groups: 'a' and 'b'"),
    (people, dict(groups=[]), "only one group"), (people, dict(groups=dict(a=[], b="F", c="M")), "group 'a' has no values"),
    (people, dict(groups="F"), "only one group"), (people, dict(protected="age"), "cut it into ranges, cuts=["),
    (people, dict(protected="age", cuts=[60, 25]), "needs rising numbers"), (people, dict(protected="age", cuts="old"), "needs numbers"),
    (people, dict(protected="age", cuts=[np.nan]), "needs rising numbers"), (people, dict(protected="age", cuts=[10]), "group 'under 10' has no"),
    (people, dict(cuts=[25]), "cuts need numbers, but 'sex' holds text"), (people, dict(protected="age", cuts=[25], groups=[20]), "give one of them"),
    (people.assign(t=pd.Timestamp(0)), dict(protected="t"), "protected 't' holds dates"), (people.assign(t=pd.Timestamp(0)), dict(label="t"), "label 't' holds dates"),
    (people.assign(t=pd.Timestamp(0)), {}, "'t' holds dates"), (people.assign(t=pd.Timedelta(1)), {}, "'t' holds dates"),
    (people.assign(t=pd.Period("2020")), {}, "'t' holds dates"), (people.assign(t=[pd.Timestamp(0).date()]*n), {}, "'t' holds dates"),
    (people.assign(t=1j), {}, "'t' holds complex numbers"), (people.assign(t=[[1]]*n), {}, "'t' holds list"), (people.assign(t=b"x"), {}, "'t' holds bytes"),
    (people.assign(t=pd.Interval(0, 1)), {}, "'t' holds interval"), (people.assign(age=people.age*1e37), {}, "beyond 1e30"),
    (people.set_index("sex"), {}, "It is in the index: use frame.reset_index()"), (pd.concat({"a": people}, axis=1), {}, "the columns have 2 levels"),
    (people.assign(**{"city=Oslo": 1}), {}, "two columns would give the feature 'city=Oslo'"), (people[:0], {}, "no rows"), (people[[]], {}, "unknown column"),
    (people[["sex", "paid"]].assign(c="x"), dict(drop="sex"), "no feature is left"), (people.assign(id=[f"p{i}" for i in range(n)]).astype({"id": "category"}), {}, "200 different texts"),
    (people, dict(drop=["citty"]), "Did you mean 'city'"), (people, dict(categorical="citty"), "Did you mean 'city'"), (people, dict(drop=3), "unknown column"),
    (people, dict(seed="a"), "seed = 'a': needs an integer"), (people.rename(columns=dict(age="pay")), {}, "columns occur twice: pay"),
    (people.rename(columns=dict(age=None)), {}, "a column has no name"), (people.rename(columns=dict(age="Unnamed: 0")), {}, "a column has no name")])
def test_a_table_is_refused(frame, more, words): refused(words, frame, **given | more)


def test_groups_are_found_in_every_form(expected):
    merged = dict(protected="city", groups=dict(south="Rom", north=["Köln", "Oslo"]))
    assert read_table(people, **given | merged).group_names == ("south", "north")
    for groups in (["1", "2"], [1, 2], (1., 2.), np.array([1, 2]), pd.Series(["1", "2"]), {1, 2}):
        for values in (coded.sex, coded.sex.astype(str), coded.sex.astype(float), coded.sex.astype("Int64"), coded.sex.astype("category")):
            found = read_table(coded.assign(sex=values), **given_codes, groups=groups, drop="sex")
            assert found.group_names == ("1", "2") and (found.group == coded.sex - 1).all()
    found = read_table(people, **given | dict(protected="age"), cuts=["25", 60])
    assert found.group_names == ("under 25", "25 to under 60", "60 and over")
    assert (found.group == np.digitize(people.age, [25, 60])).all()
    assert read_table(people, **given | dict(protected="age"), cuts=25).group_names == ("under 25", "25 and over")


def test_types_of_pandas_make_no_difference(expected):
    arrow = people.convert_dtypes(dtype_backend="pyarrow")
    mixed = people.assign(pay=[v if i % 2 else str(v) for i, v in enumerate(people.pay)])
    for frame in (people.convert_dtypes(), arrow, people.astype(object), people.astype(str), mixed,
                  people.astype(dict(city="category", sex="category")), people.astype(dict(age="int8", pay="float64")),
                  people.set_index(people.index[::-1]*3), people.set_index([people.age, people.city], drop=False).rename_axis([None]*2),
                  people.rename(columns=lambda c: f" {c} ")):
        before = frame.copy(deep=True)
        assert same(read_table(frame, **given), expected)
        pd.testing.assert_frame_equal(frame, before)
    assert same(read_table(people.set_axis(range(5), axis=1), label=4, positive="ja", protected="3"), expected)


def test_columns_may_be_named_as_categorical():
    ids = people.assign(zip=[f"{i:03}" for i in range(n)])
    assert read_table(ids, **given).feature_names[2] == "zip"
    found = read_table(ids, **given, categorical="zip")
    assert len(found.feature_names) == 2 + 2 + 1 + 199 and "zip=001" in found.feature_names
    assert "age=18" not in (names := read_table(people.astype(dict(age="category")), **given).feature_names) and "age=19" in names


def test_a_column_that_never_changes_is_zero():
    found = read_table(people.assign(k=.1, c="x"), **given)
    assert found.feature_names == ("age", "pay", "k", "city=Oslo", "city=Rom", "sex=M") and (found.X[:, 2] == 0).all()


# ---- arrays given directly

def test_arrays_that_make_no_table():
    X, y, group, split = np.eye(40), np.arange(40) % 2, np.arange(40)//2 % 2, split_rows(40, seed=3)
    make = lambda **change: Table("mine", "shift", **dict(X=X, y=y, group=group, group_names=("day", "night"), split_indices=split) | change)
    assert make(y=y.astype(object)).y.dtype == bool and make(group=group.astype(float)).group.dtype == int
    for change, words in (
            (dict(X=X.astype(str) + "a"), "X is not an array of numbers"), (dict(X=X*1e300), "NaN or infinity"), (dict(y=["no"]*40), "y holds"),
            (dict(y=y + .5), "needs 0 and 1"), (dict(group=group + .5), "needs -1..1"), (dict(group=np.full(40, np.nan)), "needs -1..1"),
            (dict(X=X[:0], y=y[:0], group=group[:0]), "needs one label and one group"), (dict(X=X[:, :0]), "at least one feature"), (dict(y=y[:, None]), "needs one label and one group"),
            (dict(split_indices=split | dict(test=[99])), "split 'test': needs row numbers from 0 to 39"),
            (dict(split_indices=split | dict(test=split["val"])), "a row is in two splits"), (dict(X=[[1], [1, 2]]), "X is not an array")):
        with warnings.catch_warnings(), pytest.raises(InputError, match=words):
            warnings.simplefilter("error")
            make(**change)
