"""Modules to JSON that a person can read, and back. The JSON holds no code and no pickle.

Numbers, text, booleans, None and lists stand for themselves. Everything else is an object with one
of these keys:

    {"object": "flax.linen:Dense", "fields": {"features": 10}}
        A Flax module or another dataclass, with its fields. Flax's own classes omit fields that
        have their defaults.
    {"constructor": "flax.nnx:Linear", "arguments": [3], "keywords": {"out_features": 4}}
        A module that its class, or a function, creates.
    {"custom": "package.module:Name"}
        A module whose constructor arguments are unknown. `custom_objects` must hold a function that
        creates it.
    {"type": "flax.linen:BatchNorm"}
        A module class or a number type.
    {"function": "jax.nn:relu"}
        A function of one of the namespaces in `_allowed`.
    {"initializer": "jax.nn.initializers:normal", "arguments": {"stddev": 0.02}}
    {"partial": <function or type>, "arguments": [...], "keywords": {...}}
    {"registered": "package>name"}
        A class or function known to `keras.saving.register_keras_serializable`. An instance also
        has its "config".
    {"session": "name"}
        As a method or constructor only: a function of the R session.
    {"tuple": [...]}, {"dict": {...}}, {"frozen_dict": {...}}, {"set": [...]}, {"frozenset": [...]}
    {"list": [3]}
        A list of one number or text. R cannot tell such a list from the scalar.
    {"named_tuple": "package.module:Name", "fields": [...]}
    {"enum": "jax.lax:Precision", "member": "HIGHEST"}
    {"dtype": "bfloat16"}, {"partition_spec": ["data", null]}
    {"array": [1.0, 2.0], "shape": [2], "dtype": "float32", "of": "numpy"}
    {"number": 2.0, "dtype": "float16"}
    {"float": "nan"}, {"complex": [1.0, 2.0]}

A dict with keys other than text is a list of pairs: {"dict": [[1, "a"], [2, "b"]]}. `_lookup`
decides what a name stands for, and `_from_json` reads the descriptions.
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
    custom_object_argument,
    from_config,
    function_from_config,
    invalid_description,
    is_numeric,
    plan_description,
    python_dtype,
    require_dtype,
    require_list,
    require_shape,
    require_type,
)
from ._plan import summary

__all__ = ["from_config", "plan_description", "require_list", "require_type"]

Json = Any

_SCALARS = (bool, int, float, str)


# To JSON ------------------------------------------------------------------------------------------


def to_config(value: Any, path: str) -> Json:
    """Describe a value.

    Args:
        value: A module, or a value of a module's field.
        path: Where the value appears, for messages.

    Raises:
        ConfigError: A part of the value cannot be described. The message has the part's path.
    """
    if value is None or type(value) in (bool, int, str):
        return value
    for describe in _DESCRIBERS:
        node = describe(value, path)
        if node is not None:
            return node
    raise ConfigError(f"{path} cannot be saved: {_value_summary(value)}.", advice=_advice(value))


def module_to_config(module: Any) -> Json:
    """Describe a module. See `to_config`."""
    name = type(module).__name__
    try:
        return to_config(module, name)
    except RecursionError as error:
        raise ConfigError(
            f"{name} cannot be saved: a field is nested too deeply, or contains itself."
        ) from error


def _value_summary(value: Any) -> str:
    if callable(value) and _host.formals(value) is not None:
        return "it is an R function"
    name = getattr(value, "__qualname__", None)
    return (
        f"the {type(value).__name__} {name}"
        if name
        else f"{value!r:.60} of class {type(value).__name__}"
    )


def _advice(value: Any) -> str:
    if callable(value) and _host.formals(value) is not None:
        return "Call it in a method, or use a function of `jax.nn`, `jax.numpy` or `flax.linen`."
    if callable(value):
        return (
            "Use a named function of `jax.nn`, `jax.numpy` or `flax.linen`, or register this one "
            f"with {_host.word('register')}."
        )
    return (
        "A field can hold numbers, text, arrays, modules, dataclasses, enums, and lists, tuples "
        "and dicts of them."
    )


def _describe_number(value: Any, path: str) -> Json:
    if type(value) is float:
        return value if math.isfinite(value) else {"float": str(value)}
    if type(value) is complex:
        return {"complex": [to_config(value.real, path), to_config(value.imag, path)]}
    if isinstance(value, np.generic):
        (number,) = _numbers(np.asarray(value), path)
        return {"number": number, "dtype": value.dtype.name}
    return None


def _describe_array(value: Any, path: str) -> Json:
    if not isinstance(value, (np.ndarray, jax.Array)):
        return None
    if isinstance(value, jax.core.Tracer):
        raise ConfigError(
            f"{path} cannot be saved: it is a value inside a trace.",
            advice="Create the module outside of the traced function.",
        )
    if not is_numeric(value.dtype):
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
        for number in array.ravel().astype(python_dtype(array.dtype)).tolist()
    ]


def _describe_container(value: Any, path: str) -> Json:
    if type(value) is list:
        items = _describe_items(value, path)
        return {"list": items} if len(items) == 1 and isinstance(items[0], _SCALARS) else items
    if type(value) is tuple:
        return {"tuple": _describe_items(value, path)}
    if type(value) in (set, frozenset):
        return {type(value).__name__: _describe_items(sorted(value, key=repr), path)}
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
        return {"partition_spec": _describe_items(value, path)}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return {
            "named_tuple": _lookup.class_name(type(value), path),
            "fields": _describe_items(value, path),
        }
    return None


def _describe_items(values: Any, path: str) -> list[Json]:
    return [to_config(item, f"{path}[{i}]") for i, item in enumerate(values)]


def _describe_named(value: Any, path: str) -> Json:
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


def _describe_registered(value: Any, path: str) -> Json:
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


def _describe_call(value: Any, path: str) -> Json:
    if isinstance(value, functools.partial):
        return {
            "partial": to_config(value.func, f"{path}: the function"),
            "arguments": _describe_items(value.args, path),
            "keywords": {
                name: to_config(item, f"{path}: {name}") for name, item in value.keywords.items()
            },
        }
    if isinstance(value, FunctionType):
        for name, factory in _lookup.factories():
            arguments = _factory_arguments(value, factory)
            if arguments is not None:
                given = {key: to_config(item, f"{path}: {key}") for key, item in arguments.items()}
                return {"initializer": name, "arguments": given}
    return None


def _describe_object(value: Any, path: str) -> Json:
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
            if not _is_field_default(field, value):
                raise
            continue
        # Flax's defaults are stable. Those of a user's class can change before the file is read.
        if not (type(value).__module__.startswith("flax.") and _is_field_default(field, value)):
            fields[field.name] = node
    return {"object": _lookup.class_name(type(value), path), "fields": fields}


def _is_field_default(field: dataclasses.Field[Any], owner: Any) -> bool:
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
        # Compare the text: as numbers, 0.0 equals -0.0, and NaN does not equal itself.
        return repr(value) == repr(other)
    try:
        return bool(value == other)
    except Exception:
        # A foreign class's comparison can raise anything. Then write the value.
        return False


def _describe_constructed(value: Any, path: str) -> Json:
    if not _lazy.is_nnx_module(value):
        return None
    from ..adapters._constructor import find_constructor_call

    lazy = find_constructor_call(value)
    constructor = lazy and (
        _lookup.class_name(lazy.factory, path)
        if isinstance(lazy.factory, type)
        else _describe_named_function(lazy.factory)
    )
    if lazy is None or constructor is None:
        kind = _lazy.class_of(value)
        warnings.warn(
            f"{path}: the arguments with which the {kind.__name__} was created are unknown. To "
            f"load it, pass a function of `rngs` that creates it: "
            f"{custom_object_argument(kind.__name__)}. To avoid this, create the module with "
            f"{_host.word('lazy module')}.",
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


_DESCRIBERS = (
    _describe_constructed,
    _describe_number,
    _describe_registered,
    _describe_named,
    _describe_container,
    _describe_array,
    _describe_call,
    _describe_object,
)


def _factory_arguments(
    function: FunctionType, factory: Callable[..., Any]
) -> dict[str, Any] | None:
    """Return the arguments, other than defaults, with which a factory created a function.

    Returns:
        The arguments by name, or None if the factory did not create the function.
    """
    made = inspect.unwrap(factory).__code__.co_consts
    if not any(isinstance(const, CodeType) and const is function.__code__ for const in made):
        return None
    kept = _captured_values(function)
    parameters = inspect.signature(factory).parameters.values()
    arguments = {
        p.name: kept[p.name]
        for p in parameters
        if p.name in kept and not _is_same(kept[p.name], p.default)
    }
    try:
        again = _captured_values(factory(**arguments))
    except TypeError:
        return None
    same = again.keys() == kept.keys() and all(
        _is_same(again[name], value) or _is_array(value) for name, value in kept.items()
    )
    return arguments if same else None


def _captured_values(function: Any) -> dict[str, Any]:
    """Return the values that a function captured when it was created: its closure and defaults."""
    defaults = inspect.signature(function, follow_wrapped=False).parameters.values()
    closure = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    return {p.name: p.default for p in defaults if p.default is not p.empty} | {
        n: cell.cell_contents for n, cell in closure
    }


def _is_array(value: Any) -> bool:
    return isinstance(value, (np.ndarray, jax.Array))


# The other parts of a layer -----------------------------------------------------------------------


def method_to_config(method: Any, module: Any) -> Json:
    """Describe the method of a module: None, a method name, or a named function.

    A function has a name if it is registered with Keras, or is defined in the R session.

    Raises:
        ConfigError: The method is any other function.
    """
    if method is None or isinstance(method, str):
        return method
    name = getattr(method, "__name__", "")
    kind = _lazy.class_of(module) if _lazy.is_nnx_module(module) else type(module)
    if inspect.getattr_static(kind, name, None) is getattr(method, "__func__", method):
        return name
    node = _describe_named_function(method)
    if node is None and _host.formals(method) is not None:
        raise ConfigError(
            f"`method` cannot be saved: the session has no such function named {name!r}.",
            advice="Define it in the global environment under a unique name, and pass that name.",
        )
    if node is None:
        raise ConfigError(
            f"`method` cannot be saved: {_value_summary(method)} is not a method of "
            f"{kind.__name__}.",
            advice=f"Make it a method, or register it with {_host.word('register')}.",
        )
    return node


def _describe_named_function(function: Any) -> Json:
    """Describe a function by its name: registered, or in the R session. None if it has no name."""
    node = _describe_registered(function, "")
    if node is None and _host.formals(function) is not None:
        name = _host.name_of_function(function)
        node = name and {"session": name}
    return node


def method_from_config(node: Json) -> Any:
    """Find the method that `method_to_config` described.

    The name of a method is returned as is. `check_method_name` checks it against the module.
    """
    if node is None or isinstance(node, str):
        return node
    return function_from_config(require_type(node, Mapping, "method"), "`method`")


def check_method_name(method: Any, module: Any) -> None:
    """Refuse the name of a method that the module's own class does not define for callers.

    Flax's base classes, and Python's special methods other than `__call__`, do not count.

    Raises:
        ConfigError: The module has no such method.
    """
    if not isinstance(method, str) or method == "__call__":
        return
    kind = _lazy.class_of(module) if _lazy.is_nnx_module(module) else type(module)
    bases = [base for base in mro(kind) if is_base(base)]
    owner = next((base for base in mro(kind) if method in vars(base)), None)
    if method.startswith("__") or owner is None or any(owner in mro(base) for base in bases):
        raise ConfigError(
            "`method` has an invalid description: "
            f"{kind.__name__:.80} has no method {summary(method)} of its own."
        )


def require_texts(names: Any, path: str) -> list[str]:
    """Return a list of text, or raise ConfigError."""
    return [require_type(name, str, path) for name in require_list(names, path)]


def specs_from_config(specs: Any, path: str) -> dict[str, Spec]:
    """Return specs by path, from pairs of a shape and a dtype.

    Raises:
        ConfigError: A pair is invalid, Keras has no variables of its dtype, or there are too many
            paths, or too long ones.
    """
    result = {}
    for name, pair in require_type(specs, Mapping, path).items():
        if len(require_type(pair, list, path)) != 2:
            raise ConfigError(
                f"{path} has an invalid description: "
                f"{summary(pair)} is not a pair of a shape and a dtype."
            )
        shape, dtype = pair
        spec = result[require_type(name, str, path)] = spec_from_config(
            shape, dtype, f"{path}: {summary(name)}"
        )
        try:
            keras.backend.standardize_dtype(spec.dtype)
        except ValueError:
            raise ConfigError(
                f"{path}: {summary(name)} has the dtype {summary(dtype)}, "
                "which no Keras variable can have."
            ) from None
    problem = _limits.problem_of_paths(result)
    if problem:
        raise ConfigError(f"{path} has an invalid description: {problem}.")
    return result


def spec_from_config(shape: Any, dtype: Any, path: str, *, unknown: bool = False) -> Spec:
    """Return a spec of a shape and a dtype. With `unknown`, sizes may be None."""
    return Spec(require_shape(shape, path, unknown=unknown), str(require_dtype(dtype, path)))


# Keras's own objects ------------------------------------------------------------------------------

_KERAS_KEYS = {"module", "class_name", "config", "registered_name", "shared_object_id"}


def regularizers_from_config(node: Json, path: str) -> Callable[[], Any]:
    """Check the description of a regularizer. The returned function creates it."""
    return _keras_object(node, "regularizers", keras.regularizers.Regularizer, path)


def constraints_from_config(node: Json, path: str) -> Callable[[], Any]:
    """Check the description of a constraint. The returned function creates it."""
    return _keras_object(node, "constraints", keras.constraints.Constraint, path)


def policy_from_config(node: Json, path: str) -> Callable[[], Any]:
    """Check the description of a dtype policy. The returned function creates it.

    The policy sets `variable_dtype` and `compute_dtype`.
    """
    if isinstance(node, str):
        try:
            _dtypes.named(node.removeprefix("mixed_"))
        except ValueError:
            raise ConfigError(
                f"{path} is described as {summary(node)}, "
                "which is not a dtype policy of a Flax layer."
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
    """Check descriptions by pattern. The returned function creates a dict of what they describe."""
    if nodes is None or nodes == []:
        # R has only one kind of empty list.
        return lambda: None
    nodes = require_type(nodes, Mapping, path)
    patterns = [require_type(pattern, str, path) for pattern in nodes]
    lengths, sets = map(len, patterns), (pattern.count("[") for pattern in patterns)
    are_many = sum(map(_paths.is_pattern, patterns)) > _paths.MOST_PATTERNS
    if (
        are_many
        or max(lengths, default=0) > _paths.LONGEST
        or max(sets, default=0) > _paths.MOST_SETS
    ):
        raise ConfigError(
            f"{path} has an invalid description: it has too many patterns, or too long ones."
        )
    makers = {
        pattern: check(node, f"{path}: {summary(pattern)}") for pattern, node in nodes.items()
    }
    return lambda: {pattern: make() for pattern, make in makers.items()}


def _keras_object(node: Json, table: str, base: type, path: str) -> Callable[[], Any]:
    """Check one of Keras's own objects, in the format of `keras.saving`, or a registered object.

    Keras's deserializer is not used: it creates whatever is described, such as a layer or a
    function.
    """
    if node is None:
        return lambda: None
    if isinstance(node, str):
        node = {"class_name": _allowed.keras_class_name(table, node), "config": {}}
    name = require_type(require_type(node, Mapping, path).get("class_name"), str, path)
    config, registered_name = node.get("config"), node.get("registered_name")
    if not node.keys() <= _KERAS_KEYS:
        raise invalid_description(path, node)
    if name == "function":
        return _keras_function(registered_name, config, path)
    config = {} if config == [] else require_type({} if config is None else config, Mapping, path)
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
            raise invalid_description(path, node, f" is not a {base.__name__}")
        return lambda: found.from_config(dict(config))
    kind = _allowed.keras_class(table, name)
    if kind is None or not isinstance(node.get("module", "keras"), str | None):
        given = name[:80] if name.isidentifier() else "Name"
        raise ConfigError(
            f"{path} is of the class {summary(name)}, which is neither Keras's own nor registered.",
            advice=f"Register it, or pass it: {_host.word('custom object', given, given)}.",
        )
    if not all(isinstance(key, str) and _is_plain(value) for key, value in config.items()):
        raise invalid_description(path, node, " has a config that is not only numbers and text")
    return lambda: kind(**config)


def _keras_function(registered_name: Json, name: Json, path: str) -> Callable[[], Any]:
    keys = [key for key in (registered_name, name) if isinstance(key, str)]
    found = next(filter(None, map(keras.saving.get_registered_object, keys)), None)
    if found is None or isinstance(found, type) or not callable(found):
        raise ConfigError(
            f"{path} is the function {summary(name)}, which is not registered.",
            advice="Register it before you load the model.",
        )
    return lambda: found


def _is_plain(value: Json) -> bool:
    """Whether a value is a number, text or None, or a short list of them."""
    if isinstance(value, list):
        return len(value) <= 32 and all(
            item is None or isinstance(item, _SCALARS) for item in value
        )
    return value is None or isinstance(value, _SCALARS)
