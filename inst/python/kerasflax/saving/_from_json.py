"""JSON to a module, in two passes: check the whole description, then create what it describes.

`_to_json` lists the kinds of descriptions. `_lookup` decides what a name may stand for, and `_plan`
decides where a value may appear.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.core
import jax
import jax.numpy as jnp
import keras
import numpy as np

from .. import _dtypes, _host, _limits, _messages
from .._errors import ConfigError, KerasFlaxError
from ..adapters import _lazy
from . import _allowed, _config_objects, _lookup
from ._field_types import (
    Type,
    is_dataclass,
    is_named_tuple,
    mro,
    types_of_arguments,
    types_of_fields,
)
from ._in_memory import InMemory
from ._plan import (
    CLASS,
    DATA,
    DTYPE,
    FUNCTION,
    HOLDER,
    MODULE,
    TRUSTED,
    Plan,
    constant,
    matches_role,
    matches_type,
    summary,
)

Json = Any

# Deeper than any real module, and well below Python's recursion limit.
_DEPTH = 100
_SCALARS = (bool, int, float, str)
_MOST_KEYS = 4096


class Place:
    """Where a description appears, for messages. The text is only built for an error."""

    __slots__ = ("above", "text")

    def __init__(self, text: str, above: Place | None = None) -> None:
        self.text, self.above = text, above

    def __add__(self, text: str) -> Place:
        return Place(text, self)

    def __str__(self) -> str:
        texts: list[str] = []
        place: Place | None = self
        while place is not None:
            texts.append(place.text)
            place = place.above
        return f"{''.join(reversed(texts)):.200}"

    def __format__(self, spec: str) -> str:
        return format(str(self), spec)


def from_config(node: Json, path: str) -> Any:
    """Create what `to_config` described.

    Args:
        node: The description.
        path: Where the description appears, for messages.

    Raises:
        ConfigError: The description is invalid, or names something that a file may not name. In
            that case nothing has been created or imported.
    """
    return plan_description(node, path).make()


def plan_description(node: Json, path: str, *, module: Json = None) -> Plan:
    """Check a description, and return the plan that creates what it describes.

    Args:
        node: The description.
        path: Where the description appears, for messages.
        module: The description of the layer's module, if it is not `node`. The functions that a
            file may name depend on it; see `_lookup`.

    Raises:
        ConfigError: The description is invalid, or names something that a file may not name.
    """
    return _Reader(node if module is None else module).plan(node, Place(path), 0)


def plan_function(node: Mapping[str, Any], path: str, *, module: Json) -> Plan:
    """Check the description of a function or a partial. See `plan_description`.

    Raises:
        ConfigError: The description is invalid, or no function has the name.
    """
    return _Reader(module).function(node, Place(path), 0)


# Checks -------------------------------------------------------------------------------------------


def invalid_description(place: Any, node: Json, reason: str = "") -> ConfigError:
    """Return the error for an invalid description."""
    return ConfigError(f"{place} has an invalid description: {summary(node)}{reason}.")


def require_type(value: Any, kind: type | tuple[type, ...], place: Any) -> Any:
    """Return a JSON value of a given type, or raise ConfigError. A bool is not a number here."""
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise invalid_description(place, value)
    return value


def require_list(nodes: Any, place: Any) -> list[Any]:
    """Return a list. R turns a list of one scalar into that scalar, so wrap a scalar."""
    return [nodes] if isinstance(nodes, _SCALARS) else require_type(nodes, list, place)


def require_dtype(name: Any, place: Any) -> np.dtype[Any]:
    """Return the dtype with a name."""
    try:
        return _dtypes.named(name)
    except ValueError:
        raise invalid_description(place, name, " is not a numeric dtype") from None


def is_numeric(dtype: Any) -> bool:
    """Whether a dtype is numeric or boolean."""
    return any(jnp.issubdtype(dtype, kind) for kind in (jnp.number, jnp.bool_))


def python_dtype(dtype: np.dtype[Any]) -> Any:
    """Return the dtype through which a dtype's values become Python numbers, and back."""
    if jnp.issubdtype(dtype, jnp.complexfloating):
        return np.complex128
    return np.float64 if jnp.issubdtype(dtype, jnp.floating) else np.dtype(dtype)


def require_shape(shape: Any, place: Any, *, unknown: bool = False) -> tuple[Any, ...]:
    """Return a shape. With `unknown`, sizes may be None."""
    sizes = [
        size if unknown and size is None else require_type(size, int, place)
        for size in require_list(shape, place)
    ]
    total = 1
    for size in sizes:
        # Check each product, so that the integers stay short.
        total *= max(1 if size is None else size, 1)
        if (size is not None and size < 0) or total > _limits.MOST_ELEMENTS:
            raise ConfigError(
                f"{place} has an invalid description: no array has the shape {summary(shape)}."
            )
    return tuple(sizes)


def custom_object_argument(name: str) -> str:
    """Return the `custom_objects` argument that passes a function that creates a module."""
    shown_name = name[:80] if name.isidentifier() else "module"
    return _host.word("custom object", shown_name, f"make_{shown_name.lower()}")


# Registered objects, and functions of the R session -----------------------------------------------


def registered(name: Any, place: Any) -> Any:
    """Return the object that is registered with Keras, or passed as a custom object, under a name.

    kerasflax's own classes are registered too, but cannot be parts of a module.

    Raises:
        ConfigError: No object has the name.
    """
    found = keras.saving.get_registered_object(require_type(name, str, place))
    if found is None or name.startswith("kerasflax>"):
        raise ConfigError(
            f"{place} is {summary(name)}, which is not registered.",
            advice="Run the code that registers it, or pass it in `custom_objects`.",
        )
    return found


def session_function(node: Mapping[str, Any], place: Any) -> Any:
    """Return the function that is defined in the R session under a name.

    Raises:
        ConfigError: No function has the name.
    """
    name = require_type(node["session"], str, place)
    found = keras.saving.get_registered_object(name) or _host.function_of_name(name)
    if found is None:
        raise ConfigError(
            f"{place} is the function {summary(name)} of the session, which does not exist.",
            advice="Run the code that defines it, or pass it in `custom_objects`.",
        )
    if isinstance(found, type) or not callable(found):
        raise invalid_description(place, node, " is not a function")
    return found


# The first pass -----------------------------------------------------------------------------------


class _Reader:
    """Checks one description."""

    def __init__(self, description: Any) -> None:
        self._names = _lookup.Names(description)
        self._types: dict[type, dict[str, Type]] = {}

    def plan(self, node: Json, place: Place, depth: int) -> Plan:
        if depth > _DEPTH:
            raise ConfigError(f"The description is nested too deeply at {place}.")
        if type(node) is InMemory:
            return constant(node, node.value, TRUSTED)
        if node is None or isinstance(node, _SCALARS):
            return constant(node, node)
        if isinstance(node, list):
            return _collection_plan(node, list, self._items(node, place, depth))
        if isinstance(node, Mapping):
            for key, (others, read) in _READERS.items():
                if key in node and node.keys() <= {key, *others}:
                    return read(self, node, place, depth)
            keys = ", ".join(summary(key) for key in list(node)[:5]) or "none"
            raise ConfigError(f"{place} has an unknown kind of description, with the keys: {keys}.")
        raise ConfigError(f"{place} has an invalid description: JSON has no {type(node).__name__}.")

    def _items(self, nodes: Any, place: Place, depth: int) -> list[Plan]:
        return [
            self.plan(node, place + f"[{i}]", depth + 1)
            for i, node in enumerate(require_list(nodes, place))
        ]

    def _fields(self, nodes: Any, place: Place, depth: int) -> dict[str, Plan]:
        fields = require_type(nodes, Mapping, place).items()
        return {
            require_type(name, str, place): self.plan(node, place + _path_part(name), depth + 1)
            for name, node in fields
        }

    # Values

    def read_float(self, node: Any, place: Place, depth: int) -> Plan:
        if node["float"] not in ("nan", "inf", "-inf"):
            raise invalid_description(place, node["float"])
        return Plan(node, float, DATA, lambda: float(node["float"]))

    def read_complex(self, node: Any, place: Place, depth: int) -> Plan:
        parts = self._items(node["complex"], place, depth)
        if len(parts) != 2 or not all(part.kind is float for part in parts):
            raise ConfigError(
                f"{place} has an invalid description: a complex number is a list of two numbers."
            )
        return constant(node, complex(*(part.make() for part in parts)))

    def read_list(self, node: Any, place: Place, depth: int) -> Plan:
        return _collection_plan(node, list, self._items(node["list"], place, depth))

    def read_tuple(self, node: Any, place: Place, depth: int) -> Plan:
        return _collection_plan(node, tuple, self._items(node["tuple"], place, depth))

    def read_set(self, node: Any, place: Place, depth: int) -> Plan:
        ((name, nodes),) = node.items()
        items = self._items(nodes, place, depth)
        _check_keys(items, place)
        return _collection_plan(node, set if name == "set" else frozenset, items)

    def read_dict(self, node: Any, place: Place, depth: int) -> Plan:
        ((name, nodes),) = node.items()
        if isinstance(nodes, Mapping):
            fields = self._fields(nodes, place, depth)
            keys, items = [constant(key, key) for key in fields], [*fields.values()]
        else:
            pairs = [self._items(pair, place, depth) for pair in require_list(nodes, place)]
            if not all(len(pair) == 2 for pair in pairs):
                raise ConfigError(f"{place} has an invalid description: a dict is a list of pairs.")
            keys, items = [key for key, _ in pairs], [item for _, item in pairs]
            _check_keys(keys, place)

        def make() -> Any:
            return {key.make(): item.make() for key, item in zip(keys, items, strict=True)}

        if name == "dict":
            return Plan(node, dict, DATA, make, items)
        return Plan(node, flax.core.FrozenDict, DATA, lambda: flax.core.FrozenDict(make()), items)  # type: ignore[no-untyped-call]

    def read_partition_spec(self, node: Any, place: Place, depth: int) -> Plan:
        kind = jax.sharding.PartitionSpec
        items = self._items(node["partition_spec"], place, depth)
        if not all(
            item.kind in (types.NoneType, str) or (item.kind is tuple and item.is_key)
            for item in items
        ):
            raise invalid_description(place, node)
        return Plan(node, kind, DATA, _deferred_call(kind, items, {}, place), items)

    def read_dtype(self, node: Any, place: Place, depth: int) -> Plan:
        return constant(node, require_dtype(node["dtype"], place), DTYPE)

    def read_number(self, node: Any, place: Place, depth: int) -> Plan:
        return constant(
            node, self._array([node["number"]], [], node.get("dtype"), place, depth)[()], DTYPE
        )

    def read_array(self, node: Any, place: Place, depth: int) -> Plan:
        array = self._array(node["array"], node.get("shape"), node.get("dtype"), place, depth)
        if node.get("of") == "jax":
            return Plan(node, jax.Array, DATA, lambda: jnp.asarray(array))
        return Plan(node, np.ndarray, DATA, lambda: array)

    def _array(
        self, numbers: Any, shape: Any, dtype: Any, place: Place, depth: int
    ) -> np.ndarray[Any, Any]:
        shape = require_shape(shape, place)
        items = self._items(numbers, place, depth)
        if len(items) != math.prod(shape) or not all(
            item.kind in _lookup.NUMBER_TYPES for item in items
        ):
            raise ConfigError(
                f"{place} has an invalid description: "
                f"{len(items)} values do not fill an array of shape {summary(shape)}."
            )
        dtype = require_dtype(dtype, place)
        try:
            return (
                np.array([item.make() for item in items], python_dtype(dtype))
                .astype(dtype)
                .reshape(shape)
            )
        except (OverflowError, TypeError, ValueError) as error:
            raise ConfigError(f"{place} has an invalid description: {error!s:.200}.") from error

    # Names

    def read_function(self, node: Any, place: Place, depth: int) -> Plan:
        name = require_type(node["function"], str, place)
        function = _lookup.find_function(name)
        if function is None:
            found, is_given = self._names.find_function(name, place)
            tag = TRUSTED if is_given else FUNCTION
            return Plan(node, types.FunctionType, tag, lambda: found, value=found)
        is_dtype = isinstance(getattr(function, "dtype", None), np.dtype)
        return Plan(
            node,
            types.FunctionType,
            DTYPE if is_dtype else FUNCTION,
            lambda: function,
            value=function,
        )

    def function(self, node: Mapping[str, Any], place: Place, depth: int) -> Plan:
        """Plan a named function, or a partial of one, as a method or a constructor."""
        if node.keys() == {"session"}:
            return constant(node, session_function(node, place), TRUSTED)
        plan = self.plan(node, place, depth)
        is_function = callable(plan.value) and not isinstance(plan.value, type)
        if plan.tag not in (FUNCTION, TRUSTED) or not (
            is_function or plan.kind is functools.partial
        ):
            raise invalid_description(place, node, " is not a function")
        return plan

    def read_type(self, node: Any, place: Place, depth: int) -> Plan:
        number_type = _lookup.find_number_type(require_type(node["type"], str, place))
        if number_type is not None:
            return constant(node, number_type, DTYPE)
        found = self._class(node["type"], _lookup.is_module_class, place)
        if found.is_wrapper:
            raise invalid_description(
                place, node["type"], " creates a module from whatever it is called with"
            )
        return constant(node, found.kind, CLASS)

    def read_enum(self, node: Any, place: Place, depth: int) -> Plan:
        kind: Any = self._class(node["enum"], _lookup.is_enum, place).kind
        name = require_type(node.get("member"), str, place)
        members = type.__getattribute__(kind, "_member_map_")
        if name not in members:
            raise ConfigError(
                f"{place} is {summary(name)}, which is not a member of {kind.__name__:.80}."
            )
        # Not `constant`: the class of a member can have its own metaclass.
        return Plan(node, kind, DATA, lambda: members[name], value=members[name])

    def read_registered(self, node: Any, place: Place, depth: int) -> Plan:
        name = node.get("registered")
        found = registered(name, place)
        if "config" not in node:
            return constant(node, found, TRUSTED)
        if not (isinstance(found, type) and _has_attribute(found, "get_config")):
            raise ConfigError(
                f"{place} has an invalid description: "
                f"{summary(name)} is not a class whose objects have a config."
            )
        config = self.plan(node["config"], place, depth + 1)
        if _has_attribute(found, "from_config"):
            make: Any = found.from_config  # type: ignore[attr-defined]
            return Plan(node, found, TRUSTED, lambda: make(config.make()), [config])
        if config.kind is not dict or not isinstance(config.node["dict"], Mapping):
            raise invalid_description(place, config.node)
        return Plan(
            node,
            found,
            TRUSTED,
            _deferred_call(found, [], {"config": config}, place, is_spread=True),
            [config],
        )

    def _class(
        self, reference: Any, is_right: Callable[[Any], bool], place: Place
    ) -> _lookup.Found:
        return self._names.find_class(require_type(reference, str, place), is_right, place)

    # Calls

    def read_initializer(self, node: Any, place: Place, depth: int) -> Plan:
        name = require_type(node["initializer"], str, place)
        factory = _allowed.find(_allowed.FACTORIES, name)
        if factory is None:
            raise ConfigError(
                f"{place} is created by {summary(name)}, which is not an initializer factory."
            )
        arguments = self._fields(node.get("arguments", {}), place, depth)
        parameters = inspect.signature(factory).parameters
        for key, plan in arguments.items():
            if key not in parameters:
                raise ConfigError(
                    f"{place} cannot be created as described: "
                    f"{name} has no argument {summary(key)}."
                )
            if not (matches_role(plan, _allowed.FUNCTION) if key == "fn" else plan.is_data):
                raise invalid_description(place + _path_part(key), plan.node)
        return Plan(
            node, types.FunctionType, FUNCTION, _deferred_call(factory, [], arguments, place)
        )

    def read_partial(self, node: Any, place: Place, depth: int) -> Plan:
        function = self.plan(node["partial"], place, depth + 1)
        arguments = self._items(node.get("arguments", []), place, depth)
        keywords = self._fields(node.get("keywords", {}), place, depth)
        if function.tag == FUNCTION and _is_users(function.node):
            self._check_arguments(function.value, arguments, keywords, place)
        elif function.tag in (FUNCTION, DTYPE) and function.kind is types.FunctionType:
            # A listed function may call a function passed to it, so accept only data.
            for plan in (*arguments, *keywords.values()):
                if not plan.is_data:
                    raise invalid_description(
                        place,
                        plan.node,
                        " is not data, and a file may pass only data to a listed function",
                    )
        elif function.tag == CLASS and "type" in function.node:
            kind = function.make()
            found = self._names.of(kind)
            if is_dataclass(kind):
                names = [
                    field.name
                    for field in dataclasses.fields(kind)
                    if field.init and not field.kw_only
                ]
                if len(arguments) > len(names):
                    raise ConfigError(
                        f"{place} cannot be created as described: {kind.__name__} has fewer fields."
                    )
                self._check_fields(
                    found,
                    dict(zip(names, arguments, strict=False)) | keywords,
                    place,
                    is_partial=True,
                )
            else:
                self._check_arguments(kind, arguments, keywords, place)
        elif function.tag != TRUSTED or "config" in function.node or not callable(function.value):
            raise invalid_description(
                place, function.node, " is not a function that a partial may call"
            )
        tag = {CLASS: CLASS, TRUSTED: TRUSTED}.get(function.tag, FUNCTION)
        return Plan(
            node,
            functools.partial,
            tag,
            _deferred_call(functools.partial, [function, *arguments], keywords, place),
            arguments,
        )

    def read_object(self, node: Any, place: Place, depth: int) -> Plan:
        found = self._class(node["object"], is_dataclass, place)
        fields = self._fields(node.get("fields", {}), place, depth)
        self._check_fields(found, fields, place)
        tag = MODULE if found.is_module else TRUSTED if found.is_registered else HOLDER
        return Plan(
            node, found.kind, tag, _deferred_call(found.kind, [], fields, place), [*fields.values()]
        )

    def read_named_tuple(self, node: Any, place: Place, depth: int) -> Plan:
        kind = self._class(node["named_tuple"], is_named_tuple, place).kind
        items = self._items(node.get("fields", []), place, depth)
        declared = self._types_of(kind)
        for name, plan in zip(kind._fields, items, strict=False):  # type: ignore[attr-defined]
            _check_type(plan, declared.get(name, ()), place + f".{name}")
        return Plan(node, kind, HOLDER, _deferred_call(kind, items, {}, place), items)

    def read_config_object(self, node: Any, place: Place, depth: int) -> Plan:
        kind = self._class(node["config_object"], _config_objects.is_config_class, place).kind
        values = self.plan(node.get("values"), place, depth + 1)
        way = _config_objects.way_of(kind)
        make: Any = None
        if way is not None and values.kind is dict:
            make = {False: way.make, True: way.make_locked}.get(
                require_type(node.get("locked", False), bool, place)
            )
        if make is None:
            raise invalid_description(place, node)
        make = _deferred_call(functools.partial(make, kind), [values], {}, place)
        return Plan(node, kind, HOLDER, make, values.items)

    def read_constructor(self, node: Any, place: Place, depth: int) -> Plan:
        constructor = node["constructor"]
        if isinstance(constructor, str):
            factory: Any = self._class(constructor, _lookup.is_module_class, place).kind
            if not _lazy.is_nnx_class(factory):
                raise invalid_description(place, constructor, " is not an NNX module class")
        else:
            function = self.function(require_type(constructor, Mapping, place), place, depth)
            factory = function.value
            if function.kind is functools.partial or not _lazy.takes_rngs(factory):
                # Functions that create modules take `rngs`. Never call others with a file's values.
                raise invalid_description(
                    place, constructor, " is not a function of `rngs` that creates a module"
                )
        arguments = self._items(node.get("arguments", []), place, depth)
        keywords = self._fields(node.get("keywords", {}), place, depth)
        self._check_arguments(factory, arguments, keywords, place)
        kind = factory if isinstance(factory, type) else _lazy.LazyModule
        make = _deferred_call(
            _lazy.LazyModule, [constant(constructor, factory), *arguments], keywords, place
        )
        return Plan(node, kind, MODULE, make, [*arguments, *keywords.values()])

    def read_custom(self, node: Any, place: Place, depth: int) -> Plan:
        reference = require_type(node["custom"], str, place)
        name = reference.partition(":")[2].rpartition(".")[2]
        found = keras.saving.get_registered_object(reference) or keras.saving.get_registered_object(
            name
        )
        advice = f"Pass a function of `rngs` that creates it: {custom_object_argument(name)}."
        if found is None:
            raise ConfigError(
                f"{place} is of the class {summary(name)}, and its constructor arguments are "
                "unknown.",
                advice=advice,
            )
        lazy = _lazy.LazyModule(found) if callable(found) else None
        if lazy is None or not _lazy.takes_rngs(lazy.factory):
            raise ConfigError(
                f"{place} is of the class {summary(name)}, and what was passed or registered under "
                "this name is not a function of `rngs`.",
                advice=advice,
            )
        missing = _lazy.missing_arguments(lazy)
        if missing:
            raise ConfigError(
                f"{place} is of the class {summary(name)}, whose arguments are not in the file: "
                f"{', '.join(missing):.200}.",
                advice=advice,
            )
        return Plan(node, _lazy.LazyModule, MODULE, lambda: lazy)

    # Fields and arguments

    def _types_of(self, kind: type) -> dict[str, Type]:
        if kind not in self._types:
            self._types[kind] = types_of_fields(kind)
        return self._types[kind]

    def _check_fields(
        self,
        found: _lookup.Found,
        fields: Mapping[str, Plan],
        place: Place,
        *,
        is_partial: bool = False,
    ) -> None:
        """Check a dataclass's fields by their names, roles and declared types."""
        kind, is_module = found.kind, found.is_module
        known: Mapping[str, dataclasses.Field[Any]] = kind.__dataclass_fields__  # type: ignore[attr-defined]
        declared = self._types_of(kind)
        parts: frozenset[str] = (
            frozenset() if found.owner is None else frozenset(_fields_of(found.owner))
        )
        has_own_constructor = not _lookup.has_generated_constructor(kind)
        for name, plan in fields.items():
            here = place + _path_part(name)
            if name not in known or not known[name].init or name.startswith("__"):
                if has_own_constructor and name not in known and not name.startswith("_"):
                    continue
                raise ConfigError(
                    f"{here} cannot be created as described: {kind.__name__:.80} has no such field."
                )
            if is_module and name == "parent" and plan.node is not None:
                raise invalid_description(here, plan.node)
            if name in parts:
                _check_role(plan, _allowed.ROLES.get(name, _allowed.DATA), here)
            if not _is_field_default(plan, known[name]):
                _check_type(plan, declared[name], here)
        if "nnx_class" in parts:
            self._check_wrapped(fields, place)
        if is_module or found.is_registered or is_partial:
            return
        for name, field in known.items():
            if name not in fields and not _lookup.is_harmless_default(field):
                raise ConfigError(
                    f"{place} omits the field {name!r:.80} of {kind.__name__:.80}, and a function "
                    "creates its default.",
                    advice=_lookup.advice_to_trust(kind),
                )

    def _check_wrapped(self, fields: Mapping[str, Plan], place: Place) -> None:
        """Check the arguments of the NNX class that a Linen module wraps."""
        wrapped, args, kwargs = (fields.get(name) for name in ("nnx_class", "args", "kwargs"))
        if wrapped is None or wrapped.tag != CLASS or "type" not in wrapped.node:
            if wrapped is None and args is None and kwargs is None:
                return
            raise invalid_description(
                place,
                None if wrapped is None else wrapped.node,
                " is not a module class that can be wrapped",
            )
        for plan, kinds in ((args, (list, tuple)), (kwargs, (dict, flax.core.FrozenDict))):
            if plan is not None and plan.kind not in kinds:
                raise invalid_description(place, plan.node)
        names = [] if kwargs is None else _argument_names(kwargs, place)
        self._check_arguments(
            wrapped.make(),
            list(args.items) if args else [],
            dict(zip(names, kwargs.items if kwargs else (), strict=True)),
            place,
        )

    def _check_arguments(
        self, factory: Any, arguments: Sequence[Plan], keywords: Mapping[str, Plan], place: Place
    ) -> None:
        """Check the arguments of a module factory by their names, roles and declared types."""
        parameters = _lazy.parameters(factory)
        if not parameters:
            return
        declared = types_of_arguments(factory, parameters)
        owner = self._names.of(factory).owner if isinstance(factory, type) else None
        has_roles = owner is not None and factory.__init__ is owner.__init__  # type: ignore[misc]
        by_kind = {parameter.kind: name for name, parameter in parameters.items()}
        positional = [
            name
            for name, p in parameters.items()
            if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        ]
        rest = (
            by_kind.get(inspect.Parameter.VAR_POSITIONAL),
            by_kind.get(inspect.Parameter.VAR_KEYWORD),
        )
        given = [
            (positional[i] if i < len(positional) else rest[0], plan)
            for i, plan in enumerate(arguments)
        ]
        given += [
            (name if name in parameters else rest[1], plan) for name, plan in keywords.items()
        ]
        for name, plan in given:
            if name is None:
                maker = f"{getattr(factory, '__name__', 'its constructor')!s:.80}"
                raise ConfigError(
                    f"{place} cannot be created as described: {maker} has no such argument."
                )
            here = place + _path_part(name)
            if name == _lazy.RNGS and plan.node is not None:
                raise invalid_description(here, plan.node)
            if has_roles:
                _check_role(plan, _allowed.ROLES.get(name, _allowed.DATA), here)
            default = parameters[name].default
            if not (plan.kind is types.NoneType and default is None):
                _check_type(plan, declared.get(name, ()), here)


def _is_users(node: Any) -> bool:
    """Whether a description is of a function that is not in the lists."""
    return "function" in node and _lookup.find_function(node["function"]) is None


def _path_part(name: Any) -> str:
    """Format a field as a part of a place. Quote a name that cannot be a field."""
    return f".{name:.60}" if isinstance(name, str) and name.isidentifier() else f"[{summary(name)}]"


def _fields_of(owner: type) -> Sequence[str]:
    return list(owner.__dataclass_fields__) if is_dataclass(owner) else []  # type: ignore[attr-defined]


def _check_role(plan: Plan, role: str, place: Place) -> None:
    if not matches_role(plan, role):
        raise ConfigError(
            f"{place} cannot be created as described: {summary(plan.node)} is not {role}."
        )


def _check_type(plan: Plan, declared: Type, place: Place) -> None:
    if not matches_type(plan, declared):
        names = ", ".join(
            f"{getattr(each.origin, '__name__', each.origin)!s:.60}" for each in declared[:5]
        )
        raise ConfigError(
            f"{place} cannot be created as described: "
            f"{summary(plan.node)} is not of its declared type, {names}."
        )


def _is_field_default(plan: Plan, field: dataclasses.Field[Any]) -> bool:
    """Whether a value is the default of its field, which may contradict the declared type."""
    if plan.kind is types.NoneType or plan.tag == FUNCTION:
        return plan.value is field.default
    is_scalar = plan.kind in (bool, int, float, str) and plan.items == ()
    return is_scalar and type(field.default) is plan.kind and plan.make() == field.default


def _collection_plan(node: Json, kind: type, items: Sequence[Plan]) -> Plan:
    return Plan(node, kind, DATA, lambda: kind(item.make() for item in items), items)


def _check_keys(keys: Sequence[Plan], place: Place) -> None:
    """Refuse keys that cannot be hashed, or only by calling a user's code."""
    if len(keys) > _MOST_KEYS:
        raise ConfigError(
            f"{place} has an invalid description: "
            f"it has {len(keys)} keys, and the limit is {_MOST_KEYS}."
        )
    numbers = sum(not isinstance(key.node, str) for key in keys)
    if numbers > _limits.MOST_CONFIG_KEYS_NOT_TEXT:
        raise ConfigError(
            f"{place} has an invalid description: "
            f"{numbers} of its keys are not text, "
            f"and the limit is {_limits.MOST_CONFIG_KEYS_NOT_TEXT}."
        )
    for key in keys:
        if not key.is_key:
            raise invalid_description(place, key.node, " cannot be a key")


def _argument_names(plan: Plan, place: Place) -> list[str]:
    """Return the keys of a dict of keyword arguments."""
    ((_, nodes),) = plan.node.items()
    if not isinstance(nodes, Mapping):
        raise invalid_description(place, plan.node)
    return list(nodes)


def _has_attribute(kind: type, name: str) -> bool:
    return any(name in vars(base) for base in mro(kind))


def _deferred_call(
    function: Any,
    arguments: Sequence[Plan],
    keywords: Mapping[str, Plan],
    place: Place,
    *,
    is_spread: bool = False,
) -> Callable[[], Any]:
    """Return a function that calls a function with planned arguments.

    With `is_spread`, the planned dict `config` holds all keyword arguments.
    """

    def make() -> Any:
        values, named = (
            [plan.make() for plan in arguments],
            {name: plan.make() for name, plan in keywords.items()},
        )
        try:
            return function(*values, **(named["config"] if is_spread else named))
        except KerasFlaxError as error:
            raise ConfigError(
                f"{place} cannot be created as described: {error.what:.500}",
                problems=error.problems,
                advice=error.advice,
            ) from error
        except (TypeError, ValueError, AssertionError) as error:
            reason = f"{_messages.first_line(error):.500}"
            raise ConfigError(f"{place} cannot be created as described: {reason}.") from error

    return make


_READERS: Mapping[str, tuple[tuple[str, ...], Callable[[_Reader, Any, Place, int], Plan]]] = {
    "object": (("fields",), _Reader.read_object),
    "constructor": (("arguments", "keywords", "class"), _Reader.read_constructor),
    "custom": ((), _Reader.read_custom),
    "type": ((), _Reader.read_type),
    "function": ((), _Reader.read_function),
    "initializer": (("arguments",), _Reader.read_initializer),
    "partial": (("arguments", "keywords"), _Reader.read_partial),
    "registered": (("config",), _Reader.read_registered),
    "list": ((), _Reader.read_list),
    "tuple": ((), _Reader.read_tuple),
    "dict": ((), _Reader.read_dict),
    "frozen_dict": ((), _Reader.read_dict),
    "set": ((), _Reader.read_set),
    "frozenset": ((), _Reader.read_set),
    "config_object": (("values", "locked"), _Reader.read_config_object),
    "named_tuple": (("fields",), _Reader.read_named_tuple),
    "enum": (("member",), _Reader.read_enum),
    "dtype": ((), _Reader.read_dtype),
    "partition_spec": ((), _Reader.read_partition_spec),
    "array": (("shape", "dtype", "of"), _Reader.read_array),
    "number": (("dtype",), _Reader.read_number),
    "float": ((), _Reader.read_float),
    "complex": ((), _Reader.read_complex),
}
