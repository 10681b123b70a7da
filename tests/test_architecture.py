"""Which sub-package imports which: an arrow that is not in the list fails. `python tests/test_architecture.py` draws them."""
import ast
from collections import Counter
from pathlib import Path

import pytest

package = Path(__file__).resolve().parents[1]/"fairness_repair"
modules = sorted(p for p in package.rglob("*.py") if p.name not in ("__init__.py", "_modidx.py"))
arrows = { # sub-package -> what it may import; "top" is the modules beside the sub-packages
    "top": set(),
    "tabular": {"top"},
    "language": {"top"},
    "toy_models": {"top"},
    "pruning": {"top", "language", "toy_models"},
    "name_bias": {"top", "language"},
    "app": {"top", "language", "pruning"},
}


def parts(file): return file.relative_to(package).with_suffix("").parts
def home(file): return parts(file)[0] if len(parts(file)) > 1 else "top"


def imports(file):
    "Each import from the package: (dotted name from the package's root, imported names, the function it stands in or None)."
    tree, found = ast.parse(file.read_text()), []
    inside = {id(n): f.name for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for n in ast.walk(f) if n is not f}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = parts(file)[:len(parts(file)) - node.level]
            found.append((".".join([*base, node.module or ""]), [a.name for a in node.names], inside.get(id(node))))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fairness_repair"):
            found.append(("absolute import of " + node.module, [a.name for a in node.names], inside.get(id(node))))
    return found


def drawn():
    "(from, to) -> number of imports between sub-packages."
    found = Counter()
    for file in modules:
        for name, *_ in imports(file):
            there = name.split(".")[0] if name.split(".")[0] in arrows else "top"
            if there != home(file): found[home(file), there] += 1
    return found


def test_arrows_run_one_way():
    wrong = [f"{a} -> {b}" for a, b in drawn() if b not in arrows[a]]
    assert not wrong, f"not in the list of arrows: {', '.join(wrong)}"


def test_list_has_no_unused_arrow(): assert {(a, b) for a in arrows for b in arrows[a]} == set(drawn())


@pytest.mark.parametrize("file", modules, ids=lambda p: ".".join(parts(p)))
def test_imports_are_relative_public_and_at_the_top(file):
    for name, names, function in imports(file):
        assert not name.startswith("absolute"), name
        assert not [n for n in names if n.startswith("_")], f"private names of {name}: {names}"
        assert function is None, f"{name} is imported inside {function}"


if __name__ == "__main__":
    for (a, b), n in sorted(drawn().items()): print(f"{a:10} -> {b:10} {n:3}")
