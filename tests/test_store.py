"Result stores: damaged, full, foreign, read-only, shared by several processes."
import os, sqlite3, subprocess, sys, textwrap

import numpy as np, pytest
from hypothesis import given, strategies as st

from fairness_repair.core import InputError, paths
from fairness_repair.store import Store

protocol = dict(model="tiny", seed=0)


def filled(path, n=40):
    with Store(path) as store:
        for i in range(n): store.put(protocol, f"{i:04x}", np.arange(i, i + 20.), 1.)
        store.get_or_compute(dict(best=0), lambda: ["8080"])
    return path


def read(path):
    "Everything that a run asks of a store."
    with Store(path) as store:
        numbers = {state: store.get(protocol, state) for state in store.states(protocol)}
        assert store.descriptions() == [protocol] and repr(store) and store.seconds >= 0
        return numbers, store.get_or_compute(dict(best=0), lambda: "new"), store.missing([dict(best=0)])


env = os.environ | dict(PYTHONPATH=str(paths.root))


def command(code):
    "Python code as a command; what a store notes of its makers would load torch."
    plain = "import fairness_repair.store as s; s.provenance = dict\n"
    return [[sys.executable, "-c", plain + textwrap.dedent(code)]]


def in_another_process(code):
    return subprocess.run(*command(code), capture_output=True, text=True, env=env)


@pytest.fixture(scope="module")
def whole(tmp_path_factory): return filled(tmp_path_factory.mktemp("store")/"a.sqlite")


@given(cut=st.floats(0, 1), junk=st.binary(max_size=40), at=st.floats(0, 1))
def test_damaged_file_is_one_sentence_or_still_right(whole, tmp_path, cut, junk, at):
    "Cut off anywhere, then overwritten anywhere."
    damaged = bytearray(whole.read_bytes())
    damaged = damaged[:round(cut*len(damaged))]
    start = round(at*len(damaged))
    damaged[start:start + len(junk)] = junk
    for old in tmp_path.iterdir(): old.unlink()
    (tmp_path/"a.sqlite").write_bytes(damaged)
    try: numbers, answer, _ = read(tmp_path/"a.sqlite")
    except InputError as e:
        assert "a.sqlite" in str(e)
        return
    except AssertionError: return # another protocol: SQLite cannot know what was overwritten
    assert all(row.dtype == float for row in numbers.values())


@given(state=st.text(max_size=8), numbers=st.lists(st.floats(), max_size=6), answer=st.recursive(
    st.none() | st.booleans() | st.integers(-2**62, 2**62) | st.text(), lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(), x, max_size=3), max_leaves=8))
def test_what_is_put_in_comes_out(state, numbers, answer):
    "Any state, numbers and JSON-able answer, NaN and infinity included."
    with Store(":memory:") as store:
        try: state.encode()
        except UnicodeEncodeError: return
        store.put(protocol, state, numbers, 0.)
        np.testing.assert_array_equal(store.get(protocol, state), numbers)
        for _ in range(2): assert store.get_or_compute(dict(asked=state), lambda: answer) == answer


@pytest.mark.parametrize("sql, message", [
    ("create table cookies (id)", "has a table 'cookies'"),
    ("create table measurements (protocol, state, numbers)", "another version of this package"),
    ("create table outcomes (id, question, answer, provenance, machine)", "another version of this package"),
])
def test_other_databases_are_refused_and_untouched(tmp_path, sql, message):
    with sqlite3.connect(tmp_path/"a.sqlite") as db: db.execute(sql)
    db.close()
    before = (tmp_path/"a.sqlite").read_bytes()
    with pytest.raises(InputError, match=message): Store(tmp_path/"a.sqlite")
    assert (tmp_path/"a.sqlite").read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_store_that_was_killed_while_made_is_completed(tmp_path):
    with sqlite3.connect(tmp_path/"a.sqlite") as db:
        db.execute("create table protocols (id text primary key, description text not null, provenance text not null)")
    assert str(Store(tmp_path/"a.sqlite")).startswith("0 measurements")


def test_full_database_keeps_what_it_has(tmp_path):
    with Store(filled(tmp_path/"a.sqlite")) as store:
        store.db.execute(f"pragma max_page_count={store.db.execute('pragma page_count').fetchone()[0]}")
        with pytest.raises(InputError, match=r"a\.sqlite: the disk is full .* Free some space and give the same command again"):
            for i in range(100, 10_000): store.put(protocol, f"{i:04x}", np.arange(400.), 1.)
    kept = read(tmp_path/"a.sqlite")[0]
    assert len(kept) >= 40 and kept["0000"].tolist() == list(range(20))


def test_full_disk_as_the_system_reports_it(tmp_path):
    "No file of the process may grow beyond a limit, which is what a full disk looks like."
    done = in_another_process(f"""
        import resource, numpy as np
        from fairness_repair.core import InputError
        from fairness_repair.store import Store
        with Store({str(tmp_path/'a.sqlite')!r}) as store:
            store.put(dict(model="tiny", seed=0), "00", np.arange(20.), 1.)
            resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
            try:
                for i in range(2000): store.put(dict(model="tiny", seed=0), f"{{i:04x}}", np.arange(400.), 1.)
            except InputError as e: print(e)
        """)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "a.sqlite: the disk is full" in done.stdout and "the same command again" in done.stdout
    with Store(tmp_path/"a.sqlite") as store: assert store.get(protocol, "00").tolist() == list(range(20))


@pytest.mark.parametrize("what", ["store", "folder", "new folder"])
def test_without_permission(tmp_path, what):
    "Root may write anywhere, so root becomes nobody."
    filled(tmp_path/"a.sqlite")
    for p in (tmp_path, *tmp_path.parents[:3]): os.chmod(p, os.stat(p).st_mode | 0o555)
    os.chmod(tmp_path/"a.sqlite", 0o444)
    os.chmod(tmp_path, 0o555)
    path = dict(store="a.sqlite", folder="b.sqlite")
    path = tmp_path/path.get(what, "new/b.sqlite")
    code = f"""
        import os
        from fairness_repair.core import InputError
        from fairness_repair.store import Store
        if os.geteuid() == 0: os.setgid(65534); os.setuid(65534)
        try:
            with Store({str(path)!r}) as store: store.put(dict(model="m"), "00", [1.], 1.)
        except InputError as e: print(e)
        """
    try: done = in_another_process(code)
    finally: os.chmod(tmp_path, 0o755)
    assert done.returncode == 0, done.stderr[-2000:]
    assert path.name in done.stdout and ("may not be written" in done.stdout or "cannot be read or written" in done.stdout)


def test_path_through_a_file(tmp_path):
    (tmp_path/"thesis.tex").touch()
    with pytest.raises(InputError, match="a part of the path is a file"): Store(tmp_path/"thesis.tex"/"b"/"a.sqlite")
    with pytest.raises(InputError, match="a.sqlite"): Store(tmp_path.joinpath("x"*300, "a.sqlite"))
    (tmp_path/"a.sqlite").mkdir()
    with pytest.raises(InputError, match="a.sqlite"): Store(tmp_path/"a.sqlite")


def test_second_store_that_is_no_store(tmp_path):
    (tmp_path/"b.sqlite").write_text("no database, surely " * 100)
    with Store(tmp_path/"a.sqlite") as store:
        with pytest.raises(InputError, match="b.sqlite"): store.read_also_from(tmp_path/"b.sqlite")


def test_closed_store_opens_again_with_its_second_store(tmp_path):
    filled(tmp_path/"a.sqlite", 2)
    with Store(tmp_path/"b.sqlite") as store: store.read_also_from(tmp_path/"a.sqlite")
    assert store.states(protocol) == ["0000", "0001"]
    store.close()


def test_three_processes_write_one_store(tmp_path):
    "All keep what each has written, and the first measurement of a state stays."
    code = f"""
        import numpy as np, sys
        from fairness_repair.store import Store
        with Store({str(tmp_path/'a.sqlite')!r}) as store:
            for i in range(300): store.put(dict(model="tiny", seed=0), f"{{i:04x}}", [float(i)], 1.)
            for i in range(100): assert store.get_or_compute(dict(n=i), lambda: i) == i
        """
    both = [subprocess.Popen(*command(code), stderr=subprocess.PIPE, text=True, env=env) for _ in range(3)]
    for process in both: assert process.wait(120) == 0, process.stderr.read()[-2000:]
    with Store(tmp_path/"a.sqlite") as store:
        assert str(store) == "300 measurements under 1 protocols, 100 outcomes"
        assert all(store.get(protocol, f"{i:04x}").tolist() == [i] for i in range(300))
