"""Values as pickles: more kinds of them than JSON takes, for files that are trusted."""

from __future__ import annotations

import base64
import pickle
from typing import Any

from durable.codec.refusals import unexpected


class PickleCodec:
    """For those who ask for it: whatever pickle can write, as base64.

    Whoever can write to the file can run code in the process that reads it.
    """

    def encode(self, value: object) -> str:
        """The text of `value`; SerializationError where pickle cannot write it."""
        try:
            return base64.b64encode(pickle.dumps(value, protocol=5)).decode("ascii")
        except Exception as error:
            raise unexpected(error, "cannot be pickled") from error

    def decode(self, text: str) -> Any:
        """The value of `text`; SerializationError where pickle cannot read it."""
        try:
            return pickle.loads(base64.b64decode(text, validate=True))
        except Exception as error:
            raise unexpected(error, "cannot be unpickled") from error
