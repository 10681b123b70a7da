"""Assemble the source of the site: `python nbs/site/assemble.py FOLDER`, from a checkout.

Notebooks come without their directives and hidden cells, every module gets a page of reference, and the
drawing of the sub-packages is made from their imports."""
import ast, importlib, inspect, re, shutil, sys, textwrap
from dataclasses import is_dataclass
from functools import cached_property
from pathlib import Path

import nbformat
from fastcore.docments import docments

root = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(root/"tests"))
from test_architecture import arrows, drawn, modules

PAPERS = dict(ap="Attention Pruning", neufair="NeuFair", fasp="FASP", bdb="Breaking Down Bias")
PACKAGES = dict(top="For all parts", tabular="Networks on tables", language="Language models", pruning="Search for heads",
                name_bias="Answers to names", toy_models="Models with known bias", app="Repair in one call")
FENCE = "`````"


def page_of(nb):
    "A notebook as it is read: without directives and cells that only serve the export, imports folded away."
    nb = nbformat.read(nb, 4)
    nb.cells = [c for c in nb.cells if not re.match(r"#\|\s*(hide|default_exp)", c.source)]
    for c in nb.cells:
        if c.cell_type != "code": continue
        c.source = re.sub(r"(?m)^#\|.*\n?", "", c.source).strip("\n")
        if all(isinstance(node, (ast.Import, ast.ImportFrom)) for node in ast.parse(c.source).body): c.metadata["tags"] = ["hide-input"]
    return nb


def title_of(nb): return re.match(r"#\s+(.+)", nbformat.read(nb, 4).cells[0].source)[1]
def dotted(file): return ".".join(["fairness_repair", *file.relative_to(root/"fairness_repair").with_suffix("").parts])


def public_names():
    "Name -> dotted name of every public object; names that two modules share are left out."
    found = {}
    for file in modules:
        for name in importlib.import_module(dotted(file)).__all__: found.setdefault(name, []).append(f"{dotted(file)}.{name}")
    return {name: places[0] for name, places in found.items() if len(places) == 1}


def linked(text, names):
    "Text whose `names` in backticks are links to the reference."
    def link(m): return f"{{py:obj}}`~{names[m[1]]}`" if m[1] in names else m[0]
    return re.sub(r"(?<!`)`([A-Za-z_]\w*)`(?!`)", link, text)


def signature(obj):
    "Parameters as they stand in the source, so that defaults show as names."
    tree = ast.parse(textwrap.dedent(inspect.getsource(obj))).body[0]
    if isinstance(tree, ast.ClassDef):
        start = next((n for n in tree.body if getattr(n, "name", "") == "__init__"), None)
        if start is None:
            fields = [n for n in tree.body if isinstance(n, ast.AnnAssign)]
            return f"({', '.join(ast.unparse(n) for n in fields)})" if fields else ""
        tree = start
    parts = tree.args.posonlyargs + tree.args.args
    if parts and parts[0].arg in ("self", "cls"): (tree.args.posonlyargs or tree.args.args).pop(0)
    returned = f" -> {ast.unparse(tree.returns)}" if tree.returns else ""
    return f"({ast.unparse(tree.args)}){returned}"


def comments(obj):
    "Name -> what the comment beside a parameter or field says."
    if inspect.isclass(obj) and "__init__" in vars(obj) and not is_dataclass(obj): obj = obj.__init__
    if inspect.isfunction(obj): return docments(obj)
    return dict(re.findall(r"(?m)^    (\w+) *:[^#\n]*# (.+)$", inspect.getsource(obj)))


def fields(obj, names):
    "Parameters, and what comes back, as a list of fields."
    said = {name: linked(" ".join(text.split()), names) for name, text in comments(obj).items() if text and name != "self"}
    back = said.pop("return", None)
    return [f":param {name}: {text}" for name, text in said.items()] + ([f":returns: {back}"] if back else [])


def entry(kind, name, obj, names, inside=(), depth=0, options=()):
    "One object of the reference, as a directive."
    fence = FENCE[depth:]
    text = linked(inspect.getdoc(obj) or "", names)
    return "\n".join([f"{fence}{{py:{kind}}} {name}{'' if kind == 'property' else signature(obj)}", *options, "", text, "", *fields(obj, names), "",
                      *inside, fence, ""])


def methods(cls, names):
    "The public methods and properties that a class defines."
    for name, found in vars(cls).items():
        if name.startswith("_"): continue
        if isinstance(found, (property, cached_property)):
            yield entry("property", name, found.fget if isinstance(found, property) else found.func, names, depth=1)
        elif isinstance(found, (classmethod, staticmethod)):
            yield entry("method", name, found.__func__, names, depth=1, options=[f":{type(found).__name__}:"])
        elif inspect.isfunction(found): yield entry("method", name, found, names, depth=1)


def constant(name, module):
    "A public value: its source if that is short, and the comment beside it."
    source = inspect.getsource(module)
    node = next((n for n in ast.parse(source).body if isinstance(n, ast.Assign) and name in ast.unparse(n.targets[0])), None)
    value = ast.unparse(node.value) if node and isinstance(node.targets[0], ast.Name) else ""
    line = next((l for l in source.split("\n") if re.match(rf"{name}\b.*=", l)), "")
    options = [f":value: {value}"] if 0 < len(value) < 80 else []
    return "\n".join([f"{FENCE}{{py:data}} {name}", *options, "", line.partition(" # ")[2], FENCE, ""])


def reference(file, lesson, names):
    "The page of a module."
    module = importlib.import_module(dotted(file))
    lines = [f"# {dotted(file)}", "", linked(module.__doc__ or "", names), "",
             f"Lesson: [{title_of(lesson)}]({'../' + lesson.relative_to(root).as_posix()})", "", f"```{{py:currentmodule}} {dotted(file)}", "```", ""]
    for name in module.__all__:
        obj = getattr(module, name)
        if inspect.isclass(obj): lines.append(entry("class", name, obj, names, methods(obj, names)))
        elif inspect.isfunction(inspect.unwrap(obj)) if callable(obj) else False: lines.append(entry("function", name, inspect.unwrap(obj), names))
        else: lines.append(constant(name, module))
    return "\n".join(lines)


def drawing():
    "The sub-packages in layers, each above what it imports; SVG in the colours of the page."
    layers = [["app"], ["pruning", "name_bias"], ["tabular", "language", "toy_models"], ["top"]]
    place = {name: (760*(k + 1)/(len(row) + 1), 40 + 110*depth) for depth, row in enumerate(layers) for k, name in enumerate(row)}
    lines = ['<svg viewBox="0 0 760 420" role="img" aria-label="Sub-packages, each above what it imports" class="packages">']
    lines.append('<defs><marker id="head" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
                 '<path d="M0 0L8 4L0 8z" fill="currentColor"/></marker></defs>')
    for a, b in sorted(drawn()):
        (x, y), (to_x, to_y) = place[a], place[b]
        if b != "top": lines.append(f'<line x1="{x:.0f}" y1="{y + 26}" x2="{to_x:.0f}" y2="{to_y - 26}" stroke="currentColor" marker-end="url(#head)"/>')
    for name, (x, y) in place.items():
        width = 720 if name == "top" else 190
        shown = "core, metrics, states, search, store, plots, report, disparity" if name == "top" else name
        lines.append(f'<rect x="{x - width/2:.0f}" y="{y - 26}" width="{width}" height="52" rx="6" fill="none" stroke="currentColor"/>'
                     f'<text x="{x:.0f}" y="{y - 3}" text-anchor="middle" font-weight="bold">{shown}</text>'
                     f'<text x="{x:.0f}" y="{y + 15}" text-anchor="middle" font-size="13">{PACKAGES[name]}</text>')
    return "\n".join([*lines, "</svg>"])


def toctree(entries, *options): return "\n".join(["```{toctree}", *options, "", *entries, "```", ""])


def assemble(out):
    "Write all sources below a folder, which is made anew."
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(root/"nbs"/"site", out, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    shutil.copytree(root/"figures", out/"figures", ignore=lambda _, names: [n for n in names if Path(n).suffix not in (".png", ".md") or n[-3:] == ".md" and n != "results.md"])
    for name in ("CONTRIBUTING.md", "CHANGELOG.md"): shutil.copy(root/name, out)
    shutil.copytree(root/"nbs"/"howto", out/"howto", ignore=shutil.ignore_patterns(".*", "*.ipynb"))

    lessons = {}
    for nb in sorted((root/"nbs").rglob("*.ipynb")):
        inner = nb.relative_to(root/"nbs")
        if nb.stem in ("index", "results") or inner.parts[0] == "site" or ".ipynb_checkpoints" in nb.parts: continue
        there = out/inner if inner.parts[0] == "howto" else out/"nbs"/inner
        there.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(page_of(nb), there)
        if re.match(r"\d\d_", nb.name): lessons[(*inner.parent.parts, nb.stem[3:])] = nb

    (out/"api").mkdir()
    names = public_names()
    for file in modules:
        parts = file.relative_to(root/"fairness_repair").with_suffix("").parts
        (out/"api"/f"{'.'.join(parts)}.md").write_text(reference(file, lessons[parts], names), encoding="utf-8")
    for package, title in PACKAGES.items():
        own = [parts for parts in lessons if (parts[0] if len(parts) > 1 else "top") == package]
        heading = f"# {title}\n\n" + ("" if package == "top" else f"`fairness_repair.{package}`\n\n")
        (out/"api"/f"package_{package}.md").write_text(heading + toctree([f"{parts[-1]} <{'.'.join(parts)}>" for parts in own], ":maxdepth: 1"), encoding="utf-8")
        (out/"nbs"/f"lessons_{package}.md").write_text(heading + toctree([lessons[parts].relative_to(root/"nbs").with_suffix("").as_posix() for parts in own], ":maxdepth: 1"), encoding="utf-8")
    for paper, title in PAPERS.items():
        questions = sorted(file.stem for file in (root/"nbs").glob(f"rq*_{paper}.ipynb"))
        text = f"# {title}\n\nEach notebook is shown as it ran at its default, offline. [Results](../figures/results.md) has the recorded findings.\n\n"
        (out/"nbs"/f"questions_{paper}.md").write_text(text + toctree(questions, ":maxdepth: 1"), encoding="utf-8")
    (out/"drawing.svg").write_text(drawing(), encoding="utf-8")


if __name__ == "__main__": assemble(Path(sys.argv[1]))
