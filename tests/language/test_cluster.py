"Workers that are killed, drivers that are killed: the same table as the undisturbed run, nothing lost or doubled."
import os, signal, subprocess, sys, threading, time
from importlib.util import find_spec

import numpy as np, pandas as pd, pytest

from fairness_repair.pruning.attention_pruning import Fractions
from fairness_repair.language.cluster import Replica, Team, connect, portions, share, spread
from fairness_repair.language.models import load
from fairness_repair.pruning.experiment import build_evaluator, protocol
from fairness_repair.states import Space, random_states
from fairness_repair.store import Store
from fairness_repair.language.batched import missing

from papermill_runs import count, processes_with, run

needs_ray = pytest.mark.skipif(not find_spec("ray") or os.cpu_count() < 2, reason="needs two cores and ray: pip install 'fairness_repair[cluster]'")
states = random_states(Space(16, 1, 8), 60, rng=1)
distinct = len({s.tobytes() for s in states})


def tiny_bench(store=None, lm=None): return build_evaluator(protocol("tiny"), lm or load("tiny"), "search", prompts=12, tokens=2200, store=store)


def same(found, expected):
    assert found["state"].tolist() == expected["state"].tolist()
    np.testing.assert_allclose(found.drop(columns="state").to_numpy(float), expected.drop(columns="state").to_numpy(float), rtol=1e-5, atol=1e-7)


@pytest.fixture(scope="module")
def undisturbed(): return tiny_bench()(states)


@pytest.fixture(scope="module")
def team():
    "Two workers, which stand through the tests of this file; nothing of Ray is left after them."
    found = Team(load("tiny"), "local", workers=2, patience=2)
    yield found
    found.close()
    assert not found.ray.is_initialized()


@needs_ray
@pytest.mark.parametrize("batch", [1, 7])
def test_same_table_and_every_state_once(team, undisturbed, tmp_path, batch):
    store = Store(tmp_path/"a.sqlite")
    bench = share(tiny_bench(store), team, batch=batch)
    same(bench(states), undisturbed)
    assert (bench.measured, bench.reused) == (2*distinct, 2*(len(states) - distinct))
    assert count(tmp_path/"a.sqlite") == 2*distinct
    again = share(tiny_bench(store), team)
    same(again(states), undisturbed)
    assert again.measured == 0


@needs_ray
def test_states_that_meet_a_part_of_the_data(team):
    part = lambda: Fractions(tiny_bench(), eta_bias=.5, eta_ppl=.5)
    bench, alone = share(part(), team), part()
    same(bench(states), alone(states))
    assert (bench.measured, bench.reused) == (alone.measured, alone.reused)


@needs_ray
def test_a_killed_worker_costs_its_batch(team, undisturbed, tmp_path):
    store, before = Store(tmp_path/"b.sqlite"), team.lost
    bench = share(tiny_bench(store), team, batch=2)
    pid = team.ray.get(team.workers[0].ready.remote())
    def kill():
        while count(tmp_path/"b.sqlite") < 10: time.sleep(.01)
        os.kill(pid, signal.SIGKILL)
    killer = threading.Thread(target=kill)
    killer.start()
    same(bench(states), undisturbed)
    killer.join()
    assert count(tmp_path/"b.sqlite") == bench.measured == 2*distinct and team.lost == before + 1
    assert team.ray.get(team.workers[0].ready.options(max_task_retries=-1).remote(), timeout=120) != pid, "the worker stands again"


@needs_ray
def test_other_weights_and_too_many_workers_are_refused(team):
    lm = load("tiny")
    replica = team.ray.remote(Replica).options(num_cpus=0).remote(dict(name="tiny-equal", dtype="float32", device="cpu"), lm.weights_hash(), 1)
    with pytest.raises(ValueError, match="save the driver's model"): team.ray.get(replica.ready.remote(), timeout=120)
    team.ray.kill(replica)
    with pytest.raises(ValueError, match="workers = 1000: the cluster has room for"): Team(lm, "local", workers=1000)


class Deadly:
    "A probe that kills its worker."
    groups = np.array(["a", "b"])
    @property
    def description(self): return dict(probe=type(self).__name__)
    def __call__(self, lm): os.kill(os.getpid(), signal.SIGKILL)


class Wrong(Deadly):
    def __call__(self, lm): raise KeyError("no such thing")


@needs_ray
@pytest.mark.parametrize("probe, error, message", [(Wrong, KeyError, "no such thing"), (Deadly, RuntimeError, "too little memory")])
def test_what_would_come_again_is_an_error(team, probe, error, message):
    bench = tiny_bench()
    bench.toxicity = probe()
    team.ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with pytest.raises(error, match=message): share(bench, team)(states[:1])


script = """
import sys
from fairness_repair.language.cluster import spread
from fairness_repair.language.models import load
from fairness_repair.pruning.experiment import build_bench, protocol
from fairness_repair.states import Space, random_states
from fairness_repair.store import Store
bench = build_bench(protocol("tiny"), load("tiny"), "search", prompts=12, tokens=2200, store=Store(sys.argv[1]))
bench = spread(dict(search=bench), "local", workers=2)["search"]
bench(random_states(Space(16, 1, 8), 60, rng=1)).to_csv(sys.argv[2], index=False)
print("measured", bench.measured)
bench.team.close()
"""


@needs_ray
def test_a_killed_driver_goes_on_where_it_stopped(undisturbed, tmp_path):
    command = [sys.executable, "-c", script, str(tmp_path/"c.sqlite"), str(tmp_path/"c.csv")]
    env = os.environ | dict(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", THIS_TEST=str(tmp_path))
    driver = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while count(tmp_path/"c.sqlite") < 20 and driver.poll() is None and time.monotonic() < deadline: time.sleep(.005)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    kept = count(tmp_path/"c.sqlite")
    assert 20 <= kept < 2*distinct and not (tmp_path/"c.csv").exists(), "the driver was to be killed in mid-run"
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"measured {2*distinct - kept}" in done.stdout
    assert count(tmp_path/"c.sqlite") == 2*distinct
    same(pd.read_csv(tmp_path/"c.csv", dtype=dict(state=str)), undisturbed)
    while (left := processes_with(f"THIS_TEST={tmp_path}")) and time.monotonic() < deadline + 60: time.sleep(.2)
    assert not left, "workers end with their driver, even a killed one"


@needs_ray
def test_the_main_job_gives_the_same_table_over_a_cluster(tmp_path):
    tables = []
    for cluster in ("", "local"):
        folder = tmp_path/f"with-{cluster}"
        folder.mkdir()
        code, _, stderr = run(folder, "rq2_ap", "budget", 40, "seeds", 1, "cluster", cluster)
        assert code == 0, stderr[-3000:]
        tables.append(pd.read_csv(folder/"figures"/"rq2_ap-tiny-runs.csv", dtype=dict(state=str)))
    pd.testing.assert_frame_equal(*tables)


def test_nothing_is_asked_for_twice():
    bench = tiny_bench()
    bench(states[:2])
    wanted = missing(bench, np.concatenate([states[:4], states[:4]]))
    assert {name: len(s) for name, s in wanted.items()} == dict(toxicity=2, reading=2)
    assert [len(s) for _, s in portions(wanted, 1)] == [1]*4


def test_no_cluster_means_the_same_benches():
    benches = dict(search=object())
    assert spread(benches, "") is benches


@pytest.mark.skipif(bool(find_spec("ray")), reason="ray is installed")
def test_without_ray_the_message_says_how_to_get_it():
    with pytest.raises(ValueError, match="pip install"): connect("local")
