"""The layers of docs/architecture.md: who may import whom."""

import ast
from pathlib import Path

import hfkd

ROOT = Path(hfkd.__file__).parent
# From the bottom: each imports from what stands before it, and within itself. Neighbours on a line do not meet.
LAYERS = [
    ["utils"],
    ["losses", "models", "data"],
    ["tasks"],
    ["teachers"],
    ["arguments"],
    ["training", "evaluation"],
    ["reports"],
    ["trainer"],
    ["experiments"],
    ["commands"],
    ["__init__"],
]
LEVEL = {entry: level for level, entries in enumerate(LAYERS) for entry in entries}


def imports():
    """{module: modules that it imports, also for its annotations alone}, of hfkd, by dotted names."""
    files = {".".join(("hfkd", *p.relative_to(ROOT).with_suffix("").parts)): p for p in ROOT.rglob("*.py")}
    modules = {name.removesuffix(".__init__"): path for name, path in files.items()}
    found = {}
    for name, path in modules.items():
        found[name] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "hfkd":
                submodules = {f"{node.module}.{alias.name}" for alias in node.names}
                found[name] |= (submodules & modules.keys()) or {node.module}
            elif isinstance(node, ast.Import):
                found[name] |= {alias.name for alias in node.names if alias.name in modules}
        found[name].discard(name)
    return found


def entry(module):
    return module.split(".")[1] if "." in module else "__init__"


def test_the_package_has_these_entries_and_no_others():
    there = {p.stem for p in ROOT.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    assert there == set(LEVEL)
    assert len(there) <= 14


def test_each_layer_imports_from_those_below_it():
    upwards = [
        f"{module} imports {other}"
        for module, others in imports().items()
        for other in others
        if entry(module) != entry(other) and LEVEL[entry(other)] >= LEVEL[entry(module)]
    ]
    assert not upwards


def test_nothing_imports_itself_by_a_detour():
    graph, done = imports(), set()

    def visit(module, path):
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module not in done:
            for other in graph[module]:
                visit(other, [*path, module])
            done.add(module)

    for module in graph:
        visit(module, [])
