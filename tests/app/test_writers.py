"Figures, cards and tables with names that matplotlib, HTML, Markdown and CSV treat as special."
import csv, html.parser, io, json, re
from pathlib import Path

import matplotlib.pyplot as plt, numpy as np, pandas as pd, pytest
from hypothesis import example, given, strategies as st
from markdown_it import MarkdownIt

from fairness_repair.app.figures import _plot_groups, save_figures
from fairness_repair.app.job import Job
from fairness_repair.app.model_card import write_model_card
from fairness_repair.app.report_card import write_report_card
from fairness_repair.app.result import RepairResult
from fairness_repair.app.verdict import MEASURES, judge
from fairness_repair.metrics import group_means
from fairness_repair.plots import set_theme
from fairness_repair.pruning.experiment import ExperimentConfig
from fairness_repair.report import save_figure, save_table, to_markdown

rude = ["$x_{1}$ and $", "a_b^c\\frac{", "$\\undefined$", "a|b", "a\nb\r\nc", "<script>alert(1)</script>", "&amp; &", "'\"`", "=1+1", "](http://x)", "[", "]", "[a](b)", "a*b*c", "\\|", "`a", "> a", "1. a", "+ a", "![](x)", "<!-- ", "&lt;b&gt;", "http://a.b", "<http://a.b>", "\0\a",
        "\udcff", "名前", "عربي", "_hidden", "{{ 7*7 }}", "{% raw %}", "%s", "x"*300, " ", "---", "# Title", "\\", "../../etc", "![", "```"]
names = st.text(max_size=30) | st.sampled_from(rude)
cells = names.map(lambda name: name.encode(errors="replace").decode()) # pandas holds no halves of characters


def made_up(folder, group="a", axis="gender", model="tiny", scorer="next word", status="repaired", save_candidate=False):
    "A result without a model: two of 16 heads, a third group named as given."
    table = pd.DataFrame(dict(measure=MEASURES, original=[.4, .4, 2, .2, 20], changed=[.1, .1, 1, .1, 21], change=-.3,
                              change_ci_low=-.35, change_ci_high=-.25, p=.001, detectable=.07))
    mask, scores = np.arange(16) < 2, np.linspace(.1, .6, 6)
    means = group_means(scores, ["b", "b", "c", "c", group + "!", group + "!"])
    verdict = judge(table, mask, axis=axis)
    settings = ExperimentConfig(axis=axis, scorer=scorer, prompts=model, text=model)
    points = pd.DataFrame(dict(bias=[.9, .8], perplexity=[1., 1.1]))
    record = dict(versions=dict(fairness_repair="0"), commit="c", date="2026-01-01T00:00", config=dict(model=model, axis=axis))
    return RepairResult(Job(model, Path(folder), "AP", 0, settings, save_candidate), model, (4, 4), mask, status, verdict.sentence, table, pd.concat(dict(original=means, changed=means), axis=1),
                        points, points, dict(prompts=6, distinct=6, groups=3, tokens=100), .01, record)


class Tags(html.parser.HTMLParser):
    "All tags, and whether they are closed in order."
    def __init__(self, page):
        super().__init__()
        self.tags, self.open = [], []
        self.feed(page)
    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag not in ("meta", "img", "br"): self.open.append(tag)
    def handle_endtag(self, tag): assert self.open.pop() == tag, tag


@pytest.fixture(scope="module")
def plain_tags(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    return Tags(write_report_card(made_up(folder, model="mine"), {}).read_text()).tags


@given(group=cells, axis=names, model=names, scorer=names)
def test_cards_hold_any_name(tmp_path, plain_tags, group, axis, model, scorer):
    "The page has the tags that it has with plain names, and the model card no tag, no new heading and no link but its two figures."
    result = made_up(tmp_path/"out", group, axis, model, scorer)
    page = write_report_card(result, {}).read_text(encoding="utf-8")
    found = Tags(page)
    assert found.tags == plain_tags and not found.open
    figures = {name: tmp_path/f"{name}.png" for name in ("change", "groups")}
    for file in figures.values(): file.write_bytes(b"not much")
    (tmp_path/"out").mkdir(exist_ok=True)
    card = write_model_card(result, figures).read_text(encoding="utf-8")
    body = card.split("---\n", 2)[2]
    tokens = MarkdownIt("commonmark").enable("table").parse(body)
    inline = [child for token in tokens for child in token.children or []]
    assert sum(t.type == "heading_open" for t in tokens) == 6 and sum(t.type == "tr_open" for t in tokens) == 6
    assert sum(c.type == "image" for c in inline) == 2 and not any(c.type in ("link_open", "html_inline") for c in inline)
    assert not any(t.type == "html_block" for t in tokens) and sum(t.type == "fence" for t in tokens) == 1
    result.verdict = result.verdict.replace("\n", " ")
    Tags(result._repr_html_())
    json.dumps(result.record)


@given(name=cells)
@example("$x_{1}$ and $")
@pytest.mark.filterwarnings('ignore:Glyph')
def test_figures_draw_any_name(tmp_path, name):
    with plt.rc_context():
        set_theme()
        figure, ax = plt.subplots(figsize=(4, 3))
        _plot_groups(made_up(tmp_path, name).groups, label="repaired", colour="red", ax=ax)
        try: figure.savefig(io.BytesIO(), dpi=30)
        finally: plt.close(figure)
        labels = [t.get_text() for t in ax.get_yticklabels()]
    assert len(labels) == 3 and all(len(label) <= 28 for label in labels)


@example(table=[("\r", None)], title="")
@given(table=st.lists(st.tuples(cells, st.floats(allow_nan=True) | st.none()), min_size=1, max_size=4), title=names)
def test_tables_hold_any_name(tmp_path, monkeypatch, table, title):
    "CSV gives back what was written; Markdown has a row for each row."
    monkeypatch.setenv("FAIRNESS_REPAIR_FIGURES", str(tmp_path))
    frame = pd.DataFrame(table, columns=["group", "bias"])
    monkeypatch.setattr("fairness_repair.report.provenance", lambda **more: more)
    csv_file, md_file = (tmp_path/name for name in save_table(frame, f"rq0-{title}", title=title))
    with open(csv_file, newline="", encoding="utf-8") as f: rows = list(csv.reader(f))
    assert [row[0] for row in rows[1:]] == [name for name, _ in table]
    tokens = MarkdownIt("commonmark").enable("table").parse(md_file.read_text(encoding="utf-8"))
    assert sum(t.type == "tr_open" for t in tokens) == len(frame) + 1
    assert not any(t.type == "html_block" for t in tokens)
    assert to_markdown(frame).count("\n") == len(frame) + 1


def test_all_figures_of_a_rude_result(tmp_path):
    files = save_figures(made_up(tmp_path, "$a_{b$\n<b>"), tmp_path/"figures")
    assert set(files) == {"change", "groups", "price", "heads"} and all(f.stat().st_size > 5000 for f in files.values())


@pytest.mark.parametrize("save_candidate", [False, True])
def test_what_is_not_significant_is_called_a_candidate_everywhere(tmp_path, save_candidate):
    result = made_up(tmp_path/"out", status="not significant", save_candidate=save_candidate)
    result.verdict = "Not significant: the changed model is a candidate, not a repair."
    assert result.saved == save_candidate and result.label == "candidate"
    texts = [repr(result), result._repr_html_(), write_report_card(result, {}).read_text()]
    if save_candidate:
        figures = save_figures(result, tmp_path/"figures")
        texts.append(write_model_card(result, figures).read_text())
        assert result.checkpoint.name == "candidate"
    for text in texts:
        said = re.sub("<style>.*?</style>|<pre.*?</pre>", "", text, flags=re.S).replace("fairness_repair", "").replace("a repair", "")
        assert "candidate" in said and not re.search("repaired|fairer", said), re.findall(".*(?:repaired|fairer).*", said)


def test_a_change_that_is_not_significant_is_no_large_number():
    from types import SimpleNamespace
    import numpy as np, pandas as pd
    from fairness_repair.app.report_card import _tiles
    measures = dict(measure=["bias", "toxicity", "perplexity"])
    table = pd.DataFrame(measures | dict(original=[.02, .1, 20.], changed=[0., .1, 21.]))
    tiles = {status: _tiles(SimpleNamespace(table=table, status=status, drop_mask=np.arange(4) == 1,
                                            job=SimpleNamespace(settings=SimpleNamespace(measure=""))))[0]
             for status in ("repaired", "not significant")}
    assert tiles == {"repaired": ("-100 %", "bias (0.02 → 0)"),
                     "not significant": ("0.02 → 0", "bias (-100 %, not significant)")}
