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
_STACKS = ("name_scope_stack", "uninitialized_variables")


@contextlib.contextmanager
def scopes_kept() -> Iterator[None]:
    """Where the block is broken off, leave Keras in no scope that has been opened in it."""
    scopes = {name: get_global_attribute(name) for name in _SCOPES}
    depths = {name: len(get_global_attribute(name) or ()) for name in _STACKS}
    try:
        yield
    except BaseException:
        for name, scope in scopes.items():
            set_global_attribute(name, scope)
        for name, depth in depths.items():
            del (get_global_attribute(name) or [])[depth:]
        raise


@contextlib.contextmanager
def all_or_nothing(layer: keras.layers.Layer, *parts: Any, is_done: Callable[[], bool] = lambda: False) -> Iterator[None]:
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
    with scopes_kept():
        try:
            yield
        except BaseException:
            if is_done():
                raise
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
