"""JSON to a module, in two passes: all of a description is checked before anything of it is made.

The forms are those that `_to_json` lists. What a name may stand for is decided in `_lookup`, and where a value may stand in
`_plan`.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.core
import jax
import jax.numpy as jnp
import keras
import numpy as np

from .. import _dtypes, _host, _limits
from .._errors import ConfigError
from ..adapters import _lazy
from . import _allowed, _lookup
from ._field_types import Type, is_dataclass, is_named_tuple, mro, of_arguments, of_fields
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
    fits,
    plays,
    shown,
)

Json = Any

# Nested deeper than any module; Python's own limit comes later.
_DEPTH = 100
_SCALARS = (bool, int, float, str)
# More than any array has. JAX ends the process at a product of sizes that overflows.
_MOST_VALUES = 2**48
_MOST_KEYS = 4096


class Place:
    """Where a description stands, for messages; it is put into words only when there is one."""

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
    """Make what `to_config` described.

    Args:
        node: The description.
        path: Where it stands, for messages.

    Raises:
        ConfigError: It is no such description, or names what may not be taken; nothing has been made or imported then.
    """
    return planned(node, path).make()


def planned(node: Json, path: str) -> Plan:
    """Check a description; the plan makes what it describes.

    Raises:
        ConfigError: It is no such description, or names what may not be taken.
    """
    return _Reader().plan(node, Place(path), 0)


# Checks -----------------------------------------------------------------------------------------------------------------


def wrong(place: Any, node: Json, why: str = "") -> ConfigError:
    """The error of a description that is none."""
    return ConfigError(f"{place} is described wrongly: {shown(node)}{why}.")


def checked(value: Any, kind: type | tuple[type, ...], place: Any) -> Any:
    """A value of a kind of JSON's, which it is refused not to be."""
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise wrong(place, value)
    return value


def listed(nodes: Any, place: Any) -> list[Any]:
    """A list; one of one scalar may have been that scalar in between, in R."""
    return [nodes] if isinstance(nodes, _SCALARS) else checked(nodes, list, place)


def checked_dtype(name: Any, place: Any) -> np.dtype[Any]:
    """The dtype of a name."""
    try:
        return _dtypes.named(name)
    except ValueError:
        raise wrong(place, name, " is no dtype of numbers") from None


def is_of_numbers(dtype: Any) -> bool:
    """Whether a dtype is one of numbers or truth values."""
    return any(jnp.issubdtype(dtype, kind) for kind in (jnp.number, jnp.bool_))


def python_kind(dtype: np.dtype[Any]) -> Any:
    """The dtype whose numbers are Python's, where the own one's may not be."""
    if jnp.issubdtype(dtype, jnp.complexfloating):
        return np.complex128
    return np.float64 if jnp.issubdtype(dtype, jnp.floating) else np.dtype(dtype)


def checked_shape(shape: Any, place: Any, *, unknown: bool = False) -> tuple[Any, ...]:
    """Sizes, where `unknown` may be also None."""
    sizes = [
        size if unknown and size is None else checked(size, int, place)
        for size in listed(shape, place)
    ]
    total = 1
    for size in sizes:
        # Each product is checked, so that none gets long.
        total *= max(1 if size is None else size, 1)
        if (size is not None and size < 0) or total > _MOST_VALUES:
            raise ConfigError(
                f"{place} is described wrongly: no array has the shape {shown(shape)}."
            )
    return tuple(sizes)


def custom_objects(name: str) -> str:
    """What to type, to give a function that makes a module."""
    shown_name = name[:80] if name.isidentifier() else "module"
    return _host.word("custom object", shown_name, f"make_{shown_name.lower()}")


# Functions of the session, and registered ones --------------------------------------------------------------------------


def registered(name: Any, place: Any) -> Any:
    """What is registered with Keras under a name, or given as a custom object; kerasflax's own classes are no part of a module.

    Raises:
        ConfigError: Nothing is.
    """
    found = keras.saving.get_registered_object(checked(name, str, place))
    if found is None or name.startswith("kerasflax>"):
        raise ConfigError(
            f"{place} is {shown(name)}, which nobody has registered.\n"
            "Run the code that registers it, or give it in `custom_objects`."
        )
    return found


def named_function(node: Mapping[str, Any], place: Any) -> Any:
    """A function by the name under which it has been registered, or is found in a session of R.

    Raises:
        ConfigError: It is not there, or is no function.
    """
    if node.keys() == {"registered"}:
        found = registered(node["registered"], place)
        if isinstance(found, type) or not callable(found):
            raise wrong(place, node, " is no function")
        return found
    if node.keys() != {"session"}:
        raise wrong(place, node)
    name = checked(node["session"], str, place)
    found = keras.saving.get_registered_object(name) or _host.named(name)
    if found is None:
        raise ConfigError(
            f"{place} is the function {shown(name)} of the session, which is not there.\n"
            "Run the code that defines it first, or give it in `custom_objects`."
        )
    if isinstance(found, type) or not callable(found):
        raise wrong(place, node, " is no function")
    return found


# The first pass -----------------------------------------------------------------------------------------------------------


class _Reader:
    """Reads one description."""

    def __init__(self) -> None:
        self._names = _lookup.Names()
        self._types: dict[type, dict[str, Type]] = {}

    def plan(self, node: Json, place: Place, depth: int) -> Plan:
        if depth > _DEPTH:
            raise ConfigError(f"The description is nested too deep at {place}.")
        if node is None or isinstance(node, _SCALARS):
            return constant(node, node)
        if isinstance(node, list):
            return _held(node, list, self._items(node, place, depth))
        if isinstance(node, Mapping):
            for key, (others, read) in _KINDS.items():
                if key in node and node.keys() <= {key, *others}:
                    return read(self, node, place, depth)
            keys = ", ".join(shown(key) for key in list(node)[:5]) or "nothing"
            raise ConfigError(f"{place} is described in a way that is not known here: by {keys}.")
        raise ConfigError(
            f"{place} is described by {type(node).__name__}, which JSON does not have."
        )

    def _items(self, nodes: Any, place: Place, depth: int) -> list[Plan]:
        return [
            self.plan(node, place + f"[{i}]", depth + 1)
            for i, node in enumerate(listed(nodes, place))
        ]

    def _fields(self, nodes: Any, place: Place, depth: int) -> dict[str, Plan]:
        fields = checked(nodes, Mapping, place).items()
        return {
            checked(name, str, place): self.plan(node, place + _part(name), depth + 1)
            for name, node in fields
        }

    # Values

    def read_float(self, node: Any, place: Place, depth: int) -> Plan:
        if node["float"] not in ("nan", "inf", "-inf"):
            raise wrong(place, node["float"])
        return Plan(node, float, DATA, lambda: float(node["float"]))

    def read_complex(self, node: Any, place: Place, depth: int) -> Plan:
        parts = self._items(node["complex"], place, depth)
        if len(parts) != 2 or not all(part.kind is float for part in parts):
            raise ConfigError(f"{place} is described wrongly: a complex number is a list of two.")
        return constant(node, complex(*(part.make() for part in parts)))

    def read_list(self, node: Any, place: Place, depth: int) -> Plan:
        return _held(node, list, self._items(node["list"], place, depth))

    def read_tuple(self, node: Any, place: Place, depth: int) -> Plan:
        return _held(node, tuple, self._items(node["tuple"], place, depth))

    def read_set(self, node: Any, place: Place, depth: int) -> Plan:
        ((name, nodes),) = node.items()
        items = self._items(nodes, place, depth)
        _check_keys(items, place)
        return _held(node, set if name == "set" else frozenset, items)

    def read_dict(self, node: Any, place: Place, depth: int) -> Plan:
        ((name, nodes),) = node.items()
        if isinstance(nodes, Mapping):
            fields = self._fields(nodes, place, depth)
            keys, items = [constant(key, key) for key in fields], [*fields.values()]
        else:
            pairs = [self._items(pair, place, depth) for pair in listed(nodes, place)]
            if not all(len(pair) == 2 for pair in pairs):
                raise ConfigError(f"{place} is described wrongly: a dict is a list of pairs.")
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
            raise wrong(place, node)
        return Plan(node, kind, DATA, _call(kind, items, {}, place), items)

    def read_dtype(self, node: Any, place: Place, depth: int) -> Plan:
        return constant(node, checked_dtype(node["dtype"], place), DTYPE)

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
        shape = checked_shape(shape, place)
        items = self._items(numbers, place, depth)
        if len(items) != math.prod(shape) or not all(
            item.kind in _lookup.NUMBER_TYPES for item in items
        ):
            raise ConfigError(
                f"{place} is described wrongly: {len(items)} values do not make an array of shape {shown(shape)}."
            )
        dtype = checked_dtype(dtype, place)
        try:
            return (
                np.array([item.make() for item in items], python_kind(dtype))
                .astype(dtype)
                .reshape(shape)
            )
        except (OverflowError, TypeError, ValueError) as error:
            raise ConfigError(f"{place} is described wrongly: {error!s:.200}.") from error

    # Names

    def read_function(self, node: Any, place: Place, depth: int) -> Plan:
        name = checked(node["function"], str, place)
        function = _lookup.function_named(name)
        if function is None:
            raise ConfigError(
                f"{place} is the function {shown(name)}, which is not taken from a file.\n"
                f"Functions of {', '.join(_allowed.FUNCTIONS)} are, if they only compute arrays, and those that you register."
            )
        is_dtype = isinstance(getattr(function, "dtype", None), np.dtype)
        return Plan(
            node,
            types.FunctionType,
            DTYPE if is_dtype else FUNCTION,
            lambda: function,
            value=function,
        )

    def read_type(self, node: Any, place: Place, depth: int) -> Plan:
        number_type = _lookup.number_type_named(checked(node["type"], str, place))
        if number_type is not None:
            return constant(node, number_type, DTYPE)
        found = self._class(node["type"], _lookup.is_module_class, place)
        if found.is_wrapper:
            raise wrong(place, node["type"], " makes a module of what it is called with")
        return constant(node, found.kind, CLASS)

    def read_enum(self, node: Any, place: Place, depth: int) -> Plan:
        kind: Any = self._class(node["enum"], _lookup.is_enum, place).kind
        name = checked(node.get("member"), str, place)
        members = type.__getattribute__(kind, "_member_map_")
        if name not in members:
            raise ConfigError(f"{place} is {shown(name)}, which {kind.__name__:.80} does not have.")
        # Not `constant`: a member may be of a class with a metaclass of its own.
        return Plan(node, kind, DATA, lambda: members[name], value=members[name])

    def read_registered(self, node: Any, place: Place, depth: int) -> Plan:
        name = node.get("registered")
        found = registered(name, place)
        if "config" not in node:
            return constant(node, found, TRUSTED)
        if not (isinstance(found, type) and _has(found, "get_config")):
            raise ConfigError(
                f"{place} is described wrongly: {shown(name)} is no class of objects that have a config."
            )
        config = self.plan(node["config"], place, depth + 1)
        if _has(found, "from_config"):
            make: Any = found.from_config  # type: ignore[attr-defined]
            return Plan(node, found, TRUSTED, lambda: make(config.make()), [config])
        if config.kind is not dict or not isinstance(config.node["dict"], Mapping):
            raise wrong(place, config.node)
        return Plan(
            node,
            found,
            TRUSTED,
            _call(found, [], {"config": config}, place, is_spread=True),
            [config],
        )

    def _class(
        self, reference: Any, is_right: Callable[[Any], bool], place: Place
    ) -> _lookup.Found:
        return self._names.class_named(checked(reference, str, place), is_right, place)

    # Calls

    def read_initializer(self, node: Any, place: Place, depth: int) -> Plan:
        name = checked(node["initializer"], str, place)
        factory = _allowed.named(_allowed.FACTORIES, name)
        if factory is None:
            raise ConfigError(
                f"{place} is made by {shown(name)}, which is no factory of initializers."
            )
        arguments = self._fields(node.get("arguments", {}), place, depth)
        parameters = inspect.signature(factory).parameters
        for key, plan in arguments.items():
            if key not in parameters:
                raise ConfigError(
                    f"{place} cannot be made as it is described: {name} has no argument {shown(key)}."
                )
            if not (plays(plan, _allowed.FUNCTION) if key == "fn" else plan.is_data):
                raise wrong(place + _part(key), plan.node)
        return Plan(node, types.FunctionType, FUNCTION, _call(factory, [], arguments, place))

    def read_partial(self, node: Any, place: Place, depth: int) -> Plan:
        function = self.plan(node["partial"], place, depth + 1)
        arguments = self._items(node.get("arguments", []), place, depth)
        keywords = self._fields(node.get("keywords", {}), place, depth)
        if function.tag in (FUNCTION, DTYPE) and function.kind is types.FunctionType:
            # Data alone, for what calls functions that it is given.
            for plan in (*arguments, *keywords.values()):
                if not plan.is_data:
                    raise wrong(
                        place,
                        plan.node,
                        " is no data, and a function of the list takes nothing else from a file",
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
                        f"{place} cannot be made as it is described: {kind.__name__} has fewer fields."
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
            raise wrong(place, function.node, " is no function of which a part may be given")
        tag = {CLASS: CLASS, TRUSTED: TRUSTED}.get(function.tag, FUNCTION)
        return Plan(
            node,
            functools.partial,
            tag,
            _call(functools.partial, [function, *arguments], keywords, place),
            arguments,
        )

    def read_object(self, node: Any, place: Place, depth: int) -> Plan:
        found = self._class(node["object"], is_dataclass, place)
        fields = self._fields(node.get("fields", {}), place, depth)
        self._check_fields(found, fields, place)
        tag = MODULE if found.is_module else TRUSTED if found.is_given else HOLDER
        return Plan(node, found.kind, tag, _call(found.kind, [], fields, place), [*fields.values()])

    def read_named_tuple(self, node: Any, place: Place, depth: int) -> Plan:
        kind = self._class(node["named_tuple"], is_named_tuple, place).kind
        items = self._items(node.get("fields", []), place, depth)
        declared = self._types_of(kind)
        for name, plan in zip(kind._fields, items, strict=False):  # type: ignore[attr-defined]
            _check_type(plan, declared.get(name, ()), place + f".{name}")
        return Plan(node, kind, HOLDER, _call(kind, items, {}, place), items)

    def read_constructor(self, node: Any, place: Place, depth: int) -> Plan:
        constructor = node["constructor"]
        if isinstance(constructor, str):
            factory: Any = self._class(constructor, _lookup.is_module_class, place).kind
            nnx = sys.modules.get("flax.nnx")
            if nnx is None or not issubclass(factory, nnx.Module):
                raise wrong(place, constructor, " is no class of NNX modules")
        else:
            factory = named_function(checked(constructor, Mapping, place), place)
            if not _lazy.takes_rngs(factory):
                # What makes modules takes them; anything else is not to be called with what stands in a file.
                raise wrong(place, constructor, " is no function of `rngs` that makes a module")
        arguments = self._items(node.get("arguments", []), place, depth)
        keywords = self._fields(node.get("keywords", {}), place, depth)
        self._check_arguments(factory, arguments, keywords, place)
        kind = factory if isinstance(factory, type) else _lazy.LazyModule
        make = _call(
            _lazy.LazyModule, [constant(constructor, factory), *arguments], keywords, place
        )
        return Plan(node, kind, MODULE, make, [*arguments, *keywords.values()])

    def read_custom(self, node: Any, place: Place, depth: int) -> Plan:
        reference = checked(node["custom"], str, place)
        name = reference.partition(":")[2].rpartition(".")[2]
        found = keras.saving.get_registered_object(reference) or keras.saving.get_registered_object(
            name
        )
        if not (callable(found) and _lazy.takes_rngs(found)):
            raise ConfigError(
                f"{place} is of the class {shown(name)}, and with which arguments it was made is not known.\n"
                f"Give a function of `rngs` that makes it: {custom_objects(name)}."
            )
        return Plan(node, _lazy.LazyModule, MODULE, lambda: _lazy.LazyModule(found))

    # Fields and arguments

    def _types_of(self, kind: type) -> dict[str, Type]:
        if kind not in self._types:
            self._types[kind] = of_fields(kind)
        return self._types[kind]

    def _check_fields(
        self,
        found: _lookup.Found,
        fields: Mapping[str, Plan],
        place: Place,
        *,
        is_partial: bool = False,
    ) -> None:
        """Check the fields of a dataclass by their names, roles and declared types."""
        kind, is_module = found.kind, found.is_module
        known: Mapping[str, dataclasses.Field[Any]] = kind.__dataclass_fields__  # type: ignore[attr-defined]
        declared = self._types_of(kind)
        parts: frozenset[str] = (
            frozenset() if found.owner is None else frozenset(_fields_of(found.owner))
        )
        has_own_constructor = not _lookup.is_written_constructor(kind)
        for name, plan in fields.items():
            here = place + _part(name)
            if name not in known or not known[name].init or name.startswith("__"):
                if has_own_constructor and name not in known and not name.startswith("_"):
                    continue
                raise ConfigError(
                    f"{here} cannot be made as it is described: {kind.__name__:.80} has no such field."
                )
            if is_module and name == "parent" and plan.node is not None:
                raise wrong(here, plan.node)
            if name in parts:
                _check_role(plan, _allowed.ROLES.get(name, _allowed.DATA), here)
            if not _is_default(plan, known[name]):
                _check_type(plan, declared[name], here)
        if "nnx_class" in parts:
            self._check_wrapped(fields, place)
        if is_module or found.is_given or is_partial:
            return
        for name, field in known.items():
            if name not in fields and not _lookup.is_harmless_default(field):
                raise ConfigError(
                    f"{place} leaves out the field {name!r:.80} of {kind.__name__:.80}, whose default a function makes.\n"
                    + _lookup.trusting(kind)
                )

    def _check_wrapped(self, fields: Mapping[str, Plan], place: Place) -> None:
        """Check the arguments of the NNX class that a Linen module wraps."""
        wrapped, args, kwargs = (fields.get(name) for name in ("nnx_class", "args", "kwargs"))
        if wrapped is None or wrapped.tag != CLASS or "type" not in wrapped.node:
            if wrapped is None and args is None and kwargs is None:
                return
            raise wrong(
                place,
                None if wrapped is None else wrapped.node,
                " is no class of modules that is wrapped",
            )
        for plan, kinds in ((args, (list, tuple)), (kwargs, (dict, flax.core.FrozenDict))):
            if plan is not None and plan.kind not in kinds:
                raise wrong(place, plan.node)
        names = [] if kwargs is None else _keys(kwargs, place)
        self._check_arguments(
            wrapped.make(),
            list(args.items) if args else [],
            dict(zip(names, kwargs.items if kwargs else (), strict=True)),
            place,
        )

    def _check_arguments(
        self, factory: Any, arguments: Sequence[Plan], keywords: Mapping[str, Plan], place: Place
    ) -> None:
        """Check the arguments of what makes modules by their names, roles and declared types."""
        parameters = _lazy.parameters(factory)
        if not parameters:
            return
        declared = of_arguments(factory, parameters)
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
                maker = f"{getattr(factory, '__name__', 'what makes it')!s:.80}"
                raise ConfigError(
                    f"{place} cannot be made as it is described: {maker} has no such argument."
                )
            here = place + _part(name)
            if name == _lazy.RNGS and plan.node is not None:
                raise wrong(here, plan.node)
            if has_roles:
                _check_role(plan, _allowed.ROLES.get(name, _allowed.DATA), here)
            default = parameters[name].default
            if not (plan.kind is types.NoneType and default is None):
                _check_type(plan, declared.get(name, ()), here)


def _part(name: Any) -> str:
    """A field in a place; what could not be one is quoted."""
    return f".{name:.60}" if isinstance(name, str) and name.isidentifier() else f"[{shown(name)}]"


def _fields_of(owner: type) -> Sequence[str]:
    return list(owner.__dataclass_fields__) if is_dataclass(owner) else []  # type: ignore[attr-defined]


def _check_role(plan: Plan, role: str, place: Place) -> None:
    if not plays(plan, role):
        raise ConfigError(
            f"{place} cannot be made as it is described: {shown(plan.node)} is not {role}."
        )


def _check_type(plan: Plan, declared: Type, place: Place) -> None:
    if not fits(plan, declared):
        names = ", ".join(
            f"{getattr(each.origin, '__name__', each.origin)!s:.60}" for each in declared[:5]
        )
        raise ConfigError(
            f"{place} cannot be made as it is described: {shown(plan.node)} is not of its declared type, {names}."
        )


def _is_default(plan: Plan, field: dataclasses.Field[Any]) -> bool:
    """Whether a value is the default of its field, whatever type that declares."""
    if plan.kind is types.NoneType or plan.tag == FUNCTION:
        return plan.value is field.default
    is_scalar = plan.kind in (bool, int, float, str) and plan.items == ()
    return is_scalar and type(field.default) is plan.kind and plan.make() == field.default


def _held(node: Json, kind: type, items: Sequence[Plan]) -> Plan:
    return Plan(node, kind, DATA, lambda: kind(item.make() for item in items), items)


def _check_keys(keys: Sequence[Plan], place: Place) -> None:
    """Refuse what Python cannot look up, or not without calling a user's code."""
    if len(keys) > _MOST_KEYS:
        raise ConfigError(
            f"{place} is described wrongly: it has {len(keys)} keys, and {_MOST_KEYS} are read."
        )
    numbers = sum(not isinstance(key.node, str) for key in keys)
    if numbers > _limits.MOST_CONFIG_KEYS_NOT_TEXT:
        raise ConfigError(
            f"{place} is described wrongly: {numbers} of its keys are no texts, and {_limits.MOST_CONFIG_KEYS_NOT_TEXT} are read."
        )
    for key in keys:
        if not key.is_key:
            raise wrong(place, key.node, " is no key")


def _keys(plan: Plan, place: Place) -> list[str]:
    """The keys of a dict of arguments by name."""
    ((_, nodes),) = plan.node.items()
    if not isinstance(nodes, Mapping):
        raise wrong(place, plan.node)
    return list(nodes)


def _has(kind: type, name: str) -> bool:
    return any(name in vars(base) for base in mro(kind))


def _call(
    function: Any,
    arguments: Sequence[Plan],
    keywords: Mapping[str, Plan],
    place: Place,
    *,
    is_spread: bool = False,
) -> Callable[[], Any]:
    """What calls a function with planned arguments; `is_spread` has all those by name in one dict."""

    def make() -> Any:
        values, named = (
            [plan.make() for plan in arguments],
            {name: plan.make() for name, plan in keywords.items()},
        )
        try:
            return function(*values, **(named["config"] if is_spread else named))
        except (TypeError, ValueError, AssertionError) as error:
            raise ConfigError(
                f"{place} cannot be made as it is described: {error!s:.500}."
            ) from error

    return make


_KINDS: Mapping[str, tuple[tuple[str, ...], Callable[[_Reader, Any, Place, int], Plan]]] = {
    "object": (("fields",), _Reader.read_object),
    "constructor": (("arguments", "keywords"), _Reader.read_constructor),
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
    "named_tuple": (("fields",), _Reader.read_named_tuple),
    "enum": (("member",), _Reader.read_enum),
    "dtype": ((), _Reader.read_dtype),
    "partition_spec": ((), _Reader.read_partition_spec),
    "array": (("shape", "dtype", "of"), _Reader.read_array),
    "number": (("dtype",), _Reader.read_number),
    "float": ((), _Reader.read_float),
    "complex": ((), _Reader.read_complex),
}
