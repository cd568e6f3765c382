"""Exceptions come back as themselves, with their chains, or say what was lost."""

from __future__ import annotations

import json
import threading
import traceback
from typing import Any

import pytest

from durable.codec import decode_error, encode_error, error_is_exact
from durable.errors import RemoteError
from tests.codec.classes import BadStr, Formatted, Group, NoSuper, Stop, no_calls
from tests.codec.support import HERE, back, refusal, same, unreadable
from tests.codec.values import ERRORS, noted


def raised(error: Any, cause: BaseException | None = None) -> Any:
    try:
        raise error from cause
    except BaseException as caught:
        return caught


C_FIELDS = (
    *("errno", "strerror", "filename", "filename2", "characters_written", "name", "path", "msg"),
    *("value", "code", "encoding", "object", "start", "end", "reason", "lineno", "text", "offset"),
)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_exception_comes_back_as_itself(error: BaseException) -> None:
    """Type, text, args and attributes are kept, whatever its __init__ asks for; none is called."""
    text = encode_error(error)
    with no_calls():
        copy = decode_error(text)
        value = back([error])[0] if isinstance(error, Exception) else copy
    for one in (copy, value):
        assert same(one, error)
        for name in C_FIELDS:
            assert same(getattr(one, name, None), getattr(error, name, None)), name
    assert error_is_exact(text)
    assert not hasattr(copy, "unset")


def test_a_chain_comes_back() -> None:
    """Cause and context come back; a context that does not show is left out."""
    cause, context = raised(KeyError("c")), raised(ValueError("v"), Formatted(1))
    error, hidden = raised(Formatted(2), cause), ValueError("h")
    error.__context__ = hidden
    shown = ValueError("s")
    shown.__context__ = context
    copy, second = decode_error(encode_error(error)), decode_error(encode_error(shown))
    assert same(copy.__cause__, cause)
    assert (copy.__context__, copy.__suppress_context__) == (None, True)
    assert same(second.__context__, context)
    assert same(second.__context__.__cause__, Formatted(1))  # type: ignore[union-attr]
    assert (second.__cause__, second.__suppress_context__) == (None, False)


def test_a_chain_that_is_endless_or_long_is_cut() -> None:
    """A circle of causes does not loop, a long chain is limited; both are marked as not exact."""
    first, second = ValueError(1), ValueError(2)
    first.__cause__, second.__cause__ = second, first
    long = ValueError(0)
    for n in range(1, 500):
        long = raised(ValueError(n), long)
    copies = [decode_error(encode_error(error)) for error in (first, long)]
    assert [copies[0].args, copies[0].__cause__.args] == [(1,), (2,)]  # type: ignore[union-attr]
    assert copies[0].__cause__.__cause__ is None  # type: ignore[union-attr]
    assert copies[1].args == (499,)
    assert not error_is_exact(encode_error(first))
    assert not error_is_exact(encode_error(long))
    assert "endless" in refusal([first]).reason


def test_a_group_comes_back_with_its_members() -> None:
    """Exception groups keep their class, message and members, with the causes of those."""
    error = ExceptionGroup("g", [Group("in", [Formatted(1)]), raised(KeyError("k"), ValueError(5))])
    text = encode_error(noted(error, "note"))
    copy = decode_error(text)
    assert same(copy, error)
    assert error_is_exact(text)
    assert same(copy.exceptions[0].exceptions[0], Formatted(1))  # type: ignore[attr-defined]
    assert same(copy.exceptions[1].__cause__, ValueError(5))  # type: ignore[attr-defined]
    stop: Any = BaseExceptionGroup("b", [Stop(1)])
    assert same(decode_error(encode_error(stop)), stop)
    odd = ExceptionGroup("\udcff", [ValueError("\udcff")])
    assert same(decode_error(encode_error(odd)), odd)


def test_the_traceback_comes_along_as_text() -> None:
    """Where it was raised can be read on the copy; it is limited, and no attribute to record."""
    error = raised(Formatted(1), raised(KeyError("cause")))
    copy = decode_error(encode_error(error))
    trace = copy.__durable_traceback__  # type: ignore[attr-defined]
    assert trace == "".join(traceback.format_exception(error))
    assert "in raised" in trace
    assert "KeyError: 'cause'" in trace
    again = decode_error(encode_error(raised(copy))).__durable_traceback__  # type: ignore[attr-defined]
    assert again.startswith(trace)
    assert "raised again here" in again
    assert "attributes" not in json.loads(encode_error(decode_error(encode_error(ValueError("x")))))
    huge = decode_error(encode_error(raised(ValueError("x" * 100_000))))
    assert len(huge.__durable_traceback__) < 20_000  # type: ignore[attr-defined]
    assert len(str(huge)) == 100_000


def test_what_cannot_be_kept_is_replaced_by_its_repr_and_marked() -> None:
    """An arg or attribute without an exact form comes back as text, and the record says so."""
    lock = threading.Lock()
    error = ValueError("x", lock, [1, lock])
    error.lock = lock  # type: ignore[attr-defined]
    error.good = (1,)  # type: ignore[attr-defined]
    text = encode_error(error)
    copy = decode_error(text)
    assert type(copy) is ValueError
    assert copy.args == ("x", repr(lock), repr([1, lock]))
    assert (copy.lock, copy.good) == (repr(lock), (1,))  # type: ignore[attr-defined]
    assert not error_is_exact(text)
    assert error_is_exact(encode_error(ValueError("x", (1,))))


def test_an_exception_that_breaks_what_it_is_asked_is_recorded() -> None:
    """A raising __str__ or __repr__, an arg that holds the exception: nothing makes it fail."""
    selfish = ValueError()
    selfish.args = (selfish,)
    copy = decode_error(encode_error(BadStr(1, BadStr(object()))))
    assert type(copy) is BadStr
    assert copy.args[0] == 1
    assert type(decode_error(encode_error(selfish))) is ValueError
    assert not error_is_exact(encode_error(selfish))
    odd = ValueError("odd")
    setattr(odd, "\udcff", 1)
    assert str(decode_error(encode_error(odd))) == "builtins:ValueError: odd"
    assert not error_is_exact(encode_error(odd))
    assert str(decode_error(encode_error(ValueError("\ud83d\ude00")))) == "\ud83d\ude00"


def test_an_exception_of_a_local_class_comes_back_as_remote_error() -> None:
    """A class that cannot be found again is recorded all the same, with its cause and traceback."""

    class Local(ValueError):
        pass

    text = encode_error(raised(Local("why"), KeyError("cause")))
    copy = decode_error(text)
    assert type(copy) is RemoteError
    assert copy.type_name == f"{__name__}:{Local.__qualname__}"
    assert copy.message == "why"
    assert "raise error from cause" in copy.traceback
    assert same(copy.__cause__, KeyError("cause"))
    assert not error_is_exact(text)
    assert "top of a module" in refusal([Local("why")]).reason


def test_an_exception_whose_class_is_gone_comes_back_as_remote_error() -> None:
    """What is gone is replaced where it is, in a chain or a group; the others are kept."""
    text = encode_error(raised(Formatted(1), ExceptionGroup("g", [NoSuper(1), ValueError(2)])))
    copy = decode_error(text.replace("NoSuper", "Gone"))
    group: Any = copy.__cause__
    assert type(copy) is Formatted
    assert [type(member) for member in group.exceptions] == [RemoteError, ValueError]
    assert group.exceptions[0].type_name == f"{HERE}:Gone"
    assert type(decode_error(text.replace("Formatted", "Gone"))) is RemoteError
    assert "Gone" in unreadable(text.replace("NoSuper", "Gone")).reason


@pytest.mark.parametrize("text", ["", "nope", "[]", "{}", "null", "5", None, "[" * 100_000])
def test_decoding_an_error_never_raises(text: Any) -> None:
    """Text that is not understood is the message of a RemoteError."""
    error = decode_error(text)
    assert type(error) is RemoteError
    assert error.message == str(text)
    assert not error_is_exact(text)


@pytest.mark.parametrize("name", ["os:system", "subprocess:Popen", "builtins:int", f"{HERE}:Item"])
def test_an_error_names_nothing_that_is_called(name: str) -> None:
    """A record that names something else than an exception gives a RemoteError."""
    error = decode_error(json.dumps({"$error": name, "text": "t", "args": ["true"]}))
    assert (type(error), str(error)) == (RemoteError, f"{name}: t")


@pytest.mark.parametrize("name", ["UnicodeDecodeError", "UnicodeEncodeError"])
@pytest.mark.parametrize(
    ("thing", "start"), [("x", -(10**12)), (None, 0), ({"$bytes": "eA=="}, -1)]
)
def test_no_text_makes_an_error_that_crashes_python(name: str, thing: Any, start: int) -> None:
    """The fields of a UnicodeError are checked: str() of it reads the memory that they say."""
    state = {"encoding": "x", "object": thing, "start": start, "end": start + 1, "reason": "r"}
    node = {"$error": f"builtins:{name}", "text": "t", "args": [], "attributes": state}
    assert str(decode_error(json.dumps(node))) == f"builtins:{name}: t"
