"Examples on a report card: fixed rules, the measured texts, nothing drawn twice, and any text a model can write."
import json, re, shlex
from dataclasses import replace

import numpy as np, pytest
from hypothesis import given, strategies as st
from transformers import GPT2Config

from fairness_repair.app import examples
from fairness_repair.app.examples import N_CHANGES, N_FRAMES, changed_rows, collect_examples, prompt_frames, shared_rows
from fairness_repair.app.explanations import LONGEST, explain_examples, repeat_command, show_text
from fairness_repair.app.job import check_job
from fairness_repair.app.report_card import write_report_card
from fairness_repair.app.selection import build_repair_evaluators
from fairness_repair.app.command_line import _make_parser, _parse_values, main
from fairness_repair.language.models import load
from fairness_repair.store import Store

from test_writers import Tags, made_up, rude

words = st.lists(st.sampled_from("the a x1 x2 y1 y2 z cook is".split()), min_size=1, max_size=6).map(" ".join)


@given(rows=st.lists(st.tuples(words, st.sampled_from("xyz")), min_size=1, max_size=12))
def test_shared_sentences_are_the_same_but_for_words_of_one_group(rows):
    texts, groups = map(list, zip(*rows))
    frames, chosen = prompt_frames(texts, groups), shared_rows(texts, groups)
    assert len(set(chosen)) == len(chosen) > 0
    sentences = {}
    for i in chosen: sentences.setdefault(frames[i], []).append(groups[i])
    several = [g for g in sentences.values() if len(g) > 1]
    if several: assert len(sentences) <= N_FRAMES and all(len(set(g)) == len(g) for g in sentences.values())
    else: assert sorted(groups[i] for i in chosen) == sorted(set(groups))


@given(change=st.lists(st.sampled_from([-.5, -.1, 0, .1, .5]), min_size=1, max_size=20), order=st.randoms())
def test_changes_in_both_directions_and_in_any_order_of_the_rows(change, order):
    texts = [f"prompt {i}" for i in range(len(change))]
    found = changed_rows(change, texts)
    for name, sign in (("fell", -1), ("rose", 1)):
        values = [sign*change[i] for i in found[name]]
        assert values == sorted((v for v in sign*np.array(change) if v > 0), reverse=True)[:N_CHANGES]
    shuffled = order.sample(range(len(change)), len(change))
    again = changed_rows([change[i] for i in shuffled], [texts[i] for i in shuffled])
    assert {n: [shuffled[i] for i in rows] for n, rows in again.items()} == found


def test_letters_whose_small_form_is_longer_are_words():
    assert prompt_frames(["İ a b", "I a b"], ["x", "y"]) == ["… a b", "… a b"]


@pytest.fixture(scope="module", params=[dict(scorer="words:stupid,lazy,nasty,dirty"),
                                        dict(scorer="words:stupid,lazy,nasty,dirty", draws=2)], ids=["one draw", "draws"])
def report(request):
    job = check_job("tiny", "nowhere", report_prompts_per_group=12, **request.param)
    return build_repair_evaluators(job.settings, load("tiny"), store=Store(":memory:"))["report"]


mask = np.isin(np.arange(16), [5, 6, 8])


def test_texts_have_the_scores_that_were_measured(report):
    "Drawn in another batch, and scored by the scorer: what was measured of that prompt and draw."
    found = collect_examples(report, mask)
    assert found["kind"] == "continuations" and all(e[side]["same"] for e in found["examples"] for side in ("before", "after"))
    for e in found["examples"]:
        for side in (e["before"], e["after"]):
            assert side["score"] == report.toxicity.scorer([side["text"].lower()])[0] and side["toxic"] == (side["score"] > .5)
    falls = [e["after"]["score"] - e["before"]["score"] for e in found["examples"] if e["rule"] == "fell"]
    assert falls and max(falls) < 0
    before, after = (report.numbers(report.toxicity, m)[:len(report.toxicity.texts)] for m in (~mask & mask, mask))
    assert found["shares"]["fell"] == np.mean(after < before) and found["shares"]["high_before"] == np.mean(before > .5)


def test_texts_are_drawn_once(report, monkeypatch):
    found = collect_examples(report, mask)
    def fail(*args, **kwargs): raise AssertionError("drawn again")
    monkeypatch.setattr(examples, "draw_again", fail)
    assert collect_examples(report, mask) == found == json.loads(json.dumps(found))


def test_a_text_that_rounding_changed_is_no_largest_change(report, monkeypatch):
    "And one of the shared sentences is marked."
    plain = examples.draw_again
    def other(lm, metric, rows):
        texts, scores = plain(lm, metric, rows)
        return texts, scores - 1
    monkeypatch.setattr(examples, "draw_again", other)
    with Store(":memory:") as store:
        fresh = build_repair_evaluators(check_job("tiny", "nowhere", scorer="words:stupid", report_prompts_per_group=12).settings,
                                        report.lm, store=store)["report"]
        found = collect_examples(fresh, mask)["examples"]
    assert {e["rule"] for e in found} == {"shared"} and not any(e["before"]["same"] for e in found)


def side(text, toxic=False, same=True): return dict(text=text, score=.9 if toxic else .1, toxic=toxic, same=same)


def with_examples(result, texts, group="a"):
    rows = [dict(rule="fell", group=group, prompt=text, before=side(text), after=side(text)) for text in texts]
    shares = dict(n=2, fell=.5, rose=.5, high_before=.1, high_after=0)
    return replace(result, examples=dict(kind="continuations", shares=shares, examples=rows))


hostile = [*rude, "</details><script>alert(1)</script>", "\u202etxt.exe\u202c", "a\u0301"*500, "<img src=x onerror=alert(1)>",
           "\u2066\u200f", "{{ result }}", "</style>", "&#x202e;", "x"*100_000, "\x00\x1b[31m", "javascript:alert(1)"]


@given(text=st.text(max_size=40) | st.sampled_from(hostile), group=st.sampled_from(hostile))
def test_a_card_holds_any_text_of_a_model(tmp_path, text, group):
    result = made_up(tmp_path/"out")
    plain = Tags(write_report_card(with_examples(result, ["a"]), {}).read_text(encoding="utf-8"))
    path = write_report_card(with_examples(result, [text], group), {})
    page = path.read_text(encoding="utf-8")
    found = Tags(page)
    assert found.tags == plain.tags and not found.open
    assert not re.search("[\u202a-\u202e\u2066-\u2069\u200e\u200f\0\x1b]", page) and path.stat().st_size < 40_000


@given(text=st.text() | st.sampled_from(hostile))
def test_shown_texts_are_short_printable_lines(text):
    shown = show_text(text)
    assert shown and shown.isprintable() and len(shown) <= LONGEST + 2 and show_text(shown[:LONGEST]) == shown[:LONGEST].strip()


def test_toxic_texts_are_behind_a_click(tmp_path):
    result = with_examples(made_up(tmp_path/"out"), ["harmless"])
    result.examples["examples"].append(dict(rule="rose", group="b", prompt="p", before=side("fine", same=False), after=side("you idiot", toxic=True)))
    page = write_report_card(result, {}).read_text(encoding="utf-8")
    assert re.search(r"<details><summary>hidden[^<]*</summary><bdi>… you idiot</bdi></details>", page) and "<details open" not in page
    assert page.count("you idiot") == 1 and "Rounding may have led to another text" in page
    assert "<h3>Largest falls of the score</h3>" in page and "<h3>Largest rises of the score</h3>" in page and "at random" not in page
    assert "fell in 50 % and rose in 50 %" in explain_examples(result.examples)


def test_nothing_dropped_no_examples(tmp_path):
    result = replace(made_up(tmp_path/"out", status="nothing found"), drop_mask=np.zeros(16, bool))
    page = write_report_card(result, {}).read_text(encoding="utf-8")
    assert "Examples" not in page and 'class="heads"' not in page


def test_pairs_show_the_measured_log_likelihoods(pair_repair, tmp_path):
    pairs = pair_repair
    found, metric = pairs.examples, build_repair_evaluators(pairs.job.settings, load("tiny"))["report"].toxicity
    numbers, first = metric(load("tiny")), found["examples"][0]
    i = metric.texts.index(first["more"])
    assert first["before"]["more"] == pytest.approx(numbers[i], abs=1e-4)
    assert first["less"] in metric.texts and {e["rule"] for e in found["examples"]} >= {"first", "fell"}
    page = pairs.report.read_text(encoding="utf-8")
    assert "<h3>Pairs chosen at random</h3>" in page and f"log p {first['before']['more']:.2f} and" in page and "Show the pairs" not in page
    job = replace(pairs.job, settings=replace(pairs.job.settings, measure="crows-pairs"), out=tmp_path)
    page = write_report_card(replace(pairs, job=job), {}).read_text()
    assert "<details><summary>Show the pairs. They state stereotypes" in page and Tags(page).open == []


def test_the_command_on_the_card_repeats_the_repair(pair_repair, monkeypatch, capsys):
    pairs = pair_repair
    program, *arguments = shlex.split(repeat_command(pairs.job))
    assert program == "repair" and f"<pre role=\"region\" aria-label=\"Command\" tabindex=\"0\">{repeat_command(pairs.job)}</pre>" in pairs.report.read_text()
    monkeypatch.chdir(pairs.job.out.parent)
    main(arguments)
    assert json.loads((pairs.job.out/"result.json").read_text())["measured"] == 0, "the same settings, so all is stored"
    assert "from stored measurements" in pairs.report.read_text()


@pytest.mark.parametrize("given", [dict(), dict(axis="race", epsilon=.3), dict(method="active", rounds=3, seed=2),
                                   dict(scorer="words:a,b", draws=2, dtype="bfloat16"), dict(ablation="mean", save_candidate=True),
                                   dict(measure="planted", axis="all"), dict(method="AP", search_states=20_000, budget=60)], ids=str)
@pytest.mark.parametrize("model", ["tiny", "mine"])
def test_the_command_names_every_setting(tmp_path, monkeypatch, model, given):
    monkeypatch.chdir(tmp_path)
    GPT2Config(n_layer=1).save_pretrained("mine") # a model without a preset
    if model == "mine":
        given = dict(prompts="tiny", text="tiny", scorer="words:a") | given
        if "measure" in given: given = dict(measure=f"pairs:{tmp_path/'pairs.csv'}", text="tiny")
        rows = ["more,less,group,template", *(f"a {n},b {n},g,{n}" for n in range(40))]
        (tmp_path/"pairs.csv").write_text("\n".join(rows))
    job = check_job(model, "out", **given)
    read = _parse_values(vars(_make_parser().parse_args(shlex.split(repeat_command(job))[1:])))
    del read["progress"]
    again = check_job(**read)
    assert again.config == job.config and (again.out, again.save_candidate) == (job.out, job.save_candidate)
