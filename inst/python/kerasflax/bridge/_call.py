"""The state of one call of a layer, which is that call's alone.

Between `Layer.__call__` and the methods that it calls, Keras hands on arrays and shapes, and nothing else. What else they have
to know of a call, and it of them, is kept here: not by the layer, which other threads call at the same time.
"""

from __future__ import annotations

import contextvars
import dataclasses
from typing import Any

import keras

from ._forms import Form

PyTree = Any


@dataclasses.dataclass(eq=False)
class Call:
    """A call of a layer.

    Attributes:
        layer: The layer.
        form: What it was called with, where that had to be simplified.
        inputs: What it was called with, if the call builds the layer.
        input_dtypes: Dtypes of the inputs, as `call` will see them, if the call builds the layer.
        mask_spec: The spec of the mask, if the call builds the layer.
        output_form: What the module returned, before it was simplified.
        output_shapes: The shapes of its arrays.
    """

    layer: keras.layers.Layer
    form: Form | None = None
    inputs: PyTree = None
    input_dtypes: PyTree = None
    mask_spec: PyTree = None
    output_form: Form | None = None
    output_shapes: list[tuple[int | None, ...]] | None = None


current: contextvars.ContextVar[Call | None] = contextvars.ContextVar("current", default=None)


def call_of(layer: keras.layers.Layer) -> Call:
    """The call of a layer that is running; where a method has been called by itself, one of which nothing is known."""
    call = current.get()
    return call if call is not None and call.layer is layer else Call(layer)
