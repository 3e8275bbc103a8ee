"""A module's variables as Keras variables: the bridge.

Keras variables hold the values, and there is no second copy. A `Template` keeps everything else of
the pytree that `module.init()` returns (nesting, metadata boxes, typed random keys, leaves that are
not arrays), so that users get back the structure that Flax gave. Every array has a name, its path:
`params/Dense_0/kernel`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import re
from collections import Counter
from collections.abc import Callable, Collection, Container, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np
from jax.tree_util import GetAttrKey, KeyEntry

from .. import _host, _keras
from .._errors import StateError, VariablesError
from .._messages import shape_text, spec_text, value_text
from .._paths import SEPARATOR, OtherLevel
from ._memory import copied, kept_on_host, placed

PyTree = Any
# From a path and a shape to the sharding of the Keras variable, None for Keras's own device.
Place = Callable[[str, tuple[int, ...]], Any]


# Pytrees and named arrays ------------------------------------------------------------------------


def named_leaves(tree: PyTree) -> dict[str, Any]:
    """The leaves of a pytree by path.

    A path joins the keys of dicts and the positions in sequences. It contains the name of a
    dataclass's field only if siblings would have the same path otherwise: the array in a metadata
    box has the box's path.

    Raises:
        StateError: Two leaves have the same path.
    """
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    paths = _paths([keys for keys, _ in flat])
    named = dict(zip(paths, [leaf for _, leaf in flat], strict=True))
    if len(named) < len(flat):
        twice = next(path for path, count in Counter(paths).items() if count > 1)
        raise StateError(
            f"Two variables have the path {twice}, because a name in the module contains "
            f"{SEPARATOR!r}.",
            advice="Rename one of them.",
        )
    return named


def nested(leaves: Mapping[str, Any]) -> dict[str, PyTree]:
    """Nested dicts of leaves by path.

    If a path goes on below the path of a leaf, the rest of it is a single name.
    """
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
    # Joining the names above each name would take quadratic time in the length of a path.
    above: dict[str, Any] = {}
    for path in leaves:
        node = above
        for name in path.split(SEPARATOR):
            node = node.setdefault(name, {})
        # No name contains the separator.
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
    """The collection of a path: its first name."""
    return path.partition(SEPARATOR)[0]


# The template ------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Leaf:
    """The part of a leaf that its array does not hold: a typed key's type, or a static value."""

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
    """Whether a value is an array of numbers, or stands for one."""
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
        treedef: The nesting, with the boxes.
        leaves: The part of each leaf that its array does not hold, by path, in the treedef's order.
    """

    treedef: Any
    leaves: Mapping[str, _Leaf]

    def extended(self, collections: Mapping[str, PyTree], arrays: Mapping[str, Any]) -> Template:
        """The template of a tree with more collections."""
        return split({**self.merge(arrays), **collections})[0] if collections else self

    def merge(self, arrays: Mapping[str, Any]) -> PyTree:
        """The tree that has these arrays, by path."""
        leaves = [
            leaf.wrap(arrays[path]) if leaf.is_array else leaf.static
            for path, leaf in self.leaves.items()
        ]
        return jax.tree.unflatten(self.treedef, leaves)

    def merge_part(self, arrays: Mapping[str, Any]) -> dict[str, PyTree]:
        """The part of the tree that has these arrays, by path, without what they leave empty."""
        leaves = [
            leaf.wrap(arrays[path]) if leaf.is_array and path in arrays else _ABSENT
            for path, leaf in self.leaves.items()
        ]
        return _pruned(jax.tree.unflatten(self.treedef, leaves))


def split(tree: PyTree) -> tuple[Template, dict[str, Any]]:
    """Split a tree into its template and its arrays by path (the data of typed random keys)."""
    named = named_leaves(tree)
    leaves = {path: _Leaf.of(value) for path, value in named.items()}
    return Template(jax.tree.structure(tree), leaves), {
        path: _key_data(named[path]) if leaf.key_impl is not None else named[path]
        for path, leaf in leaves.items()
        if leaf.is_array
    }


def part(tree: PyTree, paths: Container[str]) -> dict[str, PyTree]:
    """The part of a tree that has the leaves at these paths, without what is empty then."""
    leaves = [leaf if path in paths else _ABSENT for path, leaf in named_leaves(tree).items()]
    return _pruned(jax.tree.unflatten(jax.tree.structure(tree), leaves))


# Stands for a leaf that a part of a tree does not have.
_ABSENT = object()


def _pruned(tree: PyTree) -> dict[str, PyTree]:
    pruned = _without_absent(tree)
    return {} if pruned is None else pruned


def _without_absent(tree: PyTree) -> PyTree:
    """The tree without absent leaves and empty dicts; None if nothing is left.

    Another container that has lost a leaf becomes a dict, in which the others keep their names.
    """
    if tree is _ABSENT:
        return None
    if not isinstance(tree, dict):
        if not any(leaf is _ABSENT for leaf in jax.tree.leaves(tree)):
            return tree
        children = jax.tree_util.tree_flatten_with_path(
            tree, is_leaf=lambda node: node is not tree
        )[0]
        tree = {_key_name(keys[0]): child for keys, child in children}
    below = {name: _without_absent(subtree) for name, subtree in tree.items()}
    return {name: subtree for name, subtree in below.items() if subtree is not None} or None


def overlaid(base: Mapping[str, PyTree] | None, over: Any) -> Any:
    """Variables in which those of `over` replace those of `base`. Either may be None.

    Raises:
        VariablesError: The names of `over` are those of `base`, on another level.
    """
    if base is None or over is None or not isinstance(over, Mapping):
        return base if over is None else over
    below, above = named_leaves(base), named_leaves(plain(over))
    refuse_other_level(below, above)
    return nested(below | above)


# Given values ------------------------------------------------------------------------------------

_GIVEN = "`variables`"


def fitted(
    expected: Mapping[str, jax.ShapeDtypeStruct | Any],
    given: PyTree,
    *,
    fixed_shape: Callable[[str], bool],
    place: Place | None = None,
    partial: bool = False,
    surplus: bool = False,
    what: str = _GIVEN,
) -> dict[str, jax.Array]:
    """Check given variables against the expected ones, and make arrays of them.

    With `place`, the values are copied (see `kerasflax.bridge._memory`) to where their variables
    will be. A value is cast to the expected dtype if its own dtype is of another kind (integers for
    floats, or whole floats for integers) or was not chosen (doubles, Python's numbers, R's
    integers), provided that the expected dtype holds every value. A scalar fits any variable of one
    element.

    Args:
        expected: Something with `shape` and `dtype` for each path.
        given: A nested mapping of arrays, as `module.init()` returns it.
        fixed_shape: Whether a path must have the expected shape.
        place: The sharding that an array gets; None to move nothing.
        partial: Whether variables may be missing.
        surplus: Whether there may be variables that nothing expects. They are dropped.
        what: What messages call the given variables.

    Returns:
        The given arrays by path. A whole collection that is not expected, and whose shapes are not
        fixed, is taken as it is: a module may read what only its user provides.

    Raises:
        VariablesError: Something does not fit; the error lists every place by path.
    """
    if not isinstance(given, Mapping):
        raise VariablesError(
            f"{what} must be {_host.word('dict')} of collections, got {value_text(given)}.",
            advice=f"Pass, for example, {_host.word('params')}.",
        )
    given = plain(given)
    _, arrays = split(given)
    leaves = named_leaves(given)
    refuse_other_level(expected, leaves, what=what)
    others = {path: value for path, value in leaves.items() if not _is_array(value)}
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
        what=what,
        advice=f"The module's collections: {collections}. Compare the variables with "
        f"{_host.word('variables')}{'' if partial else ' of a layer without `variables`'}.",
    )


def fitted_by_path(
    expected: Mapping[str, jax.ShapeDtypeStruct | Any],
    arrays: Mapping[str, Any],
    *,
    others: Mapping[str, Any] | None = None,
    fixed_shape: Callable[[str], bool] = lambda _: True,
    partial: bool = False,
    place: Place | None = None,
    what: str = _GIVEN,
    advice: str,
) -> dict[str, Any]:
    """Do what `fitted` does, for arrays by path.

    Without `place`, NumPy arrays stay NumPy arrays and share the memory of the given ones.

    Args:
        expected: As in `fitted`.
        arrays: Arrays by path.
        others: Values by path that are not arrays.
        fixed_shape: As in `fitted`.
        partial: As in `fitted`.
        place: As in `fitted`; None to move nothing.
        what: What messages call the values.
        advice: What messages advise.
    """
    result, problems = fit_by_path(
        expected, arrays, others=others, fixed_shape=fixed_shape, partial=partial, place=place
    )
    if problems:
        places = f"{len(problems)} place{'s' * (len(problems) > 1)}"
        what_is_wrong = f"{what} does not fit the module in {places}:"
        raise VariablesError(what_is_wrong, problems=problems, advice=advice)
    return result


def fit_by_path(
    expected: Mapping[str, jax.ShapeDtypeStruct | Any],
    arrays: Mapping[str, Any],
    *,
    others: Mapping[str, Any] | None = None,
    fixed_shape: Callable[[str], bool] = lambda _: True,
    partial: bool = False,
    place: Place | None = None,
) -> tuple[dict[str, Any], dict[str, str]]:
    """Do what `fitted_by_path` does, but return what fits, and what is wrong with the rest.

    Returns:
        The arrays that fit, and the problems, by path.
    """
    shorter = unboxed(arrays, expected)
    arrays = {shorter[path]: value for path, value in arrays.items()}
    problems = {
        path: f"{value_text(value)} is not an array of numbers"
        for path, value in (others or {}).items()
    }
    problems |= {
        path: "the array has been deleted" for path, value in arrays.items() if _is_deleted(value)
    }
    problems |= {
        path: "has a shape and dtype, but no value"
        for path, value in arrays.items()
        if isinstance(value, jax.ShapeDtypeStruct)
    }
    if not partial:
        problems |= {
            path: f"missing, expected {spec_text(spec)}"
            for path, spec in expected.items()
            if path not in arrays and path not in problems
        }
    is_unexpected = _Unexpected(expected, partial, fixed_shape)
    result = {}
    for path, value in arrays.items():
        if path in problems:
            continue
        problem, array, is_ours = None, value, False
        if path in expected:
            array, is_ours, problem = _fitted_leaf(expected[path], value, fixed_shape(path))
        else:
            problem = is_unexpected(path, value)
        if place and not problem:
            array, problem = _moved(array, place(path, tuple(array.shape)), is_ours)
        if problem:
            problems[path] = problem
        else:
            result[path] = array
    return result, problems


def refuse_other_level(
    expected: Iterable[str],
    given: Iterable[str],
    *,
    what: str = _GIVEN,
    owner: str = "the module",
    is_file: bool = False,
) -> None:
    """Refuse variables whose paths lack what the expected ones begin with, or have more.

    One sentence then says what each single path would repeat.

    Args:
        expected: The expected paths.
        given: The given paths.
        what: What the message calls the given variables.
        owner: What has the expected variables.
        is_file: Whether the variables come from a file, and can be renamed.

    Raises:
        VariablesError: None of the paths is expected, but those on another level are.
    """
    found = OtherLevel.of(given, expected)
    if found is None:
        return
    prefixes = [repr(prefix) for prefix in found.prefixes[:5]]
    places = (" or " if found.is_choice else " and ").join(prefixes)
    names = found.prefixes[0].count(SEPARATOR) + 1
    levels = "one level" if names == 1 else f"{names} levels"
    first = found.prefixes[0]
    if found.is_lacking:
        problem = f"lacks {levels}: {owner} has these variables in {places}"
        advice = f"Put them into {places}"
        if found.is_choice and names == 1:
            advice = f"Pass {_host.word('entry', first)}"
        change = ("(.*)", f"{first}{SEPARATOR}\\1")
    else:
        problem = f"has {levels} too many: the variables of {owner} are in {places}"
        advice = f"Pass only what is in {places}"
        change = (f"{re.escape(first)}{SEPARATOR}(.*)", "\\1")
    if is_file and found.is_choice:
        # A string in code has each backslash twice.
        advice = "Pass " + _host.word("rename", *(text.replace("\\", r"\\") for text in change))
    raise VariablesError(f"{what} {problem}.", advice=f"{advice}.")


class _Unexpected:
    """Finds the problem with a path that is not expected, if there is one."""

    def __init__(
        self, expected: Iterable[str], partial: bool, fixed_shape: Callable[[str], bool]
    ) -> None:
        self._expected, self._partial, self._fixed_shape = list(expected), partial, fixed_shape
        self._collections = {collection_of(path) for path in self._expected}

    @functools.cached_property
    def _above(self) -> set[str]:
        """The paths of the dicts that hold expected variables."""
        return {
            path[:end]
            for path in self._expected
            for end, part in enumerate(path)
            if part == SEPARATOR
        }

    def __call__(self, path: str, value: Any) -> str | None:
        collection = collection_of(path)
        is_provided = collection not in self._collections and collection != path
        if is_provided and not self._partial and not self._fixed_shape(path):
            return None
        problem = "has weights below it" if path in self._above else "not in the module"
        return f"{problem}, got {spec_text(np.asarray(value))}"


def _is_deleted(value: Any) -> bool:
    return (
        isinstance(value, jax.Array)
        and not isinstance(value, jax.core.Tracer)
        and value.is_deleted()
    )


def without_box(path: str, expected: Container[str]) -> str:
    """The expected path for one that ends in `value`.

    Flax's files have the field `value` of a metadata box; paths leave it out.
    """
    short = path
    while short not in expected and short.endswith(f"{SEPARATOR}value"):
        short = short.removesuffix(f"{SEPARATOR}value")
    return short if short in expected else path


def unboxed(paths: Collection[str], expected: Container[str]) -> dict[str, str]:
    """Map each path to the one without a box, unless another weight has that path already."""
    result: dict[str, str] = {}
    taken = set(paths)
    for path in paths:
        short = without_box(path, expected)
        result[path] = path if short in taken else short
        taken.add(result[path])
    return result


def plain(tree: PyTree) -> PyTree:
    """Replace mappings and lists of other classes, such as Keras's, by dicts and lists.

    JAX would take them for leaves.
    """
    if isinstance(tree, Mapping):
        return {name: plain(subtree) for name, subtree in tree.items()}
    return [plain(subtree) for subtree in tree] if isinstance(tree, list) else tree


def _fitted_leaf(expected: Any, value: Any, fixed_shape: bool) -> tuple[Any, bool, str | None]:
    """The array for a variable, whether it is a new one, and what is wrong with the value."""
    shape = tuple(np.shape(value))
    wanted = tuple(expected.shape)
    fills = shape == () and wanted != () and all(size == 1 for size in wanted)
    fits = len(shape) == len(wanted) and all(
        w in (s, None) for s, w in zip(shape, wanted, strict=True)
    )
    if fixed_shape and not fits and not fills:
        return None, False, f"expected {spec_text(expected)}, got shape {shape_text(shape)}"
    array = value if isinstance(value, jax.Array) else np.asarray(value)
    is_unchosen = not isinstance(value, jax.Array) and array.dtype in _UNCHOSEN
    is_ours = _kind(array.dtype) > _kind(expected.dtype) or is_unchosen
    if is_ours:
        parts = array if jnp.issubdtype(expected.dtype, jnp.complexfloating) else np.real(array)
        with np.errstate(invalid="ignore", over="ignore"):
            held = np.asarray(parts).astype(expected.dtype)
        if not _is_held(array, held):
            problem = f"got values of {array.dtype} that this dtype cannot hold"
            return None, False, f"expected {spec_text(expected)}, {problem}"
        array = held
    if _kind(array.dtype) < _kind(expected.dtype):
        array = array.astype(expected.dtype)
    return (array.reshape(wanted) if fills else array), is_ours, None


def _moved(array: Any, sharding: Any, is_ours: bool = False) -> tuple[Any, str | None]:
    """The array in memory of its own at its variable's place, or why it cannot be moved there."""
    try:
        return placed(array if is_ours else copied(array), sharding), None
    except (ValueError, RuntimeError) as error:
        return None, _problem_of_move(array, error)


def _problem_of_move(array: Any, error: Exception) -> str:
    reason = str(error).partition("\n")[0]
    problem = f"cannot be moved from {_devices_of(array)} to where Keras keeps the weight"
    return f"{problem}: {reason}"


def _devices_of(array: Any) -> str:
    if not isinstance(array, jax.Array):
        return "the host"
    return ", ".join(sorted(map(str, array.devices())))


# The dtypes of numbers in R and Python, and in NumPy unless the user has chosen another one.
_UNCHOSEN = tuple(np.dtype(name) for name in ("int32", "int64", "float64", "complex128"))


def _is_held(array: Any, held: Any) -> bool:
    """Whether an array's values survived a cast: up to rounding between floats, or else exactly."""
    if _kind(array.dtype) == _kind(held.dtype) >= _kind(np.float32):
        return np.array_equal(np.isfinite(array), np.isfinite(held))
    return np.array_equal(held, array, equal_nan=_kind(held.dtype) >= _kind(np.float32))


def _kind(dtype: Any) -> int:
    """The kind of a dtype. A kind can hold the values of those with lower numbers."""
    return [
        jnp.issubdtype(dtype, kind)
        for kind in (jnp.bool_, jnp.integer, jnp.floating, jnp.complexfloating)
    ].index(True)


# Keras variables ---------------------------------------------------------------------------------


def create(
    arrays: Mapping[str, jax.Array],
    layouts: Mapping[str, Any],
    *,
    trainable: Callable[[str], bool],
    parameter_dtype: str | None,
) -> dict[str, keras.Variable]:
    """Create one Keras variable per array, named by its path under the current name scope.

    Args:
        arrays: Initial values by path, which nobody else holds. They are not copied.
        layouts: The sharding of each variable by path, or None.
        trainable: Whether a path is that of a weight.
        parameter_dtype: The dtype of floating-point weights. Keras casts them to its compute dtype
            if the two differ. None leaves each weight as it is.

    Returns:
        Variables by path.
    """
    return {
        path: _variable(
            path,
            array,
            layouts[path],
            trainable=trainable(path),
            parameter_dtype=parameter_dtype,
        )
        for path, array in arrays.items()
    }


def _variable(
    path: str, array: jax.Array, layout: Any, *, trainable: bool, parameter_dtype: str | None
) -> keras.Variable:
    follows_policy = (
        trainable and parameter_dtype is not None and jnp.issubdtype(array.dtype, jnp.floating)
    )
    *scopes, name = path.split(SEPARATOR)
    with contextlib.ExitStack() as stack:
        # Keras refuses a separator in a name, and joins name scopes by it.
        for scope in scopes:
            stack.enter_context(keras.name_scope(scope))
        return keras.Variable(
            # In a compiled step, Keras takes only functions. Elsewhere, with a distribution, it
            # compiles a function, and a large array in it becomes a constant of the program.
            (lambda shape, dtype: array.astype(dtype)) if _keras.in_stateless_scope() else array,
            shape=array.shape,
            dtype=parameter_dtype if follows_policy else str(array.dtype),
            trainable=trainable,
            autocast=follows_policy,
            name=name,
            layout=layout,
        )


def values(variables: Collection[keras.Variable], *, cast: bool) -> list[jax.Array]:
    """The values of variables, cast if Keras casts them."""
    if cast or _keras.in_stateless_scope():
        return [variable.value for variable in variables]
    return [_keras.value_of(variable) for variable in variables]


def assign(values: Iterable[tuple[keras.Variable, Any]]) -> None:
    """Set variables to values that fit them: all or, if an assignment fails, none.

    The old values are kept until all are set. `assign_through` takes less memory.
    """
    pairs = list(values)
    variables = [variable for variable, _ in pairs]
    before = _keras.values_now(variables)
    try:
        for variable, value in pairs:
            variable.assign(value)
    except BaseException:
        _keras.put_back(variables, before)
        raise


def replace(values: Iterable[tuple[str, keras.Variable, Any]]) -> None:
    """Set variables to copies of given arrays that fit them: all or, if one cannot be set, none.

    A device holds one old value and its new one at a time: the old ones wait in the host's memory,
    and `values` is taken item by item.

    Args:
        values: The path, for messages, the variable, and the array.

    Raises:
        VariablesError: An array cannot be moved to where its variable is.
    """
    old: list[tuple[keras.Variable, Callable[[], Any]]] = []
    try:
        for path, variable, array in values:
            _replace_one(path, variable, array, old)
    except BaseException:
        _put_back(old)
        raise


def _replace_one(
    path: str,
    variable: keras.Variable,
    array: Any,
    old: list[tuple[keras.Variable, Callable[[], Any]]],
) -> None:
    """Do `replace` for one variable, and add to `old` how to get its old value again."""
    [before] = _keras.values_now([variable])
    old.append((variable, lambda: before))
    try:
        again = kept_on_host(before)
        variable.assign(placed(copied(array), variable.value.sharding))
        # JAX moves arrays in the background, where an error would come too late.
        jax.block_until_ready(variable.value)  # type: ignore[no-untyped-call]
    except (ValueError, RuntimeError) as error:
        problems = {path: _problem_of_move(array, error)}
        raise VariablesError("A value cannot be set.", problems=problems) from error
    old[-1] = variable, again


def _put_back(old: list[tuple[keras.Variable, Callable[[], Any]]]) -> None:
    """Give variables their old values. Interrupts wait until all have them.

    If there is no memory for an old value, the variable is left without one. Whoever needs it gets
    an error, which is better than a mixture of old and new values.
    """
    while old:
        with contextlib.suppress(KeyboardInterrupt):
            while old:
                variable, again = old[-1]
                # Makes room on the device.
                _keras.put_back([variable], [None])
                with contextlib.suppress(Exception):
                    _keras.put_back([variable], [again()])
                old.pop()


def assign_through(values: Iterable[tuple[keras.Variable, Any]]) -> None:
    """Set variables to values that fit them, one by one, and drop each old value at once.

    An interrupt waits until all are set.
    """
    pairs = list(values)
    try:
        for variable, value in pairs:
            variable.assign(value)
    except BaseException:
        for variable, value in pairs:
            variable.assign(value)
        raise


def apart(outputs: PyTree, updates: PyTree, held: Collection[Any]) -> tuple[PyTree, PyTree]:
    """Give each result of a traced call an array of its own, apart from all variables.

    A module may return or sow its weights, or keep one under a second name. JAX would return the
    same array.

    Args:
        outputs: Results that a user may get.
        updates: Results that become values of variables.
        held: The values of variables that the call got.
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


def changed(before: PyTree, after: PyTree) -> dict[str, Any]:
    """The arrays by path of the leaves of `after` that are other arrays in `before`, or new.

    `split` makes a new array of each random key, so that the leaves themselves are compared.
    """
    old, new = named_leaves(before), named_leaves(after)
    _, arrays = split(after)
    return {path: array for path, array in arrays.items() if new[path] is not old.get(path)}


def checked_update(
    variables: Mapping[str, keras.Variable], updates: Mapping[str, Any], module_name: str
) -> dict[str, Any]:
    """Check that a call has kept the structure of the state.

    Raises:
        StateError: The call has created or reshaped a variable.
    """
    for path, value in updates.items():
        if path not in variables:
            raise StateError(
                f"{module_name} created the variable {path} in a call; `init` had not created it.",
                advice="Create it in the first call in either mode, or pass `variables` with it.",
            )
        before, after = tuple(variables[path].shape), tuple(np.shape(value))
        if after != before:
            raise StateError(
                f"{module_name} changed the shape of {path} in a call from {shape_text(before)} to "
                f"{shape_text(after)}.",
                advice="A variable keeps its shape: create it as large as it must become.",
            )
    return dict(updates)
