"""Child processes for tests: small programs, heard through the lines that they print.

A test waits for what a program says, never for a span of time: a line that does not come within
`PATIENCE` seconds is a failed test.
"""

from __future__ import annotations

import os
import queue
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from types import TracebackType

from tests.support import PATIENCE

ROOT = Path(__file__).resolve().parents[2]


class Program:
    """A running child process; killed at the end of its ``with`` block if it has not ended.

    `script` is Python source; `args` are its ``sys.argv[1:]``. Its standard output is read line by
    line, its standard error is kept for `errors`.
    """

    def __init__(self, script: str | Path, *args: str, warnings: str = "error") -> None:
        source = [str(script)] if isinstance(script, Path) else ["-c", PRELUDE + script]
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed by __exit__
        self._process = subprocess.Popen(
            [sys.executable, "-u", "-W", warnings, *source, *args],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            text=True,
        )
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, name="reads a child", daemon=True)
        self._reader.start()

    def __enter__(self) -> Program:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._reader.join()
        for stream in (self._process.stdin, self._process.stdout, self._stderr):
            assert stream is not None
            stream.close()

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line.rstrip("\n"))
        self._lines.put(None)

    def line(self) -> str:
        """The next line that it prints; AssertionError, with its errors, if it ends before."""
        try:
            line = self._lines.get(timeout=PATIENCE)
        except queue.Empty:
            raise AssertionError(f"the program says nothing:\n{self.errors()}") from None
        assert line is not None, f"the program has ended:\n{self.errors()}"
        return line

    def say(self, line: str) -> None:
        """Give it a line to read."""
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def kill(self) -> None:
        """SIGKILL: what a power cut does to the process; returns when it is gone."""
        self._process.kill()
        self._process.wait(PATIENCE)

    def interrupt(self) -> None:
        """SIGINT: Ctrl-C."""
        self._process.send_signal(signal.SIGINT)

    def terminate(self) -> None:
        """SIGTERM."""
        self._process.send_signal(signal.SIGTERM)

    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self._process.poll() is None

    def wait(self) -> int:
        """Its exit code, when it has ended by itself."""
        try:
            return self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the program does not end:\n{self.errors()}") from None

    def rest(self) -> list[str]:
        """All that it still printed, when it has ended."""
        self.wait()
        self._reader.join()
        lines = []
        while (line := self._lines.get()) is not None:
            lines.append(line)
        return lines

    def succeed(self) -> list[str]:
        """`rest`, having checked that it ended well."""
        lines = self.rest()
        assert self.wait() == 0, f"exit code {self.wait()}:\n{self.errors()}"
        return lines

    def errors(self) -> str:
        """What it wrote on standard error so far."""
        size = os.fstat(self._stderr.fileno()).st_size
        return os.pread(self._stderr.fileno(), size, 0).decode("utf-8", "replace")


PRELUDE = """\
import os, signal, sqlite3, sys, threading, time
import durable
from durable import Client, Engine, Retry, step, transaction, workflow

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's "&" has it ignored

def print(*values):  # one write, so that lines of several threads do not mingle
    sys.stdout.write(" ".join(map(str, values)) + "\\n")

"""


def new_seed() -> int:
    """A seed, printed, for what is left to chance; ``SEED=…`` in the environment repeats one."""
    seed = int(os.environ.get("SEED", secrets.randbelow(1 << 32)))
    print(f"SEED={seed}")  # noqa: T201 - pytest shows it where a test fails
    return seed
