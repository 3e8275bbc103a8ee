"""Abstract traces: the result of a function of arrays, without computing it.

An unknown dimension, such as the batch or the length of a sequence, is `None` in a `Spec` and a
symbol in the trace. Code that cannot be traced with a symbol, for example because it branches on a
size, is traced twice with numbers instead. Whatever differs between the two traces depends on the
unknown dimension.
"""

from __future__ import annotations

import contextlib
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

from .. import _host
from .._errors import MethodError
from ._initial_values import evaluate

PyTree = Any
T = TypeVar("T")

# Pairs of sizes for unknown dimensions other than the batch, tried in turn. The first ones are
# divisible by the usual strides and patch sizes, the next ones are below short maximum lengths, and
# the last are squares. None is one, which would broadcast.
_STAND_INS = ((32, 64), (8, 16), (4, 8), (16, 64))
_BATCH_STAND_INS = (2, 4)


class TraceAgainError(Exception):
    """Raised in a trace by code that has just learned something: the trace must start again."""


class DependsOnSizeError(Exception):
    """Raised if a requested value depends on an unknown size."""


def until_learned(function: Callable[[], T]) -> T:
    """Call a function that traces, until the trace teaches nothing new."""
    while True:
        try:
            return function()
        except TraceAgainError:
            continue


@dataclasses.dataclass(frozen=True)
class Spec:
    """The shape and dtype of an array, without its values.

    Attributes:
        shape: The size of each axis, or None if it is unknown.
        dtype: The name of the dtype.
        kept: In the result of a trace, the axes that have the unknown size of the same axis of the
            arguments.
    """

    shape: tuple[int | None, ...]
    dtype: str
    kept: frozenset[int] = dataclasses.field(default=frozenset(), compare=False)

    @classmethod
    def of(cls, array: Any) -> Spec:
        """The spec of an array, of a Keras tensor, or of a traced result; a symbol is unknown."""
        sizes = (size if isinstance(size, int) else None for size in array.shape)
        return cls(tuple(sizes), str(array.dtype))

    @property
    def size(self) -> int:
        """The number of values, if each unknown size is counted as one."""
        return math.prod(1 if size is None else size for size in self.shape)


@dataclasses.dataclass(frozen=True)
class Trace:
    """One abstract run of a function.

    Attributes:
        function: The function.
        arguments: The arguments, with a `Spec` for each array.
        jaxpr: The computation from the leaves of the arguments to the leaves of the result. Sizes
            may be symbols.
        result: The result, with a `Spec` for each array.
        sized: Two traces with numbers for the unknown sizes, if these cannot be symbols.
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
        """Compute some leaves of the result, and only what they need.

        Inside another trace, the values are computed at once as well.

        Args:
            wanted: Whether to compute each leaf of the result.
            first: The value of the first argument, an array.
            second: The value of the second argument, if it is known. Unknown values are replaced by
                ones, which is also how Flax users initialize modules.
            shardings: The sharding of each wanted leaf.

        Returns:
            The wanted leaves.

        Raises:
            DependsOnSizeError: A wanted leaf depends on an unknown size.
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
        """The computation of some leaves of the result, and which argument leaves it uses."""
        # JAX has no public function that removes dead code, and plans none:
        # https://github.com/jax-ml/jax/issues/3617. Seen to work with jax 0.8.1 to 0.12.0.
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
    """Whether a size in a computation is a symbol."""
    # Operations share inner computations: many weights have the same initializer.
    inner = {
        id(value): value
        for eqn in jaxpr.eqns
        for value in jax.tree.leaves(eqn.params)
        if hasattr(value, "eqns")
    }
    # The primitive that computes the value of a symbol is not documented. Seen to work with jax
    # 0.8.1 to 0.12.0.
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
            # Each result must be an array of its own: not a constant of the code, and not an array
            # that is also another result.
            if id(result) in others or not isinstance(result, jax.Array):
                results[position] = jnp.array(result)
            others.add(id(result))
    return results


def trace(function: Callable[..., PyTree], *arguments: PyTree) -> Trace:
    """Trace a function abstractly.

    Args:
        function: A function from pytrees of arrays to a pytree of arrays.
        *arguments: The arguments, with a `Spec` for each array.

    Returns:
        The trace. A size of the result is None if it depends on an unknown size.
    """
    if all(None not in spec.shape for spec in jax.tree.leaves(arguments)):
        return _trace_sized(function, arguments)
    try:
        traced = _trace_sized(function, arguments, _symbols(arguments))
        return dataclasses.replace(traced, arguments=arguments)
    except Exception as error:
        # Code that expects numbers may fail in any way on a symbol, including R conditions.
        symbolic_error = error
    first, second = _traced_with_numbers(function, arguments, symbolic_error)
    result = jax.tree.map(_common, first.result, second.result)
    return dataclasses.replace(second, arguments=arguments, result=result, sized=(first, second))


def _traced_with_numbers(
    function: Callable[..., PyTree], arguments: tuple[PyTree, ...], cause: Exception | None = None
) -> tuple[Trace, Trace]:
    """Trace a function with two sets of sizes.

    Raises:
        Exception: No pair of sizes works. The error is that of the first pair.
    """
    errors = []
    for sizes in _STAND_INS:
        try:
            small, large = (
                _trace_sized(function, arguments, functools.partial(_stand_in, size, batch))
                for size, batch in zip(sizes, _BATCH_STAND_INS, strict=True)
            )
        except Exception as error:
            errors.append(error)
        else:
            return small, large
    raise errors[0] from cause


def _trace_sized(
    function: Callable[..., PyTree],
    arguments: tuple[PyTree, ...],
    size_of: Callable[[int], Any] = lambda axis: None,
) -> Trace:
    """Trace a function, with `size_of(axis)` for the unknown size of an axis."""
    arguments = _sized(arguments, size_of)
    structs = jax.tree.map(lambda spec: jax.ShapeDtypeStruct(spec.shape, spec.dtype), arguments)  # type: ignore[no-untyped-call]

    def arrays(*values: PyTree) -> PyTree:
        return jax.tree.map(as_array, function(*values))

    jaxpr, result = until_learned(lambda: jax.make_jaxpr(arrays, return_shape=True)(*structs))
    specs = jax.tree.map(functools.partial(_result_spec, size_of), result)
    return Trace(function, arguments, jaxpr, specs)


def _result_spec(size_of: Callable[[int], Any], array: Any) -> Spec:
    sizes = [(axis, size, size_of(axis)) for axis, size in enumerate(array.shape)]
    kept = frozenset(axis for axis, size, own in sizes if own is not None and size == own)
    return dataclasses.replace(Spec.of(array), kept=kept)


def as_array(value: Any) -> Any:
    """Convert a leaf of a result to an array, since plain numbers have no shape."""
    if hasattr(value, "shape"):
        return value
    # A module that was created but not applied.
    is_uncalled = callable(value) and not isinstance(value, type)
    if not is_uncalled:
        with contextlib.suppress(TypeError, ValueError):
            return jnp.asarray(value)
    kind = type(value).__name__
    raise MethodError(
        f"The module returns or sows a value of class {kind}, which is not an array.",
        advice=f"Call the object of class {kind} on an input, and return the result."
        if is_uncalled
        else f"Return and sow arrays, numbers, and {_host.word('containers')} of them.",
    )


def _common(first: Spec, second: Spec) -> Spec:
    shape = tuple(a if a == b else None for a, b in zip(first.shape, second.shape, strict=True))
    return Spec(shape, first.dtype, first.kept & second.kept)


def _sized(arguments: PyTree, size_of: Callable[[int], Any]) -> PyTree:
    def sized(spec: Spec) -> Spec:
        return Spec(
            tuple(size_of(axis) if size is None else size for axis, size in enumerate(spec.shape)),
            spec.dtype,
        )

    return jax.tree.map(sized, arguments)


def _symbols(arguments: PyTree) -> Callable[[int], Any]:
    """One symbol per axis number: several inputs have the same unknown size, such as the batch."""
    axes = sorted({axis for spec in jax.tree.leaves(arguments) for axis in _unknown_axes(spec)})
    return _symbols_of(tuple(axes)).get


@functools.cache
def _symbols_of(axes: tuple[int, ...]) -> dict[int, Any]:
    """The symbols of axes. Every trace uses the same ones, since JAX caches traces per symbol."""
    names = [f"d{axis}" for axis in axes]
    # The constraint tells JAX that the size is not one, which would be broadcast or squeezed.
    sizes = export.symbolic_shape(", ".join(names), constraints=[f"{name} >= 2" for name in names])
    return dict(zip(axes, sizes, strict=True))


def _stand_in(size: int, batch: int, axis: int) -> int:
    return batch if axis == 0 else size


def _unknown_axes(spec: Spec) -> Iterator[int]:
    return (axis for axis, size in enumerate(spec.shape) if size is None)
