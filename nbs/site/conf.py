"Settings of the site. `make site` assembles its pages and builds them."
import re
from pathlib import Path

from docutils.nodes import SkipNode
from latex2mathml.converter import convert

from fairness_repair import __version__

project = "fairness_repair"
author = copyright = "fairness_repair developers"
version = release = __version__
extensions = ["myst_nb", "sphinx_copybutton", "sphinx.ext.githubpages"]
html_theme = "furo"
html_title = "fairness_repair"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_search_scorer = str(Path(__file__).with_name("scorer.js"))
html_show_sphinx = html_copy_source = html_show_sourcelink = False
html_theme_options = dict(navigation_with_keys=True)
pygments_style, pygments_dark_style = "a11y-high-contrast-light", "a11y-high-contrast-dark"

nb_execution_mode = "off"
nb_merge_streams = True
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath", "fieldlist"]
myst_heading_anchors = 3
add_module_names = False
toc_object_entries_show_parents = "hide"
copybutton_exclude = ".linenos, .gp, .go"
html_math_renderer = "mathml"
suppress_warnings = ["ref.python"] # a name in a signature that two modules have


def show(display):
    "Write a formula as MathML, which browsers show without any script."
    def visit(writer, node):
        writer.body.append(convert(node.astext(), display=display))
        raise SkipNode
    return visit


def make_accessible(app, error):
    "Let the keyboard reach what scrolls, and give headings of the menu their level."
    for file in Path(app.outdir).rglob("*.html") if error is None else []:
        page = file.read_text(encoding="utf-8")
        page = page.replace('class="caption" role="heading"', 'class="caption" role="heading" aria-level="2"')
        page = page.replace("<pre>", '<pre tabindex="0">').replace("<pre id=", '<pre tabindex="0" id=')
        page = re.sub(r'<div class="(table-wrapper[^"]*)"', r'<div tabindex="0" class="\1"', page)
        page = page.replace('class="dataframe">', 'class="dataframe" tabindex="0">')
        file.write_text(page, encoding="utf-8")


def setup(app):
    app.add_html_math_renderer("mathml", (show("inline"), None), (show("block"), None))
    app.connect("build-finished", make_accessible)
