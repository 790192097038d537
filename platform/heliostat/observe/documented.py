"""Names that say what they mean."""

from enum import StrEnum
from typing import Self


class DocumentedEnum(StrEnum):
    """Members are written as ``NAME = "value", "what it means"``; the meaning is their docstring."""

    def __new__(cls, value: str, doc: str) -> Self:
        """A member with its meaning as docstring."""
        member = str.__new__(cls, value)
        member._value_ = value
        member.__doc__ = doc
        return member
