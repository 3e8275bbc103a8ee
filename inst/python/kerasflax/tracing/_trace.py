"""Abstract traces: what a function of arrays returns, found out without computing it.

A dimension that is not known yet (the batch, a sequence's length) is `None` in a `Spec` and a symbol in the trace. Code that
cannot be traced with a symbol, because it branches on a size, say, is traced twice with numbers in its place, and what differs
between the two depends on the unknown dimension.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jax.interpreters import partial_eval

from .._errors import MethodError
from ._initial_values import evaluate

PyTree = Any
T = TypeVar("T")

# Pairs of sizes for unknown dimensions other than the batch, tried in turn. They divide by the usual strides and patch sizes,
# the later ones keep within short maximum lengths, the last are squares; none is one, which would broadcast.
_STAND_INS = ((32, 64), (8, 16), (4, 8), (16, 64))
_BATCH_STAND_INS = (2, 4)


class TraceAgainError(Exception):
    """Raised in a trace by code that has just learned what it must do differently: the trace is to be made again."""


class DependsOnSizeError(Exception):
    """Raised where values are asked for that depend on a size which is not known."""


def until_learned(function: Callable[[], T]) -> T:
    """Call a function that traces, again for as long as the trace teaches something."""
    while True:
        try:
            return function()
        except TraceAgainError:
            continue


@dataclasses.dataclass(frozen=True)
class Spec:
    """The shape and dtype of an array, without its values.

    Attributes:
        shape: One entry per axis, None where the size is not known.
        dtype: A dtype's name.
    """

    shape: tuple[int | None, ...]
    dtype: str

    @classmethod
    def of(cls, array: Any) -> Spec:
        """The spec of an array, of a Keras tensor, or of a traced result; a symbol is unknown."""
        sizes = (size if isinstance(size, int) else None for size in array.shape)
        return cls(tuple(sizes), str(array.dtype))

    @property
    def size(self) -> int:
        """The number of values, with one for each size that is not known."""
        return math.prod(1 if size is None else size for size in self.shape)


@dataclasses.dataclass(frozen=True)
class Trace:
    """One abstract run of a function.

    Attributes:
        function: The function.
        arguments: Its arguments, with a `Spec` in the place of each array.
        jaxpr: The computation, from the arguments' leaves to the results' leaves. Sizes may be symbols.
        result: The function's result with a `Spec` in the place of each array.
        sized: Where sizes are not known and cannot be symbols, two traces with numbers in their place.
    """

    function: Callable[..., PyTree]
    arguments: tuple[PyTree, ...]
    jaxpr: Any
    result: PyTree
    sized: tuple[Trace, ...] = ()

    def evaluate(
        self,
        wanted: Sequence[bool],
        first: jax.Array,
        second: PyTree = None,
        shardings: Sequence[Any] | None = None,
    ) -> list[jax.Array]:
        """Compute some of the results, and nothing that they do not need.

        Works inside another trace as well, where the values are had at once.

        Args:
            wanted: For each leaf of the result, whether to compute it.
            first: The value of the first argument, an array.
            second: The value of the second argument, where it is known. Results that depend on arguments whose values are
                not known are computed with ones in their place, as Flax's users do it.
            shardings: Of each wanted leaf, where it is to lie.

        Returns:
            The wanted leaves.

        Raises:
            DependsOnSizeError: They depend on a size that is not known.
        """
        if all(None not in spec.shape for spec in jax.tree.leaves(self.arguments)):
            return self._evaluate(wanted, first, second, shardings)
        jaxpr, used = self._needed(wanted)
        if not self.sized and not any(used[1:]) and not _has_symbols(jaxpr):
            return _evaluated(jaxpr, self.jaxpr.consts, [first] if used[0] else [], shardings)
        small, large = self.sized or _traced_with_numbers(self.function, self.arguments)
        results = small._evaluate(wanted, first, None, shardings)
        if str(small._needed(wanted)[0]) != str(large._needed(wanted)[0]):
            others = large._evaluate(wanted, first, None, shardings)
            if not all(
                np.array_equal(*pair, equal_nan=True) for pair in zip(results, others, strict=True)
            ):
                raise DependsOnSizeError
        return results

    def _needed(self, wanted: Sequence[bool]) -> tuple[Any, list[bool]]:
        """The computation of some results, and which of the arguments' leaves it uses."""
        return partial_eval.dce_jaxpr(self.jaxpr.jaxpr, list(wanted))

    def _evaluate(
        self,
        wanted: Sequence[bool],
        first: jax.Array,
        second: PyTree,
        shardings: Sequence[Any] | None,
    ) -> list[jax.Array]:
        jaxpr, used = self._needed(wanted)
        specs = jax.tree.leaves(self.arguments[1:])
        known = jax.tree.leaves(second) if any(used[1:]) else []
        with jax.ensure_compile_time_eval():
            values: list[Any] = [first]
            for position, (spec, is_used) in enumerate(zip(specs, used[1:], strict=True)):
                is_known = position < len(known) and _is_concrete(known[position])
                value = known[position] if is_used and is_known else 1
                values.append(
                    jnp.broadcast_to(jnp.asarray(value, spec.dtype), spec.shape)
                    if is_used
                    else None
                )
        needed = [value for value, is_used in zip(values, used, strict=True) if is_used]
        return _evaluated(jaxpr, self.jaxpr.consts, needed, shardings)


def _has_symbols(jaxpr: Any) -> bool:
    """Whether a computation has a size in it that is no number."""
    # Operations share their inner computations: the same initializer for each of many weights.
    inner = {
        id(value): value
        for eqn in jaxpr.eqns
        for value in jax.tree.leaves(eqn.params)
        if hasattr(value, "eqns")
    }
    return any(
        eqn.primitive.name == "dim_as_value"
        or any(
            not isinstance(size, int)
            for var in eqn.outvars
            for size in getattr(var.aval, "shape", ())
        )
        for eqn in jaxpr.eqns
    ) or any(map(_has_symbols, inner.values()))


def _is_concrete(value: Any) -> bool:
    return isinstance(value, (np.ndarray, jax.Array)) and not isinstance(value, jax.core.Tracer)


def _evaluated(
    jaxpr: Any, consts: Sequence[Any], values: Sequence[jax.Array], shardings: Sequence[Any] | None
) -> list[jax.Array]:
    results = evaluate(jaxpr, consts, *values, shardings=shardings)
    others = {id(value) for value in (*consts, *values)}
    with jax.ensure_compile_time_eval():
        for position, result in enumerate(results):
            # An array that belongs to the code, or stands for two results, must not be handed out as anybody's own.
            if id(result) in others or not isinstance(result, jax.Array):
                results[position] = jnp.array(result)
            others.add(id(result))
    return results


def trace(function: Callable[..., PyTree], *arguments: PyTree) -> Trace:
    """Trace a function abstractly.

    Args:
        function: From pytrees of arrays to a pytree of arrays.
        *arguments: Its arguments, with a `Spec` in the place of each array.

    Returns:
        The trace. A size of the result is None where it depends on an unknown one.
    """
    if all(None not in spec.shape for spec in jax.tree.leaves(arguments)):
        return _trace_sized(function, arguments)
    try:
        traced = _trace_sized(function, _sized(arguments, _symbols(arguments)))
        return dataclasses.replace(traced, arguments=arguments)
    except Exception as error:
        # Whatever the code does with a size that is no number may fail, and in any way, R code's own conditions included.
        symbolic_error = error
    first, second = _traced_with_numbers(function, arguments, symbolic_error)
    result = jax.tree.map(_common, first.result, second.result)
    return dataclasses.replace(second, arguments=arguments, result=result, sized=(first, second))


def _traced_with_numbers(
    function: Callable[..., PyTree], arguments: tuple[PyTree, ...], cause: Exception | None = None
) -> tuple[Trace, Trace]:
    """Two traces of different sizes. Where no sizes will do, the error of the first is the one raised."""
    errors = []
    for sizes in _STAND_INS:
        try:
            small, large = (
                _trace_sized(function, _sized(arguments, functools.partial(_stand_in, size, batch)))
                for size, batch in zip(sizes, _BATCH_STAND_INS, strict=True)
            )
        except Exception as error:
            errors.append(error)
        else:
            return small, large
    raise errors[0] from cause


def _trace_sized(function: Callable[..., PyTree], arguments: tuple[PyTree, ...]) -> Trace:
    structs = jax.tree.map(lambda spec: jax.ShapeDtypeStruct(spec.shape, spec.dtype), arguments)  # type: ignore[no-untyped-call]

    def arrays(*values: PyTree) -> PyTree:
        return jax.tree.map(as_array, function(*values))

    jaxpr, result = until_learned(lambda: jax.make_jaxpr(arrays, return_shape=True)(*structs))
    return Trace(function, arguments, jaxpr, jax.tree.map(Spec.of, result))


def as_array(value: Any) -> Any:
    """A leaf of a result, as an array: JAX gives plain numbers no shape."""
    if hasattr(value, "shape"):
        return value
    try:
        return jnp.asarray(value)
    except (TypeError, ValueError):
        raise MethodError(
            f"The module returns or sows a value of class {type(value).__name__}, which is not an array.\n"
            "Return and sow arrays, numbers, and tuples, lists or dicts of them."
        ) from None


def _common(first: Spec, second: Spec) -> Spec:
    shape = tuple(a if a == b else None for a, b in zip(first.shape, second.shape, strict=True))
    return Spec(shape, first.dtype)


def _sized(arguments: PyTree, size_of: Callable[[int], Any]) -> PyTree:
    def sized(spec: Spec) -> Spec:
        return Spec(
            tuple(size_of(axis) if size is None else size for axis, size in enumerate(spec.shape)),
            spec.dtype,
        )

    return jax.tree.map(sized, arguments)


def _symbols(arguments: PyTree) -> Callable[[int], Any]:
    """One symbol per axis number: unknown sizes of several inputs on one axis (their batch) are the same."""
    axes = sorted({axis for spec in jax.tree.leaves(arguments) for axis in _unknown_axes(spec)})
    return _symbols_of(tuple(axes)).__getitem__


@functools.cache
def _symbols_of(axes: tuple[int, ...]) -> dict[int, Any]:
    """The symbols of axes, the same ones for every trace: JAX keeps what it has traced, once for each symbol."""
    names = [f"d{axis}" for axis in axes]
    # JAX takes a size of at least two to be neither broadcast nor squeezed.
    sizes = export.symbolic_shape(", ".join(names), constraints=[f"{name} >= 2" for name in names])
    return dict(zip(axes, sizes, strict=True))


def _stand_in(size: int, batch: int, axis: int) -> int:
    return batch if axis == 0 else size


def _unknown_axes(spec: Spec) -> Iterator[int]:
    return (axis for axis, size in enumerate(spec.shape) if size is None)
