"""Sentence pairs: likelihoods equal a plain loop, gradients equal finite differences, intervals keep their promise."""
import numpy as np, pandas as pd, pytest, torch

import needs
from fairness_repair.core import InputError
from fairness_repair.language.ablation import ByLayer
from fairness_repair.language.batched import Batched, measure_batched
from fairness_repair.language.cluster import distribute
from fairness_repair.language.evaluator import Evaluator
from fairness_repair.language.head_effects import measure_head_effects
from fairness_repair.language.heads import heads_dropped, prune
from fairness_repair.language.models import load
from fairness_repair.language.pair_preference import PairPreference, absolute_change, clustered_mean
from fairness_repair.language.sentence_pairs import load_pairs, make_pairs, read_pairs, sample_pairs
from fairness_repair.language.subsampling import Subsampling
from fairness_repair.toy_models.planted_pairs import planted_preference

@pytest.fixture(scope="module")
def lm(): return load("tiny")

@pytest.fixture(scope="module")
def pairs(): return load_pairs("planted", "gender")["search"].iloc[:24]

@pytest.fixture(scope="module")
def metric(lm, pairs): return PairPreference(lm, pairs)

def states_of(lm):
    states = np.zeros((4, lm.n_heads_total), bool)
    states[1, 3], states[2, [0, 5, 9]], states[3, 12] = True, True, True
    return states

def test_the_log_likelihood_is_that_of_a_plain_loop(lm, pairs, metric):
    for text, found in zip([*pairs["more"][:3]], metric(lm)):
        ids = [lm.tokenizer.bos_token_id, *lm.tokenizer(text, add_special_tokens=False)["input_ids"]]
        with torch.inference_mode(): log_p = lm.model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
        assert found == pytest.approx(sum(log_p[i, ids[i + 1]].item() for i in range(len(ids) - 1)), abs=1e-4)

@pytest.mark.parametrize("name", ["tiny", "tiny-equal"])
def test_the_planted_preference_is_found_and_absent_where_none_was_planted(name):
    lm = load(name)
    metric = PairPreference(lm, load_pairs("planted")["report"])
    found = metric.by_group(metric(lm))["preference"]
    for axis, preference in found.items():
        assert preference == pytest.approx(planted_preference(axis, name), abs=.3), axis

def test_all_backends_give_the_same_numbers(lm, metric):
    states, tables = states_of(lm), []
    for backend in (None, Batched(size=3), ByLayer()):
        tables.append(Evaluator(lm, metric, None, backend=backend)(states))
        assert tables[-1]["bias"].to_numpy() == pytest.approx(tables[0]["bias"].to_numpy(), abs=1e-4)
    with heads_dropped(lm.model, states[2]): assert tables[0]["preference"][2] == metric.preferences(metric(lm)).mean()

@needs.ray
def test_workers_give_the_same_numbers(lm, metric):
    evaluator = distribute(dict(search=Evaluator(lm, metric, None)), "local")["search"]
    try: found = evaluator(states_of(lm))["preference"]
    finally: evaluator.backend.close()
    serial = Evaluator(lm, metric, None)(states_of(lm))["preference"]
    assert found.to_numpy() == pytest.approx(serial.to_numpy(), abs=1e-4)

def test_a_mask_equals_zeroed_weights(metric):
    lm, mask = load("tiny"), states_of(load("tiny"))[2]
    with heads_dropped(lm.model, mask): masked = metric(lm)
    prune(lm.model, mask)
    np.testing.assert_allclose(metric(lm), masked, atol=1e-4)

def test_gradients_equal_finite_differences(pairs):
    "In float64, at a state with dropped heads: the central difference errs by h^2 times a third derivative."
    from fairness_repair.language.head_gradients import heads_gated
    lm = load("tiny")
    lm.model.double()
    metric, gates, h = PairPreference(lm, pairs.iloc[:4]), 1. - states_of(lm)[2], 1e-2
    gates[gates.nonzero()[0][:2]] = .5
    found = metric.gradients(lm, gates)
    def at(gates):
        with heads_gated(lm.model, torch.tensor(gates)[None]): return metric(lm)
    np.testing.assert_allclose(found.scores, at(gates))
    for head in range(0, lm.n_heads_total, 3):
        step = h*np.eye(lm.n_heads_total)[head]
        numeric = (at(gates + step) - at(gates - step))/(2*h)
        np.testing.assert_allclose(found.direct[:, head], numeric, atol=2e-3)

def test_groups_of_sentences_give_the_effect_on_the_preference(lm, metric):
    "The head effects that gradient search ranks by, which know groups only, predict the preference."
    effects = measure_head_effects(lm, metric, n_blocks=4)
    gradient = metric.gradients(lm, np.ones(lm.n_heads_total)).direct
    slope = -np.stack([metric.preferences(column) for column in gradient.T]).mean(1)
    assert effects.groups == ["less", "more"]
    difference = effects.direct.mean(0)[1] - effects.direct.mean(0)[0]
    np.testing.assert_allclose(difference, slope, atol=1e-4)

def test_a_subset_keeps_whole_pairs(lm, metric):
    part = metric.subset(metric.draw_rows(.25, np.random.default_rng(0)))
    rows = part.pair[:len(part.texts)//2]
    assert metric.preferences(metric(lm))[rows] == pytest.approx(part.preferences(part(lm)), abs=1e-4)
    assert part.size() == dict(pairs=6) and list(part.templates) == list(metric.templates[rows])
    sub = Evaluator(lm, metric, None, subsampling=Subsampling(eta_bias=.5))
    assert sub(states_of(lm)[:2])["pairs"].tolist() == [12, 12]
    with pytest.raises(InputError, match="not complete"): metric.subset([0, 1, 2, 3]).columns(np.zeros(4))

def test_the_record_depends_on_the_tokens_only(lm, pairs, metric):
    assert PairPreference(lm, pairs.assign(group="x")).to_record() == metric.to_record()
    assert PairPreference(lm, pairs.iloc[::-1]).to_record() != metric.to_record()

def test_a_model_without_a_first_token_refuses_pairs_that_begin_differently(lm, pairs, monkeypatch):
    other = load("tiny")
    for name in ("bos_token", "eos_token"): setattr(other.tokenizer, name, None)
    other.tokenizer.backend_tokenizer.post_processor = None
    plain = other.tokenizer("the cook", add_special_tokens=False)["input_ids"]
    if other.tokenizer("the cook")["input_ids"] != plain: pytest.skip()
    assert len(PairPreference(other, pairs)(other)) == 2*len(pairs)
    unlike = make_pairs([("the cook is kind", "that cook is kind", "gender", i) for i in range(2)])
    with pytest.raises(InputError, match="no probability"): PairPreference(other, unlike)

# ---- statistics

def test_clustered_errors_are_those_of_the_cluster_means():
    "With clusters of one size, the standard error is the one of the cluster means."
    rng = np.random.default_rng(0)
    values = (rng.normal(size=(30, 1)) + rng.normal(size=(30, 4))).ravel()
    means = values.reshape(30, 4).mean(1)
    assert clustered_mean(values, np.repeat(np.arange(30), 4)).se == pytest.approx(means.std(ddof=1)/30**.5)

def test_the_change_is_the_smaller_of_difference_and_sum():
    rng = np.random.default_rng(1)
    for a, b in rng.normal(size=(50, 2)):
        found = absolute_change(np.full(3, b), np.full(3, a), range(3))
        assert found["change"] == pytest.approx(np.sign((a - b)*(a + b))*min(abs(a - b), abs(a + b)))
        assert found["change_ci_low"] == pytest.approx(found["change"]) == found["change_ci_high"]

# true preference before and after, in standard errors of one mean, and how the noise of the two is correlated
TRUTHS = [(0, 0, .9), (2, 2, .9), (5, 5, .9), (5, -5, 0), (0, 3, 0), (4, 0, 0), (4, 0, .9)]

@pytest.mark.parametrize("before, after, correlation", TRUTHS)
def test_the_interval_keeps_its_promise(before, after, correlation):
    """60 templates of two pairs, 400 repetitions: no false fall or rise in more than 2.5 %, coverage of at least
    92.5 %, each give or take three binomial standard errors."""
    rng, n, k, falls, rises, covered = np.random.default_rng(0), 400, 60, 0, 0, 0
    truth = (abs(after) - abs(before))/k**.5
    for _ in range(n):
        noise = rng.multivariate_normal([0, 0], [[1, correlation], [correlation, 1]], size=k)
        values = np.repeat(noise + np.array([before, after])/k**.5, 2, axis=0)
        found = absolute_change(*values.T, np.repeat(np.arange(k), 2))
        falls, rises = falls + (found["change_ci_high"] < 0), rises + (found["change_ci_low"] > 0)
        covered += found["change_ci_low"] - 1e-12 <= truth <= found["change_ci_high"] + 1e-12
        assert (found["p"] < .05) == (found["change_ci_high"] < 0 or found["change_ci_low"] > 0)
    spread = lambda share: 3*(n*share*(1 - share))**.5
    if truth >= 0: assert falls <= .025*n + spread(.025)
    if truth <= 0: assert rises <= .025*n + spread(.025)
    assert covered >= .925*n - spread(.925)

# ---- data

@pytest.mark.parametrize("source", ["winobias", "winogender", "planted"])
def test_no_template_is_in_two_splits(source):
    parts = load_pairs(source)
    templates = [set(part["group"] + part["template"]) for part in parts.values()]
    shared = (templates[0] | templates[1]) & templates[2]
    assert not templates[0] & templates[1] and not shared
    sentences = [set(part["more"]) | set(part["less"]) for part in parts.values()]
    assert not sentences[0] & sentences[2] and not sentences[1] & sentences[2]

def test_he_and_she_are_typical_equally_often_in_winobias():
    for part in load_pairs("winobias").values():
        assert part["more"].str.contains(r"\b(?:he|him|his|himself)\b").mean() == pytest.approx(.5, abs=.02)

@needs.data
def test_crows_pairs_has_its_published_size():
    pairs = pd.concat(load_pairs("crows-pairs").values())
    assert len(pairs) == 1508 and pairs["group"].value_counts()[["race", "gender"]].tolist() == [516, 262]

def write(folder, *lines):
    path = folder/"mine.csv"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path

GOOD = [f"La médica {i} llegó.,El médico {i} llegó.,género" for i in range(10)]

@pytest.mark.parametrize("lines, message", [
    (["more,less,group", *GOOD, "sola,,género"], "mine.csv line 12 has an empty less: fill it in, or remove"),
    (["more,less,group", *GOOD, "sola"], "mine.csv line 12 has an empty less: fill it in, or remove"),
    (["more,less,group", *GOOD, "a,b,c,d"], "line 12 has more cells than the header: put a text with commas in"),
    (["more,less,group", *GOOD, "igual,igual,género"], "line 12: more and less are the same .*: change one, or remove"),
    (["more,less,group", GOOD[0]], r"group 'género' has 1 different pair.*: add pairs"),
    (["more,less,group", *GOOD[:1]*40], r"group 'género' has 1 different pair.*: add pairs"),
    (["more,lass,group", *GOOD], "no column 'less'.*Did you mean 'lass'"),
    (["more;less;group", *GOOD], "mine.csv has no column .*more;less;group.*: separate columns with commas"),
    (["more,less,group"], "has no rows"), ([""], "has no rows")])
def test_a_bad_csv_gets_one_clear_error(tmp_path, lines, message):
    with pytest.raises(InputError, match=message) as error: read_pairs(write(tmp_path, *lines))
    assert "\n" not in str(error.value)

def test_forty_own_pairs_in_two_languages(tmp_path, lm):
    english = [f"the cook {i} is kind.,the baker {i} is kind.,work" for i in range(20)]
    others = [line.replace(" llegó", " salió") for line in GOOD]
    path = write(tmp_path, "more,less,group,note", *[line + "," for line in english + GOOD + others])
    parts = load_pairs(f"pairs:{path}")
    assert {name: len(part) for name, part in parts.items()} == dict(search=16, selection=8, report=16)
    assert set(load_pairs(f"pairs:{path}", "género")["search"]["group"]) == {"género"}
    with pytest.raises(InputError, match="unknown axis 'race'"): load_pairs(f"pairs:{path}", "race")
    with pytest.raises(InputError, match="there is no file .*none.csv"): load_pairs("pairs:none.csv")

def test_larger_samples_contain_smaller_ones():
    pairs = load_pairs("planted")["report"]
    small, large = (set(sample_pairs(pairs, n)["more"]) for n in (5, 9))
    assert small < large and len(sample_pairs(pairs, 10**6)) == len(pairs)

def test_sentences_that_a_tokenizer_reads_alike_are_named_as_they_were_given(lm):
    alike = make_pairs([(f"Ella lee {i}.", f"Él lee {i}.", "género", i) for i in range(2)])
    with pytest.raises(InputError, match="'Ella lee 0.' and 'Él lee 0.' have the same tokens"): PairPreference(lm, alike)
