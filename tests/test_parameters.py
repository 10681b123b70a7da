"What a value of a parameter may be, told alike in Python, on the command line and by papermill."
import math

import numpy as np, pytest
from hypothesis import given, strategies as st

from fairness_repair.core import (PARAMETER_KINDS, InputError, check_parameters, check_value, one_line, parse_list, parse_value,
                                  slug, unknown_name_message)

anything = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.binary(max_size=5), st.complex_numbers(),
                     st.lists(st.integers(), max_size=3), st.dictionaries(st.text(max_size=3), st.integers(), max_size=2), st.just(10**5000),
                     st.decimals(allow_nan=True), st.fractions(), st.integers(0, 9).map(np.int64), st.floats(width=32).map(np.float32))
kinds = st.sampled_from(list(PARAMETER_KINDS))
bound = st.none() | st.integers(-5, 5)


@given(value=anything, kind=kinds, low=bound, high=bound)
def test_a_value_fits_or_is_one_sentence(value, kind, low, high):
    bounds = dict(low=low, high=high) if kind in (int, float) else {}
    try: found = check_value("budget", value, kind, **bounds)
    except InputError as e:
        assert str(e).startswith("budget = ") and "needs " in str(e) and "\n" not in str(e) and len(str(e)) < 400
        return
    assert found == kind(value) and type(found) in PARAMETER_KINDS and isinstance(found, bool) == (kind is bool)
    if kind in (int, float):
        assert kind is int or math.isfinite(found)
        assert (low is None or found >= low) and (high is None or found <= high)


@given(text=st.one_of(st.text(max_size=30), st.integers().map(str), st.floats().map(str), st.integers().map("{:_}".format), st.integers().map("{:,}".format)), kind=st.sampled_from([int, float, str]))
def test_text_is_read_as_python_reads_it_or_refused(text, kind):
    try: found = parse_value("budget", text, kind)
    except InputError as e:
        assert str(e).startswith("budget = ")
        return
    assert found == kind(text)


@given(text=st.text("0123456789.,; -e", max_size=20), kind=st.sampled_from([int, float, str]), separator=st.sampled_from([",", ";", None]))
def test_lists_have_items_of_one_kind(text, kind, separator):
    try: found = parse_list("alphas", text, kind, separator=separator)
    except InputError as e: assert str(e).startswith("alphas = ")
    else: assert found and all(type(item) is kind for item in found)


declared = "model: str = 'tiny'\nbudget: int = 300\nepsilon: float = 0.5\ndeep: bool = True\n"


@given(given=st.dictionaries(st.sampled_from(["model", "budget", "epsilon", "deep", "bugdet"]),
                             st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=10), st.lists(st.integers(), max_size=2)), max_size=3))
def test_what_papermill_injects(given):
    from papermill.translators import PythonTranslator
    source = "# Parameters\n" + "\n".join(f"{name} = {PythonTranslator.translate(value)}" for name, value in given.items())
    try: found = check_parameters(["", declared, source], budget=(1, None))
    except InputError as e:
        assert any(name in str(e) for name in given) and "\n" not in str(e)
        return
    assert found == dict(model="tiny", budget=300, epsilon=.5, deep=True) | given
    assert "bugdet" not in given and found["budget"] >= 1 and math.isfinite(found["epsilon"])


@pytest.mark.parametrize("injected, message", [
    ("limit = float('inf')", "limit = inf: needs a number; for no limit, write a large one such as 1e9"),
    ("limit = float('nan')", "limit = nan: needs a number"),
    ("limit = '1,15'", "limit = '1,15': needs a number: write 1.15"),
    ("seeds = '1,000'", "seeds = '1,000': needs a whole number: write 1000"),
    ("seeds = 3.0", "seeds = 3.0: needs a whole number: write 3"),
    ("seeds = True", "seeds = True: needs a whole number"),
    ("seeds = -3", "seeds = -3: needs a whole number of at least 1"),
    ("seeds = None", "seeds = None: needs a whole number"),
    ("seeds = [1, 2]", "seeds = [1, 2]: needs a whole number"),
    ("deep = 'no'", "deep = 'no': needs True or False"),
    ("deep = 0", "deep = 0: needs True or False: write False"),
    ("model = 2.5", "with -r"),
    ("sedes = 3", "unknown parameter 'sedes'. Did you mean 'seeds'?"),
])
def test_injected_values_that_are_refused(injected, message):
    cell = "model: str = 'tiny'\nlimit: float = 1.1\nseeds: int = 3\ndeep: bool = True"
    with pytest.raises(InputError) as refused: check_parameters(["", cell, f"# Parameters\n{injected}\n"], seeds=(1, None))
    assert message in str(refused.value)


check, later = "check_parameters(In)\nrun(budget)", "if save: store(save)"


@pytest.mark.parametrize("cells, message", [
    (["budget: int = '60'"], "budget = '60': needs a whole number: write 60"),
    (["budget: int = 6*10"], "budget = 6 * 10: write a literal value"),
    (["budget: int = 60", check, "bugdet: int = 60", check], "unknown parameter 'bugdet'. Did you mean 'budget'?"), # the kernel still has budget
    (["bugdet: int = 60", check], "Did you mean 'budget'?"), # a fresh kernel would raise NameError
    (["save: str = ''", later, "svae: str = 'x'"], "Did you mean 'save'?"),
    (["budget: int = 60", check, "budget: int = 70", check], None),
    (["bugdet: int = 60", check, "budget: int = 60", check], None), # corrected in the same kernel
    (["model: str = 'a'", "from x import y as z\nfor i in y2: pass", "check_parameters(In)"], None),
    (["budget: int = 6*10", "budget: int = 60", check], None),
    (["budget: int = 60", "%%magic that is no Python", check], None),
])
def test_edited_cells(cells, message):
    run = "import check_parameters\ndef run(x): pass\ndef store(x): pass"
    ran = ["", *cells[:1], run, *cells[1:]]
    if message is None:
        assert check_parameters(ran)
        return
    with pytest.raises(InputError) as refused: check_parameters(ran)
    assert message in str(refused.value)


def test_papermill_notebook_run_again_in_a_kernel():
    "The injected cell counts only behind the last declaration."
    cells = ["", "budget: int = 300", "# Parameters\nbudget = 60\n", "budget: int = 200"]
    assert check_parameters(cells[:3]) == dict(budget=60) and check_parameters(cells) == dict(budget=200)


@given(name=st.text(max_size=400))
def test_names_become_file_names_and_lines(name, tmp_path):
    (tmp_path/f"a-{slug(name)}.csv").write_text("x")
    line = one_line(name)
    line.encode()
    assert len(line.splitlines()) <= 1 and line.isprintable() and one_line(line) == line


def test_case_of_a_name_is_no_obstacle():
    for typed, known in (("ap", "AP"), ("FLOAT32", "float32"), ("fasp", "FASP")):
        assert f"Did you mean {known!r}?" in unknown_name_message("name", typed, ["AP", "FASP", "float32"])
