"""The data of one call of a layer.

Keras passes arrays and shapes from `Layer.__call__` to the methods that it calls, and nothing else.
Everything else that these methods need is kept here and not in the layer, because other threads may
be calling the layer at the same time.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import keras

from ._forms import Form

PyTree = Any


@dataclasses.dataclass(eq=False)
class Call:
    """A call of a layer.

    Attributes:
        layer: The layer.
        form: The form of the inputs, if it differs from Keras's tree.
        inputs: The inputs, if the call builds the layer.
        input_dtypes: The dtypes that `Layer.call` will get, if the call builds the layer.
        mask_spec: The spec of the mask, if the call builds the layer.
        output_form: The form of what the module returned.
        output_shapes: The shapes of the arrays that the module returned. -1 is an unknown size that
            differs from the input's in the same axis.
        is_rematerialized: Whether the backward pass computes the module again.
    """

    layer: keras.layers.Layer
    form: Form | None = None
    inputs: PyTree = None
    input_dtypes: PyTree = None
    mask_spec: PyTree = None
    output_form: Form | None = None
    output_shapes: list[tuple[int | None, ...]] | None = None
    is_rematerialized: bool = False


_current: contextvars.ContextVar[Call | None] = contextvars.ContextVar("current", default=None)


@contextlib.contextmanager
def running(call: Call) -> Iterator[None]:
    """Make a call the one that `call_of` finds, until the block ends."""
    with contextlib.ExitStack() as stack:
        stack.callback(_current.set, _current.get())
        _current.set(call)
        yield


def call_of(layer: keras.layers.Layer) -> Call:
    """The running call of a layer. If a method was called directly, a call with nothing in it."""
    call = _current.get()
    return call if call is not None and call.layer is layer else Call(layer)


class LastSown:
    """What a layer's module sowed in its last eager call, in each thread."""

    def __init__(self) -> None:
        self._anywhere: Mapping[str, PyTree] = {}
        self._here = threading.local()

    def record(self, sown: Mapping[str, PyTree]) -> None:
        """Note what a call of this thread sowed."""
        self._anywhere = self._here.value = sown

    def get(self) -> dict[str, PyTree]:
        """What this thread's last call sowed; if it has made none, the last call of any thread."""
        return dict(getattr(self._here, "value", self._anywhere))
