"""A backup that goes on where it was stopped, whatever stopped it.

    python3 -m examples.backup SOURCE TARGET

copies the folder SOURCE as one workflow: the list of what there is to copy is a step, each file is
a step, the manifest is the last one. Stop it anywhere, with Ctrl-C, kill -9 or the power switch,
and run the same command: it goes on, and nothing that was recorded is copied again.

    TARGET                  the copy: files with mode and time, symbolic links, empty folders
    TARGET.manifest.json    path, size and SHA-256 of all that was copied
    TARGET.backup.db        the state, kept as a record of what was done when

TARGET is one backup: once it is made, the same command only says so. For a new one, give a new
TARGET. What cannot be read, or is gone before its turn, is skipped and listed at the end. Exit
codes: 0 all was copied, 1 not all or none of it was, 2 the arguments are of no use, 130 Ctrl-C.

What it shows: an id that stands for the work ("this source to this target"), so that starting it
again attaches to it; steps that may run twice without harm (written beside, then renamed); progress
that a replay does not show again (`current`); and errors of two kinds: those that belong to the
result are recorded, and those that somebody has to mend first (the disk is full) end the program,
which leaves the workflow unfinished.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import stat
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import BinaryIO

import durable
from durable import Engine, step, workflow

CHUNK = 1 << 20


@dataclass(frozen=True)
class Item:
    """A file, link or empty folder of the source, and what became of it."""

    path: str
    kind: str
    size: int = 0
    sha256: str | None = None
    skipped: str | None = None
    """Why it was not copied."""


@dataclass(frozen=True)
class Summary:
    """What a backup did."""

    copied: int
    size: int
    skipped: list[Item]


# ---------------------------------------------------------------------- the workflow


@workflow
def backup(source: Path, target: Path) -> Summary:
    """Copy all that is in the source, one step for each item, and write the manifest."""
    items = list_source(source)
    progress = Progress(items)
    done = []
    for item in items:
        done.append(item if item.skipped else copy(source, target, item))
        progress.show(item)
    write_manifest(source, target, done)
    copied = [item for item in done if not item.skipped]
    skipped = [item for item in done if item.skipped]
    return Summary(len(copied), sum(item.size for item in copied), skipped)


@step
def list_source(source: Path) -> list[Item]:
    """All that there is to copy, sorted by path; recorded, so that each run has the same list."""
    items = []

    def unreadable(error: OSError) -> None:
        path = Path(error.filename).relative_to(source)
        items.append(Item(str(path), "folder", skipped=error.strerror))

    for name, subfolders, files in os.walk(source, onerror=unreadable):
        folder = Path(name)
        if not subfolders and not files:
            items.append(Item(str(folder.relative_to(source)), "folder"))
        for each in subfolders + files:
            item = look_at(folder / each, str((folder / each).relative_to(source)))
            if item is not None:
                items.append(item)
    return sorted(items, key=lambda item: item.path)


def look_at(origin: Path, path: str) -> Item | None:
    """What there is to copy; None for a folder, which comes with what is in it."""
    try:
        status = origin.lstat()
    except OSError as error:
        return Item(path, "file", skipped=error.strerror)
    if stat.S_ISDIR(status.st_mode):
        return None
    if stat.S_ISLNK(status.st_mode):
        return Item(path, "link")
    if stat.S_ISREG(status.st_mode):
        return Item(path, "file", status.st_size)
    return Item(path, "special", skipped="is not a file, a folder or a link")


@step
def copy(source: Path, target: Path, item: Item) -> Item:
    """Copy an item. It may run twice: the copy gets its name when it is complete, not before."""
    origin, place = source / item.path, target / item.path
    part = place.with_name(f".{hashlib.sha256(os.fsencode(place.name)).hexdigest()[:16]}.part")
    with writing(target):
        place.parent.mkdir(parents=True, exist_ok=True)
        if item.kind == "folder":
            place.mkdir(exist_ok=True)
            return item
        part.unlink(missing_ok=True)
        try:
            item = (copy_link if item.kind == "link" else copy_file)(origin, part, item)
        except Unreadable as error:
            part.unlink(missing_ok=True)
            return replace(item, skipped=str(error))
        put_in_place(part, place)
    return item


def copy_file(origin: Path, part: Path, item: Item) -> Item:
    """Copy content, mode and time of a file, and compare what was written with what was read."""
    digest = hashlib.sha256()
    with reading():
        reader = origin.open("rb")
    with reader, part.open("w+b") as writer:
        while chunk := read_chunk(reader):
            digest.update(chunk)
            writer.write(chunk)
        writer.flush()
        status = os.fstat(reader.fileno())
        part.chmod(stat.S_IMODE(status.st_mode))
        os.utime(part, ns=(status.st_atime_ns, status.st_mtime_ns))
        os.fsync(writer.fileno())
        size = writer.seek(0, os.SEEK_END)
        writer.seek(0)
        if hashlib.file_digest(writer, "sha256").digest() != digest.digest():
            raise OSError(f"{part} is not what was written to it")
    return replace(item, size=size, sha256=digest.hexdigest())


def copy_link(origin: Path, part: Path, item: Item) -> Item:
    """Copy a symbolic link as a link; its content is the path that it holds."""
    with reading():
        path = os.readlink(origin)  # noqa: PTH115 - Path.readlink would tidy the path up
    part.symlink_to(path)
    content = os.fsencode(path)
    return replace(item, size=len(content), sha256=hashlib.sha256(content).hexdigest())


@step
def write_manifest(source: Path, target: Path, items: Sequence[Item]) -> None:
    """Write what became of each item; the file is complete or not there."""
    manifest = {"source": str(source), "items": [asdict(item) for item in items]}
    part, place = beside(target, ".manifest.json.part"), beside(target, ".manifest.json")
    with writing(target):
        with part.open("w", encoding="ascii") as writer:
            json.dump(manifest, writer, indent=1)
            writer.flush()
            os.fsync(writer.fileno())
        put_in_place(part, place)


# ---------------------------------------------------------------------- reading and writing


class Unreadable(Exception):
    """The source cannot be read: the item is skipped, and the backup goes on."""


@contextlib.contextmanager
def reading() -> Iterator[None]:
    """In here, what fails is the fault of the source."""
    try:
        yield
    except OSError as error:
        raise Unreadable(error.strerror) from error


@contextlib.contextmanager
def writing(target: Path) -> Iterator[None]:
    """In here, what fails is the fault of the target: the program ends, and may be run again.

    An OSError would be recorded as the outcome of the step. SystemExit is none: the workflow stays
    unfinished.
    """
    try:
        yield
    except OSError as error:
        raise SystemExit(
            f"{target} cannot be written: {error}; once it can, the same command goes on"
        ) from error


def read_chunk(reader: BinaryIO) -> bytes:
    """The next bytes of a file of the source."""
    with reading():
        return reader.read(CHUNK)


def put_in_place(part: Path, place: Path) -> None:
    """Give a complete file its name, such that a power cut does not take it away again."""
    part.replace(place)
    if os.name == "posix":
        folder = os.open(place.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def beside(target: Path, suffix: str) -> Path:
    """The path of a file beside the target."""
    return target.with_name(target.name + suffix)


# ---------------------------------------------------------------------- progress


class Progress:
    """Shows how far the backup is: one line that changes on a terminal, else one for each percent.

    What a replay passes is not shown again.
    """

    def __init__(self, items: Sequence[Item]) -> None:
        self.items, self.size = len(items), sum(item.size for item in items)
        self.items_done = self.size_done = self.percent = 0

    def show(self, item: Item) -> None:
        """One more item is done."""
        self.items_done += 1
        self.size_done += item.size
        percent_before, self.percent = self.percent, 100 * self.items_done // self.items
        if durable.current().replaying:
            return
        line = (
            f"{self.percent:3} %  {self.items_done} of {self.items} items, "
            f"{megabytes(self.size_done)} of {megabytes(self.size)}"
        )
        if sys.stderr.isatty():
            end = "\n" if self.items_done == self.items else "\r"
            print(line, end=end, file=sys.stderr, flush=True)
        elif self.percent != percent_before:
            say(line)


def say(text: str) -> None:
    """Tell the person who waits; the result alone goes to the standard output."""
    print(text, file=sys.stderr, flush=True)


def megabytes(size: int) -> str:
    """A number of bytes, for people."""
    return f"{size / 1e6:.1f} MB"


# ---------------------------------------------------------------------- the command


def main() -> int:
    """Read the arguments, make the backup or go on with it, and say how it ended."""
    parser = argparse.ArgumentParser(
        prog="python3 -m examples.backup",
        description="Copy a folder. Stop it anywhere and run the same command: it goes on.",
    )
    parser.add_argument("source", metavar="SOURCE", type=Path, help="the folder to be copied")
    parser.add_argument("target", metavar="TARGET", type=Path, help="where to; a new folder")
    arguments = parser.parse_args()
    source, target = arguments.source.resolve(), arguments.target.resolve()
    state = beside(target, ".backup.db")
    if not source.is_dir():
        parser.error(f"{source} is not a folder")
    if target.is_relative_to(source) or source.is_relative_to(target):
        parser.error(f"of {source} and {target}, one lies in the other")
    if state.exists() and not target.exists():
        parser.error(f"{target} is gone; remove {state} as well to begin anew")
    if not state.exists() and target.exists() and not is_empty_folder(target):
        parser.error(f"{target} exists, and is not a backup that could go on")
    try:
        target.mkdir(parents=True, exist_ok=True)
        with Engine(state, recover="manual") as engine:
            summary = make(engine, source, target)
    except KeyboardInterrupt:
        say("stopped: the same command goes on with what is not yet copied")
        return 130
    except durable.AlreadyRunning as error:
        raise SystemExit(f"process {error.pid} is at work on this backup") from error
    except (durable.DurableError, OSError) as error:
        raise SystemExit(f"backup: {error}") from error
    for item in summary.skipped:
        say(f"skipped {item.path}: {item.skipped}")
    print(f"{summary.copied} items, {megabytes(summary.size)}, are in {shown(target)}")
    return 1 if summary.skipped else 0


def make(engine: Engine, source: Path, target: Path) -> Summary:
    """Make the backup, or go on with it, or attach to the one that is made."""
    workflow_id = f"backup of {str(source)!a} to {str(target)!a}"
    for known in engine.workflows():
        if known.id != workflow_id:
            raise SystemExit(f"{target} is another backup: {known.id}")
        if known.finished_at is not None:
            say(f"this backup was made on {known.finished_at.astimezone():%Y-%m-%d at %H:%M:%S}")
        else:
            say(f"going on: {len(engine.handle(workflow_id).steps())} steps are recorded")
    return engine.start(backup.options(id=workflow_id), source, target).result()


def is_empty_folder(path: Path) -> bool:
    """Whether the path is a folder with nothing in it."""
    return path.is_dir() and not any(path.iterdir())


def shown(path: Path) -> str:
    """The path as any terminal can show it."""
    return os.fsencode(path).decode(errors="backslashreplace")


if __name__ == "__main__":
    sys.exit(main())
