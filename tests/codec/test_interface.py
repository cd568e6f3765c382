"""What stands for a value that is lost."""

from __future__ import annotations

from durable.codec import Opaque, decode_or_opaque
from tests.codec.support import CODEC


def test_one_lost_class_does_not_break_a_list() -> None:
    """What cannot be rebuilt is shown as its recorded text."""
    text = '{"$dataclass":"nowhere:Gone","id":1}'
    shown = [decode_or_opaque(CODEC, one) for one in ("[1]", text, "{damaged")]
    assert shown == [[1], Opaque(text), Opaque("{damaged")]
    assert repr(shown[1]) == f"<recorded as {text}>"
