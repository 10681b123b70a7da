"""Assemble the source of the site: `python nbs/site/assemble.py FOLDER`, in a checkout.

Pages of this folder and of `nbs/howto`, notebooks, figures, and a page of reference per module."""
import ast, importlib, os, re, shutil, sys
from pathlib import Path

import nbformat

root = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(root/"tests"))
from drawing import draw_packages
from reference import dotted, linked, module_page, public_names
from test_architecture import drawn, modules, package

PAPERS = dict(ap="Attention Pruning", neufair="NeuFair", fasp="FASP", bdb="Breaking Down Bias")
PACKAGES = dict(top="For all parts", tabular="Networks on tables", language="Language models",
                pruning="Search for heads", name_bias="Answers to names", toy_models="Models with known bias",
                app="Repair in one call")


def read_page(file):
    "Read a notebook without what only serves the export, with imports and installation folded away."
    nb = nbformat.read(file, 4)
    nb.cells = [c for c in nb.cells if not re.match(r"#\|\s*(hide|default_exp)", c.source)]
    for c in nb.cells:
        if c.cell_type == "markdown": c.source = move_links(c.source, file)
        if c.cell_type != "code": continue
        c.source = re.sub(r"(?m)^#\|.*\n?", "", c.source).strip("\n")
        statements = ast.parse(c.source).body
        imports = (isinstance(s, (ast.Import, ast.ImportFrom)) for s in statements)
        if all(imports) or c.id == "install": c.metadata["tags"] = ["hide-input"]
    return nb


def title_of(file): return re.match(r"#\s+(.+)", nbformat.read(file, 4).cells[0].source)[1]
def write(file, *parts): file.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
def toctree(entries): return "\n".join(["```{toctree}", ":maxdepth: 1", "", *entries, "```"])


def at_place(link:str, page:Path) -> str:
    "Return a link of a page in the checkout as the site has it."
    if re.match(r"[a-z]+:|#", link): return link
    file, *anchor = link.partition("#")
    places = {root/"nbs"/"site": Path("/"), root/"nbs"/"howto": Path("/howto"), root: Path("/")}
    def moved(path): # to the first place that fits
        here = next(here for here in places if path.is_relative_to(here))
        return places[here]/path.relative_to(here)

    return os.path.relpath(moved((page.parent/file).resolve()), moved(page.parent)) + "".join(anchor)


def move_links(text:str, page:Path) -> str:
    "Return the Markdown of a page with its links as the site has them."
    return re.sub(r"\]\(([^)]+)\)", lambda found: f"]({at_place(found[1], page)})", text)


def copy_pages(out):
    "Copy hand-written pages, with their links, and figures."
    shutil.copytree(root/"nbs"/"site", out, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    shutil.copytree(root/"nbs"/"howto", out/"howto", ignore=shutil.ignore_patterns(".*", "*.ipynb"))
    for name in ("CONTRIBUTING.md", "CHANGELOG.md"): shutil.copy(root/name, out)
    for page in (*(root/"nbs"/"site").glob("*.md"), *(root/"nbs"/"howto").glob("*.md")):
        there = out/page.name if page.parent.name == "site" else out/"howto"/page.name
        write(there, move_links(page.read_text(encoding="utf-8"), page).rstrip("\n"))
    for file in (*(root/"figures").rglob("*.png"), root/"figures"/"results.md"):
        there = out/file.relative_to(root)
        there.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, there)


def copy_notebooks(out) -> dict:
    "Write all notebooks, and list the lessons: module, as parts of its name -> notebook."
    lessons = {}
    for file in sorted((root/"nbs").rglob("*.ipynb")):
        inner = file.relative_to(root/"nbs")
        if file.stem in ("index", "results") or ".ipynb_checkpoints" in file.parts: continue
        there = out/inner if inner.parts[0] == "howto" else out/"nbs"/inner
        there.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(read_page(file), there)
        if re.match(r"\d\d_", file.name): lessons[(*inner.parent.parts, file.stem[3:])] = file
    return lessons


def summary(parts) -> str:
    "Write the link to the page of a module, with the first line of its docstring below."
    first, *_ = (importlib.import_module(".".join([package.name, *parts])).__doc__ or parts[-1]).split("\n")
    return f"[{parts[-1]}]({'.'.join(parts)}.md)\n: {first}"


def short_imports(name, names) -> list:
    "Write what a sub-package itself offers."
    if name == "top": return []
    offered = getattr(importlib.import_module(f"{package.name}.{name}"), "__all__", [])
    links = ", ".join(linked(f"`{one}`", names) for one in offered)
    return [f"To import from here: {links}."] if links else []


def write_reference(out, lessons):
    "Write a page per module, and per sub-package the lists of its modules and lessons."
    (out/"api").mkdir()
    names = public_names([dotted(file, package) for file in modules])
    for parts, file in lessons.items():
        link = f"[{title_of(file)}](../{file.relative_to(root).as_posix()})"
        module = ".".join(parts)
        write(out/"api"/f"{module}.md", module_page(f"{package.name}.{module}", link, names))
    for name, title in PACKAGES.items():
        own = [parts for parts in lessons if (parts[0] if len(parts) > 1 else "top") == name]
        head = [f"# {title}", *([] if name == "top" else [f"`fairness_repair.{name}`"])]
        entries = [f"{parts[-1]} <{'.'.join(parts)}>" for parts in own]
        write(out/"api"/f"package_{name}.md", *head, *short_imports(name, names), *map(summary, own),
              toctree(entries).replace(":maxdepth: 1", ":hidden:"))
        pages = [lessons[parts].relative_to(root/"nbs").with_suffix("") for parts in own]
        write(out/"nbs"/f"lessons_{name}.md", *head, toctree(map(str, pages)))


def write_questions(out):
    "Write a list of research questions per paper."
    text = "Each notebook is shown as it ran at its default. [Results](../figures/results.md) has more."
    for paper, title in PAPERS.items():
        questions = sorted(file.stem for file in (root/"nbs").glob(f"rq*_{paper}.ipynb"))
        write(out/"nbs"/f"questions_{paper}.md", f"# {title}", text, toctree(questions))


def assemble(out:Path):
    "Write all sources below a folder, which is made anew."
    shutil.rmtree(out, ignore_errors=True)
    copy_pages(out)
    write_reference(out, copy_notebooks(out))
    write_questions(out)
    (out/"drawing.svg").write_text(draw_packages(drawn(), PACKAGES), encoding="utf-8")


if __name__ == "__main__": assemble(Path(sys.argv[1]))
