"Ways to start without installing: links, the first cell of a notebook, the container."
import configparser, importlib.machinery, importlib.util, json, re, subprocess, sys
from importlib import metadata

import nbformat, pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from fairness_repair.core import paths

root = paths.root
settings = configparser.ConfigParser(inline_comment_prefixes="#")
settings.read(root/"settings.ini")
user, repo, branch = (settings["DEFAULT"][name] for name in ("user", "repo", "branch"))
STARTS = ["bring_your_model", "explore", "rq2_ap"] # notebooks that start without a checkout


def addresses(name): # of a notebook in Colab and Binder
    return {f"https://colab.research.google.com/github/{user}/{repo}/blob/{branch}/nbs/{name}.ipynb",
            f"https://mybinder.org/v2/gh/{user}/{repo}/{branch}?urlpath=lab/tree/nbs/{name}.ipynb"}


def found_in(text): return set(re.findall(r"https://(?:colab|mybinder)[^)\s]+", text))


def first_cell(name):
    return next(c for c in nbformat.read(paths.nbs/f"{name}.ipynb", 4).cells if c.cell_type == "code")


def test_links_lead_to_the_notebooks():
    "The README names one, the page all three, each notebook itself."
    everywhere = set.union(*map(addresses, STARTS))
    assert found_in((root/"README.md").read_text()) == addresses("bring_your_model")
    assert found_in((paths.nbs/"howto"/"install.md").read_text()) == everywhere
    for notebook in paths.nbs.glob("*.ipynb"):
        if notebook.stem == "index": continue
        expected = addresses(notebook.stem) if notebook.stem in STARTS else set()
        assert found_in(notebook.read_text(encoding="utf-8")) == expected, notebook.name


def test_first_cell_is_the_same_everywhere():
    assert len({first_cell(name).source for name in STARTS}) == 1
    assert not first_cell(STARTS[0]).outputs


def run_first_cell(monkeypatch, absent=(), bare=()):
    "Run the first cell where some packages are absent, and others are folders without code: its commands."
    commands, find_spec = [], importlib.util.find_spec
    def find(name):
        if name in bare: return importlib.machinery.ModuleSpec(name, None)
        return None if name in absent else find_spec(name)
    monkeypatch.setattr(importlib.util, "find_spec", find)
    monkeypatch.setattr(subprocess, "run", lambda command, **options: commands.append((command, options)))
    exec(first_cell("rq2_ap").source, {})
    assert all(command[:5] == [sys.executable, "-m", "pip", "install", "--quiet"] for command, _ in commands)
    assert all(options == dict(check=True) for _, options in commands)
    return [command[5:] for command, _ in commands]


def test_first_cell_does_nothing_where_the_package_is(monkeypatch):
    assert run_first_cell(monkeypatch) == []


@pytest.mark.parametrize("absent, bare, kept", [
    (["fairness_repair"], [], {"torch"}),
    (["fairness_repair", "torch"], [], set()),
    ([], ["fairness_repair"], {"torch"}), # in the folder of a checkout
])
def test_first_cell_installs_and_keeps_torch(absent, bare, kept, monkeypatch):
    monkeypatch.delenv("FAIRNESS_REPAIR_SOURCE", raising=False)
    package, needed = run_first_cell(monkeypatch, absent, bare)
    assert package == ["--no-deps", f"git+https://github.com/{user}/{repo}"]
    plain = {r.name for r in map(Requirement, metadata.requires("fairness_repair")) if not r.marker}
    assert {Requirement(line).name for line in needed} == plain - kept


def test_first_cell_takes_another_source(monkeypatch):
    monkeypatch.setenv("FAIRNESS_REPAIR_SOURCE", "mine.whl")
    assert run_first_cell(monkeypatch, absent=["fairness_repair"])[0] == ["--no-deps", "mine.whl"]


def test_container_is_made_as_the_makefile_makes_the_environment():
    lines = (root/"docker"/"Dockerfile").read_text().splitlines()
    words = [line.split() for line in lines]
    version = next(w[1] for w in words if w[:1] == ["FROM"]).removeprefix("python:").removesuffix("-slim")
    assert version in SpecifierSet(f">={settings['DEFAULT']['min_python']}")
    sources = [name for w in words if w[:1] == ["COPY"] for name in w[1:-1] if not name.startswith("--")]
    assert sources == ["requirements.txt", "."] and all((root/name).exists() for name in sources)
    made = re.findall(r"(?m)^\t\$\(BIN\)/(python -m pip install .*)$", (root/"Makefile").read_text())[:2]
    assert [line.removeprefix("RUN ") for line in lines if "pip install" in line] == made
    users = [w[1] for w in words if w[:1] == ["USER"]]
    assert users == ["reader"] and json.loads(lines[-1].removeprefix("CMD "))[:2] == ["jupyter", "lab"]


def test_binder_finds_the_environment():
    "Binder reads environment.yml only where neither a Dockerfile nor a folder of its own lies at the top."
    assert (root/"environment.yml").is_file()
    assert not [name for name in ("Dockerfile", "binder", ".binder") if (root/name).exists()]
    yaml = pytest.importorskip("yaml")
    asked = yaml.safe_load((root/"environment.yml").read_text())["dependencies"]
    assert asked[-1]["pip"] == ["-r requirements.txt", "-e ."]
