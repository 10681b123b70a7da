"The pages that `make site` builds: nothing is missing, no link is dead, and they read on every screen."
import importlib, re, subprocess, sys
from importlib.util import find_spec
from urllib.parse import unquote, urldefrag, urlparse

import pytest

from browser import chromium, needs_browser, new_page, overflow, violations
from fairness_repair.core import paths
from test_architecture import modules, parts

NEEDS = ("sphinx", "myst_nb", "furo", "sphinx_copybutton", "latex2mathml")
missing = ", ".join(name for name in NEEDS if not find_spec(name))
pytestmark = pytest.mark.skipif(bool(missing), reason=f"needs {missing}: pip install 'fairness_repair[site]'")
PAGES = ["index", "howto/table", "figures/results", "architecture", "nbs/rq2_ap", "api/pruning.fasp"]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    "The folder of the built pages; a warning of Sphinx is an error."
    folder = tmp_path_factory.mktemp("site")
    here, source, out = paths.nbs/"site", folder/"source", folder/"html"
    sphinx = ["-m", "sphinx", "-q", "-W", "--keep-going", "-c", here, source, out]
    for command in ([here/"assemble.py", source], sphinx):
        done = subprocess.run([sys.executable, *command], capture_output=True, text=True)
        assert not done.returncode, done.stderr[-3000:]
    return folder/"html"


@pytest.fixture(scope="module")
def soups(site):
    from bs4 import BeautifulSoup
    read = lambda file: BeautifulSoup(file.read_text(encoding="utf-8"), "html.parser")
    return {file: read(file) for file in site.rglob("*.html")}


def test_every_public_name_has_its_place(site, soups):
    "In the page of its module."
    for file in modules:
        dotted = ".".join(parts(file))
        ids = {tag["id"] for tag in soups[site/"api"/f"{dotted}.html"].find_all(id=True)}
        public = importlib.import_module(f"fairness_repair.{dotted}").__all__
        absent = [name for name in public if f"fairness_repair.{dotted}.{name}" not in ids]
        assert not absent, f"{dotted}: {absent}"


def test_the_page_of_a_sub_package_says_what_each_module_is_for(site, soups):
    def words(text): return " ".join(re.findall(r"[^\W_]+", text)) # quotes and markup differ on a page

    for file in modules:
        name, *inner = parts(file)
        page = soups[site/"api"/f"package_{name if inner else 'top'}.html"]
        first = importlib.import_module(".".join(["fairness_repair", name, *inner])).__doc__.split("\n")[0]
        assert words(first) in words(page.get_text()), (file.name, first)
    links = [tag["href"] for tag in soups[site/"api"/"package_app.html"].find_all("a", href=True)]
    assert any(link.endswith("#fairness_repair.app.pipeline.repair") for link in links)


def test_every_notebook_is_a_page(site):
    for nb in paths.nbs.rglob("*.ipynb"):
        inner = nb.relative_to(paths.nbs).with_suffix(".html")
        if nb.stem in ("index", "results") or ".ipynb_checkpoints" in nb.parts: continue
        assert (site/inner).is_file() or (site/"nbs"/inner).is_file(), inner


def test_no_directive_is_shown(soups):
    shown = [file.name for file, soup in soups.items() if "#| " in soup.get_text()]
    assert not set(shown) - {"CONTRIBUTING.html"}, shown # which explains them


def test_links_lead_somewhere(site, soups):
    ids = {file: {tag["id"] for tag in soup.find_all(id=True)} for file, soup in soups.items()}
    dead = []
    for file, soup in soups.items():
        for tag in soup.find_all(["a", "img", "link", "script"]):
            link = tag.get("href") or tag.get("src") or ""
            if not link or urlparse(link).scheme: continue
            address, fragment = urldefrag(unquote(link))
            there = (file.parent/address.partition("?")[0]).resolve() if address else file
            if not there.exists() or fragment and there.suffix == ".html" and fragment not in ids[there]:
                dead.append((file.relative_to(site).as_posix(), link))
    assert not dead, dead[:20]


def test_nothing_comes_from_elsewhere(soups):
    for file, soup in soups.items():
        for tag in soup.find_all(["img", "link", "script"]):
            address = tag.get("src") or (tag.get("href") if tag.get("rel") == ["stylesheet"] else "") or ""
            assert not address.startswith(("http", "//")), f"{file.name}: {address}"


@needs_browser
@pytest.mark.parametrize("page_name", PAGES)
def test_page_in_a_browser(page_name, site, new_page):
    for width, dark in ((390, True), (1280, False)):
        page = new_page(width=width, dark=dark)
        page.goto((site/f"{page_name}.html").as_uri())
        assert not page.foreign and not page.errors, (page.foreign, page.errors)
        assert overflow(page) <= 0, f"{overflow(page)} pixels too wide at {width}"
        found = violations(page)
        assert not found, found


@needs_browser
def test_search_finds_a_function(site, new_page):
    page = new_page()
    page.goto((site/"search.html").as_uri() + "?q=repair_classifier")
    page.wait_for_selector("#search-results li a")
    assert page.locator("#search-results a[href*='tabular.neufair']").count()
