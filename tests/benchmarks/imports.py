"""What `import durable` costs, beside the modules of the standard library that it needs."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import durable
from tests.benchmarks.figures import Figure, Setup, benchmark
from tests.benchmarks.measuring import MILLISECOND

TIMED = """
import sys, time
begin = time.perf_counter()
{imports}
end = time.perf_counter()
sys.stdout.write(str(end - begin))
"""

LOADED = """
import sys
import durable
sys.stdout.write(" ".join(name for name in sys.modules if name.split(".")[0] == "durable"))
"""


@benchmark
def importing(setup: Setup) -> Iterator[Figure]:
    """`import durable` beside an import of the standard modules that it names."""
    standard = "import " + ", ".join(sorted(standard_modules()))

    def seconds(imports: str) -> float:
        return float(_python(TIMED.format(imports=imports), bytecode=setup.folder))

    seconds("import durable")  # the first ones write bytecode, and read disks
    seconds(standard)
    pairs = [
        (seconds(standard), seconds("import durable")) for _ in range(setup.rounds * setup.count(5))
    ]
    without, with_durable = (median(column) for column in zip(*pairs, strict=True))
    yield Figure(
        "import durable / import of the standard modules it uses",
        median(second / first for first, second in pairs),  # of two in the same slow moment
        "times",
        at_most=1.5,
        note=f"{with_durable / MILLISECOND:.0f} ms; {without / MILLISECOND:.0f} ms without it",
    )


def standard_modules() -> set[str]:
    """The modules of the standard library that those of `import durable` import themselves."""
    found: set[str] = set()
    for name in _python(LOADED).split():
        file = Path(durable.__file__).parent.joinpath(*name.split(".")[1:])
        source = file / "__init__.py" if file.is_dir() else file.with_suffix(".py")
        for node in ast.parse(source.read_text("utf-8")).body:
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module)
    return {name for name in found if name.split(".")[0] in sys.stdlib_module_names}


def _python(program: str, bytecode: Path | None = None) -> str:
    """What the program prints; the bytecode of what it imports is kept in that folder."""
    environment = dict(os.environ)
    if bytecode is not None:
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        environment["PYTHONPYCACHEPREFIX"] = str(bytecode)
    done = subprocess.run(
        [sys.executable, "-S", "-c", program],  # -S: nothing that site has imported before
        check=True,
        capture_output=True,
        text=True,
        env=environment,
    )
    return done.stdout
