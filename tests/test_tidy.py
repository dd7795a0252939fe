"""How the code is kept: layers, doors, sizes, and what must not stand in any file."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

TIME_BUDGET_S = 20

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("orchestrator", "workers")
FILE_LINES = 400
FUNCTION_LINES = 60
DEPTH = 5
LONGEST_BUDGET_S = 300

# Each outside library with weight comes in through these files only.
DOORS = {
    "mlperf_loadgen": {"orchestrator/loadgen.py"},
    "ray": {"orchestrator/cluster.py", "orchestrator/placement.py", "workers/actor.py"},
    "zmq": {"orchestrator/link.py", "workers/port.py"},
    "yaml": {"orchestrator/manifest.py", "orchestrator/rules.py", "orchestrator/submission/data_files.py"},
    "prometheus_client": {"orchestrator/metrics.py", "orchestrator/exporter.py"},
}
# What files below a path never import, wherever in the file.
LAYERS = {
    "orchestrator/": {"torch"},
    "workers/": {"orchestrator", "mlperf_loadgen"},
    "workers/tasks/": {"torch"},
    "workers/library.py": {"torch"},
    "workers/library_reader.py": {"torch"},
    "workers/protocol.py": {"torch"},
    "workers/models/dlrm_options.py": {"torch"},
    "workers/models/scales.py": {"torch"},
}
# Names that say nothing about what a module knows.
EMPTY_NAMES = {"util", "utils", "common", "core", "base", "manager", "helper", "helpers", "misc"}
UNSAFE_MODULES = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
# Readers of pickles (networks that were pickled whole; the references' volumes): a handful of names each.
RESTRICTED_READERS = {
    "workers/models/inert_pickle.py": "pickle",
    "workers/tasks/reference_pickle.py": "pickle",
}
HARMLESS = {"pickle.UnpicklingError"}  # what torch.load(weights_only=True) raises for a file that it refuses
UNSAFE_CALLS = {"eval", "exec", "os.system", "os.popen", "yaml.load", "yaml.load_all", "yaml.unsafe_load"}
UNSAFE_CALLS |= {
    "yaml.unsafe_load_all",
    "yaml.full_load",
    "yaml.full_load_all",
}
# Call -> the keyword and value that it must have / must not have.
NEEDS = {"torch.load": ("weights_only", True)}
REFUSES = {"np.load": ("allow_pickle", True), "numpy.load": ("allow_pickle", True)}
REFUSES |= {"subprocess.Popen": ("shell", True), "subprocess.run": ("shell", True)}
# Written in pieces, so that this file keeps its own rules.
UNFINISHED = re.compile(r"\b(" + "|".join(["TO" + "DO", "FIX" + "ME", "XX" + "X"]) + r")\b")
MACHINE_PATHS = re.compile(r"(?<![\w.$}~*-])/(" + "|".join(["wo" + "rk", "ro" + "ot"]) + r")/")
REGISTRIES = re.compile(
    "|".join(
        re.escape(".".join(parts))
        for parts in [
            ("pypi", "org"),
            ("pypi", "python", "org"),
            ("files", "pythonhosted", "org"),
            ("registry", "npmjs", "org"),
            ("deb", "debian", "org"),
            ("download", "pytorch", "org"),
        ]
    )
)


@cache
def kept_files() -> tuple[str, ...]:
    """The files of the project, as git would have them: tracked or to be added."""
    try:
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT, capture_output=True, text=True, check=True,
        )  # fmt: skip
        names = set(listed.stdout.split("\0")) - {""}
    except (OSError, subprocess.CalledProcessError):  # an unpacked archive
        names = {str(path.relative_to(ROOT)) for path in ROOT.rglob("*") if not hidden(path)}
    return tuple(sorted(name for name in names if (ROOT / name).is_file()))


def hidden(path: Path) -> bool:
    parts = path.relative_to(ROOT).parts
    return any(part.startswith(".") or part == "__pycache__" or part.endswith(".egg-info") for part in parts)


@cache
def text_of(name: str) -> str:
    """A file's text; empty for one that is not text."""
    try:
        return (ROOT / name).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return ""


@cache
def tree_of(name: str) -> ast.Module:
    return ast.parse(text_of(name), filename=name)


def python_files(*under: str) -> list[str]:
    names = [name for name in kept_files() if name.endswith(".py")]
    return [name for name in names if not under or name.startswith(tuple(f"{top}/" for top in under))]


def module_of(name: str) -> str:
    return name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


@dataclass(frozen=True)
class Import:
    module: str  # as far as it can be told: `from a.b import c` gives a.b.c
    line: int


def resolve(name: str, node: ast.ImportFrom) -> str:
    if node.level == 0:
        return node.module or ""
    package = module_of(name).split(".")
    package = package[: len(package) - node.level + (1 if name.endswith("__init__.py") else 0)]
    return ".".join([*package, *([node.module] if node.module else [])])


def imports_in(name: str, nodes: Iterator[ast.AST]) -> list[Import]:
    found = []
    for node in nodes:
        if isinstance(node, ast.Import):
            found += [Import(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [Import(f"{resolve(name, node)}.{alias.name}", node.lineno) for alias in node.names]
        elif isinstance(node, ast.Call) and dotted(node.func).endswith(("import_module", "__import__")):
            words = [arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant)]
            found += [Import(word, node.lineno) for word in words if isinstance(word, str)]
    return found


def at_import_time(tree: ast.AST) -> Iterator[ast.AST]:
    """The nodes that run when the module is imported: no function bodies, nothing for type checkers only."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and dotted(node.test).endswith("TYPE_CHECKING"):
            continue
        yield node
        yield from at_import_time(node)


def dotted(node: ast.AST) -> str:
    """`a.b.c` of a name or an attribute of names, else nothing."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        owner = dotted(node.value)
        return f"{owner}.{node.attr}" if owner else ""
    return ""


def none(troubles: list[str]) -> None:
    assert not troubles, "\n  ".join(["", *troubles])


# Sizes


def test_files_stay_short() -> None:
    lengths = {name: len(text_of(name).splitlines()) for name in python_files()}
    none([f"{name} has {n} lines, over {FILE_LINES}" for name, n in lengths.items() if n > FILE_LINES])


def functions_in(name: str) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree_of(name)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def test_functions_stay_short() -> None:
    troubles = []
    for name in python_files():
        for function in functions_in(name):
            lines = (function.end_lineno or function.lineno) - function.lineno + 1
            if lines > FUNCTION_LINES:
                troubles.append(f"{name}:{function.lineno} {function.name} has {lines} lines")
    none(troubles)


BLOCKS = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.With, ast.AsyncWith, ast.Try, ast.TryStar, ast.Match)


def depth_of(node: ast.AST, depth: int = 0) -> tuple[int, int]:
    """The deepest nesting of blocks and functions below a node, and its line; elif is no deeper than if."""
    deepest = (depth, getattr(node, "lineno", 0))
    for child in ast.iter_child_nodes(node):
        is_elif = isinstance(node, ast.If) and isinstance(child, ast.If) and node.orelse == [child]
        opens = isinstance(child, (*BLOCKS, ast.FunctionDef, ast.AsyncFunctionDef)) and not is_elif
        deepest = max(deepest, depth_of(child, depth + opens))
    return deepest


def test_blocks_are_not_nested_deeply() -> None:
    deepest = {name: depth_of(tree_of(name)) for name in python_files()}
    none(
        [f"{name}:{line} is {depth} blocks deep" for name, (depth, line) in deepest.items() if depth > DEPTH]
    )


def test_elif_chains_are_flat_and_nested_blocks_are_not() -> None:
    chain = "if a:\n pass\nelif b:\n pass\nelif c:\n pass\nelse:\n pass\n"
    assert depth_of(ast.parse(chain))[0] == 1
    assert depth_of(ast.parse("def f():\n for a in b:\n  if a:\n   pass\n"))[0] == 3


# Names and words


def test_modules_are_named_for_what_they_know() -> None:
    parts = {name: set(Path(name).with_suffix("").parts) & EMPTY_NAMES for name in python_files()}
    none([f"{name}: {', '.join(found)} says nothing" for name, found in parts.items() if found])


def lines_with(pattern: re.Pattern[str]) -> list[str]:
    names = [name for name in kept_files() if pattern.search(text_of(name))]
    lines = [
        (name, number, line) for name in names for number, line in enumerate(text_of(name).splitlines(), 1)
    ]
    return [f"{name}:{number}: {line.strip()[:80]}" for name, number, line in lines if pattern.search(line)]


def test_nothing_is_left_unfinished() -> None:
    none(lines_with(UNFINISHED))


def test_paths_of_one_machine_are_told_from_ordinary_words() -> None:
    folder = "/" + "work/"
    assert MACHINE_PATHS.search(f'open("{folder}x")') and MACHINE_PATHS.search(folder)
    assert not MACHINE_PATHS.search(f"net{folder[1:]}") and not MACHINE_PATHS.search(f"~{folder}")


def test_no_file_names_a_path_of_one_machine_or_a_registrys_host() -> None:
    none(lines_with(MACHINE_PATHS) + lines_with(REGISTRIES))


# Layers and doors


def all_imports(name: str) -> list[Import]:
    return imports_in(name, ast.walk(tree_of(name)))


def test_layers_hold() -> None:
    troubles = []
    for path, forbidden in LAYERS.items():
        for name in (name for name in python_files(*PACKAGES) if name.startswith(path)):
            bad = [one for one in all_imports(name) if one.module.split(".")[0] in forbidden]
            troubles += [f"{name}:{one.line} imports {one.module}" for one in bad]
    none(troubles)


def test_outside_libraries_come_in_through_their_doors() -> None:
    troubles = []
    for name in python_files(*PACKAGES):
        for one in all_imports(name):
            doors = DOORS.get(one.module.split(".")[0])
            if doors is not None and name not in doors:
                troubles.append(f"{name}:{one.line} imports {one.module}; its doors are {sorted(doors)}")
    none(troubles)


def import_graph() -> dict[str, set[str]]:
    modules = {module_of(name): name for name in python_files(*PACKAGES)}
    graph: dict[str, set[str]] = {}
    for module, name in modules.items():
        reached = set()
        for one in imports_in(name, at_import_time(tree_of(name))):
            owner = one.module.rpartition(".")[0]  # `from a import b`: b may be a module or a name in it
            reached |= {target for target in (one.module, owner) if target in modules}
            if one.module in modules:
                reached.discard(owner)
        graph[module] = reached - {module}
    return graph


def find_cycle(graph: dict[str, set[str]]) -> list[str]:
    """A cycle's modules in order, or nothing."""
    done: set[str] = set()

    def visit(module: str, path: list[str]) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module in done:
            return []
        for target in sorted(graph.get(module, ())):
            if cycle := visit(target, [*path, module]):
                return cycle
        done.add(module)
        return []

    return next((cycle for module in sorted(graph) if (cycle := visit(module, []))), [])


def test_no_modules_import_each_other_in_a_circle() -> None:
    cycle = find_cycle(import_graph())
    assert not cycle, " -> ".join(cycle)


def test_a_circle_would_be_found() -> None:
    assert find_cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert find_cycle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


# Safety


def keyword(call: ast.Call, name: str) -> object:
    values = [word.value for word in call.keywords if word.arg == name]
    return values[0].value if values and isinstance(values[0], ast.Constant) else None


def unsafe_calls(name: str) -> Iterator[str]:
    for node in ast.walk(tree_of(name)):
        if not isinstance(node, ast.Call):
            continue
        called = dotted(node.func)
        place = f"{name}:{node.lineno} {called}"
        if called in UNSAFE_CALLS:
            yield f"{place} is not allowed"
        if called in NEEDS and keyword(node, NEEDS[called][0]) is not NEEDS[called][1]:
            yield f"{place} without {NEEDS[called][0]}={NEEDS[called][1]}"
        if called in REFUSES and keyword(node, REFUSES[called][0]) is REFUSES[called][1]:
            yield f"{place} with {REFUSES[called][0]}={REFUSES[called][1]}"


def test_nothing_from_outside_is_unpickled_or_evaluated() -> None:
    troubles = []
    for name in python_files(*PACKAGES):
        wanted = [one for one in all_imports(name) if one.module not in HARMLESS]
        wanted = [one for one in wanted if one.module != RESTRICTED_READERS.get(name)]
        bad = [one for one in wanted if one.module.split(".")[0] in UNSAFE_MODULES]
        troubles += [f"{name}:{one.line} imports {one.module}" for one in bad]
        troubles += unsafe_calls(name)
    none(troubles)


# Tests


@pytest.mark.parametrize("name", [name for name in kept_files() if re.fullmatch(r"tests/test_\w+\.py", name)])
def test_every_test_file_has_a_time_budget(name: str) -> None:
    values = [
        node.value.value
        for node in tree_of(name).body
        if isinstance(node, ast.Assign) and [dotted(target) for target in node.targets] == ["TIME_BUDGET_S"]
        if isinstance(node.value, ast.Constant)
    ]
    assert values, f"{name} has no TIME_BUDGET_S = <seconds> at its top"
    assert isinstance(values[0], int | float) and 0 < values[0] <= LONGEST_BUDGET_S
