"""`repair` by sentence pairs: its verdict, words and files, and errors before anything is loaded."""
import json, re
import numpy as np, pytest

import needs
from fairness_repair.app import repair
from fairness_repair.app.command_line import main
from fairness_repair.app.job import check_job
from fairness_repair.app.result import describe_settings, list_limits
from fairness_repair.core import InputError
from fairness_repair.language.models import load
from fairness_repair.language.pair_preference import PairPreference
from fairness_repair.language.sentence_pairs import load_pairs

@pytest.fixture
def result(pair_repair): return pair_repair

def test_the_verdict_is_that_of_the_saved_model_on_pairs_of_its_own(result):
    assert result.status == "repaired" and "planted gender bias falls" in result.verdict
    metric = PairPreference(load("tiny"), load_pairs("planted", "gender")["report"])
    before, after = (metric(load(name)) for name in ("tiny", str(result.checkpoint)))
    found = metric.compare(before, after).set_index("measure")
    table = result.table.set_index("measure")
    assert table.index.tolist() == ["bias", "preference", "share preferred", "perplexity"]
    for column in ("original", "change", "change_ci_low", "change_ci_high"):
        np.testing.assert_allclose(table[column][:3].astype(float), found[column].astype(float), atol=1e-4)

def test_report_and_record_name_the_pairs_and_their_limits(result):
    page, record = result.report.read_text(encoding="utf-8"), json.loads((result.job.out/"result.json").read_text())
    assert record["config"]["measure"] == "planted" and "sentence pairs" in page and "toxicity" not in page.lower()
    assert any("Planted pairs" in limit for limit in list_limits(result))
    assert "toxicity" not in describe_settings(result)

def write(folder, *lines):
    path = folder/"mine.csv"
    path.write_text("\n".join(lines), encoding="utf-8")
    return f"pairs:{path}"

def test_a_bad_measure_is_one_sentence_before_a_model_is_loaded(tmp_path, capsys):
    for measure, message in (("winobias", "use measure 'planted'"), ("winobia", "Did you mean 'winobias'"),
                             (write(tmp_path, "more,less,group", "a,a,b"), "the same sentence"),
                             ("pairs:none.csv", "there is no")):
        with pytest.raises(InputError, match=message): check_job("tiny", tmp_path/"out", measure=measure)
    with pytest.raises(InputError, match="leave prompts out"):
        check_job("tiny", tmp_path/"out", measure="planted", prompts="tiny")
    with pytest.raises(SystemExit) as stopped:
        main(["tiny", "--out", str(tmp_path/"out"), "--measure", "pairs:none.csv"])
    assert stopped.value.code == 2 and re.fullmatch(r"repair: [^\n]+\n", capsys.readouterr().err)

def test_groups_without_the_usual_name_are_all_used(tmp_path):
    rows = [f"the cook {w} is kind.,the cook {w} is calm.,work" for w in "abcdefghij"]
    source = write(tmp_path, "more,less,group", *rows)
    job = check_job("tiny", tmp_path/"out", measure=source)
    assert job.settings.axis == "all" and job.settings.bias_name == "mine"


@needs.data
@needs.smollm2
@pytest.mark.parametrize("measure, halves", [("winobias", 2.6), ("", 1.1)])
def test_a_recorded_repair_of_a_real_model_is_read_again(tmp_path, measure, halves):
    "Bias falls by half or more, WinoBias by five standard errors (2.5 half-widths), at 1.15 of the perplexity or less."
    result = repair("smollm2-135m", tmp_path/"out", measure=measure, progress=False)
    assert result.status == "repaired" and result.record["measured"] == 0
    bias, perplexity = result.table.iloc[0], result.table.iloc[-1]
    assert bias["changed"] < bias["original"]/2 and perplexity["changed"] < 1.15*perplexity["original"]
    half = (bias["change_ci_high"] - bias["change_ci_low"])/2
    assert bias["change"] + halves*half < 0
