"Workers or drivers are killed: the table is that of the undisturbed run, nothing is lost or doubled."
import os, signal, subprocess, sys, threading, time
from importlib.util import find_spec

import numpy as np, pandas as pd, pytest

from fairness_repair.language.cluster import Distributed, Replica, Team, connect, distribute, split_tasks
from fairness_repair.language.evaluator import Evaluator
from fairness_repair.language.model_metrics import Metric
from fairness_repair.language.models import load
from fairness_repair.language.subsampling import Subsampling
from fairness_repair.pruning.experiment import build_evaluator, make_config
from fairness_repair.states import SearchSpace, random_states
from fairness_repair.store import Store

import needs
from papermill_runs import count, processes_with, run

states = random_states(SearchSpace(16, 1, 8), 60, rng=1)
distinct = len({s.tobytes() for s in states})


def tiny_evaluator(**options):
    return build_evaluator(make_config("tiny"), load("tiny"), "search", prompts=12, tokens=2200, **options)


def same(found, expected):
    assert found["state"].tolist() == expected["state"].tolist()
    numbers = [table.drop(columns="state").to_numpy(float) for table in (found, expected)]
    np.testing.assert_allclose(*numbers, rtol=1e-5, atol=1e-7)


@pytest.fixture(scope="module")
def undisturbed(): return tiny_evaluator()(states)


@pytest.fixture(scope="module")
def team():
    "Two workers, which stand through the tests of this file; nothing of Ray is left after them."
    found = Team(load("tiny"), "local", workers=2, max_deaths=2)
    yield found
    found.close()
    assert not found.ray.is_initialized()


@needs.ray
@pytest.mark.parametrize("job_size", [1, 7])
def test_same_table_and_every_state_once(team, undisturbed, tmp_path, job_size):
    store = Store(tmp_path/"a.sqlite")
    evaluator = tiny_evaluator(store=store, backend=Distributed(team, job_size=job_size))
    same(evaluator(states), undisturbed)
    assert (evaluator.counts.measured, evaluator.counts.reused) == (2*distinct, 2*(len(states) - distinct))
    assert count(tmp_path/"a.sqlite") == 2*distinct
    again = tiny_evaluator(store=store, backend=Distributed(team))
    same(again(states), undisturbed)
    assert again.counts.measured == 0


@needs.ray
def test_subsampled_states(team):
    half = dict(subsampling=Subsampling(eta_bias=.5, eta_ppl=.5))
    shared, alone = tiny_evaluator(backend=Distributed(team), **half), tiny_evaluator(**half)
    same(shared(states), alone(states))
    assert (shared.counts.measured, shared.counts.reused) == (alone.counts.measured, alone.counts.reused)


@needs.ray
def test_a_killed_worker_loses_one_job(team, undisturbed, tmp_path):
    before = team.deaths
    evaluator = tiny_evaluator(store=Store(tmp_path/"b.sqlite"), backend=Distributed(team, job_size=2))
    pid = team.ray.get(team.workers[0].ready.remote())
    def kill():
        while count(tmp_path/"b.sqlite") < 10: time.sleep(.01)
        os.kill(pid, signal.SIGKILL)
    killer = threading.Thread(target=kill)
    killer.start()
    same(evaluator(states), undisturbed)
    killer.join()
    assert count(tmp_path/"b.sqlite") == evaluator.counts.measured == 2*distinct and team.deaths == before + 1
    restarted = team.workers[0].ready.options(max_task_retries=-1).remote()
    assert team.ray.get(restarted, timeout=120) != pid, "the worker has restarted"


@needs.ray
def test_other_weights_and_too_many_workers_are_refused(team):
    lm = load("tiny")
    other = dict(name="tiny-equal", dtype="float32", device="cpu")
    replica = team.ray.remote(Replica).options(num_cpus=0).remote(other, lm.weights_hash(), 1)
    with pytest.raises(ValueError, match="save the driver's model"):
        team.ray.get(replica.ready.remote(), timeout=120)
    team.ray.kill(replica)
    with pytest.raises(ValueError, match="workers = 1000: the cluster has room for"):
        Team(lm, "local", workers=1000)


class Deadly(Metric):
    "A metric that kills its worker."
    def to_record(self): return dict(probe=type(self).__name__)
    def measure(self, lm): os.kill(os.getpid(), signal.SIGKILL)


class Wrong(Deadly):
    def measure(self, lm): raise KeyError("no such thing")


@needs.ray
@pytest.mark.parametrize("metric, error, message", [
    (Wrong, KeyError, "no such thing"), (Deadly, RuntimeError, "too little memory")])
def test_what_would_occur_again_is_an_error(team, metric, error, message):
    team.ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    evaluator = Evaluator(team.lm, metric(), None, backend=Distributed(team))
    with pytest.raises(error, match=message): evaluator(states[:1])


script = """
import sys
from fairness_repair.language.cluster import distribute
from fairness_repair.language.models import load
from fairness_repair.pruning.experiment import build_evaluator, make_config
from fairness_repair.states import Space, random_states
from fairness_repair.store import Store
store = Store(sys.argv[1])
evaluator = build_evaluator(make_config("tiny"), load("tiny"), "search", prompts=12, tokens=2200, store=store)
evaluator = distribute(dict(search=evaluator), "local", workers=2)["search"]
evaluator(random_states(Space(16, 1, 8), 60, rng=1)).to_csv(sys.argv[2], index=False)
print("measured", evaluator.counts.measured)
evaluator.backend.close()
"""


@needs.ray
def test_a_killed_driver_goes_on_where_it_stopped(undisturbed, tmp_path):
    command = [sys.executable, "-c", script, str(tmp_path/"c.sqlite"), str(tmp_path/"c.csv")]
    env = os.environ | dict(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", THIS_TEST=str(tmp_path))
    driver = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while count(tmp_path/"c.sqlite") < 20 and driver.poll() is None and time.monotonic() < deadline:
        time.sleep(.005)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    kept = count(tmp_path/"c.sqlite")
    assert 20 <= kept < 2*distinct and not (tmp_path/"c.csv").exists(), "the driver is killed in mid-run"
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"measured {2*distinct - kept}" in done.stdout
    assert count(tmp_path/"c.sqlite") == 2*distinct
    same(pd.read_csv(tmp_path/"c.csv", dtype=dict(state=str)), undisturbed)
    while (left := processes_with(f"THIS_TEST={tmp_path}")) and time.monotonic() < deadline + 60:
        time.sleep(.2)
    assert not left, "workers end with their driver, even a killed one"


@needs.ray
def test_the_main_job_gives_the_same_table_over_a_cluster(tmp_path):
    tables = []
    for cluster in ("", "local"):
        folder = tmp_path/f"with-{cluster}"
        folder.mkdir()
        code, _, stderr = run(folder, "rq2_ap", "budget", 40, "seeds", 1, "cluster", cluster)
        assert code == 0, stderr[-3000:]
        tables.append(pd.read_csv(folder/"figures"/"ap"/"rq2_ap-tiny-runs.csv", dtype=dict(state=str)))
    pd.testing.assert_frame_equal(*tables)


def test_nothing_is_measured_twice():
    evaluator = tiny_evaluator()
    evaluator(states[:2])
    tasks = evaluator.missing(np.concatenate([states[:4], states[:4]]))
    assert {name: len(missing) for name, (_, missing) in tasks.items()} == dict(toxicity=2, text=2)
    assert [len(job.states) for job in split_tasks(tasks, 1)] == [1]*4


def test_no_cluster_means_the_same_evaluators():
    evaluators = dict(search=object())
    assert distribute(evaluators, "") is evaluators


@pytest.mark.skipif(bool(find_spec("ray")), reason="shows the message where Ray is missing; Ray is installed")
def test_without_ray_the_message_says_how_to_get_it():
    with pytest.raises(ValueError, match="pip install"): connect("local")
