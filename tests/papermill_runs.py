"Research questions run as a user runs them, with figures and results in a folder of their own."
import csv, os, sqlite3, subprocess, sys
from pathlib import Path

import nbformat, psutil
from papermill.translators import PythonTranslator

from fairness_repair.core import InputError, paths
from fairness_repair.report import output_name


def start(folder, notebook, *parameters, out="out.ipynb", **environment):
    "A papermill process: parameters are name, value, name, value; without `out` it writes the notebook to its output."
    env = os.environ | dict(FAIRNESS_REPAIR_FIGURES=str(folder/"figures"), FAIRNESS_REPAIR_RESULTS=str(folder/"results"), OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1") | environment
    flat = [str(p) for pair in zip(parameters[::2], parameters[1::2]) for p in ("-p", *pair)]
    command = [str(Path(sys.executable).with_name("papermill")), str(paths.nbs/f"{notebook}.ipynb"), *([str(folder/out)] if out else []), *flat]
    return subprocess.Popen(command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def run(folder, notebook, *parameters, out="out.ipynb", **environment):
    "Exit code, what the notebook printed (without `out`: the notebook), and papermill's messages."
    stdout, stderr = (process := start(folder, notebook, *parameters, out=out, **environment)).communicate(timeout=900) # beside other work, Ray's workers wait for the cores
    if not out: return process.returncode, stdout, stderr
    cells = nbformat.read(folder/out, 4).cells if (folder/out).exists() else []
    return process.returncode, "\n".join(o.get("text", "") for c in cells for o in c.get("outputs", []) if o.get("name") == "stdout"), stderr


def count(store, table="measurements"):
    "Rows in a store that somebody else may be writing."
    if not store.exists(): return 0
    try: return sqlite3.connect(f"file:{store}?mode=ro", uri=True).execute(f"select count(*) from {table}").fetchone()[0]
    except sqlite3.Error: return 0


def processes_with(setting):
    "Processes whose environment has a setting, as name=value."
    name, _, value = setting.partition("=")
    found = []
    for process in psutil.process_iter():
        try: environment = process.environ()
        except psutil.Error: continue
        if environment.get(name) == value: found.append(process.pid)
    return found


def table(folder, name):
    with open(folder/"figures"/f"{output_name(name)}.csv") as f: return list(csv.DictReader(f))


def refusal(notebook, *parameters):
    "What a notebook's first cells say of parameters that they refuse, run in this process as papermill would run them."
    code = [c for c in nbformat.read(paths.nbs/f"{notebook}.ipynb", 4).cells if c.cell_type == "code"]
    at = next(i for i, c in enumerate(code) if "parameters" in c.metadata.get("tags", []))
    cells = [c.source for c in code[at:]]
    told = "\n".join(["# Parameters", *(f"{name} = {PythonTranslator.translate(value)}" for name, value in zip(parameters[::2], parameters[1::2]))])
    space = dict(In=[])
    for cell in (cells[0], told, *cells[1:7]):
        space["In"].append(cell)
        try: exec(cell, space)
        except InputError as refused: return str(refused)
    return ""
