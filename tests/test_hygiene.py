"What notebooks cannot say about themselves: that package, README and notebooks agree."
import ast, configparser, json, re, subprocess, sys
from pathlib import Path

import nbformat, pytest
from nbconvert import MarkdownExporter

from fairness_repair.core import literal_assignments, paths

root, package = paths.root, paths.root/"fairness_repair"
notebooks = sorted(p for p in paths.nbs.rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
modules = sorted(p for p in package.rglob("*.py") if p.name not in ("__init__.py", "_modidx.py"))
components = [nb for nb in notebooks if re.match(r"\d\d_", nb.name)]
questions = [nb for nb in notebooks if nb.name.startswith("rq") or nb.name in ("benchmarks.ipynb", "explore.ipynb", "bring_your_model.ipynb")]


def cells(nb, kind="code"): return [c for c in nbformat.read(nb, 4).cells if c.cell_type == kind]
def module_of(nb): return next(m[1] for c in cells(nb) if (m := re.match(r"#\|\s*default_exp\s+(\S+)", c.source)))


def test_every_module_has_exactly_one_notebook():
    named = [module_of(nb) for nb in components]
    assert len(set(named)) == len(named), "two notebooks export the same module"
    assert set(named) == {".".join(p.relative_to(package).with_suffix("").parts) for p in modules}


@pytest.mark.parametrize("nb", components, ids=lambda p: p.stem)
def test_notebook_lies_where_its_module_lies(nb):
    folder = nb.parent.relative_to(paths.nbs).parts
    assert module_of(nb) == ".".join([*folder, re.sub(r"^\d\d_", "", nb.stem)])


def test_package_is_what_the_notebooks_export(tmp_path):
    "Export into a copy; nothing may differ from what is committed."
    import shutil
    copy = tmp_path/"copy"
    copy.mkdir()
    shutil.copytree(paths.nbs, copy/"nbs")
    shutil.copytree(package, copy/"fairness_repair", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("settings.ini", "pyproject.toml"): shutil.copy(root/name, copy)
    subprocess.run([Path(sys.executable).with_name("nbdev_export")], cwd=copy, check=True, capture_output=True)
    for made in sorted((copy/"fairness_repair").rglob("*.py")):
        name = made.relative_to(copy/"fairness_repair")
        assert made.read_text() == (package/name).read_text(), f"{name} is out of step: run nbdev_export"


@pytest.mark.parametrize("nb", notebooks, ids=lambda p: p.stem)
def test_notebook_is_clean(nb):
    text = nb.read_text()
    raw = json.loads(text)
    assert str(root) not in text and not re.search(r"/home/|/root/|/tmp/|C:\\\\Users", text), "a machine's path"
    for c in raw["cells"]:
        assert set(c["metadata"]) <= {"tags"}
        assert c.get("execution_count") is None, "run nbdev_clean"
        assert not any(o.get("output_type") == "error" for o in c.get("outputs", []))
        assert not any(o.get("name") == "stderr" for o in c.get("outputs", [])), "warnings or progress bars in the output"


@pytest.mark.parametrize("nb", components, ids=lambda p: p.stem)
def test_component_reads_as_a_lesson(nb):
    "Prose enough, cells short enough."
    code, prose = [c for c in cells(nb) if not c.source.startswith("#| hide")], cells(nb, "markdown")
    long = [c for c in code if len([l for l in c.source.split("\n") if l.strip()]) > 22]
    assert len(prose)/(len(prose) + len(code)) >= .25
    assert len(long) <= 1 + .1*len(code)


def test_lessons_show_what_they_export():
    "At least 97 in 100 definitions are followed within three code cells by one that displays something."
    defined = shown = silent = demonstrations = 0
    for nb in components:
        read = json.loads(nb.read_text(encoding="utf-8"))["cells"]
        seen = lambda c: c["cell_type"] == "code" and not re.match(r"#\|\s*(hide|default_exp)", "".join(c["source"]))
        code = list(filter(seen, read))
        exported = ["export" in "".join(c["source"]).splitlines()[0] for c in code]
        for at, cell in enumerate(code):
            if not exported[at]:
                demonstrations, silent = demonstrations + 1, silent + (not cell["outputs"])
            elif re.search(r"(?m)^(def|class|@)", "".join(cell["source"])):
                later = range(at + 1, min(at + 4, len(code)))
                defined, shown = defined + 1, shown + any(not exported[i] and code[i]["outputs"] for i in later)
    assert shown >= .97*defined > 500, f"{shown} of {defined}"
    assert silent <= .02*demonstrations, f"{silent} of {demonstrations} demonstrations display nothing"


@pytest.mark.parametrize("nb", components, ids=lambda p: p.stem)
def test_a_lesson_opens_with_a_call_and_has_a_figure(nb):
    "What one will be able to do, and a call with its output, come before the first definition; a figure anywhere."
    read = json.loads(nb.read_text(encoding="utf-8"))["cells"]
    source = lambda cell: "".join(cell["source"])
    defines = lambda cell: source(cell).startswith("#| export") and re.search(r"(?m)^(def|class|@)", source(cell))
    opening = read[:next((at for at, cell in enumerate(read) if defines(cell)), None)]
    prose = " ".join(source(cell) for cell in opening if cell["cell_type"] == "markdown")
    assert re.search("After this (lesson|page)", prose)
    assert any(cell.get("outputs") for cell in opening)
    assert any("image/png" in output.get("data", {}) for cell in read for output in cell.get("outputs", []))


def test_cells_of_lessons_are_short():
    "Half of them have at most 4 lines, 9 in 10 at most 15."
    kept = (c.source for nb in components for c in cells(nb) if not re.match(r"#\|\s*(hide|default_exp)", c.source))
    lengths = sorted(len([l for l in source.split("\n") if l.strip() and not l.startswith("#|")]) for source in kept)
    half, most = (lengths[int(share*len(lengths))] for share in (.5, .9))
    assert half <= 4 and most <= 15, f"{half} and {most}"


@pytest.mark.parametrize("nb", questions, ids=lambda p: p.stem)
def test_research_question_has_parameters_and_exports_nothing(nb):
    code = cells(nb)
    tagged = [c for c in code if "parameters" in c.metadata.get("tags", [])]
    assert len(tagged) == 1
    assert all(kind in ("int", "float", "str", "bool") for kind, _ in literal_assignments(tagged[0].source).values())
    assert any("check_parameters(In" in c.source for c in code)
    assert not any(c.source.startswith("#| export") for c in code)


def test_readme_is_the_index():
    made, _ = MarkdownExporter().from_filename(str(paths.nbs/"index.ipynb"))
    assert (root/"README.md").read_text().strip() == made.strip(), "README.md is out of date: run make docs"


def test_pins_agree():
    "settings.ini carries the version, requirements.txt the pins, and the others point there."
    settings = configparser.ConfigParser(inline_comment_prefixes="#")
    settings.read(root/"settings.ini")
    import fairness_repair
    assert settings["DEFAULT"]["version"] == fairness_repair.__version__
    assert "-r requirements.txt" in (root/"environment.yml").read_text()
    pins = [l for l in (root/"requirements.txt").read_text().split("\n") if l and not l.startswith("#")]
    assert all("==" in p for p in pins)


def test_text_files_name_their_encoding():
    "Another locale reads and writes the same bytes."
    for file in modules:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call): continue
            name, said = ast.unparse(node.func).split(".")[-1], ast.unparse(node)
            text = name in ("read_text", "write_text") or ast.unparse(node.func) == "open" and not re.search(r"['\"][rwa]b['\"]", said)
            assert not text or "encoding=" in said, f"{file.name}: {said[:80]}"


def test_unsafe_calls_are_absent():
    assert len(modules) > 40
    for file in modules:
        text = file.read_text()
        assert not re.search(r"trust_remote_code\s*=\s*True|head_mask\s*=|except\s*:", text), file.name
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load": assert "weights_only=True" in ast.unparse(node), file.name
