"""Promises of examples/mirror.py, made to whoever runs it; the server is a real one."""

from __future__ import annotations

import hashlib
import os
import pty
import re
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from durable import Client
from examples.mirror import TRY_AGAIN, Fetched, main, settings
from tests.support import until

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 60.0

# ---------------------------------------------------------------------- the server

Answer = Callable[[BaseHTTPRequestHandler, bytes], None]


class Server(ThreadingHTTPServer):
    """Serves what is in `files`, by path, and counts what it is asked for.

    `odd` has, by path, the odd answers that come before the right one. After `stop_after` answers
    it gives none until `go_on` is set.
    """

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 100

    def __init__(self, files: dict[str, bytes], port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.files = files
        self.odd: dict[str, list[Answer]] = {}
        self.asked: Counter[str] = Counter()
        self.stop_after = sys.maxsize
        self.go_on = threading.Event()
        self.busy = self.busiest = self.waiting = 0
        self.mutex = threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_port}"
        self._thread = threading.Thread(target=self.serve_forever, args=(0.01,))
        self._thread.start()

    def stop(self) -> None:
        """Answer nobody any more."""
        self.go_on.set()
        self.shutdown()
        self._thread.join()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server = self.server
        with server.mutex:
            server.asked[self.path] += 1
            waits = server.asked.total() > server.stop_after
            server.waiting += waits
            server.busy += 1
            server.busiest = max(server.busy, server.busiest)
            odd = server.odd.get(self.path)
            answer = odd.pop(0) if odd else whole
        if waits:
            server.go_on.wait(PATIENCE)
        with suppress(ConnectionError):
            content = server.files.get(self.path)
            if content is None:
                self.send_error(404)
            else:
                answer(self, content)
        with server.mutex:
            server.busy -= 1

    def log_message(self, *args: Any) -> None:
        pass


def whole(handler: BaseHTTPRequestHandler, content: bytes, kind: str = "text/plain") -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(content)))
    handler.send_header("Content-Type", kind)
    handler.end_headers()
    handler.wfile.write(content)


def page(handler: BaseHTTPRequestHandler, content: bytes) -> None:
    whole(handler, content, "text/html; charset=utf-8")


def unavailable(handler: BaseHTTPRequestHandler, content: bytes) -> None:
    handler.send_error(503)


def dropped(handler: BaseHTTPRequestHandler, content: bytes) -> None:
    """The connection breaks in the midst of the file."""
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content[: len(content) // 2])


def hung_up(handler: BaseHTTPRequestHandler, content: bytes) -> None:
    """The connection breaks before there is an answer."""


@contextmanager
def serving(files: dict[str, bytes], port: int = 0) -> Iterator[Server]:
    server = Server(files, port)
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture
def server() -> Iterator[Server]:
    """A server with twenty files and a list of them."""
    files = {f"/{number:02}.txt": f"content {number}\n".encode() * 99 for number in range(20)}
    files["/list"] = "".join(f"{path[1:]}\n" for path in files).encode()
    with serving(files) as server:
        yield server


# ---------------------------------------------------------------------- the command


@pytest.fixture
def mirror(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[object, str, str]]:
    """Runs the command in this process: its exit code, or last words, and what it has printed."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(settings, "workers", settings.workers)

    def run(*arguments: object) -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "argv", ["mirror", *map(str, arguments)])
        code: object
        try:
            code = main()
        except SystemExit as ended:
            code = ended.code
        return code, *capsys.readouterr()

    return run


Mirror = Callable[..., tuple[object, str, str]]


@contextmanager
def started(*arguments: object, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """The command in a process of its own, which gets SIGKILL at the end of the block."""
    # A shell that has the tests in the background ignores SIGINT, which a child would inherit.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        child = subprocess.Popen(
            [sys.executable, "-m", "examples.mirror", *map(str, arguments)],
            cwd=ROOT,
            env={**os.environ, "PYTHONWARNINGS": "error", "no_proxy": "127.0.0.1"},
            text=True,
            **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
        )
    finally:
        signal.signal(signal.SIGINT, before)
    with child:
        try:
            yield child
        finally:
            child.kill()


def recorded(target: Path) -> list[Fetched]:
    """What the state file knows to be here."""
    with Client(target.with_name(f"{target.name}.mirror.db")) as client:
        steps = [step for each in client.workflows() for step in client.handle(each.id).steps()]
    return [step.value for step in steps if isinstance(step.value, Fetched)]


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a folder, by path."""
    return {
        f"/{path.relative_to(folder)}": path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def given(server: Server) -> dict[str, bytes]:
    return {path: content for path, content in server.files.items() if path != "/list"}


# ---------------------------------------------------------------------- what is fetched


def test_all_that_a_list_names_is_here(server: Server, tmp_path: Path, mirror: Mirror) -> None:
    """Each file is asked for once; size and SHA-256 are the results of the steps; no chatter."""
    target = tmp_path / "deep" / "target"
    code, out, err = mirror(f"{server.url}/list", target)
    assert (code, err) == (0, "")
    assert out == f"20 files, 0.0 MB, are in {target}\n"
    assert contents(target) == given(server)
    assert set(server.asked.values()) == {1}
    for each in recorded(target):
        content = server.files[each.url.removeprefix(server.url)]
        assert (each.size, each.sha256) == (len(content), hashlib.sha256(content).hexdigest())


def test_a_list_may_be_a_file(server: Server, tmp_path: Path, mirror: Mirror) -> None:
    """A URL in each line; blank lines, comments and repetitions are passed over."""
    texts = [f"{server.url}/07.txt", "", "# the next one twice", *[f" {server.url}/08.txt "] * 2]
    (tmp_path / "list").write_text("\n".join(texts))
    assert mirror(tmp_path / "list", tmp_path / "target")[0] == 0
    assert sorted(contents(tmp_path / "target")) == ["/07.txt", "/08.txt"]
    assert server.asked == {"/07.txt": 1, "/08.txt": 1}


def test_all_that_a_page_links_to_is_here(tmp_path: Path, mirror: Mirror) -> None:
    """Also in the folders below it, but nothing beside it, and no other order of the same page."""
    files = {
        "/music/": b'<a href="one.ogg">1</a> <A HREF="live/">live</A> <a href="?sort=size">s</a>'
        b'<a href="../secret">up</a> <a href="http://localhost/else">e</a> <a name="x">x</a>',
        "/music/live/": b'<a href="/music/live/two.ogg#start">2</a> <a href="../">back</a>',
        "/music/one.ogg": b"one",
        "/music/live/two.ogg": b"two",
        "/secret": b"no",
    }
    with serving(files) as server:
        server.odd = {path: [page] for path in files if path.endswith("/")}
        assert mirror(f"{server.url}/music/", tmp_path / "target")[0] == 0
        assert contents(tmp_path / "target") == {"/one.ogg": b"one", "/live/two.ogg": b"two"}
        assert set(server.asked) == set(files) - {"/secret"}


def test_a_source_without_files_is_no_error(tmp_path: Path, mirror: Mirror) -> None:
    """The mirror of nothing is an empty folder."""
    (tmp_path / "list").touch()
    code, out, err = mirror(tmp_path / "list", tmp_path / "target")
    assert (code, err) == (0, "")
    assert out.startswith("0 files, 0.0 MB")
    assert contents(tmp_path / "target") == {}


@pytest.mark.skipif(sys.platform == "darwin", reason="its file names are UTF-8")
def test_odd_names(tmp_path: Path, mirror: Mirror) -> None:
    """Blanks, other alphabets, bytes that are no text, questions, and an empty file."""
    names = {
        "/a b.txt": "/a%20b.txt",
        "/№ ж.txt": "/%E2%84%96%20%D0%B6.txt",
        os.fsdecode(b"/\xff\xfe\n"): "/%FF%FE%0A",
        "/50%.txt": "/50%25.txt",
        "/ask?what=a%2Fb": "/ask?what=a/b",
        "/-rf": "/-rf",
        "/deep/er/.hidden": "/deep/er/.hidden",
        "/empty": "/empty",
    }
    files = {path: b"" if path == "/empty" else path.encode() for path in names.values()}
    typed = [path.replace("%20", " ").replace("%E2%84%96", "№") for path in files]
    with serving(files) as server:
        (tmp_path / "list").write_text("".join(f"{server.url}{path}\n" for path in typed), "utf-8")
        code, _, err = mirror(tmp_path / "list", tmp_path / "target")
    assert (code, err) == (0, "")
    assert contents(tmp_path / "target") == {name: files[path] for name, path in names.items()}


def test_no_name_leads_out_of_the_target(tmp_path: Path, mirror: Mirror) -> None:
    """Nor to a folder or nowhere: the file is listed as missing, and the others are fetched."""
    paths = ["/%2e%2e/x", "/a/..%2fx", "/a//x", "/nul%00", "/folder/", "/good", "/good/too"]
    with serving(dict.fromkeys(paths, b"content")) as server:
        (tmp_path / "list").write_text("".join(f"{server.url}{path}\n" for path in paths))
        code, out, err = mirror(tmp_path / "list", tmp_path / "target", "--workers", 1)
    assert (code, out[:8]) == (1, "1 files,")
    *bad, unwritable = err.splitlines()
    assert bad == [
        f"missing {server.url}{path}: its path can be no file's name here" for path in paths[:5]
    ]
    assert unwritable == (
        f"missing {server.url}/good/too: {tmp_path}/target/good/too cannot be written (File exists)"
    )
    assert contents(tmp_path) == {
        "/list": (tmp_path / "list").read_bytes(),
        "/target/good": b"content",
        "/target.mirror.db": (tmp_path / "target.mirror.db").read_bytes(),
    }


# ---------------------------------------------------------------------- what goes wrong


@pytest.mark.slow
def test_what_passes_is_tried_again(server: Server, tmp_path: Path, mirror: Mirror) -> None:
    """A server that is busy, hangs up or breaks off in the midst of a file, or of the list."""
    server.odd = {
        "/list": [dropped],
        "/01.txt": [unavailable, unavailable],
        "/02.txt": [dropped, hung_up],
    }
    code, _, err = mirror(f"{server.url}/list", tmp_path / "target")
    assert (code, err) == (0, "")
    assert contents(tmp_path / "target") == given(server)
    assert {path: n for path, n in server.asked.items() if n > 1} == {
        "/list": 2,
        "/01.txt": 3,
        "/02.txt": 3,
    }


@pytest.mark.slow
def test_what_is_missing_is_listed_and_tried_again_by_the_next_command(
    server: Server, tmp_path: Path, mirror: Mirror
) -> None:
    """A 404 is asked for once, a server that is always busy five times; the others are not lost."""
    target = tmp_path / "target"
    server.odd["/05.txt"] = [unavailable] * TRY_AGAIN.attempts
    content = server.files.pop("/07.txt")
    code, out, err = mirror(f"{server.url}/list", target)
    assert (code, out[:9]) == (1, "18 files,")
    assert err.splitlines() == [
        f"missing {server.url}/05.txt: 503 Service Unavailable",
        f"missing {server.url}/07.txt: 404 Not Found",
    ]
    assert (server.asked["/05.txt"], server.asked["/07.txt"]) == (5, 1)

    server.asked.clear()
    code, out, err = mirror(f"{server.url}/list", target)
    assert (code, out[:9]) == (1, "19 files,")
    assert err.splitlines() == [
        "trying again what was missing: 2 files",
        f"missing {server.url}/07.txt: 404 Not Found",
    ]
    server.files["/07.txt"] = content
    assert mirror(f"{server.url}/list", target)[0] == 0
    assert server.asked == {"/05.txt": 1, "/07.txt": 2}
    assert contents(target) == given(server)
    code, out, err = mirror(f"{server.url}/list", target)
    assert (code, out[:9]) == (0, "20 files,")
    assert re.fullmatch(r"this mirror was made on [-\d]+ at [:\d]+\n", err)
    assert server.asked.total() == 3


@pytest.mark.slow
def test_a_lost_server_ends_the_command_and_the_same_command_goes_on(
    server: Server, tmp_path: Path, mirror: Mirror
) -> None:
    """When it is back, what was recorded is not asked for again, and nothing was half there."""
    target = tmp_path / "target"
    server.stop_after = 9
    lost = threading.Thread(target=lambda: (until(lambda: server.waiting == 2), server.stop()))
    lost.start()
    for path in list(server.files)[8:-1]:
        server.odd[path] = [hung_up] * TRY_AGAIN.attempts
    with started(f"{server.url}/list", target, "--workers", 2) as child:
        out, err = child.communicate(timeout=PATIENCE)
    lost.join()
    assert (child.returncode, out) == (1, "")
    assert re.fullmatch(
        rf"{server.url}/\d\d.txt: .*; the same command goes on once that is mended\n", err
    )
    here = recorded(target)
    assert len(here) == 8
    assert contents(target).items() <= given(server).items()

    with serving(server.files, server.server_port) as again:
        code, _, err = mirror(f"{server.url}/list", target)
        assert (code, err) == (0, "going on: 8 files are here\n")
        assert set(again.asked) == set(given(server)) - {
            each.url.removeprefix(server.url) for each in here
        }
    assert contents(target) == given(server)


def test_a_list_that_cannot_be_read_is_said_and_leaves_nothing_behind_that_matters(
    server: Server, tmp_path: Path, mirror: Mirror
) -> None:
    """The command may be mended: the target belongs to no source before it has a list."""
    target = tmp_path / "target"
    server.files["/image"] = b"\x89PNG"
    server.odd["/image"] = [lambda handler, content: whole(handler, content, "image/png")]
    (tmp_path / "bad").write_text("07.txt\n")
    (tmp_path / "two").write_text(f"{server.url}/07.txt\nhttp://elsewhere.example/x\n")
    for source, words in (
        (f"{server.url}/lost", "/lost: 404 Not Found; the same command goes on"),
        (f"{server.url}/image", "is no page with links, and no text with a URL in each line"),
        (tmp_path / "bad", "'07.txt' is no URL of a file: a list has one in each line"),
        (tmp_path / "two", f"is not on {server.url}/: a mirror is of one server"),
    ):
        code, out, _ = mirror(source, target)
        assert words in str(code)
        assert out == ""
    assert mirror(f"{server.url}/list", target)[0] == 0


def test_a_target_that_cannot_be_written_ends_the_command(
    server: Server, tmp_path: Path, mirror: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk is nobody's result: once there is room, the same command goes on."""

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        code, _, _ = mirror(f"{server.url}/list", tmp_path / "target")
    assert re.search(r"txt cannot be written \(No space left on device\); the same", str(code))
    code, _, err = mirror(f"{server.url}/list", tmp_path / "target")
    assert (code, err) == (0, "going on: 0 files are here\n")
    assert contents(tmp_path / "target") == given(server)


# ---------------------------------------------------------------------- stopped and run again


@pytest.mark.slow
def test_killed_in_the_midst_it_asks_again_for_nothing_that_was_recorded(
    server: Server, tmp_path: Path, mirror: Mirror
) -> None:
    """kill -9, then the same command: the mirror is whole, with no half file on the way."""
    target = tmp_path / "target"
    server.stop_after = 12  # the list, and eleven files
    with started(f"{server.url}/list", target, "--workers", 3) as child:
        until(lambda: server.waiting == 3)
        child.kill()
        assert child.wait(PATIENCE) == -signal.SIGKILL
    server.go_on.set()
    until(lambda: not server.busy)
    here = {each.url.removeprefix(server.url) for each in recorded(target)}
    assert len(here) == 11
    assert {path: given(server)[path] for path in here} == {
        path: content for path, content in contents(target).items() if not path.endswith(".part")
    }

    code, _, err = mirror(f"{server.url}/list", target)
    assert (code, err) == (0, "going on: 11 files are here\n")
    assert contents(target) == given(server)
    assert {path for path, count in server.asked.items() if count == 1} == here | {
        "/list",
        *sorted(given(server))[14:],
    }
    assert max(server.asked.values()) == 2


@pytest.mark.slow
def test_ctrl_c_stops_and_the_same_command_goes_on(
    server: Server, tmp_path: Path, mirror: Mirror
) -> None:
    """Exit code 130 and a sentence, no traceback; at most `workers` files are asked for at once."""
    target = tmp_path / "target"
    server.stop_after = 5
    with started(f"{server.url}/list", target, "--workers", 2) as child:
        until(lambda: server.waiting == 2)
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=PATIENCE)
    assert (child.returncode, out) == (130, "")
    assert err == "stopped: the same command goes on with what is not yet here\n"
    server.go_on.set()
    until(lambda: not server.busy)
    assert server.busiest == 2
    code, _, err = mirror(f"{server.url}/list", target)
    assert (code, err) == (0, "going on: 4 files are here\n")
    assert contents(target) == given(server)


@pytest.mark.slow
def test_two_at_once_are_one_too_many(server: Server, tmp_path: Path, mirror: Mirror) -> None:
    """The second says which process is at work, and the first ends as it should."""
    target = tmp_path / "target"
    server.stop_after = 3
    with started(f"{server.url}/list", target) as child:
        until(lambda: server.waiting)
        code, _, _ = mirror(f"{server.url}/list", target)
        assert code == f"process {child.pid} is at work on this mirror"
        server.go_on.set()
        out, err = child.communicate(timeout=PATIENCE)
    assert (child.returncode, err) == (0, "")
    assert out == f"20 files, 0.0 MB, are in {target}\n"


# ---------------------------------------------------------------------- what is shown


@pytest.mark.slow
def test_a_terminal_shows_a_bar(server: Server, tmp_path: Path) -> None:
    """One line that changes with each file, and ends full; the result goes elsewhere."""
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "rb", buffering=0) as terminal:
        with started(f"{server.url}/list", tmp_path / "target", stderr=theirs) as child:
            os.close(theirs)
            out, _ = child.communicate(timeout=PATIENCE)
        shown = terminal.read(1 << 16).decode()
    assert child.returncode == 0
    assert out.startswith("20 files, ")
    first, *lines = shown.split("\r")[1:]
    assert first == "[" + "-" * 30 + "]   0%  0 of 20 files, 0.0 MB"
    assert lines[-2:] == ["[" + "#" * 30 + "] 100%  20 of 20 files, 0.0 MB", "\n"]
    assert [int(found) for found in re.findall(r"  (\d+) of 20", shown)] == list(range(21))


def test_help_has_an_example(mirror: Mirror) -> None:
    """It names the arguments, and what can be typed."""
    code, out, _ = mirror("--help")
    assert code == 0
    for words in ("SOURCE", "TARGET", "--workers", "example: python3 -m examples.mirror http://"):
        assert words in out


def test_arguments_of_no_use_are_refused(server: Server, tmp_path: Path, mirror: Mirror) -> None:
    """With a sentence and exit code 2, and nothing is written."""
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis").touch()
    (tmp_path / "gone.mirror.db").touch()
    before = sorted(tmp_path.rglob("*"))
    url, missing = f"{server.url}/list", tmp_path / "missing"
    for arguments, sentence in (
        ((url,), "where to? Give a TARGET"),
        ((missing, tmp_path / "target"), f"{missing} is no URL and no file"),
        ((url, mine), f"{mine} exists, and is not a mirror that could go on"),
        ((url, mine / "thesis"), f"{mine}/thesis exists, and is not a mirror that could go on"),
        ((url, tmp_path / "gone"), "gone is gone; remove "),
        ((url, tmp_path / "target", "--workers", "0"), "--workers is a number from 1 to 1000"),
        ((url, tmp_path / "target", "--workers", "x"), "invalid int value: 'x'"),
    ):
        code, out, err = mirror(*arguments)
        assert (code, out) == (2, "")
        assert sentence in err
    assert sorted(tmp_path.rglob("*")) == before
    assert not server.asked


def test_a_target_is_the_mirror_of_one_source(
    server: Server, tmp_path: Path, mirror: Mirror
) -> None:
    """Another source is refused, and it is said which one the target has."""
    target = tmp_path / "target"
    mirror(f"{server.url}/list", target)
    (tmp_path / "list").write_text(f"{server.url}/07.txt")
    code, _, _ = mirror(tmp_path / "list", target)
    assert code == (f"{target} is another mirror: mirror of '{server.url}/list' to '{target}'")


@pytest.mark.slow
def test_the_demonstration_keeps_its_word() -> None:
    """With no arguments: it serves, kills, goes on, and says how often what was asked for."""
    with started() as child:
        out, err = child.communicate(timeout=PATIENCE)
    assert child.returncode == 0
    assert re.fullmatch(r"going on: \d+ files are here\n", err)
    assert "All in all 100 files were asked for; " in out
