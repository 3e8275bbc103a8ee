"""Which axis of an input has the wrong size: found by tracing the module with another size.

Flax does not know how large an input must be. Its errors are about weights, or come from JAX. If a
call fails with an input of another size than the one on which the layer was built, and works with
the size of that one, the size is what is wrong. Keras's own layers say so before they compute.
"""

from __future__ import annotations

import dis
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax

from .._errors import KerasFlaxError, ShapeError
from .._messages import shape_text
from ..tracing._trace import Spec
from ._variables import named_leaves

PyTree = Any
# From the specs of inputs to whether the module can be traced with them.
Works = Callable[[PyTree], bool]

_LIBRARIES = ("flax", "jax", "jaxlib", "numpy")


def size_error(
    name: str,
    error: Exception,
    got: PyTree,
    works: Works,
    *,
    built: PyTree = None,
    sizes: Iterable[int] = (),
) -> ShapeError | None:
    """The error to raise instead of one of the module, or None if the sizes are not to blame.

    Args:
        name: The name of the layer.
        error: The exception that the module has raised.
        got: The specs of the inputs.
        works: Whether the module can be traced with the specs of other inputs.
        built: The specs of the inputs on which the layer was built, if it is built.
        sizes: The sizes that the last axis may need, if the layer is not built.
    """
    if not _is_of_a_library(error):
        return None
    treedef: Any
    leaves, treedef = jax.tree.flatten(got)
    if built is None:
        wrong = _found(leaves, treedef, works, sorted(set(sizes) - {1}))
    elif jax.tree.structure(built) == treedef:
        wrong = _differing(leaves, treedef, works, jax.tree.leaves(built))
    else:
        wrong = {}
    if not wrong:
        return None
    what = f"The input of the layer {name!r} is incompatible with the layer"
    if len(leaves) == 1:
        return ShapeError(f"{what}: {wrong[0]}.")
    paths = list(named_leaves(got))
    return ShapeError(f"{what}:", problems={paths[i]: text for i, text in wrong.items()})


def _is_of_a_library(error: Exception) -> bool:
    """Whether an exception is JAX's or Flax's. A module may check sizes and raise its own."""
    # A condition that R code has signaled has this attribute (R/conditions.R).
    if isinstance(error, KerasFlaxError) or hasattr(error, "r_class"):
        return False
    if type(error).__module__.partition(".")[0] in _LIBRARIES:
        return True
    last = error.__traceback__
    if last is None:
        return False
    while last.tb_next is not None:
        last = last.tb_next
    if last.tb_frame.f_globals.get("__name__", "").partition(".")[0] in _LIBRARIES:
        return True
    # JAX removes its own frames from tracebacks. What has failed here is then a call.
    raising = dis.opname[last.tb_frame.f_code.co_code[last.tb_lasti]]
    return raising not in ("RAISE_VARARGS", "RERAISE")


def _differing(
    leaves: list[Spec], treedef: Any, works: Works, built: list[Spec]
) -> Mapping[int, str]:
    """What is wrong with each input, compared with those of the build. Empty if nothing is."""
    changes: list[tuple[int, int | None]] = []
    for i, (leaf, before) in enumerate(zip(leaves, built, strict=True)):
        if len(leaf.shape) != len(before.shape):
            changes.append((i, None))
            continue
        # The batch comes first, and is blamed last.
        changes += [
            (i, axis)
            for axis in reversed(range(len(leaf.shape)))
            if None not in (leaf.shape[axis], before.shape[axis])
            and leaf.shape[axis] != before.shape[axis]
        ]
    for tried in [[change] for change in changes] + ([changes] if len(changes) > 1 else []):
        changed = list(leaves)
        for i, axis in tried:
            changed[i] = _with(changed[i], axis, built[i])
        if works(jax.tree.unflatten(treedef, changed)):
            texts: dict[int, list[str]] = {}
            for i, axis in sorted(tried, key=lambda change: change[0]):
                texts.setdefault(i, []).append(_text(leaves[i], axis, built[i]))
            return {i: "; ".join(each) for i, each in texts.items()}
    return {}


def _found(leaves: list[Spec], treedef: Any, works: Works, sizes: list[int]) -> Mapping[int, str]:
    """The only size of the last axis of an input with which the module works."""
    for i, leaf in enumerate(leaves):
        fitting = [
            Spec((*leaf.shape[:-1], size), leaf.dtype)
            for size in sizes
            if leaf.shape and leaf.shape[-1] != size
        ]
        fitting = [
            spec
            for spec in fitting
            if works(jax.tree.unflatten(treedef, [*leaves[:i], spec, *leaves[i + 1 :]]))
        ]
        if len(fitting) == 1:
            return {i: _text(leaf, len(leaf.shape) - 1, fitting[0])}
    return {}


def _with(leaf: Spec, axis: int | None, before: Spec) -> Spec:
    if axis is None:
        return Spec(before.shape, leaf.dtype)
    shape = list(leaf.shape)
    shape[axis] = before.shape[axis]
    return Spec(tuple(shape), leaf.dtype)


def _text(leaf: Spec, axis: int | None, expected: Spec) -> str:
    shape = shape_text(leaf.shape)
    if axis is None:
        return (
            f"expected {len(expected.shape)} dimensions, as in {shape_text(expected.shape)}, but "
            f"received input with shape {shape}"
        )
    from_end = axis - len(leaf.shape)
    return (
        f"expected axis {from_end if from_end == -1 else axis} of input shape to have value "
        f"{expected.shape[axis]}, but received input with shape {shape}"
    )
