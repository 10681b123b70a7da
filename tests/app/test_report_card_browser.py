"Report cards in a real browser: on a phone, in the dark, on paper, by keyboard, and inside of a notebook's page."
import re
from dataclasses import replace

import numpy as np, pytest

from browser import chromium, new_page, overflow, violations
from fairness_repair.app.figures import save_figures
from fairness_repair.app.report_card import write_report_card
from fairness_repair.app.verdict import STATUSES
from test_examples import hostile, side, with_examples
from test_writers import made_up

TOXIC = "you are a stupid idiot"


def pair(rule):
    sides = dict(before=dict(more=-20., less=-22.), after=dict(more=-21., less=-21.5))
    return dict(rule=rule, group="work", more="She is a nurse.", less="He is a nurse.", **sides)


@pytest.fixture(scope="module")
def cards(tmp_path_factory):
    "A card of each kind: name -> file."
    folder, made = tmp_path_factory.mktemp("cards"), {}
    for status in STATUSES:
        result = with_examples(made_up(folder/status, status=status, save_candidate=True), ["a text"])
        result.examples["examples"][0]["after"] = side(TOXIC, toxic=True)
        if status.startswith("nothing"): result = replace(result, drop_mask=np.zeros(16, bool), examples={})
        made[status] = result
    drawn = {name: save_figures(result, folder/"figures"/name) for name, result in made.items() if name in ("repaired", "nothing found")}
    large = replace(made["repaired"], grid=(32, 32), drop_mask=np.arange(1024) % 37 == 0)
    made["large"] = replace(large, job=replace(large.job, out=folder/"large", ablation="mean"))
    made["rude"] = with_examples(made_up(folder/"rude", "w"*300, "$a<b>"*40, "m"*300, "s"*300), hostile[-12:], "g"*300)
    for measure in ("winobias", "crows-pairs"):
        job = replace(made["repaired"].job, out=folder/measure, settings=replace(made["repaired"].job.settings, measure=measure))
        table = made["repaired"].table.assign(measure=["bias", "preference", "share preferred", "toxicity", "perplexity"]).drop(index=3)
        shares = dict(n=9, fell=.5, rose=.4, high_before=.6, high_after=.5)
        made[measure] = replace(made["repaired"], job=job, table=table, examples=dict(kind="pairs", shares=shares, examples=[pair("first"), pair("fell")]))
    return {name: write_report_card(result, drawn.get(name, {})) for name, result in made.items()}


@pytest.mark.parametrize("kind", [*STATUSES, "large", "rude", "winobias", "crows-pairs"])
def test_every_card_is_accessible_and_fits_a_phone(cards, new_page, kind):
    page = new_page(390)
    page.goto(cards[kind].as_uri())
    assert overflow(page) == 0
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert overflow(page) == 0
    if kind != "large": assert violations(page) == []
    assert page.foreign == [] and page.errors == [] and page.locator("script, link, iframe").count() == 0


@pytest.mark.parametrize("kind", STATUSES[:3])
def test_the_colours_of_each_verdict_can_be_read_in_the_dark(cards, new_page, kind):
    page = new_page(dark=True)
    page.goto(cards[kind].as_uri())
    assert violations(page, runOnly=["color-contrast"]) == []


def test_it_is_dark_in_the_dark(cards, new_page):
    "Page and boxes are dark, and pictures stand on white."
    def light(page, selector):
        colour = page.locator(selector).first.evaluate("e => getComputedStyle(e).backgroundColor")
        return np.mean(list(map(float, re.findall(r"[\d.]+", colour)[:3])))
    for dark in (False, True):
        page = new_page(dark=dark)
        page.goto(cards["repaired"].as_uri())
        found = [light(page, selector) for selector in ("body", ".tile", ".examples > li", ".heads i:not(.off)")]
        assert (max(found) < 100) if dark else (min(found) > 200), found
        assert light(page, "img") == 255


def test_toxic_texts_and_tables_open_by_keyboard(cards, new_page):
    "Everything folded is closed at first, and the focus goes down the page."
    page = new_page()
    page.goto(cards["repaired"].as_uri())
    assert page.locator("details[open]").count() == 0 and not page.get_by_text(TOXIC).is_visible()
    tops, opened = [], False
    for _ in range(30):
        page.keyboard.press("Tab")
        here = page.evaluate("(e => e === document.body ? null : [e.getBoundingClientRect().top + scrollY, e.textContent, e.tagName, getComputedStyle(e).outlineStyle])(document.activeElement)")
        if here is None: break
        tops.append(here[0])
        assert here[3] == "solid", f"no sign of the focus on {here}"
        if here[2] == "SUMMARY" and "scored as toxic" in here[1] and not opened:
            page.keyboard.press("Enter")
            opened = page.get_by_text(TOXIC).is_visible()
    assert opened and len(tops) > 5 and tops == sorted(tops)


def test_on_paper(cards, new_page):
    "Few pages, the toxic text stays hidden, the command and the date are there."
    page = new_page()
    page.goto(cards["repaired"].as_uri())
    pdf = page.pdf(format="A4")
    assert 2 <= len(re.findall(rb"/Type\s*/Page\b", pdf)) <= 4
    page.emulate_media(media="print")
    assert not page.get_by_text(TOXIC).is_visible()
    for text in ("repair tiny --out repaired", "Made on 2026-01-01", "Limits"): assert page.get_by_text(text).first.is_visible()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


def test_a_notebook_that_shows_the_card_stays_as_it_was(cards, new_page):
    "As `HTML(filename=result.report)` does it: the whole text inside of an element."
    host = "<!doctype html><html lang=en><title>n</title><body><h1>a</h1><table><tr><th>b<td>c</table><pre>d</pre><ul><li>e</ul><figure>f</figure><a href='#'>g</a><details><summary>h</summary></details><div id=out></div>"
    look = """() => [...document.querySelectorAll('body, body > *:not(#out), body > *:not(#out) *')].map(e => {
        const s = getComputedStyle(e); return ['color', 'backgroundColor', 'font', 'padding', 'margin', 'border', 'width', 'textAlign'].map(k => s[k]).join('; ')})"""
    page = new_page(dark=True)
    page.set_content(host)
    before = page.evaluate(look)
    page.evaluate("text => { document.getElementById('out').innerHTML = text }", cards["repaired"].read_text(encoding="utf-8"))
    assert page.get_by_text("Fairness report card").is_visible()
    assert page.evaluate(look) == before
