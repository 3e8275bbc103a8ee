"""Modules to JSON that a person can read. The JSON holds no code and no pickle.

Numbers, text, booleans, None and lists stand for themselves. Everything else is an object with one
of these keys:

    {"object": "flax.linen:Dense", "fields": {"features": 10}}
        A Flax module or another dataclass, with its fields. Flax's own classes omit fields that
        have their defaults.
    {"constructor": "flax.nnx:Linear", "arguments": [3], "keywords": {"out_features": 4}}
        A module that its class creates, or a function, whose description takes the place of the
        name. The key "class" then has the name of the module's class.
    {"custom": "package.module:Name"}
        A module whose constructor arguments are unknown. `custom_objects` must hold a function that
        creates it.
    {"type": "flax.linen:BatchNorm"}
        A module class or a number type.
    {"function": "jax.nn:relu"}
        A function of one of the namespaces in `_allowed`, or a named function of the user.
    {"initializer": "jax.nn.initializers:normal", "arguments": {"stddev": 0.02}}
    {"partial": <function or type>, "arguments": [...], "keywords": {...}}
        In a method, the function can be the name of one of the module's own methods.
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
    {"config_object": "ml_collections.config_dict.config_dict:ConfigDict", "values": {"dict": ...}}
        An object of a class in `_config_objects`, by its own dict form. The key "locked" is true if
        it is locked.
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
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType
from typing import Any

import flax.core
import jax
import keras
import numpy as np

from .. import _host, _messages
from .._errors import ConfigError
from ..adapters import _lazy
from ..adapters._protocol import is_module
from . import _config_objects, _lookup
from ._from_json import custom_object_argument, is_numeric, python_dtype

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
    raise ConfigError(f"{path} cannot be saved: {_problem(value)}.", advice=_advice(value))


def module_to_config(module: Any) -> Json:
    """Describe a module. See `to_config`."""
    name = type(module).__name__
    try:
        return to_config(module, name)
    except RecursionError as error:
        raise ConfigError(
            f"{name} cannot be saved: a field is nested too deeply, or contains itself."
        ) from error


def _problem(value: Any) -> str:
    if callable(value) and _host.formals(value) is not None:
        return "it is an R function"
    if isinstance(value, type):
        return f"it is the class {value.__module__}.{value.__qualname__}"
    kind = type(value)
    if isinstance(value, (MethodType, BuiltinFunctionType)):
        return f"it is the {kind.__name__} {value.__qualname__}"
    return f"it is an object of class {kind.__module__}.{kind.__qualname__}"


def _namespaces() -> str:
    return f"{_host.code('jax.nn')}, {_host.code('jax.numpy')} or {_host.code('flax.linen')}"


def _advice(value: Any) -> str:
    if callable(value) and _host.formals(value) is not None:
        return f"Call it in a method, or use a function of {_namespaces()}."
    register = _host.word("register")
    if isinstance(value, (MethodType, BuiltinFunctionType)):
        return (
            f"Use a named function of {_namespaces()}, or a function of your own that calls this "
            "one."
        )
    if isinstance(value, type):
        return f"Register the class with {register}, or use it in the module's code."
    return (
        f"Give its class a method `get_config()` and register it with {register}, or pass plain "
        "fields to the module and build the object in it."
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
    # A flag may combine several members. Loading would have to run its class's code.
    if isinstance(value, enum.Enum) and value.name in type(value).__members__:
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
        function = to_config(value.func, f"{path}: the function")
        return {"partial": function, **_describe_arguments(value, path)}
    if isinstance(value, FunctionType):
        for name, factory in _lookup.factories():
            arguments = _factory_arguments(value, factory)
            if arguments is not None:
                given = {key: to_config(item, f"{path}: {key}") for key, item in arguments.items()}
                return {"initializer": name, "arguments": given}
    return None


def _describe_arguments(value: Any, path: str) -> dict[str, Json]:
    """Describe the arguments of a partial."""
    return {
        "arguments": _describe_items(value.args, path),
        "keywords": {
            name: to_config(item, f"{path}: {name}") for name, item in value.keywords.items()
        },
    }


def _describe_function(value: Any, path: str) -> Json:
    if not _lookup.is_python_function(value):
        return None
    return {"function": _lookup.users_function_name(value, path)}


def _describe_config_object(value: Any, path: str) -> Json:
    way = _config_objects.way_of(type(value))
    if way is None:
        return None
    name = _lookup.class_name(type(value), path)
    try:
        values = way.values(value)
    except RecursionError:
        raise
    except Exception as error:
        # It is the class's own method, which may raise anything.
        raise ConfigError(
            f"{path}, of class {name}, cannot be saved: {_messages.first_line(error)}.",
            advice="Keep only text, numbers, booleans, None, lists and dicts in it.",
        ) from error
    node = {"config_object": name, "values": to_config(values, path)}
    return node | {"locked": True} if way.is_locked(value) else node


def _describe_object(value: Any, path: str) -> Json:
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return None
    is_wrapper = _lookup.Found.of(type(value)).is_wrapper
    if is_wrapper and not isinstance(getattr(value, "nnx_class", None), type):
        raise ConfigError(
            f"{path}.nnx_class cannot be saved: it is not a module class.",
            advice="Pass the class, and its arguments as `args` and `kwargs`.",
        )
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
        # But the class itself finds its functions wherever they are.
        is_stable = type(value).__module__.startswith("flax.") or _names_function(node)
        if not (is_stable and _is_field_default(field, value)):
            fields[field.name] = node
    return {"object": _lookup.class_name(type(value), path), "fields": fields}


def _names_function(node: Json) -> bool:
    """Whether a description names a function that is not in the lists."""
    name = node.get("function") if isinstance(node, Mapping) else None
    is_users = isinstance(name, str) and _lookup.find_function(name) is None
    return is_users or any(map(_names_function, _lookup.parts_of(node)))


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
    constructor = None if lazy is None else _describe_factory(lazy, path)
    if lazy is None or constructor is None:
        kind = _lazy.class_of(value)
        name, maker = kind.__name__, f"make_{kind.__name__.lower()}"
        warnings.warn(
            f"{path}: the arguments with which the {name} was created are unknown. To load it, "
            f"define a function `{maker}(rngs)` that returns `{name}{_lazy.signature_text(kind)}`, "
            f"and pass it: {custom_object_argument(name)}. To avoid this, create the module with "
            f"{_host.word('lazy module')}.",
            stacklevel=2,
        )
        return {"custom": _lookup.class_name(kind, path)}
    return {
        **constructor,
        "arguments": [
            to_config(item, f"{path}: argument {i + 1}") for i, item in enumerate(lazy.arguments)
        ],
        "keywords": {
            name: to_config(item, f"{path}.{name}") for name, item in lazy.keywords.items()
        },
    }


def _describe_factory(lazy: _lazy.LazyModule, path: str) -> dict[str, Json] | None:
    """Describe the class or function that creates a module. None if it has no name."""
    if isinstance(lazy.factory, type):
        return {"constructor": _lookup.class_name(lazy.factory, path)}
    node = _describe_named_function(lazy.factory)
    if node is not None:
        return {"constructor": node}
    if not _lazy.takes_rngs(lazy.factory):
        return None
    try:
        node = _describe_function(lazy.factory, path)
    except ConfigError:
        return None
    name = _lookup.class_name(_lazy.class_of(lazy), path)
    return node and {"constructor": node, "class": name}


_DESCRIBERS = (
    _describe_constructed,
    _describe_number,
    _describe_registered,
    _describe_named,
    _describe_container,
    _describe_array,
    _describe_call,
    _describe_function,
    _describe_config_object,
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


# Methods ------------------------------------------------------------------------------------------


def method_to_config(method: Any, module: Any) -> Json:
    """Describe the method of a module: None, a method name, a named function, or a partial.

    Raises:
        ConfigError: The method is any other function.
    """
    if method is None or isinstance(method, str):
        return method
    name = getattr(method, "__name__", "")
    kind = _lazy.class_of(module) if _lazy.is_nnx_module(module) else type(module)
    if inspect.getattr_static(kind, name, None) is getattr(method, "__func__", method):
        return name
    if isinstance(method, functools.partial):
        function = method_to_config(method.func, module)
        return {"partial": function, **_describe_arguments(method, "`method`")}
    node = _describe_named_function(method)
    if node is None and _host.formals(method) is not None:
        raise ConfigError(
            f"`method` cannot be saved: the session has no such function named {name!r}.",
            advice="Define it in the global environment under a unique name, and pass that name.",
        )
    return to_config(method, "`method`") if node is None else node


def _describe_named_function(function: Any) -> Json:
    """Describe a function by its name: registered, or in the R session. None if it has no name."""
    node = _describe_registered(function, "")
    if node is None and _host.formals(function) is not None:
        name = _host.name_of_function(function)
        node = name and {"session": name}
    return node
