"Commands in the README and the how-to pages: programs, notebooks, parameters and options exist."
import ast, inspect, re, shlex

import nbformat, pytest

from fairness_repair.app import repair
from fairness_repair.core import literal_assignments, paths

root = paths.root
pages = [root/"README.md", root/"CONTRIBUTING.md", *sorted((paths.nbs/"howto").glob("*.md")),
         root/"figures"/"results.md"]
targets = re.findall(r"(?m)^([a-z_0-9]+):.*##", (root/"Makefile").read_text())


def commands(page):
    "Lines of shell blocks and commands in backticks, without comments."
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"(?s)```sh\n(.*?)```", text)
    inline = re.findall(r"`((?:make|repair|papermill) [^`]+)`", re.sub(r"(?s)```.*?```", "", text))
    lines = "\n".join(blocks).replace("\\\n", " ").replace("&&", "\n").splitlines()
    for line in [*lines, *inline]:
        words = shlex.split(line, comments=True)
        if words and not any("<" in word for word in words): yield words


def parameters(notebook):
    cells = nbformat.read(notebook, 4).cells
    return literal_assignments(next(c.source for c in cells if "parameters" in c.metadata.get("tags", [])))


def check_parameters_of(notebook, words):
    assert notebook.is_file(), notebook
    named = [words[k + 1] for k, word in enumerate(words) if word == "-p"]
    unknown = set(named) - set(parameters(notebook))
    assert not unknown, f"{notebook.stem} has no parameter {unknown}"


def options_of_repair():
    return {f"--{name.replace('_', '-')}" for name in inspect.signature(repair).parameters}


def check(words):
    program, *rest = words
    if program == "papermill": check_parameters_of(root/rest[0], rest)
    elif program == "repair":
        assert {word for word in rest if word.startswith("--")} <= options_of_repair() | {"--help"}, words
    elif program == "make":
        for word in rest:
            name, _, value = word.partition("=")
            if name == "ARGS": check_parameters_of(paths.nbs/f"{rest[0]}.ipynb", shlex.split(value))
            elif not value:
                assert word in targets or (paths.nbs/f"{word}.ipynb").is_file(), word
    elif program == "jupyter": assert rest == ["lab"] or (root/rest[1]).is_file(), rest


@pytest.mark.parametrize("page", pages, ids=lambda page: page.name)
def test_commands_exist(page):
    for words in commands(page): check(words)


def test_commands_are_found_and_checked():
    assert sum(len(list(commands(page))) for page in pages) > 40
    for wrong in ("make rq9_ap", "repair tiny --axes gender",
                  "papermill nbs/rq2_ap.ipynb o.ipynb -p modle gpt2"):
        with pytest.raises(AssertionError): check(wrong.split())


@pytest.mark.parametrize("page", [*pages, *sorted((paths.nbs/"site").glob("*.md"))],
                         ids=lambda page: page.name)
def test_links_lead_somewhere_in_a_checkout(page):
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if not re.match("[a-z]+:", link): assert (page.parent/link).exists(), link


@pytest.mark.parametrize("page", pages, ids=lambda page: page.name)
def test_python_imports_what_exists(page):
    for block in re.findall(r"(?s)```python\n(.*?)```", page.read_text(encoding="utf-8")):
        for node in ast.walk(ast.parse(block)):
            if not isinstance(node, ast.ImportFrom) or node.module.startswith("lm_eval"): continue
            exec(f"from {node.module} import {', '.join(a.name for a in node.names)}", {})
