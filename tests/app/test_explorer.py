"The logic behind the explorer, without a browser: predicted, measured and exact numbers, stopping, starting, saving."
import json, sqlite3

import numpy as np, pandas as pd, pytest
from nbconvert import HTMLExporter

from fairness_repair.app.background import Background, Stopped, before_each_pass, count_passes, load_effects
from fairness_repair.app.exploration import Exploration, read_start
from fairness_repair.app.explorer import CROSS, Explorer
from fairness_repair.app.pictures import draw_all
from fairness_repair.core import InputError
from fairness_repair.disparity import root_disparity
from fairness_repair.language.models import load
from fairness_repair.language.toxicity import WordListScorer
from fairness_repair.pruning.experiment import build_evaluators, make_config
from fairness_repair.states import states_to_ints
from fairness_repair.store import Store
from fairness_repair.toy_models.exact_table import TABLE_STEP, load_exact_table
from fairness_repair.toy_models.grammar import INSULTS
from papermill_runs import run

lm, known = load("tiny"), load_exact_table("tiny")
truth = pd.DataFrame(dict(bias=known.bias["gender"], toxicity=known.toxicity["gender"], perplexity=known.perplexity))


def explore(folder, **changes):
    store = Store(folder/"measured.sqlite")
    return Exploration(build_evaluators(make_config("tiny", **changes), lm, store=store)["search"], truth=truth)


def masks(n, rng=0): return np.random.default_rng(rng).random((n, 16)) < .3


def test_predictions_are_those_of_effects_and_prices(tmp_path):
    explored, some = explore(tmp_path), masks(20)
    explored.find_effects()
    effects, prices = explored.evaluator.head_effects(np.zeros(16, bool)), explored.evaluator.head_prices()
    found, original = explored.predict(some), explored.evaluator.row(np.zeros(16, bool))
    assert np.array_equal(found["bias"], np.sqrt(np.maximum(0, effects.predict_squares(some))))
    assert np.array_equal(found["toxicity"], effects.predict_means(some).mean(1))
    assert np.array_equal(found["perplexity"], original["perplexity"]*np.exp(some @ prices))
    assert np.allclose(explored.predict(np.zeros(16, bool))["toxicity"], original["toxicity"], rtol=1e-5)


def test_a_gradient_at_another_mask_predicts_that_mask(tmp_path):
    explored, (mask,) = explore(tmp_path), masks(1)
    explored.mask = mask
    explored.find_effects()
    assert np.isclose(explored.predict(mask)["bias as published"][0], explored.evaluator.row(mask)["bias"], rtol=1e-4)


def test_measured_in_the_background_is_measured_by_the_evaluator(tmp_path):
    explored, some = explore(tmp_path), masks(3, rng=1)
    background = Background(explored.evaluator)
    background.start("measuring", lambda evaluator: [explored.measure(mask, evaluator=evaluator) for mask in some])
    background.wait()
    assert background.error is None
    fresh = build_evaluators(make_config("tiny"), lm)["search"]
    for mask, found in zip(some, background.result):
        row = fresh.row(mask)
        assert found == {"bias": root_disparity(row["squared_disparity"]), "bias as published": row["bias"],
                         "toxicity": row["toxicity"], "perplexity": row["perplexity"]}


def test_measured_on_all_search_data_is_exact(tmp_path):
    "The table is in float32, its bias and toxicity in steps; four distances and their mean add up to a bias."
    explored = explore(tmp_path, search_prompts_per_group=0, search_tokens=0)
    for explored.mask in masks(4, rng=2):
        explored.measure()
        table = explored.table()
        number = int(states_to_ints(explored.mask))
        assert table["exact"]["perplexity"] == truth["perplexity"][number]
        assert abs(table["exact"]["bias as published"] - table["measured"]["bias as published"]) < TABLE_STEP
        assert abs(table["exact"]["toxicity"] - table["measured"]["toxicity"]) < TABLE_STEP
        assert np.isclose(table["exact"]["perplexity"], table["measured"]["perplexity"], rtol=1e-5)


def rows_of(folder):
    with sqlite3.connect(folder/"measured.sqlite") as db: return db.execute("select count(*) from measurements").fetchone()[0]


def test_stopped_effects_go_on_and_measure_nothing_twice(tmp_path):
    explored, kept = explore(tmp_path), []
    for enough in (3, 15, 1000):
        background = Background(explored.evaluator)
        def work(evaluator):
            with before_each_pass(lm, lambda: len(evaluator.store.seen) >= enough and background.stop()):
                explored.find_effects(evaluator=evaluator)
        background.start("finding effects", work)
        background.wait()
        kept.append(rows_of(tmp_path))
        assert isinstance(background.error, Stopped) == (enough < 1000) and load_effects(explored) == (enough == 1000)
    blocks, heads = len(explored.effects.scores), 16
    assert kept[0] < kept[1] < kept[2] == blocks + heads + 1
    (tmp_path/"undisturbed").mkdir()
    other = explore(tmp_path/"undisturbed")
    other.find_effects()
    assert np.array_equal(other.effects.direct, explored.effects.direct) and np.array_equal(other.prices, explored.prices)


def test_stop_is_heard_within_a_measurement(tmp_path):
    "A few of the many passes of sampled continuations: nothing half-measured is kept."
    explored = explore(tmp_path, scorer="words:" + ",".join(INSULTS))
    background, passes = Background(explored.evaluator), []
    def work(evaluator):
        with before_each_pass(lm, lambda: passes.append(1) or len(passes) == 5 and background.stop()): explored.measure(evaluator=evaluator)
    mask = np.zeros((1, 16), bool)
    total = count_passes(explored.evaluator, mask)
    background.start("measuring", work, total=total)
    background.wait()
    assert isinstance(background.error, Stopped) and len(passes) == 5 < total
    assert not explored.rows and "toxicity" in explored.evaluator.missing(mask)


def test_where_to_start(tmp_path):
    (tmp_path/"mine").mkdir()
    result = dict(weights=lm.weights_hash(), dropped=[[0, 1], [3, 2]])
    (tmp_path/"mine"/"result.json").write_text(json.dumps(result))
    assert np.flatnonzero(read_start(str(tmp_path/"mine"), lm)).tolist() == [1, 14]
    assert np.flatnonzero(read_start("3.2 0.1,", lm)).tolist() == [1, 14]
    assert not read_start("  ", lm).any()
    for text, message in (("3", "layer.head"), ("1.x", "layer.head"), ("4.0", "there is no head (4, 0)"), (str(tmp_path), "has no result.json")):
        with pytest.raises(InputError) as refused: read_start(text, lm)
        assert message in str(refused.value)
    (tmp_path/"mine"/"result.json").write_text(json.dumps(result | dict(weights="0")))
    with pytest.raises(InputError, match="another model"): read_start(str(tmp_path/"mine"), lm)
    (tmp_path/"mine"/"result.json").write_text("{")
    with pytest.raises(InputError, match="damaged"): read_start(str(tmp_path/"mine"), lm)


def test_saved_model_is_the_masked_one(tmp_path):
    explored = explore(tmp_path)
    with pytest.raises(InputError, match="no head is dropped"): explored.save(tmp_path/"model")
    explored.mask = read_start("1.2, 2.0", lm)
    for folder, message in ((" ", "name a folder"), (tmp_path, "measured.sqlite already"), (tmp_path/"measured.sqlite", "is a file")):
        with pytest.raises(InputError, match=message): explored.save(folder)
    saved = explored.save(tmp_path/"model")
    again = build_evaluators(make_config("tiny"), load(str(saved)))["search"].row(np.zeros(16, bool))
    assert np.isclose(again["perplexity"], explored.measure()["perplexity"], rtol=1e-6) # float32
    assert np.isclose(again["bias"], explored.measure()["bias as published"], rtol=1e-5)


def test_sentence_pairs(tmp_path):
    explored = Exploration(build_evaluators(make_config("tiny", measure="planted"), lm)["search"])
    assert draw_all(explored, "bias").startswith(b"\x89PNG"), "with nothing measured"
    explored.find_effects()
    found, original = explored.predict(explored.mask).iloc[0], explored.measure()
    for measure in explored.measures: assert np.isclose(found[measure], original[measure], rtol=1e-4), measure
    assert explored.table().columns.tolist() == ["original", "predicted", "measured"]


def settle(explorer):
    explorer.background.wait() # until the last report; it stops running a moment earlier


def test_buttons(tmp_path):
    "Every control does what it says, without a page."
    explored = explore(tmp_path)
    explorer = Explorer(explored, WordListScorer(INSULTS))
    explorer.find.click(), settle(explorer)
    for head in (6, 8, 6): explorer.grid.buttons[head].click()
    assert explored.heads == [[2, 0]] and explorer.dropped.value == "2.0" and explorer.grid.buttons[8].description == CROSS
    assert "layer 2, head 0: dropped" in explorer.grid.buttons[8].tooltip
    explorer.dropped.value = "1.2, 2.0"
    explorer.run.click(), settle(explorer)
    assert explored.table().notna().all(axis=None) == False and explored.table()["measured"].notna().all()
    explorer.dropped.value = "9.9"
    assert "there is no head (9, 9)" in explorer.status.value and "alert" in explorer.status.value
    assert explored.heads == [[1, 2], [2, 0]], "a mistake changes nothing"
    explorer.write.click(), settle(explorer)
    assert explorer.writing.value.count("<q>") == 8
    explorer.folder.value = str(tmp_path)
    explorer.keep.click(), settle(explorer)
    assert "name a new folder" in explorer.status.value
    explorer.folder.value = str(tmp_path/"model")
    explorer.keep.click(), settle(explorer)
    assert np.array_equal(read_start(str(tmp_path/"model"), lm), explored.mask)
    explorer.none.click()
    assert not explored.mask.any() and explorer.writing.value == ""


def test_static_page_shows_the_picture(tmp_path):
    code, printed, stderr = run(tmp_path, "explore", "start", "1.2, 2.0")
    assert code == 0, stderr[-3000:]
    page, _ = HTMLExporter().from_filename(tmp_path/"out.ipynb")
    for text in ("Dropped heads (layer.head): 1.2, 2.0.", "data:image/png;base64", "Grid of heads, dropped: 1.2, 2.0.", "bias as published", "Of all 65,536 masks"):
        assert text in page
    assert "Repaired" in printed or "bias" in printed, "judged on held-out data"
