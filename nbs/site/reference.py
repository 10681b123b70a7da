"Pages of reference: each public object with its signature, docstring and the comments on its parameters."
import ast, importlib, inspect, re, textwrap
from dataclasses import is_dataclass
from functools import cached_property
from pathlib import Path

from fastcore.docments import docments

FENCE = "`````"


def dotted(file:Path, package:Path) -> str:
    "Name the module that a file holds."
    return ".".join([package.name, *file.relative_to(package).with_suffix("").parts])


def public_names(modules) -> dict:
    "Map the name of every public object to its dotted name, without names of two modules."
    places = {}
    for module in modules:
        for name in importlib.import_module(module).__all__:
            places.setdefault(name, []).append(f"{module}.{name}")
    return {name: found[0] for name, found in places.items() if len(found) == 1}


def linked(text, names) -> str:
    "Turn names in backticks into links to the reference."
    def link(m): return f"{{py:obj}}`~{names[m[1]]}`" if m[1] in names else m[0]
    return re.sub(r"(?<!`)`([A-Za-z_]\w*)`(?!`)", link, text)


def signature(obj) -> str:
    "Read the parameters from the source, so that defaults show as names."
    tree = ast.parse(textwrap.dedent(inspect.getsource(obj))).body[0]
    if isinstance(tree, ast.ClassDef):
        start = next((n for n in tree.body if getattr(n, "name", "") == "__init__"), None)
        if start is None:
            fields = [ast.unparse(n) for n in tree.body if isinstance(n, ast.AnnAssign)]
            return f"({', '.join(fields)})" if fields else ""
        tree = start
    parameters = tree.args.posonlyargs or tree.args.args
    if parameters and parameters[0].arg in ("self", "cls"): del parameters[0]
    returned = f" -> {ast.unparse(tree.returns)}" if tree.returns else ""
    return f"({ast.unparse(tree.args)}){returned}"


def comments(obj) -> dict:
    "Map the name of each parameter or field to the comment beside it."
    if inspect.isclass(obj) and "__init__" in vars(obj) and not is_dataclass(obj): obj = obj.__init__
    if inspect.isfunction(obj): return docments(obj)
    return dict(re.findall(r"(?m)^    (\w+) *:[^#\n]*# (.+)$", inspect.getsource(obj)))


def fields(obj, names) -> list:
    "List parameters and returned value as fields of a directive."
    said = {name: linked(" ".join(text.split()), names) for name, text in comments(obj).items() if text}
    back = said.pop("return", None)
    said.pop("self", None)
    return [f":param {name}: {text}" for name, text in said.items()] + ([f":returns: {back}"] if back else [])


def entry(kind, name, obj, names, inside=(), depth=0, options=()) -> str:
    "Write one object as a directive; what is `inside` it has a larger depth."
    fence = FENCE[depth:]
    head = f"{fence}{{py:{kind}}} {name}{'' if kind == 'property' else signature(obj)}"
    text = linked(inspect.getdoc(obj) or "", names)
    return "\n".join([head, *options, "", text, "", *fields(obj, names), "", *inside, fence, ""])


def methods(cls, names):
    "Write the public methods and properties that a class defines."
    for name, found in vars(cls).items():
        if name.startswith("_"): continue
        if isinstance(found, property): yield entry("property", name, found.fget, names, depth=1)
        elif isinstance(found, cached_property): yield entry("property", name, found.func, names, depth=1)
        elif isinstance(found, (classmethod, staticmethod)):
            yield entry("method", name, found.__func__, names, depth=1, options=[f":{type(found).__name__}:"])
        elif inspect.isfunction(found): yield entry("method", name, found, names, depth=1)


def constant(name, module) -> str:
    "Write a public value: its source if that is short, and the comment beside it."
    source = inspect.getsource(module)
    assigned = (n for n in ast.parse(source).body if isinstance(n, ast.Assign))
    node = next((n for n in assigned if name in ast.unparse(n.targets[0])), None)
    value = ast.unparse(node.value) if node and isinstance(node.targets[0], ast.Name) else ""
    line = next((l for l in source.split("\n") if re.match(rf"{name}\b.*=", l)), "")
    options = [f":value: {value}"] if 0 < len(value) < 80 else []
    return "\n".join([f"{FENCE}{{py:data}} {name}", *options, "", line.partition(" # ")[2], FENCE, ""])


def write_object(name, module, names) -> str:
    "Write a class, a function or a value."
    obj = getattr(module, name)
    if inspect.isclass(obj): return entry("class", name, obj, names, methods(obj, names))
    function = inspect.unwrap(obj) if callable(obj) else obj
    if inspect.isfunction(function): return entry("function", name, function, names)
    return constant(name, module)


def module_page(name, lesson, names) -> str:
    "Write the page of a module; `lesson` is a link to its notebook."
    module = importlib.import_module(name)
    text = linked(module.__doc__ or "", names)
    head = [f"# {name}", text, f"Lesson: {lesson}", f"```{{py:module}} {name}\n```"]
    return "\n\n".join([*head, *(write_object(public, module, names) for public in module.__all__)])
