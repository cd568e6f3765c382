"""What a codec is, and what stands for a value that it cannot give back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol


class Codec(Protocol):
    """How values become the text that the file keeps."""

    def encode(self, value: object) -> str:
        """The text of `value`; SerializationError where it would not come back as it is."""

    def decode(self, text: str) -> Any:
        """The value of `text`; SerializationError where it is damaged, or a class is gone."""


@dataclass(frozen=True)
class Opaque:
    """Stands for a value that this program cannot rebuild; `text` is what was recorded."""

    text: str

    def __repr__(self) -> str:
        return f"<recorded as {self.text}>"


def decode_or_opaque(codec: Codec, text: str) -> Any:
    """The value of `text`, or an `Opaque`: for lists, which one lost class must not break."""
    try:
        return codec.decode(text)
    except Exception:
        return Opaque(text)
