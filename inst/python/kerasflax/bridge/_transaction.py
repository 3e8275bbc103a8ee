"""All or nothing: if a change to a layer fails, the layer is restored.

An error can come from any line of the user's code. Ctrl-C and a lack of memory can come between any
two lines of kerasflax or Keras. Therefore the whole state is put back, whatever has changed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras

from .. import _keras


@contextlib.contextmanager
def all_or_nothing(
    layer: keras.layers.Layer, *parts: Any, is_done: Callable[[], bool] = lambda: False
) -> Iterator[None]:
    """If the block fails, restore a layer's attributes and Keras's tracking of them.

    Args:
        layer: The layer.
        *parts: Objects of the layer that get their attributes back as well. Only the attributes
            are put back: a value that the block has changed in place stays changed.
        is_done: Whether the change is complete even though the block has failed. It stays then.
    """
    tracked = _keras.Tracked(layer)
    attributes = [(vars(each), dict(vars(each))) for each in (*tracked.attributes_of, *parts)]
    with _keras.scopes_kept():
        try:
            yield
        except BaseException:
            if is_done():
                raise
            for now, before in attributes:
                for name in now.keys() - before.keys():
                    del now[name]
                now.update(before)
            tracked.put_back()
            raise
