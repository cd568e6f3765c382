"""Values and exceptions as text, and back as they were, without running code that the text names.

`JsonCodec` writes None, bool, int, finite float, str, list and dict with str keys as plain JSON.
All else is an object whose first key is a tag, which begins with ``$``::

    {"$tuple": [1, 2]}           {"$datetime": "2024-05-01T12:00:00+00:00"}
    {"$dict": [[1, "one"]]}      {"$enum": "shop:Color", "name": "RED"}
    {"$decimal": "1.10"}         {"$dataclass": "shop:Order", "id": 17, "items": []}
    {"$float": "nan"}            {"$error": "shop:Declined", "text": "no", "args": ["no"]}

A dict with a key that begins with ``$`` is written as ``$dict``, so a tag is always ours. Only
exact types count: a subclass of int is no int, and is refused unless it is an Enum, a named tuple,
a dataclass or an exception. A part that the value holds twice comes back as two equal parts.

Classes are found by name among the modules already imported, and filled without their ``__new__``,
``__init__`` or ``__setattr__``. Only the ``__hash__`` and ``__eq__`` of what was in a set, or was a
key of a dict, are called: there is no set without them.

The modules, each of which imports only from those above it::

    interface     what a codec is
    text          JSON text that SQLite can store
    refusals      why a value is refused, and which part of it
    objects       classes by name, and what their instances hold
    standard      the types of Python and its library that have a tag
    exceptions    exceptions with their chains, both ways
    writing       any value to a tree of JSON
    reading       a tree of JSON to the value
    json_codec    JsonCodec, and the text of exceptions
    pickle_codec  PickleCodec
"""

from durable.codec.interface import Codec, Opaque, decode_or_opaque
from durable.codec.json_codec import JsonCodec, decode_error, encode_error, error_is_exact
from durable.codec.pickle_codec import PickleCodec

__all__ = [
    "Codec",
    "JsonCodec",
    "Opaque",
    "PickleCodec",
    "decode_error",
    "decode_or_opaque",
    "encode_error",
    "error_is_exact",
]
