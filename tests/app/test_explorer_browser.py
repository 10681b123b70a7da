"The explorer as a reader uses it: JupyterLab, a real browser, clicks and keys; what is shown is what the library says."
import json, os, subprocess, sys, time, urllib.request

import nbformat, numpy as np, pytest

from browser import chromium, new_page, needs_browser
from fairness_repair.core import paths
from fairness_repair.disparity import root_disparity
from fairness_repair.language.head_effects import measure_head_effects
from fairness_repair.language.models import load
from fairness_repair.pruning import gradient_search # gives evaluators their prices of heads
from fairness_repair.pruning.experiment import build_evaluators, make_config

pytestmark = needs_browser
HEADS, LONG = ".explorer .widget-gridbox button", 90_000 # milliseconds, on a busy machine

SLOW = """import time # a forward pass takes three seconds while there is a file `slow`
from pathlib import Path
lm.model.register_forward_pre_hook(lambda *inputs: time.sleep(3*Path("slow").exists()))"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    "A JupyterLab with settings, runtime and results of its own: its address, and the folder that it serves."
    folder = tmp_path_factory.mktemp("lab")
    (folder/"served").mkdir()
    notebook = nbformat.read(paths.nbs/"explore.ipynb", 4)
    notebook.cells.append(nbformat.v4.new_code_cell(SLOW))
    nbformat.write(notebook, folder/"served"/"explore.ipynb")
    own = {f"JUPYTER_{name}_DIR": str(folder/name) for name in ("CONFIG", "DATA", "RUNTIME")}
    own |= {f"FAIRNESS_REPAIR_{name}": str(folder/name) for name in ("RESULTS", "FIGURES")}
    settings = folder/"CONFIG"/"lab"/"user-settings"/"@jupyterlab"/"apputils-extension"/"notification.jupyterlab-settings"
    settings.parent.mkdir(parents=True)
    settings.write_text(json.dumps(dict(fetchNews="false", checkForUpdates=False)))
    options = ["--no-browser", "--allow-root", "--ip=127.0.0.1", "--port=0", "--IdentityProvider.token=token", f"--ServerApp.root_dir={folder/'served'}"]
    env = os.environ | own | dict(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", PYTHONPATH=str(paths.root))
    with open(folder/"log", "w") as log:
        server = subprocess.Popen([sys.executable, "-m", "jupyterlab", *options], env=env, stdout=log, stderr=log, start_new_session=True)
    try:
        yield address(server, folder), folder/"served"
    finally:
        server.terminate()
        try: server.wait(30)
        except subprocess.TimeoutExpired: server.kill()


def address(server, folder):
    "Wait until the server says where it is."
    for _ in range(600):
        for file in (folder/"RUNTIME").glob("jpserver-*.json"):
            try: return json.loads(file.read_text())["url"]
            except ValueError: pass
        assert server.poll() is None, (folder/"log").read_text()[-3000:]
        time.sleep(.2)
    raise TimeoutError((folder/"log").read_text()[-3000:])


def open_notebook(page, lab):
    "Open the notebook and wait for its kernel; the page answers only while it is waited for, so nothing sleeps."
    page.set_default_timeout(LONG)
    page.goto(f"{lab[0]}doc/tree/explore.ipynb?token=token&reset")
    page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status=idle]")
    for _ in range(300):
        with urllib.request.urlopen(f"{lab[0]}api/sessions?token=token") as reply: sessions = json.load(reply)
        if [s for s in sessions if s["kernel"]["execution_state"] == "idle"]: break
        page.wait_for_timeout(200)
    page.wait_for_timeout(500)
    return page


def run_all(page):
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_text("Run All Cells", exact=True).click()


def numbers(page):
    "The table that the page shows: measure -> column -> text."
    rows = page.locator(".explorer .explorer-numbers tr").all()
    columns = rows[0].locator("th").all_inner_texts()[1:]
    return {row.locator("th").inner_text(): dict(zip(columns, row.locator("td").all_inner_texts())) for row in rows[1:]}


def test_heads_are_clicked_measured_and_saved(lab, new_page, tmp_path):
    page = open_notebook(new_page(height=2600), lab)
    run_all(page)
    heads = page.locator(HEADS)
    heads.nth(15).wait_for()
    assert heads.count() == 16
    heads.nth(6).click()
    page.wait_for_function(f"document.querySelectorAll('{HEADS}')[6].textContent == '✕'")
    heads.nth(8).focus()
    page.keyboard.press("Space") # without a mouse
    page.wait_for_function(f"document.querySelectorAll('{HEADS}')[8].textContent == '✕'")
    assert page.get_by_label("Dropped heads").input_value() == "1.2, 2.0"
    page.get_by_role("button", name="Measure", exact=True).click()
    page.get_by_text("Measured.", exact=True).wait_for()
    shown, mask = numbers(page), np.isin(np.arange(16), [6, 8])
    evaluator = build_evaluators(make_config("tiny"), load("tiny"))["search"]
    row, effects = evaluator.row(mask), measure_head_effects(evaluator.lm, evaluator.toxicity)
    means = effects.predict_means(mask)[0]
    original = evaluator.row(np.zeros(16, bool))["perplexity"]
    expected = {"bias": (np.sqrt(max(0, effects.predict_squares(mask)[0])), root_disparity(row["squared_disparity"])),
                "bias as published": (np.abs(means - means.mean()).sum(), row["bias"]), "toxicity": (means.mean(), row["toxicity"]),
                "perplexity": (original*np.exp(evaluator.head_prices()[mask].sum()), row["perplexity"])}
    for measure, (predicted, measured) in expected.items():
        assert shown[measure]["predicted"] == f"{predicted:.4g}" and shown[measure]["measured"] == f"{measured:.4g}", measure
    page.get_by_role("button", name="Continue texts").click()
    page.locator(".explorer-texts summary").first.wait_for()
    assert page.locator(".explorer-texts details[open]").count() == 0, "toxic texts are folded"
    page.get_by_role("textbox", name="Folder").fill("mine")
    page.get_by_role("textbox", name="Folder").press("Enter")
    page.get_by_role("button", name="Save this model").click()
    page.get_by_text("Saved in mine").wait_for()
    assert json.loads((lab[1]/"mine"/"state.json").read_text())["dropped"] == [[1, 2], [2, 0]]
    check_access(page)
    check_stop(page, lab[1]/"slow")
    page.set_viewport_size(dict(width=390, height=900))
    page.wait_for_timeout(1000)
    assert page.evaluate("(e => e.scrollWidth - e.clientWidth)(document.querySelector('.explorer'))") == 0
    assert page.errors == [] and page.foreign == []


def check_access(page):
    "axe-core on the explorer, visible focus, and no picture twice."
    from axe_playwright_python.sync_playwright import Axe
    found = Axe().run(page, context=".explorer").response["violations"]
    assert not [(v["id"], v["nodes"][0]["html"]) for v in found if v["impact"] in ("serious", "critical")]
    page.locator(HEADS).nth(3).focus()
    page.keyboard.press("Tab")
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle + getComputedStyle(document.activeElement).outlineWidth")
    assert outline == "solid3px"
    assert not page.locator("[class^=explorer-] > img").first.is_visible()


def check_stop(page, slow):
    "A measurement is stopped between two forward passes, and starts again where it was."
    slow.touch()
    page.locator(HEADS).nth(5).click()
    page.get_by_role("button", name="Measure", exact=True).click()
    page.get_by_role("button", name="Stop", exact=True).click()
    page.get_by_text("Measuring: stopped.").wait_for()
    assert numbers(page)["bias"]["measured"] == "–"
    slow.unlink()
    page.get_by_role("button", name="Measure", exact=True).click()
    page.get_by_text("Measured.", exact=True).wait_for()
    assert numbers(page)["bias"]["measured"] != "–"
