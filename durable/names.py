"""The names that the file keeps for functions and classes, ``module:qualname``, and back."""

from __future__ import annotations

import functools
import sys
from pathlib import PurePath
from types import ModuleType
from typing import Any


def module_name(module: str) -> str:
    """The name by which an import would know `module`, also where it runs as ``__main__``.

    ``python app.py`` has no module name but the file's stem; ``python -m pkg.app`` has ``pkg.app``.
    """
    if module != "__main__":
        return module
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    if spec is not None:
        return str(spec.name)
    file = getattr(main, "__file__", None)
    return _stem(file) if file else "__main__"


@functools.cache
def _stem(file: str) -> str:
    return PurePath(file).stem


def qualified_name(thing: Any) -> str:
    """``module:qualname`` of a function or class."""
    return f"{module_name(thing.__module__)}:{thing.__qualname__}"


def callable_name(fn: Any) -> str:
    """The name of anything callable: of what a partial calls, or of the class of an object."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    if not hasattr(fn, "__qualname__") or not isinstance(getattr(fn, "__module__", None), str):
        fn = type(fn)
    return qualified_name(fn)


def find_class(name: str) -> type | None:
    """The class of that name among the modules already imported; None where there is none.

    Nothing is imported and no code runs: modules and classes are read through their ``__dict__``,
    past any ``__getattr__`` of theirs.
    """
    module_part, _, qualname = name.partition(":")
    for module in _loaded(module_part):
        found: Any = module
        for part in qualname.split("."):
            found = vars(found).get(part) if isinstance(found, (ModuleType, type)) else None
        if isinstance(found, type):
            return found
    return None


def _loaded(name: str) -> list[ModuleType]:
    """The loaded modules that `name` may mean: the imported one, and the main one if it has it."""
    candidates = [sys.modules.get(name)]
    if module_name("__main__") == name:
        candidates.append(sys.modules["__main__"])
    return [module for module in candidates if isinstance(module, ModuleType)]
