"The package as others get it: built, installed beside its dependencies, and used far from any checkout."
import json, os, re, shutil, subprocess, sys, tarfile, zipfile
from importlib import metadata
from pathlib import Path

import pytest

from fairness_repair.core import paths

root = paths.root
not_copied = (".git", ".venv", "runs", "build", "dist", "figures", "*.egg-info", "__pycache__", ".pytest_cache",
              ".ipynb_checkpoints", "repaired")
needs_setuptools = pytest.mark.skipif(int(metadata.version("setuptools").split(".")[0]) < 77,
                                      reason="building needs setuptools 77 or newer")
pytestmark = needs_setuptools


def python(*arguments, **kwargs):
    done = subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, timeout=300, **kwargs)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    "The sdist of a copy of the checkout, and the wheel that is built from the unpacked sdist."
    folder = tmp_path_factory.mktemp("built")
    shutil.copytree(root, folder/"copy", ignore=shutil.ignore_patterns(*not_copied), symlinks=True)
    python("-c", f"from setuptools import build_meta; build_meta.build_sdist({str(folder)!r})", cwd=folder/"copy")
    sdist, = folder.glob("*.tar.gz")
    python("-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index", "--no-build-isolation", "-w", folder, sdist)
    wheel, = folder.glob("*.whl")
    return sdist, wheel


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    "A folder that holds the installed wheel and nothing else."
    folder = tmp_path_factory.mktemp("site")
    python("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", folder, built[1])
    return folder


@pytest.fixture
def away(installed, tmp_path):
    "Run Python in an empty folder with an empty home; the package is found in the installed folder only."
    work, home = tmp_path/"work", tmp_path/"home"
    for folder in (work, home): folder.mkdir()
    env = {name: value for name, value in os.environ.items() if not name.startswith(("FAIRNESS_REPAIR_", "XDG_"))}
    env |= dict(PYTHONPATH=str(installed), HOME=str(home), HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1", MPLBACKEND="Agg")
    before = files_of(installed)
    yield lambda *arguments: python(*arguments, cwd=work, env=env), work, home
    assert files_of(installed) == before, "something was written into the installed folder"


def files_of(folder):
    "Every file with its size; compiled code (Python's and numba's) lies in __pycache__ and is no result."
    return {p: p.stat().st_size for p in sorted(folder.rglob("*")) if p.is_file() and "__pycache__" not in p.parts}


def test_wheel_holds_data_and_licences_but_no_recordings(built):
    names = [i.filename for i in zipfile.ZipFile(built[1]).infolist()]
    data = {name.removeprefix("fairness_repair/data/") for name in names if name.startswith("fairness_repair/data/")}
    there = {p.relative_to(paths.data).as_posix() for p in paths.data.rglob("*") if p.is_file()}
    assert data == {name for name in there if not name.startswith("results/")}
    assert "README.md" in data and any(name.endswith("licenses/LICENSE") for name in names)
    assert not [name for name in names if name.endswith(".sqlite") or name.startswith(("tests", "nbs", "data"))]
    modules = {p.relative_to(root).as_posix() for p in (root/"fairness_repair").rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == modules
    assert built[1].stat().st_size < 10e6


def test_sdist_is_complete(built):
    "Everything that a checkout has; figures are left out of the copy that is built here."
    with tarfile.open(built[0]) as tar: names = {n.split("/", 1)[-1] for n in tar.getnames()}
    listed = subprocess.run(["git", "ls-files"], cwd=root, capture_output=True, text=True).stdout.split("\n")
    missing = {name for name in listed if name and not name.startswith("figures/") and (root/name).exists()} - names
    assert not missing
    for name in ("setup.py", "requirements.txt", "tests/test_wheel.py", "nbs/00_core.ipynb", "data/results/ap-study.sqlite"):
        assert name in names


def test_every_module_is_imported(away):
    run, _, home = away
    modules = sorted(".".join(p.relative_to(root).with_suffix("").parts) for p in (root/"fairness_repair").rglob("*.py"))
    modules = [m.removesuffix(".__init__") for m in modules]
    code = f"import importlib, json\nfound = [importlib.import_module(m) for m in {modules}]\n"
    code += "print(json.dumps([m.__file__ for m in found]))"
    found = json.loads(run("-c", code).strip().split("\n")[-1])
    assert len(found) > 50 and not [file for file in found if file.startswith(str(root))]
    assert not list(home.rglob("fairness_repair")), "importing makes no folder"


def test_places(away):
    "Data is beside the package; what is written goes to the user's folder; a checkout is asked for in words."
    run, _, home = away
    code = """
from fairness_repair.core import git_commit, paths, provenance
print(paths.data.is_dir(), git_commit(), provenance()["commit"], paths.figures, paths.results, sep="|")
try: paths.nbs
except RuntimeError as e: print(e)"""
    first, error = run("-c", code).strip().split("\n")
    data, commit, recorded, figures, results = first.split("|")
    assert (data, commit, recorded) == ("True", "unknown", "unknown")
    assert Path(figures).is_relative_to(home) and Path(results).is_relative_to(home)
    assert "needs a checkout" in error


def test_commit_is_not_that_of_a_repository_around_the_installed_folder(installed, tmp_path):
    "An environment often lies inside a repository of its user."
    around = tmp_path/"theirs"
    shutil.copytree(installed/"fairness_repair", around/"lib"/"fairness_repair", ignore=shutil.ignore_patterns("data"))
    git = ["git", "-c", "user.name=a", "-c", "user.email=a", "-C", around]
    for command in (["init"], ["add", "."], ["commit", "-m", "first"]): subprocess.run([*git, *command], check=True, capture_output=True)
    code = "from fairness_repair.core import git_commit; print(git_commit())"
    assert python("-c", code, cwd=around, env=os.environ | dict(PYTHONPATH=str(around/"lib"))).strip() == "unknown"


def test_command_repairs_the_built_in_model(away, installed):
    run, work, _ = away
    said = run(installed/"bin"/"repair", "tiny", "--out", "x", "--budget", "40")
    assert "report card: x/report.html" in said
    assert json.loads((work/"x"/"result.json").read_text())["commit"] == "unknown"
    assert {p.name for p in work.iterdir()} == {"x"}


def test_readme_examples(away):
    "The code cells of the README, the one on tables among them."
    run, work, _ = away
    cells = json.loads((paths.nbs/"index.ipynb").read_text())["cells"]
    code = ["".join(c["source"]) for c in cells if c["cell_type"] == "code" and c["source"]]
    assert any("read_table" in c for c in code)
    said = run("-c", "\n".join([*code, "print(fixed)"]))
    assert re.search(r"\d+ of 256 neurons dropped", said)
    assert not list(work.iterdir())
