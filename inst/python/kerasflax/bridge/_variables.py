"""A module's variables, kept in Keras variables: the bridge.

The Keras variables hold the values, and there is no second copy. A `Template` remembers everything else of the pytree that
`module.init()` returns (nesting, metadata boxes, typed random keys, leaves that are no arrays), so that what comes out has
the structure that went in. Every array has a name, its path: `params/Dense_0/kernel`.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Collection, Container, Iterable, Mapping, Sequence
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np
from jax.tree_util import GetAttrKey, KeyEntry
from keras.src.backend.common.name_scope import current_path
from keras.src.backend.common.stateless_scope import get_stateless_scope, in_stateless_scope

from .._errors import StateError, VariablesError
from .._paths import SEPARATOR
from ._memory import copied, placed

PyTree = Any
# From a path and a shape to the sharding of the Keras variable, None for Keras's own device.
Place = Callable[[str, tuple[int, ...]], Any]


# Pytree <-> named arrays ------------------------------------------------------------------------------------------------


def named_leaves(tree: PyTree) -> dict[str, Any]:
    """The leaves of a pytree by path.

    A path joins the keys of dicts and the positions of sequences. The name of a dataclass's field is a part of it only where
    siblings could not be told apart without: the array in a box of metadata has the box's path.
    """
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    paths = _paths([keys for keys, _ in flat])
    named = dict(zip(paths, [leaf for _, leaf in flat], strict=True))
    if len(named) < len(flat):
        twice = next(path for path, count in Counter(paths).items() if count > 1)
        raise StateError(
            f"Two variables have the path {twice}: a name in the module has a {SEPARATOR!r} in it. Rename one."
        )
    return named


def nested(leaves: Mapping[str, Any]) -> dict[str, PyTree]:
    """Nested dicts of leaves by path. Where a path lies below that of a leaf, the rest of it is one name."""
    result: dict[str, PyTree] = {}
    for path, leaf in leaves.items():
        *scopes, name = path.split(SEPARATOR)
        node = result
        for scope in scopes:
            node = node.setdefault(scope, {})
            if not isinstance(node, dict):
                return _nested_below_leaves(leaves)
        if name in node:
            return _nested_below_leaves(leaves)
        node[name] = leaf
    return result


def _nested_below_leaves(leaves: Mapping[str, Any]) -> dict[str, PyTree]:
    # Name by name, since joining the names above each one takes the square of a path's length.
    above: dict[str, Any] = {}
    for path in leaves:
        node = above
        for name in path.split(SEPARATOR):
            node = node.setdefault(name, {})
        # No name has a separator in it.
        node[SEPARATOR] = True
    result: dict[str, PyTree] = {}
    for path, leaf in leaves.items():
        names = path.split(SEPARATOR)
        node, known, depth = result, above[names[0]], 0
        while depth < len(names) - 1 and SEPARATOR not in known:
            node = node.setdefault(names[depth], {})
            depth += 1
            known = known[names[depth]]
        node[SEPARATOR.join(names[depth:])] = leaf
    return result


def _paths(key_paths: Sequence[tuple[KeyEntry, ...]]) -> list[str]:
    boxed = [_without_box(keys) for keys in key_paths]
    counts: dict[tuple[KeyEntry, ...], int] = {}
    for keys in boxed:
        counts[keys] = counts.get(keys, 0) + 1
    return [
        SEPARATOR.join(_key_name(key) for key in (short if counts[short] == 1 else keys))
        for keys, short in zip(key_paths, boxed, strict=True)
    ]


def _without_box(keys: tuple[KeyEntry, ...]) -> tuple[KeyEntry, ...]:
    end = len(keys)
    while end and isinstance(keys[end - 1], GetAttrKey):
        end -= 1
    return keys[:end]


def _key_name(key: KeyEntry) -> str:
    for attribute in ("key", "idx", "name"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)


def collection_of(path: str) -> str:
    """The collection that a path lies in, its first part."""
    return path.partition(SEPARATOR)[0]


# The template -----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Leaf:
    """Of one leaf, what is not in an array: a typed key's implementation, or the value of a leaf that is no array."""

    is_array: bool = True
    key_impl: Any = None
    static: Any = None

    @classmethod
    def of(cls, value: Any) -> _Leaf:
        if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
            return cls(key_impl=jax.random.key_impl(value))
        if _is_array(value):
            return cls()
        return cls(is_array=False, static=value)

    def wrap(self, array: Any) -> Any:
        return (
            array if self.key_impl is None else jax.random.wrap_key_data(array, impl=self.key_impl)
        )


def _key_data(key: jax.Array) -> jax.Array:
    if isinstance(key, jax.core.Tracer):
        return jax.random.key_data(key)
    # Keras may be building the layer inside a compiled step.
    with jax.ensure_compile_time_eval():
        return jax.random.key_data(key)


def _is_array(value: Any) -> bool:
    """Whether it is, or stands for, an array of numbers."""
    if isinstance(value, (bool, int, float, complex)):
        return True
    if not (hasattr(value, "dtype") and hasattr(value, "shape")):
        return False
    return any(
        jnp.issubdtype(value.dtype, kind) for kind in (jnp.bool_, jnp.number, jax.dtypes.prng_key)
    )


@dataclasses.dataclass(frozen=True)
class Template:
    """A pytree of variables without its arrays.

    Attributes:
        treedef: The nesting, boxes included.
        leaves: What is known of each leaf, by path and in the treedef's order.
    """

    treedef: Any
    leaves: Mapping[str, _Leaf]

    def extended(self, collections: Mapping[str, PyTree], arrays: Mapping[str, Any]) -> Template:
        """The template of a tree that has more collections."""
        return split({**self.merge(arrays), **collections})[0] if collections else self

    def merge(self, arrays: Mapping[str, Any]) -> PyTree:
        """The tree that has these arrays, by path."""
        leaves = [
            leaf.wrap(arrays[path]) if leaf.is_array else leaf.static
            for path, leaf in self.leaves.items()
        ]
        return jax.tree.unflatten(self.treedef, leaves)


def split(tree: PyTree) -> tuple[Template, dict[str, Any]]:
    """Split a tree into its template and its arrays by path (the data of typed random keys)."""
    named = named_leaves(tree)
    leaves = {path: _Leaf.of(value) for path, value in named.items()}
    return Template(jax.tree.structure(tree), leaves), {
        path: _key_data(named[path]) if leaf.key_impl is not None else named[path]
        for path, leaf in leaves.items()
        if leaf.is_array
    }


def overlaid(base: Mapping[str, PyTree] | None, over: Any) -> Any:
    """Variables in which those named by `over` take the place of those in `base`; either may be None."""
    if base is None or over is None or not isinstance(over, Mapping):
        return base if over is None else over
    return nested(named_leaves(base) | named_leaves(plain(over)))


# Given values -----------------------------------------------------------------------------------------------------------


def fitted(
    expected: Mapping[str, jax.ShapeDtypeStruct | Any],
    given: PyTree,
    *,
    fixed_shape: Callable[[str], bool],
    place: Place,
    partial: bool = False,
    surplus: bool = False,
) -> dict[str, jax.Array]:
    """Check given variables against those expected, and make arrays of them.

    What is given is copied (see `kerasflax.bridge._memory`) to where its variable will lie. A dtype of another kind (integers where
    floats belong, or the other way round whole floats), and what is of no chosen dtype (doubles, Python's numbers, R's
    integers), is cast to the expected one where that holds every value; a scalar fits any variable of one element.

    Args:
        expected: Of each variable its path and something with `shape` and `dtype`.
        given: A nested mapping of arrays, as `module.init()` returns it.
        fixed_shape: Whether a path's shape must be the expected one.
        place: The sharding that an array gets.
        partial: Whether variables may be missing.
        surplus: Whether variables may be there that nothing expects; they are dropped.

    Returns:
        Arrays by path, for what was given. A whole collection that is not expected, and whose shapes are not fixed, is
        taken as it is: a module may read what only its user provides.

    Raises:
        VariablesError: What does not fit, all of it, each by path with both sides.
    """
    if not isinstance(given, Mapping):
        raise VariablesError(
            f"`variables` must be a dict of collections, got {_described(given)}.\n"
            'Pass what `module.init()` returns, such as {"params": {...}}.'
        )
    given = plain(given)
    _, arrays = split(given)
    others = {path: value for path, value in named_leaves(given).items() if not _is_array(value)}
    if surplus:
        known = {collection_of(path) for path in expected}
        arrays = {
            path: value
            for path, value in arrays.items()
            if path in expected or collection_of(path) not in known
        }
    collections = ", ".join(sorted({collection_of(path) for path in expected})) or "none"
    return fitted_by_path(
        expected,
        arrays,
        others=others,
        fixed_shape=fixed_shape,
        place=place,
        partial=partial,
        advice=f"The module's collections: {collections}. Pass what `module.init()` returns for this module and input.",
    )


def fitted_by_path(
    expected: Mapping[str, jax.ShapeDtypeStruct | Any],
    arrays: Mapping[str, Any],
    *,
    others: Mapping[str, Any] | None = None,
    fixed_shape: Callable[[str], bool] = lambda _: True,
    partial: bool = False,
    place: Place | None = None,
    what: str = "`variables`",
    advice: str,
) -> dict[str, Any]:
    """Do what `fitted` does, for arrays by path; in messages, `what` they are, and what to do.

    Without `place` NumPy's arrays stay NumPy's, and share their memory.
    """
    shorter = unboxed(arrays, expected)
    arrays = {shorter[path]: value for path, value in arrays.items()}
    others = dict(others or {})
    problems = [
        f"{path}: {_described(value)} is no array of numbers" for path, value in others.items()
    ]
    deleted = [path for path, value in arrays.items() if _is_deleted(value)]
    problems += [f"{path}: the array has been deleted" for path in deleted]
    others |= dict.fromkeys(deleted)
    if not partial:
        missing = (path for path in expected if path not in arrays and path not in others)
        problems += [f"{path}: missing, expected {_shown(expected[path])}" for path in missing]
    collections = {collection_of(path) for path in expected}
    # Of a file that does not fit; where all is as expected nothing is asked of it.
    surplus = any(path not in expected for path in arrays)
    above = (
        {path[:end] for path in expected for end, part in enumerate(path) if part == SEPARATOR}
        if surplus
        else set()
    )
    result = {}
    for path, value in arrays.items():
        if path in others:
            continue
        if path not in expected:
            collection = collection_of(path)
            if partial or collection in collections or collection == path or fixed_shape(path):
                what_is_there = "has weights below it" if path in above else "not in the module"
                problems.append(f"{path}: {what_is_there}, got {_shown(np.asarray(value))}")
            else:
                result[path], problem = _moved(path, value, False, place)
                problems += [f"{path}: {problem}"] if problem else []
            continue
        array, is_ours, problem = _fitted_leaf(expected[path], value, fixed_shape(path))
        if not problem:
            array, problem = _moved(path, array, is_ours, place)
        if problem:
            problems.append(f"{path}: {problem}")
        else:
            result[path] = array
    if problems:
        raise VariablesError(
            f"{what} does not fit the module in {len(problems)} place{'s' * (len(problems) > 1)}:\n"
            + "\n".join(f"  {problem}" for problem in problems)
            + f"\n{advice}"
        )
    return result


def _is_deleted(value: Any) -> bool:
    return (
        isinstance(value, jax.Array)
        and not isinstance(value, jax.core.Tracer)
        and value.is_deleted()
    )


def without_box(path: str, expected: Container[str]) -> str:
    """The path that is expected in the place of one with a box's field `value`, which Flax's files have and paths leave out."""
    short = path
    while short not in expected and short.endswith(f"{SEPARATOR}value"):
        short = short.removesuffix(f"{SEPARATOR}value")
    return short if short in expected else path


def unboxed(paths: Collection[str], expected: Container[str]) -> dict[str, str]:
    """Of each path the one without a box (see `without_box`), unless another weight has that path."""
    result: dict[str, str] = {}
    taken = set(paths)
    for path in paths:
        short = without_box(path, expected)
        result[path] = path if short in taken else short
        taken.add(result[path])
    return result


def plain(tree: PyTree) -> PyTree:
    """Dicts and lists in the place of other mappings and lists, which JAX would take for leaves (Keras makes such)."""
    if isinstance(tree, Mapping):
        return {name: plain(subtree) for name, subtree in tree.items()}
    return [plain(subtree) for subtree in tree] if isinstance(tree, list) else tree


def _fitted_leaf(expected: Any, value: Any, fixed_shape: bool) -> tuple[Any, bool, str | None]:
    """The array that a value becomes, whether it has been made here, and what is wrong with it."""
    shape = tuple(np.shape(value))
    wanted = tuple(expected.shape)
    fills = shape == () and wanted != () and all(size == 1 for size in wanted)
    fits = len(shape) == len(wanted) and all(
        w in (s, None) for s, w in zip(shape, wanted, strict=True)
    )
    if fixed_shape and not fits and not fills:
        return None, False, f"expected {_shown(expected)}, got shape {_shape_shown(shape)}"
    array = value if isinstance(value, jax.Array) else np.asarray(value)
    is_unchosen = not isinstance(value, jax.Array) and array.dtype in _UNCHOSEN
    is_ours = _kind(array.dtype) > _kind(expected.dtype) or is_unchosen
    if is_ours:
        parts = array if jnp.issubdtype(expected.dtype, jnp.complexfloating) else np.real(array)
        with np.errstate(invalid="ignore", over="ignore"):
            held = np.asarray(parts).astype(expected.dtype)
        if not _is_held(array, held):
            return (
                None,
                False,
                f"expected {_shown(expected)}, got values of {array.dtype} that it does not hold",
            )
        array = held
    if _kind(array.dtype) < _kind(expected.dtype):
        array = array.astype(expected.dtype)
    return (array.reshape(wanted) if fills else array), is_ours, None


def _moved(path: str, array: Any, is_ours: bool, place: Place | None) -> tuple[Any, str | None]:
    """The array in memory of its own where its variable lies, or why it cannot be moved there."""
    if place is None:
        return array, None
    try:
        return placed(array if is_ours else copied(array), place(path, tuple(array.shape))), None
    except (ValueError, RuntimeError) as error:
        problem = str(error).partition("\n")[0]
        return (
            None,
            f"the array cannot be moved from {_devices_shown(array)} to where Keras keeps the weight: {problem}",
        )


def _devices_shown(array: Any) -> str:
    return (
        ", ".join(sorted(map(str, array.devices()))) if isinstance(array, jax.Array) else "the host"
    )


# What numbers are in R and Python, and in NumPy where nobody has chosen another dtype.
_UNCHOSEN = tuple(np.dtype(name) for name in ("int32", "int64", "float64", "complex128"))


def _is_held(array: Any, held: Any) -> bool:
    """Whether another dtype holds an array's values: up to rounding where both have fractions, exactly otherwise."""
    if _kind(array.dtype) == _kind(held.dtype) >= _kind(np.float32):
        return np.array_equal(np.isfinite(array), np.isfinite(held))
    return np.array_equal(held, array, equal_nan=_kind(held.dtype) >= _kind(np.float32))


def _kind(dtype: Any) -> int:
    """Kinds of dtypes in the order in which one can hold another."""
    return [
        jnp.issubdtype(dtype, kind)
        for kind in (jnp.bool_, jnp.integer, jnp.floating, jnp.complexfloating)
    ].index(True)


def _described(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype}"
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"


def _shape_shown(shape: Sequence[int]) -> str:
    return "(" + ", ".join(str(size) for size in shape) + ")"


def _shown(array: Any) -> str:
    return f"{array.dtype}{_shape_shown(array.shape)}"


# Keras variables --------------------------------------------------------------------------------------------------------


def create(
    arrays: Mapping[str, jax.Array],
    *,
    trainable: Callable[[str], bool],
    parameter_dtype: str | None,
) -> dict[str, keras.Variable]:
    """Make one Keras variable per array, named by its path under the current name scope.

    Args:
        arrays: Initial values by path, which nobody else holds; they are not copied.
        trainable: Whether a path is a trainable weight.
        parameter_dtype: The dtype of trainable floating-point weights, cast by Keras to its compute dtype where the two
            differ. None leaves each weight as it is.

    Returns:
        Variables by path.
    """
    return {
        path: _variable(path, array, trainable=trainable(path), parameter_dtype=parameter_dtype)
        for path, array in arrays.items()
    }


def sharding(path: str, shape: tuple[int, ...]) -> Any:
    """Where Keras's distribution puts a variable of a path under the current name scope; None without a distribution."""
    distribution = keras.distribution.distribution()
    if distribution is None:
        return None
    layout = distribution.get_variable_layout(
        SimpleNamespace(path=f"{current_path()}/{path}", shape=shape)
    )
    return getattr(layout, "backend_layout", layout)


def _variable(
    path: str, array: jax.Array, *, trainable: bool, parameter_dtype: str | None
) -> keras.Variable:
    follows_policy = (
        trainable and parameter_dtype is not None and jnp.issubdtype(array.dtype, jnp.floating)
    )
    *scopes, name = path.split(SEPARATOR)
    with ExitStack() as stack:
        # Keras refuses a separator in a name: scopes make the path.
        for scope in scopes:
            stack.enter_context(keras.name_scope(scope))
        return keras.Variable(
            # Inside a compiled step Keras takes a function alone. Elsewhere, with a distribution, it compiles functions, and a
            # large array that one holds becomes a constant of the program.
            (lambda shape, dtype: array.astype(dtype)) if in_stateless_scope() else array,
            shape=array.shape,
            dtype=parameter_dtype if follows_policy else str(array.dtype),
            trainable=trainable,
            autocast=follows_policy,
            name=name,
        )


def values(variables: Collection[keras.Variable], *, cast: bool) -> list[jax.Array]:
    """The values of variables, cast where Keras casts them; `variable.value` of each is most of an eager call's time."""
    if cast or in_stateless_scope():
        return [variable.value for variable in variables]
    return [variable._value for variable in variables]


def assign(values: Iterable[tuple[keras.Variable, Any]]) -> None:
    """Set variables to values that fit them: all, or where that is broken off, none.

    The old values are kept for as long. Where they would take memory beside the new ones, see `assign_through`.
    """
    pairs = list(values)
    scope = get_stateless_scope()
    held = [_held(variable, scope) for variable, _ in pairs]
    try:
        for variable, value in pairs:
            variable.assign(value)
    except BaseException:
        for (variable, _), value in zip(pairs, held, strict=True):
            _hold(variable, value, scope)
        raise


def assign_through(values: Iterable[tuple[keras.Variable, Any]]) -> None:
    """Set variables to values that fit them one by one, letting the old ones go; an interrupt waits until all are set."""
    pairs = list(values)
    try:
        for variable, value in pairs:
            variable.assign(value)
    except BaseException:
        for variable, value in pairs:
            variable.assign(value)
        raise


def _held(variable: keras.Variable, scope: Any) -> Any:
    return variable._value if scope is None else scope.state_mapping.get(id(variable))


def _hold(variable: keras.Variable, value: Any, scope: Any) -> None:
    if scope is None:
        variable._value = value
    elif value is None:
        scope.state_mapping.pop(id(variable), None)
    else:
        scope.state_mapping[id(variable)] = value


def apart(outputs: PyTree, updates: PyTree, held: Collection[Any]) -> tuple[PyTree, PyTree]:
    """Give each result of a traced call that is a variable's value, or becomes one, an array of its own.

    A module may return or sow its weights, or keep one under a second name. JAX would hand on the very array.

    Args:
        outputs: Results that a user may get.
        updates: Results that become values of variables.
        held: The values that the call was given.
    """
    taken = {id(value) for value in held}

    def own(value: Any) -> Any:
        return jnp.copy(value) if id(value) in taken else value

    def own_alone(value: Any) -> Any:
        value = own(value)
        taken.add(id(value))
        return value

    updates = jax.tree.map(own_alone, updates)
    return jax.tree.map(own, outputs), updates


def checked_update(
    variables: Mapping[str, keras.Variable], updates: Mapping[str, Any], module_name: str
) -> dict[str, Any]:
    """Check that what a call wrote has the structure that it had.

    Raises:
        StateError: A variable was created or reshaped in the call.
    """
    for path, value in updates.items():
        if path not in variables:
            raise StateError(
                f"{module_name} created the variable {path} in a call, which `init` did not create.\n"
                "Create it in the first call in either mode, or pass `variables` that hold it."
            )
        shape = tuple(np.shape(value))
        if shape != tuple(variables[path].shape):
            raise StateError(
                f"{module_name} changed the shape of {path} in a call from "
                f"{_shape_shown(variables[path].shape)} to {_shape_shown(shape)}.\n"
                "A variable keeps its shape: make it as large as it has to become."
            )
    return dict(updates)
