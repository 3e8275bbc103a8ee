"""A module as JSON that a person can read, and back. Nothing in it is run, and no pickle is in it.

Numbers, text, truth values, None and lists stand for themselves. Everything else is an object with one of these keys:

    {"object": "flax.linen:Dense", "fields": {"features": 10}}     a Flax module, or another dataclass, with its fields; of
                                                                   Flax's own those that are not its defaults
    {"constructor": "flax.nnx:Linear", "arguments": [3], "keywords": {"out_features": 4}}
                                                                   a module that its class, or a function, makes
    {"custom": "package.module:Name"}                              one of which it is not known how; `custom_objects` has a
                                                                   function that makes it
    {"type": "flax.linen:BatchNorm"}                               a class: of a module, or of numbers
    {"function": "jax.nn:relu"}                                    a function of one of the namespaces below
    {"initializer": "jax.nn.initializers:normal", "arguments": {"stddev": 0.02}}
    {"partial": <function or type>, "arguments": [...], "keywords": {...}}
    {"registered": "package>name"}                                 what `keras.saving.register_keras_serializable` knows;
                                                                   of an instance with its "config"
    {"tuple": [...]}, {"dict": {...}}, {"frozen_dict": {...}}, {"set": [...]}, {"frozenset": [...]}
    {"list": [3]}                                                  a list of one number or text, which in R is that itself
    {"named_tuple": "package.module:Name", "fields": [...]}, {"enum": "jax.lax:Precision", "member": "HIGHEST"}
    {"dtype": "bfloat16"}, {"partition_spec": ["data", null]}
    {"array": [1.0, 2.0], "shape": [2], "dtype": "float32", "of": "numpy"}, {"number": 2.0, "dtype": "float16"}
    {"float": "nan"}, {"complex": [1.0, 2.0]}

A dict with other keys than text is a list of pairs: {"dict": [[1, "a"], [2, "b"]]}. What a name stands for is decided in
`_lookup`, and `_from_json` reads.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import inspect
import math
import warnings
from collections.abc import Callable, Mapping
from types import CodeType, FunctionType
from typing import Any

import flax.core
import jax
import keras
import numpy as np

from .. import _dtypes, _host, _limits, _paths
from .._errors import ConfigError
from ..adapters import _lazy
from ..adapters._protocol import is_base, is_module
from ..tracing._trace import Spec
from . import _allowed, _lookup
from ._field_types import mro
from ._from_json import (
    checked,
    checked_dtype,
    checked_shape,
    custom_objects,
    from_config,
    is_of_numbers,
    listed,
    named_function,
    planned,
    python_kind,
    wrong,
)
from ._plan import shown

__all__ = ["checked", "from_config", "listed", "planned"]

Json = Any

_SCALARS = (bool, int, float, str)


# To JSON ----------------------------------------------------------------------------------------------------------------


def to_config(value: Any, path: str) -> Json:
    """Describe a value.

    Args:
        value: A module, or what its fields may hold.
        path: Where it stands, for messages.

    Raises:
        ConfigError: Something in it cannot be described; the message has its path.
    """
    if value is None or type(value) in (bool, int, str):
        return value
    for describe in _DESCRIPTIONS:
        node = describe(value, path)
        if node is not None:
            return node
    raise ConfigError(f"{path} cannot be saved: {_shown(value)}.\n{_advice(value)}")


def described(module: Any) -> Json:
    """Describe a module; see `to_config`."""
    name = type(module).__name__
    try:
        return to_config(module, name)
    except RecursionError as error:
        raise ConfigError(
            f"{name} cannot be saved: a field of it is nested too deep, or holds itself."
        ) from error


def _shown(value: Any) -> str:
    if callable(value) and _host.formals(value) is not None:
        return "it is a function of R"
    name = getattr(value, "__qualname__", None)
    return (
        f"the {type(value).__name__} {name}"
        if name
        else f"{value!r:.60} of class {type(value).__name__}"
    )


def _advice(value: Any) -> str:
    if callable(value) and _host.formals(value) is not None:
        return "Call it in a method, or take a function of `jax.nn`, `jax.numpy` or `flax.linen`."
    if callable(value):
        return (
            "Take a function of `jax.nn`, `jax.numpy` or `flax.linen` by name, or register this one with "
            "`keras.saving.register_keras_serializable()`."
        )
    return "A field may hold numbers, text, arrays, modules, dataclasses, enums, and lists, tuples and dicts of them."


def _of_number(value: Any, path: str) -> Json:
    if type(value) is float:
        return value if math.isfinite(value) else {"float": str(value)}
    if type(value) is complex:
        return {"complex": [to_config(value.real, path), to_config(value.imag, path)]}
    if isinstance(value, np.generic):
        (number,) = _numbers(np.asarray(value), path)
        return {"number": number, "dtype": value.dtype.name}
    return None


def _of_array(value: Any, path: str) -> Json:
    if not isinstance(value, (np.ndarray, jax.Array)):
        return None
    if isinstance(value, jax.core.Tracer):
        raise ConfigError(
            f"{path} cannot be saved: it is a value inside a trace.\nMake the module outside of it."
        )
    if not is_of_numbers(value.dtype):
        return None
    array = np.asarray(value)
    of = "jax" if isinstance(value, jax.Array) else "numpy"
    return {
        "array": _numbers(array, path),
        "shape": list(array.shape),
        "dtype": array.dtype.name,
        "of": of,
    }


def _numbers(array: np.ndarray[Any, Any], path: str) -> list[Json]:
    return [
        to_config(number, path)
        for number in array.ravel().astype(python_kind(array.dtype)).tolist()
    ]


def _of_container(value: Any, path: str) -> Json:
    if type(value) is list:
        items = _items(value, path)
        return {"list": items} if len(items) == 1 and isinstance(items[0], _SCALARS) else items
    if type(value) is tuple:
        return {"tuple": _items(value, path)}
    if type(value) in (set, frozenset):
        return {type(value).__name__: _items(sorted(value, key=repr), path)}
    if type(value) in (dict, flax.core.FrozenDict):
        kind = "dict" if type(value) is dict else "frozen_dict"
        if all(type(key) is str for key in value):
            return {kind: {key: to_config(item, f"{path}[{key!r}]") for key, item in value.items()}}
        pairs = [
            [to_config(key, f"{path}: a key"), to_config(item, f"{path}[{key!r}]")]
            for key, item in value.items()
        ]
        return {kind: pairs}
    if isinstance(value, jax.sharding.PartitionSpec):
        return {"partition_spec": _items(value, path)}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return {"named_tuple": _lookup.class_name(type(value), path), "fields": _items(value, path)}
    return None


def _items(values: Any, path: str) -> list[Json]:
    return [to_config(item, f"{path}[{i}]") for i, item in enumerate(values)]


def _of_named(value: Any, path: str) -> Json:
    if isinstance(value, enum.Enum):
        return {"enum": _lookup.class_name(type(value), path), "member": value.name}
    if isinstance(value, np.dtype):
        return {"dtype": value.name}
    if _lookup.is_number_type(value) or (
        isinstance(value, type) and _lookup.is_module_class(value)
    ):
        return {"type": _lookup.class_name(value, path)}
    name = _lookup.function_name(value) if callable(value) else None
    return name and {"function": name}


def _of_registered(value: Any, path: str) -> Json:
    kind = value if isinstance(value, (type, FunctionType)) else type(value)
    name = keras.saving.get_registered_name(kind)
    if keras.saving.get_registered_object(name) is not kind:
        return None
    if kind is value:
        return {"registered": name}
    return (
        {"registered": name, "config": to_config(value.get_config(), path)}
        if hasattr(value, "get_config")
        else None
    )


def _of_call(value: Any, path: str) -> Json:
    if isinstance(value, functools.partial):
        return {
            "partial": to_config(value.func, f"{path}: the function"),
            "arguments": _items(value.args, path),
            "keywords": {
                name: to_config(item, f"{path}: {name}") for name, item in value.keywords.items()
            },
        }
    if isinstance(value, FunctionType):
        for name, factory in _lookup.factories():
            arguments = _arguments(value, factory)
            if arguments is not None:
                given = {key: to_config(item, f"{path}: {key}") for key, item in arguments.items()}
                return {"initializer": name, "arguments": given}
    return None


def _of_object(value: Any, path: str) -> Json:
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return None
    fields = {}
    for field in dataclasses.fields(value):
        if not field.init or (
            is_module(value)
            and field.name in ("parent", "name")
            and getattr(value, field.name) is None
        ):
            continue
        try:
            node = to_config(getattr(value, field.name), f"{path}.{field.name}")
        except ConfigError:
            if not _is_default(field, value):
                raise
            continue
        # Flax's defaults stay what they are; those of a user's class may be others when the file is read.
        if not (type(value).__module__.startswith("flax.") and _is_default(field, value)):
            fields[field.name] = node
    return {"object": _lookup.class_name(type(value), path), "fields": fields}


def _is_default(field: dataclasses.Field[Any], owner: Any) -> bool:
    value = getattr(owner, field.name)
    if field.default_factory is not dataclasses.MISSING:
        return _is_same(value, field.default_factory())
    return _is_same(value, field.default)


def _is_same(value: Any, other: Any) -> bool:
    if value is other:
        return True
    if type(value) is not type(other) or isinstance(value, (np.ndarray, jax.Array)):
        return False
    if isinstance(value, (list, tuple)):
        return len(value) == len(other) and all(map(_is_same, value, other))
    if isinstance(value, Mapping):
        return list(value) == list(other) and all(
            _is_same(item, other[key]) for key, item in value.items()
        )
    if isinstance(value, float):
        # Not as numbers: zeros of two signs are equal there, and NaN is not.
        return repr(value) == repr(other)
    try:
        return bool(value == other)
    except Exception:
        # Whatever a foreign class's comparison may raise, the value is written down.
        return False


def _of_made(value: Any, path: str) -> Json:
    if not _lazy.is_nnx_module(value):
        return None
    from ..adapters._constructor import find_constructor_call

    lazy = find_constructor_call(value)
    constructor = lazy and (
        _lookup.class_name(lazy.factory, path)
        if isinstance(lazy.factory, type)
        else _of_named_function(lazy.factory)
    )
    if lazy is None or constructor is None:
        kind = _lazy.class_of(value)
        warnings.warn(
            f"{path}: with which arguments the {kind.__name__} was made is not known. Loading it takes a function of `rngs` "
            f"that makes it, {custom_objects(kind.__name__)}; or make it by `kerasflax.LazyModule`.",
            stacklevel=2,
        )
        return {"custom": _lookup.class_name(kind, path)}
    return {
        "constructor": constructor,
        "arguments": [
            to_config(item, f"{path}: argument {i + 1}") for i, item in enumerate(lazy.arguments)
        ],
        "keywords": {
            name: to_config(item, f"{path}.{name}") for name, item in lazy.keywords.items()
        },
    }


_DESCRIPTIONS = (
    _of_made,
    _of_number,
    _of_registered,
    _of_named,
    _of_container,
    _of_array,
    _of_call,
    _of_object,
)


def _arguments(function: FunctionType, factory: Callable[..., Any]) -> dict[str, Any] | None:
    """The arguments with which a factory has made a function, less the factory's defaults; None where it has not made it."""
    made = inspect.unwrap(factory).__code__.co_consts
    if not any(isinstance(const, CodeType) and const is function.__code__ for const in made):
        return None
    kept = _kept(function)
    parameters = inspect.signature(factory).parameters.values()
    arguments = {
        p.name: kept[p.name]
        for p in parameters
        if p.name in kept and not _is_same(kept[p.name], p.default)
    }
    try:
        again = _kept(factory(**arguments))
    except TypeError:
        return None
    same = again.keys() == kept.keys() and all(
        _is_same(again[name], value) or _is_array(value) for name, value in kept.items()
    )
    return arguments if same else None


def _kept(function: Any) -> dict[str, Any]:
    """What a function keeps from where it was made: in its closure, or as defaults."""
    defaults = inspect.signature(function, follow_wrapped=False).parameters.values()
    closure = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    return {p.name: p.default for p in defaults if p.default is not p.empty} | {
        n: cell.cell_contents for n, cell in closure
    }


def _is_array(value: Any) -> bool:
    return isinstance(value, (np.ndarray, jax.Array))


# A layer's other parts --------------------------------------------------------------------------------------------------


def method_to_config(method: Any, module: Any) -> Json:
    """Describe the method of a module: None, a name, a registered function, or one of R's by its name in the session.

    Raises:
        ConfigError: It is another function.
    """
    if method is None or isinstance(method, str):
        return method
    name = getattr(method, "__name__", "")
    kind = _lazy.class_of(module) if _lazy.is_nnx_module(module) else type(module)
    if inspect.getattr_static(kind, name, None) is getattr(method, "__func__", method):
        return name
    node = _of_named_function(method)
    if node is None and _host.formals(method) is not None:
        raise ConfigError(
            f"`method` cannot be saved: the session has no such function of the name {name!r}.\n"
            "Define it under a name of its own in the global environment, and give it by that name."
        )
    if node is None:
        raise ConfigError(
            f"`method` cannot be saved: {_shown(method)} is no method of {kind.__name__}.\n"
            "Make it one, or register it with `keras.saving.register_keras_serializable()`."
        )
    return node


def _of_named_function(function: Any) -> Json:
    """A function by the name under which it has been registered, or is found in a session of R; None where it has none."""
    node = _of_registered(function, "")
    if node is None and _host.formals(function) is not None:
        name = _host.name(function)
        node = name and {"session": name}
    return node


def method_from_config(node: Json) -> Any:
    """Find what `method_to_config` described. A name is that of a method; `checked_method` says whether a module has it."""
    if node is None or isinstance(node, str):
        return node
    return named_function(checked(node, Mapping, "method"), "`method`")


def checked_method(method: Any, module: Any) -> None:
    """Refuse the name of a method that no class below Flax's own base class has written for callers.

    Raises:
        ConfigError: It is another name.
    """
    if not isinstance(method, str) or method == "__call__":
        return
    kind = _lazy.class_of(module) if _lazy.is_nnx_module(module) else type(module)
    bases = [base for base in mro(kind) if is_base(base)]
    owner = next((base for base in mro(kind) if method in vars(base)), None)
    if method.startswith("__") or owner is None or any(owner in mro(base) for base in bases):
        raise ConfigError(
            f"`method` is described wrongly: {kind.__name__:.80} has no method {shown(method)} of its own."
        )


def checked_names(names: Any, path: str) -> list[str]:
    """A list of texts, which it is refused not to be."""
    return [checked(name, str, path) for name in listed(names, path)]


def checked_specs(specs: Any, path: str) -> dict[str, Spec]:
    """Specs by path, of pairs of a shape and a dtype."""
    result = {}
    for name, pair in checked(specs, Mapping, path).items():
        if len(checked(pair, list, path)) != 2:
            raise ConfigError(
                f"{path} is described wrongly: {shown(pair)} is no pair of a shape and a dtype."
            )
        shape, dtype = pair
        spec = result[checked(name, str, path)] = checked_spec(
            shape, dtype, f"{path}: {shown(name)}"
        )
        try:
            keras.backend.standardize_dtype(spec.dtype)
        except ValueError:
            raise ConfigError(
                f"{path}: {shown(name)} has the dtype {shown(dtype)}, which no Keras variable has."
            ) from None
    problem = _limits.problem_of_paths(result)
    if problem:
        raise ConfigError(f"{path} is described wrongly: {problem}.")
    return result


def checked_spec(shape: Any, dtype: Any, path: str, *, unknown: bool = False) -> Spec:
    """A spec of a shape, in which sizes may be `unknown` (None), and a dtype."""
    return Spec(checked_shape(shape, path, unknown=unknown), str(checked_dtype(dtype, path)))


# Keras's own objects --------------------------------------------------------------------------------------------------

_KERAS_KEYS = {"module", "class_name", "config", "registered_name", "shared_object_id"}


def regularizers_from_config(node: Json, path: str) -> Callable[[], Any]:
    """Check the description of a regularizer; what is returned makes it."""
    return _keras_object(node, "regularizers", keras.regularizers.Regularizer, path)


def constraints_from_config(node: Json, path: str) -> Callable[[], Any]:
    """Check the description of a constraint; what is returned makes it."""
    return _keras_object(node, "constraints", keras.constraints.Constraint, path)


def policy_from_config(node: Json, path: str) -> Callable[[], Any]:
    """Check the description of a dtype policy, in which `variable_dtype` and `compute_dtype` lie; what is returned makes it."""
    if isinstance(node, str):
        try:
            _dtypes.named(node.removeprefix("mixed_"))
        except ValueError:
            raise ConfigError(
                f"{path} is described as {shown(node)}, which is no dtype policy of a Flax layer."
            ) from None
        return lambda: node
    return _keras_object(
        node,
        "dtype_policies",
        keras.dtype_policies.DTypePolicy,
        f"{path} (compute_dtype, variable_dtype)",
    )


def by_pattern(
    nodes: Json, path: str, check: Callable[[Json, str], Callable[[], Any]]
) -> Callable[[], Any]:
    """Check descriptions by pattern; what is returned makes a dict of them."""
    if nodes is None or nodes == []:
        # R has one empty list.
        return lambda: None
    nodes = checked(nodes, Mapping, path)
    patterns = [checked(pattern, str, path) for pattern in nodes]
    lengths, sets = map(len, patterns), (pattern.count("[") for pattern in patterns)
    are_many = sum(map(_paths.is_pattern, patterns)) > _paths.MOST_PATTERNS
    if (
        are_many
        or max(lengths, default=0) > _paths.LONGEST
        or max(sets, default=0) > _paths.MOST_SETS
    ):
        raise ConfigError(
            f"{path} is described wrongly: it has too many patterns, or too long ones."
        )
    makers = {pattern: check(node, f"{path}: {shown(pattern)}") for pattern, node in nodes.items()}
    return lambda: {pattern: make() for pattern, make in makers.items()}


def _keras_object(node: Json, table: str, base: type, path: str) -> Callable[[], Any]:
    """One of Keras's own objects, as `keras.saving` describes it, or one that the user has registered.

    It is not left to Keras, which makes whatever is described: a layer, or a function of its own.
    """
    if node is None:
        return lambda: None
    if isinstance(node, str):
        node = {"class_name": _allowed.keras_class_name(table, node), "config": {}}
    name = checked(checked(node, Mapping, path).get("class_name"), str, path)
    config, registered_name = node.get("config"), node.get("registered_name")
    if not node.keys() <= _KERAS_KEYS:
        raise wrong(path, node)
    if name == "function":
        return _keras_function(registered_name, config, path)
    config = {} if config == [] else checked({} if config is None else config, Mapping, path)
    keys = [key for key in (registered_name, name) if isinstance(key, str)]
    found = next(filter(None, map(keras.saving.get_registered_object, keys)), None)
    if found is not None:
        is_right = isinstance(found, type) and (
            base in mro(found) or any("__call__" in vars(each) for each in mro(found))
        )
        if (
            not is_right
            or keras.layers.Layer in mro(found)
            or found.__module__.partition(".")[0] == "kerasflax"
        ):
            raise wrong(path, node, f" is no {base.__name__}")
        return lambda: found.from_config(dict(config))
    kind = _allowed.keras_class(table, name)
    if kind is None or not isinstance(node.get("module", "keras"), str | None):
        given = name[:80] if name.isidentifier() else "Name"
        raise ConfigError(
            f"{path} is of the class {shown(name)}, which is neither one of Keras's nor registered.\n"
            f"Register it, or give it: {_host.word('custom object', given, given)}."
        )
    if not all(isinstance(key, str) and _is_plain(value) for key, value in config.items()):
        raise wrong(path, node, " has a config of other things than numbers and texts")
    return lambda: kind(**config)


def _keras_function(registered_name: Json, name: Json, path: str) -> Callable[[], Any]:
    keys = [key for key in (registered_name, name) if isinstance(key, str)]
    found = next(filter(None, map(keras.saving.get_registered_object, keys)), None)
    if found is None or isinstance(found, type) or not callable(found):
        raise ConfigError(
            f"{path} is the function {shown(name)}, which nobody has registered.\nRegister it first."
        )
    return lambda: found


def _is_plain(value: Json) -> bool:
    """Whether it is a number, a text or None, or a short list of such."""
    if isinstance(value, list):
        return len(value) <= 32 and all(
            item is None or isinstance(item, _SCALARS) for item in value
        )
    return value is None or isinstance(value, _SCALARS)
