"""Values and exceptions as JSON text: the writer and the reader, and which errors come of them."""

from __future__ import annotations

from typing import Any

from durable.codec.exceptions import ErrorReader, ErrorWriter, described
from durable.codec.reading import Reader
from durable.codec.refusals import Refused, unexpected
from durable.codec.standard import LARGE
from durable.codec.text import dump, parse, quote
from durable.codec.writing import Writer
from durable.errors import RemoteError

_CONSTANTS = {"null": None, "true": True, "false": False}


class JsonCodec:
    """The default: exact, readable in the ``sqlite3`` shell, safe to read from anyone's file."""

    def encode(self, value: object) -> str:
        """The JSON text of `value`; SerializationError names the place that has no exact form."""
        # Most results are one scalar, which is not worth a writer.
        if type(value) is str and value.isascii():
            return quote(value)
        if type(value) is int and -LARGE < value < LARGE:
            return repr(value)
        if type(value) is bool:
            return "true" if value else "false"
        if value is None:
            return "null"
        try:
            return _to_json(value)
        except Refused as refused:
            raise refused.error() from refused.__cause__
        except Exception as error:
            raise unexpected(error, "cannot be written") from error

    def decode(self, text: str) -> Any:
        """The value of `text`; nothing that it names is imported or called."""
        if text in _CONSTANTS:  # as the results of most steps are
            return _CONSTANTS[text]
        try:
            node = parse(text)
            return Reader().value(node) if '"$' in text else node
        except Refused as refused:
            raise refused.error() from refused.__cause__
        except Exception as error:
            raise unexpected(error, "is damaged") from error


def _to_json(value: object) -> str:
    # First the scalars are left to json, at its speed. It refuses the few that need a tag (nan,
    # huge ints, lone surrogates), but not by name: then each is looked at.
    try:
        return dump(Writer(careful=False).tree(value))
    except ValueError:
        return dump(Writer(careful=True).tree(value))


def encode_error(error: BaseException) -> str:
    """The JSON text of any exception, whatever the codec of the engine; never raises.

    What has no exact form in it is replaced by its repr; `error_is_exact` is then false.
    """
    try:
        return dump(ErrorWriter(Writer(careful=True).tree, lenient=True).whole(error, 1))
    except Exception:
        return dump(described(error) | {"lossy": True})


def error_is_exact(text: str) -> bool:
    """Whether `decode_error` gives back all of the exception but its frames."""
    try:
        node = parse(text)
        return "$error" in node and "lossy" not in node
    except Exception:
        return False


def decode_error(text: str) -> BaseException:
    """The exception of `text`, or a `RemoteError` where its class is gone; never raises.

    Where it was raised is in its attribute ``__durable_traceback__``.
    """
    try:
        return ErrorReader(Reader().value, lenient=True).whole(parse(text))
    except Exception:
        return RemoteError("unknown", str(text))
