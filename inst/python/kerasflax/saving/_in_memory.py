"""Values that stay in memory: the parts of a layer's config while Keras clones the layer."""

from __future__ import annotations

from typing import Any


class InMemory(str):
    """A value that a config holds as it is.

    Keras takes configs apart and puts them together again, and keeps text as it is. No file can
    hold an object of this class: text in a file is plain text.

    Attributes:
        value: The value.
        description: How a file has described the value, if one has.
    """

    __slots__ = ("description", "value")
    value: Any
    description: Any

    def __new__(cls, value: Any, description: Any = None) -> InMemory:
        """Store a value. The text itself is only for people who look at the config."""
        made = super().__new__(cls, "<in memory>")
        made.value, made.description = value, description
        return made

    def __deepcopy__(self, memo: dict[int, Any]) -> InMemory:
        # Keras copies the config of a Sequential model.
        return self
