"""The shape of the house: who may import whom, and where SQL, time and threads live."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import durable

PACKAGE = Path(durable.__file__).parent

# From the ground up. A module may import those of its own level and of the levels below.
LEVELS = [
    {
        "errors",
        "checks",
        "interrupts",
        "records",
        "clock",
        "retry",
        "names",
        "codec",
        "cron",
        "zones",
    },
    {"store"},
    {"runtime"},
    {
        *("handle", "client", "ops", "functions", "declare", "queues", "debounce", "scheduling"),
        *("engine", "aio", ""),
    },
    {"cli", "dashboard", "testing", "dbos"},
]


def modules() -> dict[str, ast.Module]:
    """Each module by its dotted name, ``""`` for the package itself."""
    found = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        parts = file.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(part for part in parts if part != "__init__")
        found[name] = ast.parse(file.read_text("utf-8"), str(file))
    return found


MODULES = modules()


def level(module: str) -> int:
    top = module.partition(".")[0]
    for number, tops in enumerate(LEVELS):
        if top in tops:
            return number
    raise AssertionError(f"say in LEVELS where {module!r} belongs")


def imported(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """The modules of durable that are imported, and the line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "durable":
                    yield node.lineno, alias.name[8:]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute"
            base = node.module or ""
            if base.split(".")[0] == "durable":
                for alias in node.names:
                    whole = f"{base}.{alias.name}"[8:]
                    yield node.lineno, whole if whole in MODULES else base[8:]


def texts(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """All texts that are no docstrings, those of f-strings too."""
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and id(node) not in docstrings
        ):
            yield node.lineno, node.value


def calls(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """What is called, as it stands there: ``self._clock.wait``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield node.lineno, ast.unparse(node.func)


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module: str) -> None:
    """The foundation knows nobody, the store only the foundation, the runtime both, and so on."""
    for line, other in imported(MODULES[module]):
        assert level(other) <= level(module), f"{module}:{line} imports {other}"


def test_no_module_below_imports_the_package_itself() -> None:
    """`durable/__init__.py` holds the public names for users; what is inside asks the owners."""
    for module, tree in MODULES.items():
        if level(module) < 4:
            for line, other in imported(tree):
                assert other != "", f"{module}:{line} imports the package itself"


def test_no_modules_import_each_other_in_a_ring() -> None:
    """The graph of imports has no circle, so each module can be understood after those it uses."""
    graph = {
        module: {other for _, other in imported(tree)} - {module}
        for module, tree in MODULES.items()
        if module
    }
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path[path.index(module) :], module))
        if module not in done:
            for other in sorted(graph.get(module, ())):
                visit(other, (*path, module))
            done.add(module)

    for module in graph:
        visit(module, ())


# Imports in functions that are meant: the module, what it imports, and why.
LATE_IMPORTS = {
    ("store.database", "ctypes"): "only a child that inherited an open file needs it",
}


def test_nothing_is_imported_in_functions() -> None:
    """It would hide a ring; the exceptions have their reasons."""
    late = set()
    for module, tree in MODULES.items():
        for function in ast.walk(tree):
            if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
                for node in ast.walk(function):
                    if isinstance(node, ast.Import):
                        late |= {(module, alias.name) for alias in node.names}
                    elif isinstance(node, ast.ImportFrom):
                        late.add((module, str(node.module)))
    assert late == set(LATE_IMPORTS)


def test_nothing_is_imported_from_outside_the_standard_library() -> None:
    """No dependencies; the plugin for pytest is there for those who have pytest."""
    import sys

    for module, tree in MODULES.items():
        for node in ast.walk(tree):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            for name in names:
                top = name.split(".")[0]
                known = top in sys.stdlib_module_names or top == "durable"
                assert known or (top == "pytest" and module.startswith("testing")), (
                    f"{module}:{node.lineno} imports {name}"
                )


SQL = re.compile(
    r"\s*(SELECT|INSERT|UPDATE|DELETE|REPLACE|WITH RECURSIVE|PRAGMA|CREATE|ALTER|DROP|BEGIN"
    r"|COMMIT|ROLLBACK|SAVEPOINT|RELEASE|VACUUM)\b(?=\s|;|$)"
)


# Who looks at a file past the store, and why.
PAST_THE_STORE = {
    "testing.exploring": "judges what the store did, with statements that are not the store's",
    "testing.replaying": "copies the file of a running program, without opening it as an engine",
}


def test_only_the_store_speaks_sql() -> None:
    """No statement in a text anywhere else."""
    for module, tree in MODULES.items():
        if not module.startswith("store") and module not in PAST_THE_STORE:
            for line, text in texts(tree):
                assert not SQL.match(text), f"{module}:{line}: {text!r}"


def test_the_check_for_sql_sees_it() -> None:
    """The pattern knows the statements of the store."""
    statements = [text for _, text in texts(MODULES["store.workflows"]) if SQL.match(text)]
    assert len(statements) > 15
    assert SQL.match("BEGIN IMMEDIATE")
    assert not SQL.match("update the file")


def test_only_the_store_opens_connections() -> None:
    """Others may name the types and errors of sqlite3, but not connect."""
    for module, tree in MODULES.items():
        if module != "store.connections" and module not in PAST_THE_STORE:
            for line, call in calls(tree):
                assert not call.endswith("sqlite3.connect"), f"{module}:{line}"


def test_only_the_database_begins_and_commits() -> None:
    """And the migrations, before it is open; all else takes a transaction that somebody began.

    The log is laid out by a transaction of its own, which is rolled back; so is one that meets a
    lock of another process.
    """
    whole = {"BEGIN", "COMMIT", "ROLLBACK"}
    may = {
        "store.database": whole,
        "store.transactions": whole,
        "store.migrations": whole,
        "store.wal": {"BEGIN", "ROLLBACK"},
        "store.connections": {"ROLLBACK"},
    }
    for module, tree in MODULES.items():
        for line, text in texts(tree):
            said = whole.intersection(text.split()[:1])
            assert said <= may.get(module, set()), f"{module}:{line}: {text!r}"
        if may.get(module) != whole:
            for line, call in calls(tree):
                assert not call.endswith((".commit", ".rollback")), f"{module}:{line}"


def test_the_functions_of_the_store_do_not_ask_the_time() -> None:
    """They get the moment where they need it; only the door itself waits, for other callers."""
    for module, tree in MODULES.items():
        if module.startswith("store") and module not in ("store.database", "store.requests"):
            for line, call in calls(tree):
                assert not call.endswith((".now", ".wait", ".spawn", "time.time")), (
                    f"{module}:{line}: {call}"
                )


# What tells time, blocks or starts threads. The virtual clock of the testing kit is a clock, too.
CLOCKS = {"clock", "testing.clock"}
OF_CLOCKS = re.compile(
    r"(?:^|\.)(?:time\.(?:time|time_ns|monotonic|monotonic_ns|sleep)"
    r"|threading\.(?:Thread|Timer|Event|Barrier|Semaphore|BoundedSemaphore)"
    r"|datetime\.(?:now|utcnow|today)|date\.today|_thread\.start_new_thread"
    r"|ThreadPoolExecutor|ProcessPoolExecutor|queue\.(?:Queue|SimpleQueue)|select\.select)$"
)
# Whoever calls `.wait` on something else than a clock: what it is.
WAITS = {
    "request.bell.wait": "a Bell of its clock",
    "self._bell.wait": "a Bell of its clock",
    "self.listener.wait": "a Listener, which waits on its clock",
    "listener.wait": "a Listener",
    "super().wait": "of a Listener",
    "acting.wait": "a function: it waits for workflows, with a Listener",
    "children.wait": "the same",
    "asyncio.wait": "waits for tasks, which wait on their clock",
    "self._waiter.wait": "waits on the virtual clock",
}
# Modules that measure themselves in real time, also under a virtual clock.
MEASURE = {
    ("testing.exploring", "time.monotonic"): "how long to go on exploring",
    ("testing.strictness", "time.monotonic"): "how long a body may take",
}


def test_only_clocks_ask_the_time_block_or_start_threads() -> None:
    """So a virtual clock is enough to run all of durable without waiting."""
    for module, tree in MODULES.items():
        if module not in CLOCKS:
            for line, call in calls(tree):
                allowed = not OF_CLOCKS.search(call) or (module, call) in MEASURE
                assert allowed, f"{module}:{line} calls {call}"


def test_only_clocks_wait_on_conditions() -> None:
    """All else waits through `Clock.wait`, or for a bell of a clock."""
    for module, tree in MODULES.items():
        if module not in CLOCKS:
            for line, call in calls(tree):
                if call.endswith(".wait"):
                    by_a_clock = call.split(".")[-2] in ("clock", "_clock", "bell", "_bell")
                    assert by_a_clock or call in WAITS, f"{module}:{line} calls {call}"


# ---------------------------------------------------------------------- the public names


def test_all_is_true() -> None:
    """Each public name can be imported; there is none twice, and they are in order."""
    assert len(set(durable.__all__)) == len(durable.__all__)
    assert durable.__all__ == sorted(durable.__all__)
    for name in durable.__all__:
        assert hasattr(durable, name), name


def test_all_is_complete() -> None:
    """What the package shows is what it lists, besides its modules."""
    shown = {
        name
        for name, value in vars(durable).items()
        if not name.startswith("_") and type(value) is not type(durable)
    }
    assert shown == set(durable.__all__)


def test_every_error_is_public() -> None:
    """The tree in errors.py is all that a user may have to catch."""
    from durable import errors

    classes = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and value.__module__ == errors.__name__
    }
    assert classes <= set(durable.__all__)
    assert all(issubclass(getattr(errors, name), durable.DurableError) for name in classes)


def test_the_tree_of_errors_is_drawn_as_it_is() -> None:
    """Each class stands in the docstring of errors.py below its base."""
    from durable import errors

    above: list[str] = []
    drawn = {}
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"    ([│ ]*)(?:[├└]── )?([A-Z]\w+)", line)
        if found:
            depth = len(found[1]) // 4 + ("──" in line)
            above[depth:] = [found[2]]
            drawn[found[2]] = above[depth - 1] if depth else "Exception"
    classes = {
        name: value
        for name, value in vars(errors).items()
        if isinstance(value, type) and value.__module__ == errors.__name__
    }
    assert drawn == {name: value.__bases__[0].__name__ for name, value in classes.items()}


@pytest.mark.parametrize("name", durable.__all__)
def test_every_public_name_says_what_it_is(name: str) -> None:
    """Each has a docstring of its own, but for the logger."""
    value = getattr(durable, name)
    assert value.__doc__, name


def test_every_module_opens_with_its_job() -> None:
    """A docstring whose first line is a sentence."""
    for name, tree in MODULES.items():
        first = (ast.get_docstring(tree) or "").split("\n\n")[0]
        assert first, f"{name} does not say what it is for"


def test_the_package_has_what_it_needs_to_be_installed() -> None:
    """schema.sql and the marker for type checkers are package data."""
    assert (PACKAGE / "py.typed").exists()
    assert (PACKAGE / "store" / "schema.sql").exists()
    text = (PACKAGE.parent / "pyproject.toml").read_text("utf-8")
    assert '"py.typed"' in text
    assert '"store/schema.sql"' in text
    assert importlib.import_module("durable.store.migrations").schema()
