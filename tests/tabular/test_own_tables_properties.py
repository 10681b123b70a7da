"Property tests: whatever is given as a table, the result is right, or an `InputError` says in one sentence why not."
import csv, gzip, io, warnings

import numpy as np, pandas as pd, pytest
from hypothesis import assume, given, strategies as st

from fairness_repair.core import InputError
from fairness_repair.tabular.columns import DECIMAL_MARKS, clean_frame
from fairness_repair.tabular.reading import SEPARATORS, find_file, parse_content, read_file
from fairness_repair.tabular.tables import read_table

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")


def outcome(function, *args, **kwargs):
    "The result, or None where an InputError with one sentence was raised; any other exception fails."
    try: return function(*args, **kwargs)
    except InputError as e:
        message = str(e)
        assert len(message) > 10 and "\n" not in message and "\r" not in message, repr(message)
        return None


small = pd.DataFrame(dict(age=[1, 2, 3]*8, city=["Rom", "Köln"]*12, sex=list("FM")*12, paid=["ja", "nein", "nein"]*8))
def excel():
    buffer = io.BytesIO()
    small.to_excel(buffer, index=False)
    return buffer.getvalue()
files = [small.to_csv(index=False).encode(), small.to_csv(index=False, sep=";").encode("cp1252"), small.to_csv(index=False).encode("utf-16"),
         gzip.compress(small.to_csv(index=False).encode()), small.to_parquet(), excel()]


@st.composite
def damaged(draw):
    "A good file in which some bytes are replaced, removed, repeated, or cut off."
    content = bytearray(draw(st.sampled_from(files)))
    for _ in range(draw(st.integers(0, 4))):
        at, length = draw(st.integers(0, len(content))), draw(st.integers(0, 20))
        content[at:at + length] = draw(st.binary(max_size=8) | st.just(bytes(content[at:at + length])*2))
    return bytes(content[:draw(st.none() | st.integers(0, len(content)))])


@given(st.binary(max_size=300) | damaged() | st.text(alphabet=" ,;\t|\"'\n\r.123aä-?%", max_size=200).map(str.encode))
def test_any_bytes_as_a_file(tmp_path, content):
    (tmp_path/"any.csv").write_bytes(content)
    found = outcome(read_file, tmp_path/"any.csv")
    if found is None: return
    frame, how = found
    assert isinstance(frame, pd.DataFrame) and isinstance(how, str)
    names = [*map(str, frame.columns), "a", "a"]
    table = outcome(read_table, tmp_path/"any.csv", label=names[0], positive=frame.iloc[0, 0] if frame.size else 1, protected=names[1], missing="indicate")
    assert table is None or np.isfinite(table.X).all()


@given(st.text(max_size=40))
def test_any_name_of_a_file(tmp_path, name):
    "A file of that name, or an error; never another file."
    path = tmp_path/name.lstrip("/")
    try: open(path, "xb").close()
    except (OSError, ValueError): pass # no name for a new file
    found = outcome(find_file, path)
    assert found is None or found.name == path.name


cells = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\u0085"), max_size=12)
@given(st.integers(2, 5).flatmap(lambda k: st.lists(st.lists(cells, min_size=k, max_size=k), min_size=2, max_size=12)),
       st.sampled_from(list(SEPARATORS)), st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "cp1252"]), st.sampled_from(["\n", "\r\n", "\r"]),
       st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]))
def test_what_a_csv_writer_writes_is_read_back(rows, separator, encoding, line_end, quoting):
    buffer = io.StringIO(newline="")
    csv.writer(buffer, delimiter=separator, lineterminator=line_end, quoting=quoting).writerows(rows)
    try: content = buffer.getvalue().encode(encoding)
    except UnicodeEncodeError: assume(False)
    found = outcome(parse_content, content)
    if found is None: return
    frame, how = found
    if how.startswith(SEPARATORS[separator]) and encoding in ("utf-8", "utf-8-sig", "utf-16"):
        expected = [[cell.strip() for cell in row] for row in rows]
        header, *expected = [row for row in expected if any(row)]
        assert [row for row in frame.values.tolist() if any(row)] == [[c for c, used in zip(row, _used(header, expected)) if used] for row in expected]


def _used(header, rows): return [bool(name) or any(row[i] for row in rows) for i, name in enumerate(header)]


floats = st.floats(allow_nan=False, width=32)
@given(st.lists(floats, min_size=1), st.sampled_from(".,"))
def test_numbers_are_read_as_they_were_written(numbers, mark):
    text = [repr(float(x)).replace(".", mark) for x in numbers]
    found = outcome(clean_frame, pd.DataFrame(dict(x=text)))
    if not np.isfinite(numbers).all(): return
    if found is not None: assert found["x"].tolist() == [float(x) for x in numbers]
    else: assert mark == "," and all(DECIMAL_MARKS["."].fullmatch(t) for t in text)


values = st.one_of(
    st.integers(), st.floats(), st.booleans(), st.none(), st.text(max_size=5), st.sampled_from(["?", "NA", "1,5", "1.234", " x ", "yes", "no", "2020-01-01"]),
    st.just(pd.NA), st.just(pd.NaT), st.dates(), st.datetimes(), st.timedeltas(), st.decimals(allow_nan=False), st.complex_numbers(), st.binary(max_size=2), st.lists(st.integers(), max_size=2))
dtypes = ["Int8", "Int64", "Float64", "boolean", "string", "category", "float32", "int64", "bool", "str", "datetime64[ns]", "timedelta64[ns]",
          "int64[pyarrow]", "string[pyarrow]", "bool[pyarrow]", "double[pyarrow]", "timestamp[ns][pyarrow]", "complex128", "Sparse[float]"]


labels = [["ja", "nein"], [0, 1], [1., 2.], [True, False], ["<=50K", ">50K."], ["1", "2"], ["a", "b", "c"]]
flat = st.one_of(values, st.integers(-3, 3), st.integers(), st.floats(), st.booleans(), st.sampled_from(["F", "M"]))


@st.composite
def columns(draw, n, kinds=st.just(flat) | st.lists(values, min_size=1, max_size=3).map(st.sampled_from)):
    "A column of values of one kind, of several, or of few values, in some type of pandas."
    column = pd.Series(draw(st.lists(draw(kinds), min_size=n, max_size=n)), dtype=object)
    dtype = draw(st.none() | st.sampled_from(dtypes)) or object
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return column.astype(dtype)
    except Exception: return column # these values do not fit that type


@st.composite
def frames(draw):
    "A label, groups, and features of all kinds, under names of all kinds."
    n = draw(st.sampled_from([0, 1, 9, 12, 40, 40, 40]))
    names = draw(st.lists(st.sampled_from(["a", "b", "c", "a=b", "", "Unnamed: 0", 0, 1.5, None, ("a", "b"), np.nan, " a "]), min_size=1, max_size=4))
    known = st.sampled_from(labels).map(st.sampled_from)
    parts = [draw(columns(n, known)), *(draw(columns(n)) for _ in names), draw(columns(n, known))]
    frame = pd.concat(parts, axis=1) if n else pd.DataFrame(index=[], columns=range(len(parts)))
    index = draw(st.sampled_from([None, "repeated", "dates"]))
    if index == "repeated": frame.index = [7]*n
    if index == "dates": frame.index = pd.date_range("2020", periods=n)
    return frame.set_axis(pd.Index(["y", *names, "g"], dtype=object, tupleize_cols=False), axis=1)


columns_named = st.sampled_from(["a", "b", "c", "", 0, 1.5, None, ["a"]])
some = st.none() | st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=2), values | st.lists(values, max_size=2), max_size=3)
usual = dict(label="y", protected="g", groups=None, drop=(), cuts=(), categorical=(), missing="indicate", seed=0)
unusual = dict(
    label=columns_named, protected=columns_named, groups=some, drop=columns_named | st.lists(columns_named, max_size=3), positive=values,
    cuts=st.lists(st.floats() | st.text(max_size=2), max_size=2), categorical=columns_named, missing=st.sampled_from(["refuse", 3]), seed=values)


@given(frames(), st.dictionaries(st.sampled_from(list(unusual)), st.none(), max_size=2), st.data())
def test_any_frame(frame, changed, data):
    before = frame.copy(deep=True)
    positive = frame["y"].iloc[0] if len(frame) else 1
    more = {name: data.draw(unusual[name]) for name in changed}
    table = outcome(read_table, frame, **usual | dict(positive=positive) | more)
    pd.testing.assert_frame_equal(frame, before)
    if table is not None:
        assert np.isfinite(table.X).all() and len(table.y) == len(frame) and len(set(table.group_names)) == len(table.group_names) > 1


def plausible(seed, gaps):
    "A frame that is a table, with gaps or without, in plain types."
    pick = lambda *of: np.random.default_rng([seed, len(of)]).choice(np.array(of, object), 60)
    city, pay = ("a", "b", None), (1.5, 2., 1000., None)
    return pd.DataFrame(dict(
        paid=pick("yes", "no"), sex=np.random.default_rng(seed).integers(1, 3, 60), city=pick(*city[:2 + gaps]),
        pay=pick(*pay[:3 + gaps]).astype(float), n=np.arange(60)))


@given(st.integers(0, 2**32), st.booleans())
def test_a_plausible_frame_gives_its_own_values(seed, gaps):
    frame = plausible(seed, gaps)
    if gaps: assert outcome(read_table, frame, label="paid", positive="yes", protected="sex") is None
    table = outcome(read_table, frame, label="paid", positive="yes", protected="sex", missing="indicate")
    if table is None: return # a group without a positive or negative row
    assert (table.y == (frame["paid"] == "yes")).all() and (table.group == frame["sex"] - 1).all()
    train = table.split_indices["train"]
    pay = frame["pay"].fillna(frame["pay"].iloc[train].median())
    X, std = table.X[:, table.feature_names.index("pay")], pay.iloc[train].std(ddof=0)
    assert np.allclose(X, (pay - pay.iloc[train].mean())/(std if std > 1e-9 else 1), atol=1e-4)
    other = frame.assign(pay=frame["pay"].where(frame.index.isin(train), frame["pay"]*7)) # nothing is learned from other rows
    assert (read_table(other, label="paid", positive="yes", protected="sex", missing="indicate").X[train] == table.X[train]).all()
