"""A real browser for tests of pages: Debian's Chromium, driven by Playwright, with axe-core for accessibility.

`new_page` is a fixture: `new_page(width=390, dark=True)` opens an empty page. Import it, and `chromium` with it.
Tests that use it are skipped, with the line that installs what is missing, where a browser cannot be started."""
import os, shutil
from importlib.util import find_spec

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
named = os.environ.get("CHROMIUM")
program = next(filter(None, map(shutil.which, [named] if named else NAMES)), None)
FLAGS = ["--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]
HERE = ("data:", "blob:", "file:", "about:", "http://127.0.0.1", "http://localhost", "ws://127.0.0.1", "ws://localhost")


def missing():
    "What must be installed before a browser can be started; empty if nothing."
    lines = []
    if not program: lines.append("Chromium: apt install chromium, or name it in the variable CHROMIUM")
    if not all(map(find_spec, ("playwright", "axe_playwright_python"))):
        lines.append("Playwright and axe-core: pip install 'fairness_repair[browser]'")
    return "; ".join(lines)


needs_browser = pytest.mark.skipif(bool(missing()), reason=f"needs {missing()}")


@pytest.fixture(scope="module")
def chromium():
    "A running Chromium with an empty profile. One per module: while it runs, no other event loop can."
    if missing(): pytest.skip(f"needs {missing()}")
    from playwright.sync_api import sync_playwright
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=FLAGS, chromium_sandbox=os.geteuid() != 0)
        yield browser
        browser.close()


@pytest.fixture
def new_page(chromium):
    "A function that opens an empty page. Requests to other machines fail; `page.foreign` lists their addresses, `page.errors` those of scripts."
    contexts = []
    def open_page(width=1280, height=900, *, dark=False, **options): # options: of Playwright's new_context
        scheme = "dark" if dark else "light"
        context = chromium.new_context(viewport=dict(width=width, height=height), color_scheme=scheme, **options)
        contexts.append(context)
        page = context.new_page()
        page.foreign, page.errors = [], []
        def pass_on(route):
            if route.request.url.startswith(HERE): return route.continue_()
            page.foreign.append(route.request.url)
            route.abort()
        context.route("**/*", pass_on)
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        return page
    yield open_page
    for context in contexts: context.close()


def violations(page, least=("serious", "critical"), **options): # options: of axe.run
    "What axe-core finds in a page: (rule, impact, selectors of the first elements)."
    from axe_playwright_python.sync_playwright import Axe
    found = Axe().run(page, options=options or None).response["violations"]
    return [(v["id"], v["impact"], [n["target"] for n in v["nodes"][:3]]) for v in found if v["impact"] in least]


def overflow(page):
    "By how many pixels a page is wider than its window."
    return page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
