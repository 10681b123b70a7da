"The package as others get it: built, installed beside its dependencies, and used far from any checkout."
import importlib.util, json, os, re, shutil, subprocess, sys, tarfile, venv, zipfile
from importlib import metadata
from pathlib import Path

import pytest

from fairness_repair.core import paths

root = paths.root
package = root/"fairness_repair"
not_copied = (".git", ".venv", "runs", "build", "dist", "figures", "repaired", "*.egg-info", "__pycache__",
              ".pytest_cache", ".ipynb_checkpoints")
can_build = importlib.util.find_spec("pip") and int(metadata.version("setuptools").split(".")[0]) >= 77
pytestmark = pytest.mark.skipif(not can_build, reason="building needs pip, and setuptools 77 or newer")


def python(*arguments, program=sys.executable, **kwargs):
    command = [program, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, **kwargs)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    "The sdist of a copy of the checkout, and the wheel that is built from the unpacked sdist."
    folder = tmp_path_factory.mktemp("built")
    shutil.copytree(root, folder/"copy", ignore=shutil.ignore_patterns(*not_copied), symlinks=True)
    code = f"from setuptools import build_meta; build_meta.build_sdist({str(folder)!r})"
    python("-c", code, cwd=folder/"copy")
    sdist, = folder.glob("*.tar.gz")
    offline = ("--quiet", "--no-deps", "--no-index", "--no-cache-dir", "--no-build-isolation")
    python("-m", "pip", "wheel", *offline, "-w", folder, sdist)
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
    env = {k: v for k, v in os.environ.items() if not k.startswith(("FAIRNESS_REPAIR_", "XDG_"))}
    env |= dict(PYTHONPATH=str(installed), HOME=str(home), HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1")
    before = files_of(installed)
    yield lambda *arguments, **more: python(*arguments, cwd=work, env=env | more), work, home
    assert files_of(installed) == before, "something was written into the installed folder"


def files_of(folder):
    "Every file with its size, but for code compiled by Python and numba, which lies in __pycache__."
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and "__pycache__" not in p.parts]
    return {p: p.stat().st_size for p in files}


def names_below(folder): return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def test_wheel_holds_data_and_licences_but_no_recordings(built):
    with zipfile.ZipFile(built[1]) as z: names = z.namelist()
    data = {n.removeprefix("fairness_repair/data/") for n in names if n.startswith("fairness_repair/data/")}
    assert data == {name for name in names_below(paths.data) if not name.startswith("results/")}
    assert "README.md" in data and any(name.endswith("licenses/LICENSE") for name in names)
    assert not [n for n in names if n.endswith(".sqlite") or n.startswith(("tests", "nbs", "data"))]
    code = {f"fairness_repair/{name}" for name in names_below(package) if name.endswith((".py", ".j2"))}
    assert {name for name in names if name.endswith((".py", ".j2"))} == code
    assert built[1].stat().st_size < 10e6


def test_sdist_is_complete(built):
    "It holds everything that is in git; the copy that is built here has no figures."
    with tarfile.open(built[0]) as tar: names = {n.split("/", 1)[-1] for n in tar.getnames()}
    listed = subprocess.run(["git", "ls-files"], cwd=root, capture_output=True, text=True).stdout.split("\n")
    missing = {name for name in listed if (root/name).is_file() and not name.startswith("figures/")} - names
    assert not missing
    assert {"setup.py", "requirements.txt", "tests/test_wheel.py", "nbs/00_core.ipynb", "Makefile"} <= names


def test_modules_places_and_readme_examples(away):
    "One process, as loading takes seconds: every module, where things are, then the cells of the README."
    run, work, home = away
    files = sorted(p.relative_to(root).with_suffix("") for p in package.rglob("*.py"))
    modules = [".".join(p.parts).removesuffix(".__init__") for p in files]
    cells = json.loads((paths.nbs/"index.ipynb").read_text())["cells"]
    examples = ["".join(c["source"]) for c in cells if c["cell_type"] == "code" and c["source"]]
    assert len(modules) > 50 and any("load_table" in c for c in examples)
    code = f"""
import importlib, json, os
files = [importlib.import_module(m).__file__ for m in {modules}]
made = os.listdir({str(home)!r})
from fairness_repair.core import git_commit, paths, provenance
try: paths.nbs
except ValueError as e: error = str(e)
commits, folders = [git_commit(), provenance()["commit"]], [str(paths.figures), str(paths.results)]
found = dict(files=files, made=made, data=paths.data.is_dir(), commits=commits, folders=folders, error=error)
print(json.dumps(found))"""
    first, *said = run("-c", "\n".join([code, *examples, "print(fixed)"])).strip().split("\n")
    found = json.loads(first)
    assert not [file for file in found["files"] if file.startswith(str(root))]
    assert not [name for name in found["made"] if "fairness" in name], "an import makes no folder"
    assert found["data"] and found["commits"] == ["unknown", "unknown"]
    assert all(Path(folder).is_relative_to(home) for folder in found["folders"])
    assert "needs a checkout of the repository" in found["error"]
    assert re.search(r"\d+ of 256 neurons dropped", "\n".join(said))
    assert not list(work.iterdir())


def test_commit_is_not_that_of_a_repository_around_the_installed_folder(installed, tmp_path):
    "An environment often lies inside a repository of its user."
    around = tmp_path/"theirs"
    no_data = shutil.ignore_patterns("data")
    shutil.copytree(installed/"fairness_repair", around/"lib"/"fairness_repair", ignore=no_data)
    git = ["git", "-c", "user.name=a", "-c", "user.email=a", "-C", around]
    for command in (["init"], ["add", "."], ["commit", "-m", "first"]):
        subprocess.run([*git, *command], check=True, capture_output=True)
    code = "from fairness_repair.core import git_commit; print(git_commit())"
    env = os.environ | dict(PYTHONPATH=str(around/"lib"))
    assert python("-c", code, cwd=around, env=env).strip() == "unknown"


def test_command_repairs_the_built_in_model(away, installed):
    run, work, _ = away
    said = run(installed/"bin"/"repair", "tiny", "--out", "x", "--budget", "30")
    assert "report card: x/report.html" in said
    assert json.loads((work/"x"/"result.json").read_text())["commit"] == "unknown"
    assert {p.name for p in work.iterdir()} == {"x"}


@pytest.mark.parametrize("name, parameters", [("rq2_ap", "budget 40 seeds 1"), ("explore", "")])
def test_notebook_runs_alone(name, parameters, away):
    "Nothing is installed where the package is; the source that the first cell would take does not exist."
    run, work, home = away
    shutil.copy(paths.nbs/f"{name}.ipynb", work)
    words = parameters.split()
    given = [word for pair in zip(words[::2], words[1::2]) for word in ("-p", *pair)]
    run("-m", "papermill", f"{name}.ipynb", "out.ipynb", *given, FAIRNESS_REPAIR_SOURCE="nowhere.whl")
    assert {p.name for p in work.iterdir()} == {f"{name}.ipynb", "out.ipynb"}
    written = {p.name for p in home.rglob("*") if p.is_file()}
    assert f"{name}-tiny.sqlite" in written and (name == "explore" or "rq2_ap-tiny.png" in written)
    assert name == "explore" or f"written: {home}" in (work/"out.ipynb").read_text(), "it says where to look"


def test_first_cell_installs_the_wheel(built, away, tmp_path):
    "An environment that has everything but the package: a folder of links to what is installed here."
    _, work, home = away
    venv.create(tmp_path/"fresh", symlinks=True)
    fresh = tmp_path/"fresh"/"bin"/"python"
    (tmp_path/"others").mkdir()
    for folder in [Path(p) for p in sys.path if Path(p).name in ("site-packages", "dist-packages")]:
        for entry in folder.glob("*"):
            if "fairness_repair" in entry.name or (tmp_path/"others"/entry.name).is_symlink(): continue
            (tmp_path/"others"/entry.name).symlink_to(entry)
    own, = (tmp_path/"fresh"/"lib").glob("python*/site-packages")
    (own/"others.pth").write_text(str(tmp_path/"others"))
    shutil.copy(paths.nbs/"bring_your_model.ipynb", work)
    foreign = ("FAIRNESS_REPAIR_", "XDG_", "PIP_", "PYTHON")
    env = {k: v for k, v in os.environ.items() if not k.startswith(foreign)}
    env |= dict(HOME=str(home), HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1", PIP_NO_INDEX="1", PIP_NO_DEPS="1",
                FAIRNESS_REPAIR_SOURCE=str(built[1]))
    python("-m", "papermill", "bring_your_model.ipynb", "out.ipynb", program=fresh, cwd=work, env=env)
    assert (own/"fairness_repair"/"core.py").is_file() and (work/"repaired"/"model"/"config.json").is_file()
    assert {p.name for p in work.iterdir()} == {"bring_your_model.ipynb", "out.ipynb", "repaired"}
