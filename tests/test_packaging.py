"What the packaging files promise: ranges, pins and imports agree."
import ast, configparser, re, subprocess, sys, tomllib
from importlib import metadata

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from fairness_repair.core import paths

root = paths.root
project = tomllib.loads((root/"pyproject.toml").read_text())["project"]
plain = [Requirement(line) for line in project["dependencies"]]
extras = {name: list(map(Requirement, lines)) for name, lines in project["optional-dependencies"].items()}
pin_lines = (root/"requirements.txt").read_text().split("\n")
pins = [Requirement(line) for line in pin_lines if line and line[0] != "#"]


def names(requirements): return {canonicalize_name(r.name) for r in requirements}


def test_pins_lie_within_the_ranges():
    "requirements.txt pins every dependency; Ray, Playwright and Sphinx are installed by who wants them."
    pinned = {canonicalize_name(r.name): next(iter(r.specifier)).version for r in pins}
    others = [listed for name, listed in extras.items() if name not in ("cluster", "browser", "site")]
    locked = [*plain, *(r for listed in others for r in listed)]
    for requirement in locked:
        name = canonicalize_name(requirement.name)
        if name == "fairness-repair": continue
        assert requirement.specifier.contains(pinned[name]), f"{requirement} does not allow {pinned[name]}"


def test_pins_have_ranges():
    "No pin without a dependency that asks for it."
    asked = names(plain).union(*map(names, extras.values()))
    assert names(pins) <= asked, names(pins) - asked


def test_lower_bounds_and_few_upper_bounds():
    bounded = {r.name for r in plain if any(s.operator in ("<", "<=", "==", "~=") for s in r.specifier)}
    assert not bounded, "an upper bound needs a known break: name it in pyproject.toml and here"
    assert all(any(s.operator == ">=" for s in r.specifier) for r in plain)


def imported(file):
    "Top-level names of what a module imports, those inside functions too."
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import): yield from (a.name.split(".")[0] for a in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level: yield node.module.split(".")[0]


def test_plain_install_is_what_the_package_imports():
    "Each import is declared, and nothing is declared that no module imports."
    found = {name for file in (root/"fairness_repair").rglob("*.py") for name in imported(file)}
    found -= set(sys.stdlib_module_names) | {"fairness_repair", "ray", "fairlearn",
                                             "ipywidgets", "IPython", "accelerate"} # extras, but the first
    homes = metadata.packages_distributions()
    assert {canonicalize_name(home) for name in found for home in homes[name]} == names(plain)


def test_version_is_the_same_everywhere():
    import fairness_repair
    settings = configparser.ConfigParser(inline_comment_prefixes="#")
    settings.read(root/"settings.ini")
    version = settings["DEFAULT"]["version"]
    assert version == fairness_repair.__version__
    assert f"\nversion: {version}\n" in (root/"CITATION.cff").read_text()
    assert f"## {version}" in (root/"CHANGELOG.md").read_text()
    assert project["requires-python"] == ">=" + settings["DEFAULT"]["min_python"]


def test_makefile_takes_a_python_that_it_finds(tmp_path):
    "The first of the known names that is new enough and not too new; without one, the error says what to do."
    def fake(name, version):
        file = tmp_path/name
        code = f"import sys; sys.version_info = {version}\n$2"
        file.write_text(f"#!/bin/sh\nexec {sys.executable} -c \"{code}\"\n")
        file.chmod(0o755)
    def chosen():
        command = ["/bin/sh", "-c", "make --no-print-directory -n -f Makefile setup VENV=none"]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, env={"PATH": str(tmp_path)})
        return done.stdout
    for tool in ("make", "sh"):
        path = subprocess.run(["which", tool], capture_output=True, text=True).stdout.strip()
        if not path: pytest.skip(f"no {tool} here")
        (tmp_path/tool).symlink_to(path)
    assert "Python 3.11 to 3.14 is needed" in chosen() and 'test -n ""' in chosen()
    fake("python3.11", (3, 10))
    fake("python3.13", (3, 13))
    fake("python3", (3, 15))
    assert "python3.13 -m venv none" in chosen()


def test_every_target_is_explained():
    "make help names the targets that a person calls."
    text = (root/"Makefile").read_text()
    explained = set(re.findall(r"^([a-z_0-9]+):.*## ", text, flags=re.M))
    targets = set(re.search(r"\.PHONY: (.*) \$\(QUESTIONS\)", text)[1].split())
    assert targets - explained == {"pytest_runs", "pytest_parts"}


def test_quick_tests_are_there():
    text = (root/"Makefile").read_text()
    quick = re.search(r"^QUICK := ((?:.*\\\n)*.*)", text, flags=re.M)[1].replace("\\", "").split()
    assert len(quick) > 8 and not [name for name in quick if not (root/name.split("::")[0]).exists()]


def test_citation_names_the_four_papers():
    yaml = pytest.importorskip("yaml")
    cited = yaml.safe_load((root/"CITATION.cff").read_text())
    assert cited["authors"] == [dict(name="fairness_repair developers")]
    arxiv = {"2503.15815", "2312.15398", "2407.04268", "2502.07771"}
    assert {r["url"].rsplit("/", 1)[1] for r in cited["references"]} == arxiv
    assert all(number in (root/"README.md").read_text() for number in arxiv)
