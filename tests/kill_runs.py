"""Kill runs at random moments, start them again, and compare them with a run that nobody has disturbed.

    python tests/kill_runs.py                        # 100 kills of `repair tiny`, 20 of a NeuFair search
    python tests/kill_runs.py --repairs 10 --searches 0 --seed 1

Each kill is a SIGKILL, followed by the same command in the same folder, until one of them ends by itself. Half of the kills fall
anywhere in the time that an undisturbed run takes, the others into saving: from the moment at which result.json appears.
Modules are imported once, and every run is a fork that ends or is killed. The exit code is 1 if any result differs.
"""
import argparse, contextlib, hashlib, json, os, random, signal, sys, tempfile, time
from pathlib import Path

os.environ |= dict(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", FAIRNESS_REPAIR_CACHE=tempfile.mkdtemp())

from fairness_repair.app.command_line import main
from fairness_repair.core import git_commit
from fairness_repair.store import Store
from fairness_repair.tabular.neufair import experiment_configs, run_experiment


def repair_tiny(folder): main(["tiny", "--out", str(folder/"out"), "--no-progress"])


def search_neufair(folder):
    configs = experiment_configs("adult", networks="quick", seeds=2, strategies=["SA", "RW"], budget=500)
    with Store(folder/"neufair.sqlite") as store: rows = run_experiment(store, configs)
    (folder/"result.json").write_text(rows.to_json(orient="records"))


def digest(file): return hashlib.sha256(file.read_bytes()).hexdigest()


def repaired(folder):
    "Everything in result.json but when, how long, and what was measured now or before; and the files of the model."
    out = folder/"out"
    record = json.loads((out/"result.json").read_text())
    for name in ("date", "seconds", "measured", "reused"): del record[name]
    files = [*sorted((out/"model").glob("*.json")), out/"model"/"model.safetensors", *sorted(out.glob("figures/*.png"))]
    return record, {str(file.relative_to(out)): digest(file) for file in files}


def found(folder):
    "Every answer but when, how long and on what it was computed."
    rows = json.loads((folder/"result.json").read_text())
    return [{k: v for k, v in row.items() if k not in ("date", "seconds", "commit", "hardware", "states_per_second")} for row in rows]


def start(job, folder):
    "A run as a process of its own."
    child = os.fork()
    if child: return child
    code = 1
    try:
        os.setsid()
        with open(folder/"log.txt", "a") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log): job(folder)
        code = 0
    except SystemExit as stop: code = stop.code or 0
    except BaseException:
        import traceback
        with open(folder/"log.txt", "a") as log: traceback.print_exc(file=log)
    finally: os._exit(code)


def wait(child, seconds, until=lambda: False):
    "Wait until a time has passed or something has happened; whether the run has ended by itself."
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not until():
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            if status: raise SystemExit("a run failed by itself:\n" + status_text(status))
            return True
        time.sleep(.002)
    return False


def status_text(status): return f"exit code {os.waitstatus_to_exitcode(status)}, see log.txt"


def stamp(file): return file.stat().st_mtime_ns if file.exists() else None


def let_run(child, folder, marker, takes, rng):
    "Let a run go on until a random moment; whether it has ended before."
    if not marker or rng.random() < .5: return wait(child, rng.uniform(0, takes))
    before = stamp(folder/marker)
    return wait(child, 3600, until=lambda: stamp(folder/marker) != before) or wait(child, rng.uniform(0, .15*takes))


def kill_again_and_again(name, job, outcome, kills, rng, scratch, marker=None):
    "Kill runs until there were so many kills; how many of the results differ from the undisturbed one."
    def new(suffix):
        (folder := scratch/f"{name}-{suffix}").mkdir()
        return folder
    folder, begun = new("undisturbed"), time.monotonic()
    assert wait(start(job, folder), 3600), "the undisturbed run does not end"
    takes, expected, done, chains, different = time.monotonic() - begun, outcome(folder), 0, 0, 0
    print(f"{name}: undisturbed in {takes:.1f} s", flush=True)
    while done < kills:
        chains, before, folder, begun = chains + 1, done, new(chains + 1), time.monotonic()
        while True:
            child = start(job, folder)
            if let_run(child, folder, marker, takes, rng) if done < kills else wait(child, 3600): break
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            done += 1
        if done == before: takes = min(takes, time.monotonic() - begun) # the first run was slow
        equal = outcome(folder) == expected
        different += not equal
        print(f"{name}: chain {chains}, {done - before} kills, {'as undisturbed' if equal else f'DIFFERS: {folder}'}", flush=True)
    print(f"{name}: {done} kills in {chains} chains, {different} results differ", flush=True)
    return different


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repairs", type=int, default=100, help="kills of repair tiny")
    parser.add_argument("--searches", type=int, default=20, help="kills of a NeuFair search")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    git_commit() # looked up once, for all runs
    rng, scratch, wrong = random.Random(given.seed), Path(tempfile.mkdtemp(prefix="kill_runs-")), 0
    if given.repairs: wrong += kill_again_and_again("repair tiny", repair_tiny, repaired, given.repairs, rng, scratch, marker="out/result.json")
    if given.searches: wrong += kill_again_and_again("NeuFair search", search_neufair, found, given.searches, rng, scratch)
    sys.exit(wrong > 0)
