"""Promises of examples/backup.py, made to whoever runs it."""

from __future__ import annotations

import email
import hashlib
import json
import os
import pty
import random
import re
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from durable import Client, NotADurableFile, Step
from examples.backup import Item, main

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 120.0
Ends = subprocess.CompletedProcess[str]


def command(source: Path, target: Path) -> list[str]:
    """What a person types."""
    return [sys.executable, "-m", "examples.backup", os.fspath(source), os.fspath(target)]


def options() -> dict[str, Any]:
    """How a process of these tests is started."""
    return {"cwd": ROOT, "env": {**os.environ, "PYTHONWARNINGS": "error"}, "text": True}


def backup(source: Path, target: Path) -> Ends:
    """Run the command to its end."""
    return subprocess.run(
        command(source, target), capture_output=True, timeout=PATIENCE, check=False, **options()
    )


@contextmanager
def started(source: Path, target: Path) -> Iterator[subprocess.Popen[str]]:
    """Start the command; it gets SIGKILL at the end of the block."""
    with subprocess.Popen(
        command(source, target),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        **options(),
    ) as child:
        try:
            yield child
        finally:
            child.kill()


def read_progress(child: subprocess.Popen[str], lines: int) -> None:
    """Wait until the command has said so much, or ended."""
    assert child.stderr is not None
    for _ in range(lines):
        child.stderr.readline()


def killed_early(source: Path, target: Path) -> None:
    """Start the command, and kill it when the first items are copied, and the last are not."""
    with started(source, target) as child:
        read_progress(child, 1)
    assert child.returncode == -signal.SIGKILL, "it was faster than this test"


def beside(target: Path, suffix: str) -> Path:
    return target.with_name(target.name + suffix)


def recorded(target: Path) -> list[Step]:
    """The steps that the state file has."""
    try:
        with Client(beside(target, ".backup.db")) as client:
            return [step for each in client.workflows() for step in client.handle(each.id).steps()]
    except NotADurableFile:
        return []  # it was killed before there was a file


def copied(steps: list[Step]) -> dict[str, Item]:
    """The items that have a recorded step, by path."""
    return {step.value.path: step.value for step in steps if step.name.endswith(":copy")}


def tree(folder: Path) -> dict[bytes, object]:
    """All that is in a folder: content, mode and time of files, links, folders."""
    return {
        os.fsencode(path.relative_to(folder)): what_is_at(path)
        for path in (folder, *folder.rglob("*"))
    }


def what_is_at(path: Path) -> object:
    status = path.lstat()
    if stat.S_ISLNK(status.st_mode):
        return "a link", os.readlink(path)  # noqa: PTH115 - as it is, not tidied up
    if stat.S_ISREG(status.st_mode):
        return path.read_bytes(), stat.S_IMODE(status.st_mode), status.st_mtime_ns
    return "a folder"


def names(folder: Path) -> list[str]:
    """What is in a folder, sorted."""
    return sorted(path.name for path in folder.iterdir())


@dataclass(frozen=True)
class Made:
    """A backup that was made, and how."""

    source: Path
    target: Path
    ends: Ends


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real folder: a part of Python's own library."""
    source = tmp_path_factory.mktemp("library") / "lib"
    ignored = shutil.ignore_patterns("__pycache__")
    for each in (json, email):
        shutil.copytree(Path(each.__file__).parent, source / each.__name__, ignore=ignored)
    (source / "json" / "tool.py").chmod(0o500)
    return source


@pytest.fixture(scope="module")
def made(library: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The backup of the library, for several tests to look at."""
    target = tmp_path_factory.mktemp("made") / "target"
    return Made(library, target, backup(library, target))


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """A folder whose backup takes long enough to be killed in the midst of it."""
    source = tmp_path / "many"
    source.mkdir()
    for number in range(120):
        (source / f"{number:03}").write_text(f"content {number}")
    return source


# ---------------------------------------------------------------------- the copy


@pytest.mark.slow
def test_the_copy_is_like_the_source(made: Made) -> None:
    """Content, mode and time; the result says how much there is, and where."""
    assert made.ends.returncode == 0
    assert tree(made.target) == tree(made.source)
    assert re.fullmatch(rf"\d+ items, [\d.]+ MB, are in {made.target}\n", made.ends.stdout)


def test_the_manifest_lists_what_was_copied(made: Made) -> None:
    """Path, size and SHA-256 of each file, sorted by path."""
    items = json.loads(beside(made.target, ".manifest.json").read_text())["items"]
    files = sorted(path for path in made.source.rglob("*") if path.is_file())
    assert [item["path"] for item in items] == [
        str(path.relative_to(made.source)) for path in files
    ]
    for item, content in zip(items, (path.read_bytes() for path in files), strict=True):
        assert item["sha256"] == hashlib.sha256(content).hexdigest()
        assert item["size"] == len(content)


@pytest.mark.slow
def test_links_and_empty_folders_are_copied_as_such(tmp_path: Path) -> None:
    """Also a link that leads nowhere, and one to a folder."""
    source = tmp_path / "source"
    (source / "empty" / "within").mkdir(parents=True)
    (source / "full").mkdir()
    (source / "full" / "file").touch()
    (source / "nowhere").symlink_to("./not//there")
    (source / "folder").symlink_to("full")
    assert backup(source, tmp_path / "target").returncode == 0
    assert tree(tmp_path / "target") == tree(source)


def test_an_empty_source_is_an_empty_target(tmp_path: Path) -> None:
    """Nothing to copy is no error, and the folders above the target are made."""
    (tmp_path / "source").mkdir()
    assert backup(tmp_path / "source", tmp_path / "deep" / "target").returncode == 0
    assert tree(tmp_path / "deep" / "target") == {b".": "a folder"}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "darwin", reason="its file names are UTF-8")
def test_names_need_not_be_utf_8(tmp_path: Path) -> None:
    """Of the source, of files and in the manifest; and a run that was killed goes on with them."""
    source, target = tmp_path / os.fsdecode(b"sour\xffce"), tmp_path / os.fsdecode(b"tar\xfeget")
    source.mkdir()
    for number in range(120):
        (source / os.fsdecode(b"\xfc%03d\n\x80" % number)).write_text(f"content {number}")
    (source / "link").symlink_to(os.fsdecode(b"\xc3\x28"))
    killed_early(source, target)
    done = backup(source, target)
    assert (done.returncode, tree(target)) == (0, tree(source))
    assert done.stdout.endswith("/tar\\xfeget\n")
    manifest = json.loads(beside(target, ".manifest.json").read_text())
    assert sorted(item["path"] for item in manifest["items"]) == names(source)


@pytest.mark.slow
def test_the_same_command_after_the_end_says_that_it_is_done(made: Made) -> None:
    """And when; it answers as the first did, and copies nothing."""
    before = {path: path.lstat().st_ctime_ns for path in made.target.rglob("*")}
    again = backup(made.source / "email" / "..", made.target)
    assert (again.returncode, again.stdout) == (0, made.ends.stdout)
    assert re.fullmatch(r"this backup was made on [-\d]+ at [:\d]+\n", again.stderr)
    assert {path: path.lstat().st_ctime_ns for path in made.target.rglob("*")} == before


# ---------------------------------------------------------------------- stopped and run again


def check_kills(source: Path, target: Path, kills: int, lines: int) -> None:
    """Kill the command at random moments, then let it end; nothing recorded is done again."""
    seed = int(os.environ.get("SEED", random.SystemRandom().randrange(10**6)))
    print(f"SEED={seed}")  # noqa: T201 - pytest shows it when the test fails
    choose = random.Random(seed)
    known: dict[str, tuple[Item, os.stat_result]] = {}
    for _ in range(kills):
        with started(source, target) as child:
            read_progress(child, choose.randrange(lines))
            with suppress(subprocess.TimeoutExpired):
                child.wait(choose.uniform(0, 0.05))
        steps = recorded(target)
        assert [step.number for step in steps] == [str(1 + index) for index in range(len(steps))]
        for path, item in copied(steps).items():
            known.setdefault(path, (item, (target / path).lstat()))
    assert backup(source, target).returncode == 0
    assert tree(target) == tree(source)
    at_the_end = copied(recorded(target))
    for path, (item, before) in known.items():
        after = (target / path).lstat()
        assert (after.st_ino, after.st_ctime_ns) == (before.st_ino, before.st_ctime_ns), path
        assert at_the_end[path] == item


@pytest.mark.slow
def test_killed_at_random_moments_it_copies_nothing_twice_that_was_recorded(
    library: Path, tmp_path: Path
) -> None:
    """What a killed run has recorded is the same file at the end, and the copy is right."""
    check_kills(library, tmp_path / "target", kills=4, lines=30)


@pytest.mark.slow
def test_the_whole_library_survives_kills(tmp_path: Path) -> None:
    """The same with thousands of files."""
    source = tmp_path / "lib"
    ignored = shutil.ignore_patterns("__pycache__", "site-packages")
    shutil.copytree(Path(os.__file__).parent, source, ignore=ignored, symlinks=True)
    assert len(tree(source)) > 1000
    check_kills(source, tmp_path / "target", kills=10, lines=15)


@pytest.mark.slow
def test_ctrl_c_stops_and_the_same_command_goes_on(many: Path, tmp_path: Path) -> None:
    """Exit code 130 and a sentence, no traceback."""
    target = tmp_path / "target"
    with started(many, target) as child:
        read_progress(child, 1)
        child.send_signal(signal.SIGINT)
        assert child.stderr is not None
        *progress, last = child.stderr.read().splitlines()
        assert child.wait(PATIENCE) == 130
    assert last == "stopped: the same command goes on with what is not yet copied"
    assert all(re.match(r" *\d+ %  ", line) for line in progress)
    steps = len(recorded(target))
    said, progress_line, *_ = backup(many, target).stderr.splitlines()
    assert said == f"going on: {steps} steps are recorded"
    shown = re.match(r" *\d+ %  (\d+) of 120 items, ", progress_line)
    assert shown is not None
    assert steps - 1 <= int(shown[1]) <= steps + 1
    assert tree(target) == tree(many)


@pytest.mark.slow
def test_two_at_once_are_one_too_many(many: Path, tmp_path: Path) -> None:
    """The second says which process is at work, and the first ends as it should."""
    target = tmp_path / "target"
    with started(many, target) as first:
        read_progress(first, 1)
        first.send_signal(signal.SIGSTOP)
        second = backup(many, target)
        first.send_signal(signal.SIGCONT)
        read_progress(first, 200)
        assert first.wait(PATIENCE) == 0
    assert second.returncode == 1
    assert second.stderr == f"process {first.pid} is at work on this backup\n"


# ---------------------------------------------------------------------- what goes wrong


@pytest.mark.slow
def test_what_is_gone_before_its_turn_is_skipped(many: Path, tmp_path: Path) -> None:
    """A file that vanished or cannot be read is listed with the reason, and the exit code is 1."""
    target = tmp_path / "target"
    killed_early(many, target)
    (many / "118").unlink()
    (many / "119").unlink()
    (many / "119").mkdir()
    done = backup(many, target)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-2:] == [
        "skipped 118: No such file or directory",
        "skipped 119: Is a directory",
    ]
    assert done.stdout.startswith("118 items, ")
    assert names(target) == names(many)[:-1]


@pytest.mark.slow
def test_what_is_no_file_is_skipped(tmp_path: Path) -> None:
    """A named pipe is listed, not waited for."""
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    os.mkfifo(source / "pipe")
    (source / "file").touch()
    done = backup(source, target)
    assert done.returncode == 1
    assert done.stderr.endswith("skipped pipe: is not a file, a folder or a link\n")
    assert names(target) == ["file"]


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read everything")
def test_what_may_not_be_read_is_skipped(tmp_path: Path) -> None:
    """A file and a folder."""
    source = tmp_path / "source"
    (source / "folder").mkdir(parents=True)
    (source / "file").touch(0o000)
    (source / "folder").chmod(0o000)
    done = backup(source, tmp_path / "target")
    assert done.returncode == 1
    assert "skipped file: Permission denied\nskipped folder: Permission denied\n" in done.stderr


@pytest.mark.slow
def test_a_target_that_cannot_be_written_stops_the_backup(many: Path, tmp_path: Path) -> None:
    """Exit code 1 and the reason; once it is mended, the same command goes on."""
    target = tmp_path / "target"
    killed_early(many, target)
    (target / "119").mkdir()
    stopped = backup(many, target)
    assert stopped.returncode == 1
    assert f"{target} cannot be written: [Errno 21] Is a directory" in stopped.stderr
    (target / "119").rmdir()
    assert backup(many, target).returncode == 0
    assert tree(target) == tree(many)


def refusal(
    source: Path, target: Path, patch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> str:
    """What the command says as it refuses its arguments with exit code 2."""
    patch.setattr(sys, "argv", ["backup", str(source), str(target)])
    with pytest.raises(SystemExit) as refused:
        main()
    assert refused.value.code == 2
    return capsys.readouterr().err.splitlines()[-1].partition("error: ")[2]


def test_arguments_of_no_use_are_refused(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a sentence, and nothing is written."""
    source, json_folder, missing = made.source, made.source / "json", tmp_path / "missing"
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis").touch()
    before = tree(tmp_path), tree(source)
    for arguments, sentence in (
        ((missing, tmp_path / "target"), f"{missing} is not a folder"),
        ((mine / "thesis", tmp_path / "target"), f"{mine}/thesis is not a folder"),
        ((source, json_folder), f"of {source} and {json_folder}, one lies in the other"),
        ((json_folder, source), f"of {json_folder} and {source}, one lies in the other"),
        ((source, source), f"of {source} and {source}, one lies in the other"),
        ((source, mine), f"{mine} exists, and is not a backup that could go on"),
        ((source, mine / "thesis"), f"{mine}/thesis exists, and is not a backup that could go on"),
    ):
        assert refusal(*arguments, monkeypatch, capsys) == sentence
    assert (tree(tmp_path), tree(source)) == before


def test_a_target_that_somebody_removed_is_missed(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is not said to be made, and it is said how to begin anew."""
    made.target.rename(tmp_path / "elsewhere")
    sentence = refusal(made.source, made.target, monkeypatch, capsys)
    (tmp_path / "elsewhere").rename(made.target)
    state = beside(made.target, ".backup.db")
    assert sentence == f"{made.target} is gone; remove {state} as well to begin anew"


@pytest.mark.slow
def test_a_target_is_the_backup_of_one_source(made: Made) -> None:
    """Another source is refused, and it is said which one the target has."""
    other = backup(made.source / "email", made.target)
    assert (other.returncode, other.stdout) == (1, "")
    assert other.stderr.startswith(f"{made.target} is another backup: backup of '{made.source}' ")


# ---------------------------------------------------------------------- progress


@pytest.mark.slow
def test_a_terminal_shows_one_line_that_changes(library: Path, tmp_path: Path) -> None:
    """One carriage return for each item, and one line end at the end."""
    ours, theirs = pty.openpty()
    done = subprocess.run(
        command(library, tmp_path / "target"),
        stdout=subprocess.PIPE,
        stderr=theirs,
        timeout=PATIENCE,
        check=True,
        **options(),
    )
    os.close(theirs)
    shown = os.read(ours, 1 << 16)
    os.close(ours)
    items = int(done.stdout.split()[0])
    assert shown.count(b"\r") == items
    assert shown.count(b"\n") == 1
    assert re.search(rf"\r100 %  {items} of {items} items, [^\r]+\r\n$", shown.decode())
