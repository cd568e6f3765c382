"""Pickle, for those who ask for it."""

from __future__ import annotations

import types

import pytest

from durable.codec import PickleCodec
from durable.errors import SerializationError
from tests.codec.classes import MyInt
from tests.codec.support import same


def test_pickle_is_there_for_those_who_ask() -> None:
    """PickleCodec takes what pickle takes, as ASCII; what fails is a SerializationError."""
    codec = PickleCodec()
    value = [MyInt(5), int, types.SimpleNamespace(a=1), {1: (2,)}]
    text = codec.encode(value)
    assert text.isascii()
    assert same(codec.decode(text), value)
    with pytest.raises(SerializationError, match="pickled"):
        codec.encode(lambda: 1)
    for damaged in ("?", "AAAA", "é", ""):
        with pytest.raises(SerializationError, match="unpickled"):
            codec.decode(damaged)
