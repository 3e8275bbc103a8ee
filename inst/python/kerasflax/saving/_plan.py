"""Plans: what a description will create, known before anything is created.

A description is read in two passes. The first pass resolves every class and function, checks every
value, and returns a `Plan`. The second pass creates what was planned. Code of a user's classes can
run only in the second pass.
"""

from __future__ import annotations

import abc
import collections.abc
import dataclasses
import enum
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.core
import jax
import numpy as np

from ..adapters._lazy import LazyModule
from . import _allowed
from ._field_types import Alternative, Type, mro

# The tags of plans. A tag decides where a value may appear.
DATA, DTYPE, HOLDER = "data", "dtype", "holder"
FUNCTION, CLASS, MODULE = "function", "class", "module"
# Registered by the user, or passed as a custom object: may appear anywhere.
TRUSTED = "trusted"

_UNKNOWN = object()


@dataclasses.dataclass(slots=True, eq=False, repr=False)
class Plan:
    """How to create a value.

    Attributes:
        node: The description of the value.
        kind: The class of the value.
        tag: One of the tags above.
        make: Creates the value.
        items: The plans of the values inside it.
        value: The value itself, if it already exists.
    """

    node: Any
    kind: type
    tag: str
    make: Callable[[], Any]
    items: Sequence[Plan] = ()
    value: Any = _UNKNOWN

    @property
    def is_key(self) -> bool:
        """Whether the value can be hashed and compared without running a user's code."""
        if self.kind is tuple:
            return all(item.is_key for item in self.items)
        is_plain = self.kind in (types.NoneType, bool, int, float, complex, str)
        return (
            is_plain or (self.tag == DTYPE and self.kind is not type) or enum.Enum in mro(self.kind)
        )

    @property
    def is_data(self) -> bool:
        """Whether nothing in the value can be called, except what the user has registered."""
        return self.tag in (DTYPE, TRUSTED) or (
            self.tag in (DATA, HOLDER) and all(item.is_data for item in self.items)
        )


def constant(node: Any, value: Any, tag: str = DATA) -> Plan:
    """Return the plan of a value that already exists."""
    return Plan(node, type(value), tag, lambda: value, value=value)


def summary(node: Any) -> str:
    """Summarize a description of any size in a few words."""
    if isinstance(node, str):
        return repr(node[:60]) + "..." * (len(node) > 60)
    if isinstance(node, int) and abs(node) >= 2**64:
        return f"an integer of {node.bit_length()} bits"
    if node is None or isinstance(node, (bool, int, float)):
        return repr(node)
    if isinstance(node, Mapping):
        pairs = [
            f"{summary(key)}: {summary(node[key]) if isinstance(node[key], str) else '...'}"
            for key in list(node)[:3]
        ]
        return "{" + ", ".join(pairs) + ", ..." * (len(node) > 3) + "}"
    return (
        f"a list of {len(node)}"
        if isinstance(node, (list, tuple))
        else f"a value of class {type(node).__name__:.60}"
    )


# Roles: what fields of Flax's own modules may hold ------------------------------------------------


def matches_role(plan: Plan, role: str) -> bool:
    """Whether a value suits the role of a Flax module's field. The declared type handles None."""
    if plan.tag == TRUSTED or plan.kind is types.NoneType:
        return True
    if role == _allowed.PARTS:
        # Only lists and tuples: any other container could hold these too.
        return plan.kind in (list, tuple) and all(
            matches_role(item, _allowed.PART) for item in plan.items
        )
    if role == _allowed.ITEMS:
        return plan.kind in (list, tuple) and all(
            matches_role(item, _allowed.PART) or item.is_data for item in plan.items
        )
    if role == _allowed.CONTENTS:
        return True
    tags = {
        _allowed.FUNCTION: (FUNCTION, DTYPE),
        _allowed.CLASS: (CLASS, FUNCTION),
        _allowed.MODULE_CLASS: (CLASS,),
        _allowed.MODULE: (MODULE,),
        _allowed.PART: (MODULE, FUNCTION, DTYPE),
    }
    return plan.tag in tags[role] if role in tags else plan.is_data


# Declared types -----------------------------------------------------------------------------------

_NUMBERS = {
    bool: (bool, int),
    int: (bool, int),
    float: (bool, int, float),
    complex: (bool, int, float, complex),
}
_SEQUENCES = (list, tuple, set, frozenset, collections.abc.Sequence, collections.abc.Set)
_ITERABLES = (
    *(
        collections.abc.Sequence,
        collections.abc.MutableSequence,
        collections.abc.Set,
        collections.abc.Collection,
    ),
    *(
        collections.abc.Iterable,
        collections.abc.Container,
        collections.abc.Sized,
        collections.abc.Reversible,
    ),
)
_MAPPINGS = (dict, flax.core.FrozenDict, collections.abc.Mapping, collections.abc.MutableMapping)
_COLLECTIONS = (list, tuple, set, frozenset)
_METACLASSES = (type, abc.ABCMeta, enum.EnumMeta)


def matches_type(plan: Plan, declared: Type) -> bool:
    """Whether a value has a declared type. Numbers and lists match as leniently as in Flax."""
    # None matches every type, as in R.
    return (
        not declared
        or plan.tag == TRUSTED
        or plan.kind is types.NoneType
        or any(_matches_alternative(plan, alternative) for alternative in declared)
    )


def _matches_alternative(plan: Plan, declared: Alternative) -> bool:
    origin, arguments = declared.origin, declared.arguments
    if origin is typing.Literal:
        return any(type(value) is plan.kind and value == plan.value for value in arguments)
    if origin is collections.abc.Callable:
        return plan.tag in (FUNCTION, CLASS, MODULE, DTYPE)
    if origin is type:
        return plan.tag in (CLASS, DTYPE)
    if (origin in _NUMBERS or origin is str) and plan.kind is tuple:
        # A field of an R module whose default is a vector.
        return bool(plan.items) and all(_matches_alternative(item, declared) for item in plan.items)
    if origin in _NUMBERS:
        return _is_number(plan, origin)
    if origin in _MAPPINGS:
        is_mapping = plan.kind in (dict, flax.core.FrozenDict) or _is_config_object(plan)
        return is_mapping and all(
            matches_type(item, arguments[-1] if arguments else ()) for item in plan.items
        )
    if origin in _SEQUENCES or origin in _ITERABLES:
        return _is_sequence(plan, origin, arguments)
    if _is_array_type(origin):
        return (
            plan.kind in (bool, int, float, complex)
            or _is_array_type(plan.kind)
            or plan.tag == DTYPE
            or _is_dtype_name(plan, origin)
        )
    if origin is str:
        return str in mro(plan.kind)
    # The class that a user's function returns is not known until it has been called.
    is_open = plan.tag == MODULE and plan.kind is LazyModule
    return is_open or origin in mro(plan.kind) or _has_open_instances(origin)


def _is_config_object(plan: Plan) -> bool:
    return isinstance(plan.node, Mapping) and "config_object" in plan.node


def _is_number(plan: Plan, kind: type) -> bool:
    if kind is int and plan.kind is float and plan.value is not _UNKNOWN:
        # R writes 64 for 64L.
        return bool(plan.value.is_integer())
    is_number = plan.kind in _NUMBERS[kind] or _is_array_type(plan.kind)
    return is_number or any(base in _NUMBERS[kind] for base in mro(plan.kind))


def _is_sequence(plan: Plan, origin: type, arguments: Sequence[Type]) -> bool:
    if plan.kind is str:
        return origin in _ITERABLES and matches_type(plan, arguments[0] if arguments else ())
    if _is_array_type(plan.kind):
        return origin in _ITERABLES
    if plan.kind in _MAPPINGS:
        return origin in _ITERABLES[3:] or origin is collections.abc.Collection
    if (
        not any(base in _COLLECTIONS for base in mro(plan.kind))
        and plan.kind is not jax.sharding.PartitionSpec
    ):
        return False
    if origin is tuple and len(arguments) == len(plan.items) > 1:
        return all(map(matches_type, plan.items, arguments))
    every: Type = (
        () if () in arguments else tuple(each for argument in arguments for each in argument)
    )
    return all(matches_type(item, every) for item in plan.items)


def _is_array_type(kind: Any) -> bool:
    """Whether a class is an array class, a NumPy or JAX number type, or one of their dtypes."""
    known = (np.ndarray, np.generic, np.dtype, jax.Array)
    return isinstance(kind, type) and (
        any(base in known for base in mro(kind))
        or isinstance(getattr(kind, "dtype", None), np.dtype)
    )


def _is_dtype_name(plan: Plan, origin: type) -> bool:
    return plan.kind is str and np.dtype in mro(origin)


def _has_open_instances(origin: type) -> bool:
    """Whether objects that do not inherit from a class can be its instances.

    True of protocols, the standard library's abstract classes, and classes whose metaclass defines
    `__instancecheck__`.
    """
    is_abstract = origin.__module__ in ("collections.abc", "typing", "numbers", "os")
    own = [
        base
        for base in mro(type(origin))
        if base not in _METACLASSES and "__instancecheck__" in vars(base)
    ]
    return is_abstract or bool(own) or bool(vars(origin).get("_is_protocol"))
