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
`_names`.
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
import jax.numpy as jnp
import keras
import numpy as np

from . import _foreign, _lazy, _names
from ._adapter import is_module
from ._errors import ConfigError
from ._trace import Spec

Json = Any

# Nested deeper than any module; Python's own limit comes later.
_DEPTH = 100

_SCALARS = (bool, int, float, str)
# More than any array has. JAX ends the process at a product of sizes that overflows.
_MOST_VALUES = 2**48


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
        raise ConfigError(f"{name} cannot be saved: a field of it is nested too deep, or holds itself.") from error


def _shown(value: Any) -> str:
    if callable(value) and _foreign.formals(value) is not None:
        return "it is a function of R"
    name = getattr(value, "__qualname__", None)
    return f"the {type(value).__name__} {name}" if name else f"{value!r:.60} of class {type(value).__name__}"


def _advice(value: Any) -> str:
    if callable(value) and _foreign.formals(value) is not None:
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
        raise ConfigError(f"{path} cannot be saved: it is a value inside a trace.\nMake the module outside of it.")
    if not _is_of_numbers(value.dtype):
        return None
    array = np.asarray(value)
    of = "jax" if isinstance(value, jax.Array) else "numpy"
    return {"array": _numbers(array, path), "shape": list(array.shape), "dtype": array.dtype.name, "of": of}


def _is_of_numbers(dtype: Any) -> bool:
    return any(jnp.issubdtype(dtype, kind) for kind in (jnp.number, jnp.bool_))


def _numbers(array: np.ndarray[Any, Any], path: str) -> list[Json]:
    return [to_config(number, path) for number in array.ravel().astype(_python_kind(array.dtype)).tolist()]


def _python_kind(dtype: np.dtype[Any]) -> Any:
    """The dtype whose numbers are Python's, where the own one's may not be."""
    if jnp.issubdtype(dtype, jnp.complexfloating):
        return np.complex128
    return np.float64 if jnp.issubdtype(dtype, jnp.floating) else np.dtype(dtype)


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
        pairs = [[to_config(key, f"{path}: a key"), to_config(item, f"{path}[{key!r}]")] for key, item in value.items()]
        return {kind: pairs}
    if isinstance(value, jax.sharding.PartitionSpec):
        return {"partition_spec": _items(value, path)}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return {"named_tuple": _names.class_name(type(value), path), "fields": _items(value, path)}
    return None


def _items(values: Any, path: str) -> list[Json]:
    return [to_config(item, f"{path}[{i}]") for i, item in enumerate(values)]


def _of_named(value: Any, path: str) -> Json:
    if isinstance(value, enum.Enum):
        return {"enum": _names.class_name(type(value), path), "member": value.name}
    if isinstance(value, np.dtype):
        return {"dtype": value.name}
    if _names.is_number_type(value) or (isinstance(value, type) and _names.is_module_class(value)):
        return {"type": _names.class_name(value, path)}
    name = _names.function_name(value) if callable(value) else None
    return name and {"function": name}


def _of_registered(value: Any, path: str) -> Json:
    kind = value if isinstance(value, (type, FunctionType)) else type(value)
    name = keras.saving.get_registered_name(kind)
    if keras.saving.get_registered_object(name) is not kind:
        return None
    if kind is value:
        return {"registered": name}
    return {"registered": name, "config": to_config(value.get_config(), path)} if hasattr(value, "get_config") else None


def _of_call(value: Any, path: str) -> Json:
    if isinstance(value, functools.partial):
        return {
            "partial": to_config(value.func, f"{path}: the function"),
            "arguments": _items(value.args, path),
            "keywords": {name: to_config(item, f"{path}: {name}") for name, item in value.keywords.items()},
        }
    if isinstance(value, FunctionType):
        for name, factory in _names.factories():
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
        if not field.init or (is_module(value) and field.name in ("parent", "name") and getattr(value, field.name) is None):
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
    return {"object": _names.class_name(type(value), path), "fields": fields}


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
        return list(value) == list(other) and all(_is_same(item, other[key]) for key, item in value.items())
    if isinstance(value, float):
        # Not as numbers: zeros of two signs are equal there, and NaN is not.
        return repr(value) == repr(other)
    try:
        return bool(value == other)
    except Exception:
        # Whatever a foreign class's comparison may raise, the value is written down.
        return False


def _of_made(value: Any, path: str) -> Json:
    if not _lazy.is_made(value):
        return None
    from ._made import known_as_made

    lazy = known_as_made(value)
    constructor = lazy and (
        _names.class_name(lazy.factory, path) if isinstance(lazy.factory, type) else _of_named_function(lazy.factory)
    )
    if lazy is None or constructor is None:
        kind = _lazy.class_of(value)
        warnings.warn(
            f"{path}: with which arguments the {kind.__name__} was made is not known. Loading it takes a function of `rngs` "
            + _foreign.words(f"that makes it, `{_custom_objects(kind.__name__)}`; or make it by `kerasflax.LazyModule`."),
            stacklevel=2,
        )
        return {"custom": _names.class_name(kind, path)}
    return {
        "constructor": constructor,
        "arguments": [to_config(item, f"{path}: argument {i + 1}") for i, item in enumerate(lazy.arguments)],
        "keywords": {name: to_config(item, f"{path}.{name}") for name, item in lazy.keywords.items()},
    }


def _custom_objects(name: str) -> str:
    return f"custom_objects={{{name!r:.80}: make_{name.lower():.80}}}"


_DESCRIPTIONS = (_of_made, _of_number, _of_registered, _of_named, _of_container, _of_array, _of_call, _of_object)


def _arguments(function: FunctionType, factory: Callable[..., Any]) -> dict[str, Any] | None:
    """The arguments with which a factory has made a function, less the factory's defaults; None where it has not made it."""
    made = inspect.unwrap(factory).__code__.co_consts
    if not any(isinstance(const, CodeType) and const is function.__code__ for const in made):
        return None
    kept = _kept(function)
    parameters = inspect.signature(factory).parameters.values()
    arguments = {p.name: kept[p.name] for p in parameters if p.name in kept and not _is_same(kept[p.name], p.default)}
    try:
        again = _kept(factory(**arguments))
    except TypeError:
        return None
    same = again.keys() == kept.keys() and all(_is_same(again[name], value) or _is_array(value) for name, value in kept.items())
    return arguments if same else None


def _kept(function: Any) -> dict[str, Any]:
    """What a function keeps from where it was made: in its closure, or as defaults."""
    defaults = inspect.signature(function, follow_wrapped=False).parameters.values()
    closure = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    return {p.name: p.default for p in defaults if p.default is not p.empty} | {n: cell.cell_contents for n, cell in closure}


def _is_array(value: Any) -> bool:
    return isinstance(value, (np.ndarray, jax.Array))


# From JSON --------------------------------------------------------------------------------------------------------------


def from_config(node: Json, path: str, depth: int = 0) -> Any:
    """Make what `to_config` described.

    Args:
        node: The description.
        path: Where it stands, for messages.
        depth: How deep it lies.

    Raises:
        ConfigError: It is no such description, or names what cannot be found; nothing has been imported for it.
    """
    if depth > _DEPTH:
        raise ConfigError(f"The description is nested too deep at {path:.200}.")
    if node is None or isinstance(node, (bool, int, float, str)):
        return node
    if isinstance(node, list):
        return _made_items(node, path, depth)
    if isinstance(node, Mapping):
        for key, (others, make) in _KINDS.items():
            if key in node and node.keys() <= {key, *others}:
                return make(node, path, depth)
        keys = ", ".join(f"{key!r:.40}" for key in list(node)[:5]) or "nothing"
        raise ConfigError(f"{path:.200} is described in a way that is not known here: by {keys}.")
    raise ConfigError(f"{path} is described by {type(node).__name__}, which JSON does not have.")


def _checked(value: Any, kind: type | tuple[type, ...], path: str) -> Any:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ConfigError(f"{path} is described wrongly: {value!r:.60}.")
    return value


def listed(nodes: Any, path: str) -> list[Any]:
    """A list; one of one scalar may have been that scalar in between, in R."""
    return [nodes] if isinstance(nodes, _SCALARS) else _checked(nodes, list, path)


def _made_items(nodes: Any, path: str, depth: int) -> list[Any]:
    return [from_config(node, f"{path}[{i}]", depth + 1) for i, node in enumerate(listed(nodes, path))]


def _made_fields(nodes: Any, path: str, depth: int) -> dict[str, Any]:
    return {name: from_config(node, f"{path}.{name:.60}", depth + 1) for name, node in _checked(nodes, Mapping, path).items()}


def _make_float(node: Any, path: str, depth: int) -> float:
    if node["float"] not in ("nan", "inf", "-inf"):
        raise ConfigError(f"{path} is described wrongly: {node['float']!r:.60}.")
    return float(node["float"])


def _make_complex(node: Any, path: str, depth: int) -> complex:
    parts = _made_items(node["complex"], path, depth)
    if len(parts) != 2 or not all(isinstance(part, float) for part in parts):
        raise ConfigError(f"{path} is described wrongly: a complex number is a list of two.")
    return complex(*parts)


def _make_dict(node: Any, path: str, depth: int) -> Any:
    (kind,) = node
    if isinstance(node[kind], Mapping):
        items = _made_fields(node[kind], path, depth)
    else:
        pairs = [_made_items(pair, path, depth) for pair in listed(node[kind], path)]
        if not all(len(pair) == 2 for pair in pairs):
            raise ConfigError(f"{path} is described wrongly: a dict is a list of pairs.")
        items = {_hashable(key, path): item for key, item in pairs}
    return items if kind == "dict" else flax.core.FrozenDict(items)  # type: ignore[no-untyped-call]


def _make_partition_spec(node: Any, path: str, depth: int) -> jax.sharding.PartitionSpec:
    return _called(jax.sharding.PartitionSpec, _made_items(node["partition_spec"], path, depth), {}, path)


def _hashable(value: Any, path: str) -> Any:
    try:
        hash(value)
    except TypeError as error:
        raise ConfigError(f"{path} is described wrongly: {error}.") from error
    return value


def _make_set(node: Any, path: str, depth: int) -> Any:
    ((kind, items),) = node.items()
    values = [_hashable(item, path) for item in _made_items(items, path, depth)]
    return set(values) if kind == "set" else frozenset(values)


def _dtype(name: Any, path: str) -> np.dtype[Any]:
    try:
        dtype = jnp.dtype(_checked(name, str, path))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{path} is described wrongly: there is no dtype {name!r:.60}.") from error
    if not _is_of_numbers(dtype):
        raise ConfigError(f"{path} is described wrongly: {name!r:.60} is no dtype of numbers.")
    return dtype


def _make_number(node: Any, path: str, depth: int) -> Any:
    return _array([node["number"]], [], node.get("dtype"), path, depth)[()]


def _make_array(node: Any, path: str, depth: int) -> Any:
    array = _array(node["array"], node.get("shape"), node.get("dtype"), path, depth)
    return jnp.asarray(array) if node.get("of") == "jax" else array


def _array(numbers: Any, shape: Any, dtype: Any, path: str, depth: int) -> np.ndarray[Any, Any]:
    shape = _checked_shape(shape, path)
    values = _made_items(numbers, path, depth)
    if len(values) != math.prod(shape) or not all(isinstance(value, _names.NUMBER_TYPES) for value in values):
        raise ConfigError(f"{path} is described wrongly: {len(values)} values do not make an array of shape {shape}.")
    dtype = _dtype(dtype, path)
    try:
        return np.array(values, _python_kind(dtype)).astype(dtype).reshape(shape)
    except (OverflowError, TypeError, ValueError) as error:
        raise ConfigError(f"{path} is described wrongly: {error}.") from error


def _checked_shape(shape: Any, path: str, *, unknown: bool = False) -> tuple[Any, ...]:
    """Sizes, where `unknown` may be also None."""
    sizes = [size if unknown and size is None else _checked(size, int, path) for size in listed(shape, path)]
    known = [max(size, 1) for size in sizes if size is not None]
    if any(size is not None and size < 0 for size in sizes) or math.prod(known) > _MOST_VALUES:
        raise ConfigError(f"{path} is described wrongly: no array has the shape {shape!r:.60}.")
    return tuple(sizes)


def _make_function(node: Any, path: str, depth: int) -> Any:
    function = _names.function_named(_checked(node["function"], str, path))
    if function is None:
        raise ConfigError(
            f"{path} is the function {node['function']!r:.80}, which is not taken from a file.\n"
            f"Functions of {', '.join(_names.NAMESPACES)} are, and those that you register."
        )
    return function


def _make_initializer(node: Any, path: str, depth: int) -> Any:
    factory = dict(_names.factories()).get(_checked(node["initializer"], str, path))
    if factory is None:
        raise ConfigError(f"{path} is made by {node['initializer']!r:.80}, which is no factory of initializers.")
    return _called(factory, [], _made_fields(node.get("arguments", {}), path, depth), path)


def _make_partial(node: Any, path: str, depth: int) -> Any:
    function = from_config(node["partial"], path, depth + 1)
    if not callable(function):
        raise ConfigError(f"{path} is described wrongly: {function!r:.60} is no function.")
    arguments = _made_items(node.get("arguments", []), path, depth)
    return functools.partial(function, *arguments, **_made_fields(node.get("keywords", {}), path, depth))


def _make_type(node: Any, path: str, depth: int) -> type:
    number_type = _names.number_type_named(_checked(node["type"], str, path))
    return number_type or _class(node["type"], _names.is_module_class, path)


def _make_enum(node: Any, path: str, depth: int) -> enum.Enum:
    kind: Any = _class(node["enum"], lambda value: issubclass(value, enum.Enum), path)
    member = _checked(node.get("member"), str, path)
    if member not in kind.__members__:
        raise ConfigError(f"{path} is {member!r:.60}, which {kind.__name__} does not have.")
    result: enum.Enum = kind.__members__[member]
    return result


def _make_named_tuple(node: Any, path: str, depth: int) -> Any:
    kind = _class(node["named_tuple"], lambda value: issubclass(value, tuple) and hasattr(value, "_fields"), path)
    return _called(kind, _made_items(node.get("fields", []), path, depth), {}, path)


def _make_object(node: Any, path: str, depth: int) -> Any:
    kind = _class(node["object"], dataclasses.is_dataclass, path)
    return _called(kind, [], _made_fields(node.get("fields", {}), path, depth), path)


def _make_made(node: Any, path: str, depth: int) -> _lazy.LazyModule:
    constructor = node["constructor"]
    if isinstance(constructor, str):
        factory = _names.class_named(constructor, _names.is_module_class, path)
    else:
        factory = _named_function(_checked(constructor, Mapping, path), path)
        if not _lazy.takes_rngs(factory):
            # What makes modules takes them; anything else is not to be called with what stands in a file.
            raise ConfigError(f"{path} is described wrongly: {constructor!r:.80} is no function of `rngs` that makes a module.")
    arguments = _made_items(node.get("arguments", []), path, depth)
    return _lazy.LazyModule(factory, *arguments, **_made_fields(node.get("keywords", {}), path, depth))


def _make_custom(node: Any, path: str, depth: int) -> _lazy.LazyModule:
    reference = _checked(node["custom"], str, path)
    name = reference.partition(":")[2].rpartition(".")[2]
    found = keras.saving.get_registered_object(reference) or keras.saving.get_registered_object(name)
    if not (callable(found) and _lazy.takes_rngs(found)):
        raise ConfigError(
            f"{path} is of the class {name!r:.80}, and with which arguments it was made is not known.\n"
            + _foreign.words(f"Give a function of `rngs` that makes it: `{_custom_objects(name)}`.")
        )
    return _lazy.LazyModule(found)


def _make_registered(node: Any, path: str, depth: int) -> Any:
    name = _checked(node.get("registered"), str, path)
    found = keras.saving.get_registered_object(name)
    if found is None:
        raise ConfigError(
            f"{path} is {name!r:.80}, which nobody has registered.\n"
            "Run the code that registers it, or give it in `custom_objects`."
        )
    if "config" not in node:
        return found
    if not (isinstance(found, type) and hasattr(found, "get_config")):
        raise ConfigError(f"{path} is described wrongly: {name!r:.80} is no class of objects that have a config.")
    config = from_config(node["config"], path, depth + 1)
    return found.from_config(config) if hasattr(found, "from_config") else _called(found, [], config, path)


def _class(reference: Any, is_right: Callable[[Any], bool], path: str) -> Any:
    return _names.class_named(_checked(reference, str, path), is_right, path)


def _called(function: Any, arguments: list[Any], keywords: Any, path: str) -> Any:
    try:
        return function(*arguments, **keywords)
    except (TypeError, ValueError, AssertionError) as error:
        raise ConfigError(f"{path} cannot be made as it is described: {error}.") from error


_KINDS: Mapping[str, tuple[tuple[str, ...], Callable[[Any, str, int], Any]]] = {
    "object": (("fields",), _make_object),
    "constructor": (("arguments", "keywords"), _make_made),
    "custom": ((), _make_custom),
    "type": ((), _make_type),
    "function": ((), _make_function),
    "initializer": (("arguments",), _make_initializer),
    "partial": (("arguments", "keywords"), _make_partial),
    "registered": (("config",), _make_registered),
    "list": ((), lambda node, path, depth: _made_items(node["list"], path, depth)),
    "tuple": ((), lambda node, path, depth: tuple(_made_items(node["tuple"], path, depth))),
    "dict": ((), _make_dict),
    "frozen_dict": ((), _make_dict),
    "set": ((), _make_set),
    "frozenset": ((), _make_set),
    "named_tuple": (("fields",), _make_named_tuple),
    "enum": (("member",), _make_enum),
    "dtype": ((), lambda node, path, depth: _dtype(node["dtype"], path)),
    "partition_spec": ((), _make_partition_spec),
    "array": (("shape", "dtype", "of"), _make_array),
    "number": (("dtype",), _make_number),
    "float": ((), _make_float),
    "complex": ((), _make_complex),
}


# A layer's other parts --------------------------------------------------------------------------------------------------


def method_to_config(method: Any, module: Any) -> Json:
    """Describe the method of a module: None, a name, a registered function, or one of R's by its name in the session.

    Raises:
        ConfigError: It is another function.
    """
    if method is None or isinstance(method, str):
        return method
    name = getattr(method, "__name__", "")
    kind = _lazy.class_of(module) if _lazy.is_made(module) else type(module)
    if inspect.getattr_static(kind, name, None) is getattr(method, "__func__", method):
        return name
    node = _of_named_function(method)
    if node is None and _foreign.formals(method) is not None:
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


def method_from_config(node: Json) -> Any:
    """Make what `method_to_config` described."""
    return node if node is None or isinstance(node, str) else _named_function(_checked(node, Mapping, "method"), "`method`")


def _of_named_function(function: Any) -> Json:
    """A function by the name under which it has been registered, or is found in a session of R; None where it has none."""
    node = _of_registered(function, "")
    if node is None and _foreign.formals(function) is not None:
        name = _foreign.name(function)
        node = name and {"session": name}
    return node


def _named_function(node: Mapping[str, Any], path: str) -> Any:
    name = node.get("session")
    if name is None:
        return _make_registered(node, path, 0)
    found = keras.saving.get_registered_object(_checked(name, str, path)) or _foreign.named(name)
    if found is None:
        raise ConfigError(
            f"{path} is the function {name!r:.80} of the session, which is not there.\n"
            "Run the code that defines it first, or give it in `custom_objects`."
        )
    return found


def checked_names(names: Any, path: str) -> list[str]:
    """A list of texts, which it is refused not to be."""
    return [_checked(name, str, path) for name in listed(names, path)]


def checked_specs(specs: Any, path: str) -> dict[str, Spec]:
    """Specs by path, of pairs of a shape and a dtype."""
    result = {}
    for name, pair in _checked(specs, Mapping, path).items():
        if len(_checked(pair, list, path)) != 2:
            raise ConfigError(f"{path} is described wrongly: {pair!r:.60} is no pair of a shape and a dtype.")
        shape, dtype = pair
        result[name] = checked_spec(shape, dtype, f"{path}: {name}")
    return result


def checked_spec(shape: Any, dtype: Any, path: str, *, unknown: bool = False) -> Spec:
    """A spec of a shape, in which sizes may be `unknown` (None), and a dtype."""
    return Spec(_checked_shape(shape, path, unknown=unknown), str(_dtype(dtype, path)))
