"""All or nothing: what a layer was is put back where a change to it is broken off.

An error may come from any line of a user's code, and Ctrl-C or a lack of memory between any two lines of ours or of Keras's.
What is changed is therefore put back as a whole, whatever has been changed of it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras
from keras.src.backend.common.global_state import get_global_attribute, set_global_attribute

# What Keras notes by thread while a layer is called or built. It forgets to strike out some of it after an interrupt.
_SCOPES = ("current_call_ctx", "autocast_scope")
_NAMES = "name_scope_stack"
# Variables that are made in a stateless scope get their values when the scope ends.
_WITHOUT_VALUES = "uninitialized_variables"


@contextlib.contextmanager
def scopes_kept() -> Iterator[None]:
    """Where the block is broken off, leave Keras in no scope that has been opened in it."""
    scopes = {name: get_global_attribute(name) for name in _SCOPES}
    depth = _depth(_NAMES)
    try:
        yield
    except BaseException:
        for name, scope in scopes.items():
            set_global_attribute(name, scope)
        _cut(_NAMES, depth)
        raise


def _depth(stack: str) -> int:
    return len(get_global_attribute(stack) or ())


def _cut(stack: str, depth: int) -> None:
    del (get_global_attribute(stack) or [])[depth:]


@contextlib.contextmanager
def all_or_nothing(
    layer: keras.layers.Layer, *parts: Any, is_done: Callable[[], bool] = lambda: False
) -> Iterator[None]:
    """Where the block is broken off, leave a layer with the attributes that it had, tracked by Keras as they were.

    Args:
        layer: The layer.
        *parts: Objects of it whose attributes are put back as well. The values of attributes are not looked into: what a
            block changes in place stays changed.
        is_done: Whether the change is whole all the same, and stays.
    """
    tracker = layer._tracker
    attributes = [(vars(each), dict(vars(each))) for each in (layer, tracker, *parts)]
    stores = [(store, list(store)) for _, store in tracker.config.values()]
    tracked = [(ids, set(ids)) for ids in tracker.stored_ids.values()]
    depth = _depth(_WITHOUT_VALUES)
    with scopes_kept():
        try:
            yield
        except BaseException:
            if is_done():
                raise
            # The layer has let its variables go.
            _cut(_WITHOUT_VALUES, depth)
            for now, before in attributes:
                for name in now.keys() - before.keys():
                    del now[name]
                now.update(before)
            for store, elements in stores:
                store[:] = elements
            for ids, known in tracked:
                ids.clear()
                ids.update(known)
            raise
