"""Fetches many files from an HTTP server, and goes on where it was stopped, whatever stopped it.

    python3 -m examples.mirror                                     # a demonstration; needs no net
    python3 -m examples.mirror http://localhost:8000/music/ music
    python3 -m examples.mirror list.txt files --workers 4

The first argument is the URL of a page, whose links below it are fetched, with those of the folders
that it links to (what `python3 -m http.server` shows); or a text with a URL in each line, as a URL
or as a file. Stop it anywhere, with Ctrl-C, kill -9 or the power switch, and run the same command:
it goes on, and what was recorded is not asked for again.

    TARGET                the files, under their paths on the server; never half a file
    TARGET.mirror.db      the state: size and SHA-256 of each file, and what was not there

A file that the server refuses (404), or fails to give however often it is asked, is listed at the
end, and the same command tries those again. When the server cannot be reached, the program ends,
and the same command goes on once it can. Exit codes: 0 all is there, 1 not all or none of it is, 2
the arguments are of no use, 130 Ctrl-C.

What it shows: a step for each of many items (`map`), with errors among the results; a `Retry` that
knows which errors pass; a stream that the steps write and the progress bar reads; a setting that is
no argument of the workflow, as it may change from start to start; and work that is done again in
part, as a workflow of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import hashlib
import logging
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from html.parser import HTMLParser
from http.client import HTTPException, HTTPResponse
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import quote, unquote_to_bytes, urldefrag, urljoin, urlsplit
from urllib.request import urlopen

import durable
from durable import Engine, Handle, Retry, Status, Workflow, step, workflow
from examples.backup import beside, is_empty_folder, megabytes, put_in_place, say, shown

CHUNK = 1 << 18
ANSWER_WITHIN = 30.0


@dataclass(frozen=True)
class Item:
    """A file of the server, and its place here; None where the path can be no file's name."""

    url: str
    place: Path | None


@dataclass(frozen=True)
class Fetched:
    """A file that is here."""

    url: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Missing:
    """A file that is not here, and why."""

    item: Item
    reason: str


@dataclass(frozen=True)
class Summary:
    """What became of all files."""

    files: int
    size: int
    missing: list[Missing]


@dataclass
class Settings:
    """What each start may set anew; an argument of the workflow would be recorded."""

    workers: int = 8


settings = Settings()

# ---------------------------------------------------------------------- errors


class NotGiven(Exception):
    """The server does not give this file: it is not asked again, and the file is listed."""


class Failing(Exception):
    """The server fails: it is asked again, and if it never gives the file, that is listed."""


class Unreachable(Failing):
    """The network fails: the server is asked again, and at last the program ends."""


TRY_AGAIN = Retry(attempts=5, delay=0.2, on=Failing)


@contextlib.contextmanager
def ending_on(*errors: type[Exception]) -> Iterator[None]:
    """In here, these errors end the program; those that may pass only at the last try.

    An error would be recorded as the outcome of the step. SystemExit is none: the workflow stays
    unfinished, and the same command goes on.
    """
    try:
        yield
    except errors as error:
        if isinstance(error, Failing) and durable.current().attempt != TRY_AGAIN.attempts:
            raise
        raise SystemExit(f"{error}; the same command goes on once that is mended") from error


@contextlib.contextmanager
def asking(url: str) -> Iterator[None]:
    """In here, what fails is the doing of the server or of the network."""
    try:
        yield
    except HTTPError as error:
        error.close()
        passes = error.code >= 500 or error.code in (408, 429)
        raise (Failing if passes else NotGiven)(f"{url}: {error.code} {error.reason}") from None
    except (OSError, HTTPException) as error:
        reason = error.reason if isinstance(error, URLError) else error
        raise Unreachable(f"{url}: {reason or type(error).__name__}") from error


@contextlib.contextmanager
def writing(url: str, place: Path) -> Iterator[None]:
    """In here, what fails is the fault of the target."""
    try:
        yield
    except OSError as error:
        reason = f"{shown(place)} cannot be written ({error.strerror or error})"
        if error.errno in (errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG):
            raise NotGiven(f"{url}: {reason}") from error  # it would never be any better
        raise SystemExit(f"{reason}; the same command goes on once it can") from error


# ---------------------------------------------------------------------- the workflow


@workflow
def mirror(source: str, target: Path, again: list[Item] | None = None) -> Summary:
    """Fetch all files that the source names, or those of them that are to be tried again."""
    items = list_files(source, target) if again is None else again
    durable.set_event("files", len(items))
    results = durable.map(fetch, items, workers=settings.workers, errors="collect")
    sizes = [result.size for result in results if isinstance(result, Fetched)]
    missing = [
        Missing(item, str(result))
        for item, result in zip(items, results, strict=True)
        if isinstance(result, Exception)
    ]
    return Summary(len(sizes), sum(sizes), missing)


@step(retry=TRY_AGAIN)
def fetch(item: Item) -> Fetched:
    """Fetch a file. It may run twice: the file gets its name when it is complete, not before."""
    url, place = item.url, item.place
    if place is None:
        raise NotGiven(f"{url}: its path can be no file's name here")
    part = place.with_name(f".{hashlib.sha256(url.encode()).hexdigest()[:16]}.part")
    size, digest = 0, hashlib.sha256()
    with ending_on(Unreachable), ask(url) as answer, writing(url, place):
        place.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as writer:
            for chunk in chunks(url, answer):
                size += len(chunk)
                digest.update(chunk)
                writer.write(chunk)
            writer.flush()
            os.fsync(writer.fileno())
        put_in_place(part, place)
    durable.write_stream("fetched", size)
    return Fetched(url, size, digest.hexdigest())


@step(retry=TRY_AGAIN)
def list_files(source: str, target: Path) -> list[Item]:
    """All files that the source names; recorded, so that each run has the same list."""
    if is_url(source):
        with ending_on(NotGiven, Failing):
            top, urls = read_pages(quoted(source))
    else:
        with ending_on(OSError, UnicodeDecodeError):
            top, urls = read_list(Path(source).read_text("utf-8"))
    return [Item(url, place_of(url, top, target)) for url in urls]


# ---------------------------------------------------------------------- what there is to fetch


def read_list(text: str, beside_url: str = "") -> tuple[str, list[str]]:
    """The root of the server, and each URL of the text once."""
    lines = [line.strip() for line in text.splitlines()]
    urls = [quoted(urljoin(beside_url, line)) for line in lines if line and line[0] != "#"]
    roots = [root_of(url) for url in urls]
    for url, root in zip(urls, roots, strict=True):
        if root != roots[0]:
            raise SystemExit(f"{url} is not on {roots[0]}: a mirror is of one server")
    return roots[0] if roots else "", list(dict.fromkeys(urls))


def root_of(url: str) -> str:
    """Where the paths of a server begin."""
    try:
        parts = urlsplit(url)
        usable = is_url(url) and parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise SystemExit(f"{url!r} is no URL of a file: a list has one in each line")
    return f"{parts.scheme}://{parts.netloc}/"


def read_pages(url: str) -> tuple[str, list[str]]:
    """The folder of a page, and the files that it and the pages below it link to; or a list's."""
    top = ""
    files: dict[str, None] = {}
    pages = [url]
    for page in pages:  # it grows as folders are found
        with ask(page) as answer:
            content = b"".join(chunks(page, answer))
            here, headers = answer.geturl(), answer.headers
        text = content.decode(headers.get_content_charset("utf-8"), errors="replace")
        if headers.get_content_type() == "text/plain" and page == url:
            return read_list(text, here)
        if headers.get_content_type() != "text/html":
            raise SystemExit(f"{page} is no page with links, and no text with a URL in each line")
        top = top or urljoin(here, ".")
        for link in Links(text).found:
            found = quoted(urldefrag(urljoin(here, link)).url)
            if not found.startswith(top) or found == top or urlsplit(found).query:
                continue
            if not found.endswith("/"):
                files[found] = None
            elif found not in pages:
                pages.append(found)
    return top, list(files)


class Links(HTMLParser):
    """The links of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep where a link leads to."""
        if tag == "a":
            self.found += [value for name, value in attrs if name == "href" and value]


def is_url(text: str) -> bool:
    """Whether it is a URL of the kinds that can be fetched."""
    return text.startswith(("http://", "https://"))


def quoted(url: str) -> str:
    """The URL with what a request cannot have, blanks and letters beyond ASCII, as %XX."""
    return quote(url, safe="%/:=&?~#+!$,;'@()*[]")


def place_of(url: str, top: str, target: Path) -> Path | None:
    """Where a file goes: in the target, whatever the server calls it; None if that cannot be."""
    path, _, query = url.removeprefix(top).partition("?")
    parts = [os.fsdecode(unquote_to_bytes(part)) for part in path.split("/")]
    if query:
        parts[-1] += "?" + query.replace("/", "%2F")
    forbidden = "/\0" if os.name == "posix" else '/\0\\:*?"<>|'
    if any(part in ("", ".", "..") or set(part) & set(forbidden) for part in parts):
        return None
    return target.joinpath(*parts)


# ---------------------------------------------------------------------- HTTP


def ask(url: str) -> HTTPResponse:
    """The answer of the server, to be read and closed."""
    with asking(url):
        answer = urlopen(url, timeout=ANSWER_WITHIN)
    assert isinstance(answer, HTTPResponse)
    return answer


def chunks(url: str, answer: HTTPResponse) -> Iterator[bytes]:
    """What an answer holds; Unreachable if less came than was announced."""
    while True:
        with asking(url):
            chunk = answer.read(CHUNK)
            if not chunk and answer.length:
                raise ConnectionError(f"the connection broke {answer.length} bytes before the end")
        if not chunk:
            return
        yield chunk


# ---------------------------------------------------------------------- the command


def main() -> int:
    """Read the arguments, fetch the files or go on with it, and say how it ended."""
    parser = argparse.ArgumentParser(
        prog="python3 -m examples.mirror",
        description="Fetch many files from an HTTP server. Stop it anywhere and run the same "
        "command: it goes on. Without arguments it shows that, with a server of its own.",
        epilog="example: python3 -m examples.mirror http://localhost:8000/music/ music",
    )
    parser.add_argument(
        "source",
        metavar="SOURCE",
        nargs="?",
        help="URL of a page with links, or a text with a URL in each line: its URL, or a file",
    )
    parser.add_argument(
        "target", metavar="TARGET", type=Path, nargs="?", help="where to; a new folder"
    )
    parser.add_argument("--workers", type=int, default=8, help="files at a time; 8 by default")
    arguments = parser.parse_args()
    if arguments.source is None:
        return demonstrate()
    if arguments.target is None:
        parser.error("where to? Give a TARGET")
    if not 1 <= arguments.workers <= 1000:
        parser.error("--workers is a number from 1 to 1000")
    settings.workers = arguments.workers
    source, target = arguments.source, arguments.target.resolve()
    state = beside(target, ".mirror.db")
    if not is_url(source):
        source = str(Path(source).resolve())
        if not Path(source).is_file():
            parser.error(f"{source} is no URL and no file")
    if state.exists() and not target.exists():
        parser.error(f"{target} is gone; remove {state} as well to begin anew")
    if not state.exists() and target.exists() and not is_empty_folder(target):
        parser.error(f"{target} exists, and is not a mirror that could go on")
    return run(source, target, state)


def run(source: str, target: Path, state: Path) -> int:
    """Make the mirror or go on with it; the exit code."""
    try:
        target.mkdir(parents=True, exist_ok=True)
        with Engine(state, recover="manual") as engine:
            handle = begin(engine, source, target)
            if sys.stderr.isatty():
                show_progress(handle)
            missing = handle.result().missing
            done = [each.result for each in runs_of(engine, source, target)]
    except KeyboardInterrupt:
        say("stopped: the same command goes on with what is not yet here")
        return 130
    except durable.AlreadyRunning as error:
        raise SystemExit(f"process {error.pid} is at work on this mirror") from error
    except (durable.DurableError, OSError) as error:
        raise SystemExit(f"mirror: {error}") from error
    for each in missing:
        say(f"missing {each.reason}")
    files, size = sum(each.files for each in done), sum(each.size for each in done)
    print(f"{files} files, {megabytes(size)}, are in {shown(target)}")
    return 1 if missing else 0


def begin(engine: Engine, source: str, target: Path) -> Handle[Summary]:
    """Start the workflow, or attach to it; where files were missing, another one for those."""
    before = runs_of(engine, source, target)
    if not before:
        return engine.start(mirror.options(id=first_id(source, target)), source, target)
    last = before[-1]
    handle: Handle[Summary] = engine.handle(last.id)
    if last.finished_at is None:
        here = sum(isinstance(each.value, Fetched) for each in handle.steps())
        say(f"going on: {here} files are here")
        engine.recover([last.id])
        return handle
    if last.status is not Status.SUCCESS:
        return handle  # its result says what is wrong
    if not last.result.missing:
        say(f"this mirror was made on {last.finished_at.astimezone():%Y-%m-%d at %H:%M:%S}")
        return handle
    items = [each.item for each in last.result.missing]
    say(f"trying again what was missing: {len(items)} files")
    workflow_id = f"{first_id(source, target)} again {len(before)}"
    return engine.start(mirror.options(id=workflow_id), source, target, items)


def first_id(source: str, target: Path) -> str:
    """The id that stands for the work."""
    return f"mirror of {source!a} to {str(target)!a}"


def runs_of(engine: Engine, source: str, target: Path) -> list[Workflow]:
    """The runs of this mirror, first to last; one that has nothing yet is none."""
    runs = [each for each in engine.workflows() if engine.handle(each.id).steps()]
    for each in runs:
        if not each.id.startswith(first_id(source, target)):
            raise SystemExit(f"{shown(target)} is another mirror: {each.id}")
    return runs


def show_progress(handle: Handle[Summary]) -> None:
    """A line that changes, fed by the stream that the steps write."""
    files, here, size = handle.event("files"), 0, 0
    try:
        draw(files, here, size)
        for each in handle.stream("fetched"):
            here, size = here + 1, size + each
            draw(files, here, size)
    finally:
        print(file=sys.stderr)


def draw(files: int, here: int, size: int) -> None:
    """Show how much of it is here."""
    share = here / files if files else 1.0
    bar = ("#" * int(30 * share)).ljust(30, "-")
    line = f"[{bar}] {share:4.0%}  {here} of {files} files, {megabytes(size)}"
    print(f"\r{line}", end="", file=sys.stderr, flush=True)


# ---------------------------------------------------------------------- the demonstration


class Shelf(ThreadingHTTPServer):
    """A server of a folder, slow enough to be watched, that counts what it is asked for."""

    daemon_threads = True
    request_queue_size = 100

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), partial(ShelfHandler, directory=os.fspath(folder)))
        self.url = f"http://127.0.0.1:{self.server_port}/"
        self.asked: Counter[str] = Counter()
        self.half = threading.Event()
        self.mutex = threading.Lock()


class ShelfHandler(SimpleHTTPRequestHandler):
    """Gives the files and the pages of a folder."""

    def do_GET(self) -> None:
        """Count, take some time, answer."""
        shelf = self.server
        assert isinstance(shelf, Shelf)
        if not self.path.endswith("/"):
            time.sleep(0.05)
            with shelf.mutex:
                shelf.asked[self.path] += 1
                if len(shelf.asked) == BOOKS // 2:
                    shelf.half.set()
        with contextlib.suppress(ConnectionError):  # whoever asked may be gone
            super().do_GET()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing."""


BOOKS = 100


def demonstrate() -> int:
    """Serve a made-up folder, have it fetched, kill that half-way, and have it go on."""
    with tempfile.TemporaryDirectory(prefix="durable-mirror-") as name:
        origin, target = Path(name, "origin"), Path(name, "mirror")
        for number in range(BOOKS):
            book = origin / f"shelf {number % 4}" / f"book №{number:02}.txt"
            book.parent.mkdir(parents=True, exist_ok=True)
            book.write_text(f"This is book number {number}.\n" * 1000 * (1 + number % 7))
        with Shelf(origin) as shelf:
            thread = threading.Thread(target=shelf.serve_forever, kwargs={"poll_interval": 0.05})
            thread.start()
            try:
                as_promised = tell(shelf, origin, target)
            finally:
                shelf.shutdown()
                thread.join()
    return 0 if as_promised else 1


def tell(shelf: Shelf, origin: Path, target: Path) -> bool:
    """Run the command twice; whether the mirror is right, and nothing was fetched in vain."""
    command = [sys.executable or "python3", "-m", "examples.mirror", shelf.url, str(target)]
    options = {"cwd": Path(__file__).parent.parent, "env": {**os.environ, "no_proxy": "127.0.0.1"}}
    print(f"{shelf.url} has {BOOKS} files; a process fetches them, and dies of kill -9 half-way.")
    sys.stdout.flush()
    with subprocess.Popen(command, **options) as child:  # type: ignore[call-overload]
        shelf.half.wait(60)
        child.kill()
    print(f"\nIt asked for {sum(shelf.asked.values())} of them. The same command again:")
    sys.stdout.flush()
    ends = subprocess.run(command, check=False, **options)  # type: ignore[call-overload]
    twice = sum(count > 1 for count in shelf.asked.values())
    print(f"All in all {len(shelf.asked)} files were asked for; {twice} of them twice, those that")
    print("were on their way when the first process died. What was recorded was not asked again.")
    return ends.returncode == 0 and twice <= settings.workers and content(target) == content(origin)


def content(folder: Path) -> dict[Path, bytes]:
    """What the files of a folder hold."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder): path.read_bytes() for path in files}


if __name__ == "__main__":
    logging.getLogger("durable").addHandler(logging.NullHandler())  # what ends us is said once
    sys.exit(main())
