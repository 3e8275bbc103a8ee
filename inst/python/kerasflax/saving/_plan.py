"""What a description will make, known before anything of it has been made.

A description is read in two passes. The first finds every class and function and checks every value, and leads to a `Plan`;
the second makes what has been planned. Code that belongs to a user's classes can run in the second alone.
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

# What a plan makes, as far as it matters where it may stand.
DATA, DTYPE, HOLDER = "data", "dtype", "holder"
FUNCTION, CLASS, MODULE = "function", "class", "module"
# What the user has registered, or given as a custom object: may stand anywhere.
TRUSTED = "trusted"

_UNKNOWN = object()


@dataclasses.dataclass(slots=True, eq=False, repr=False)
class Plan:
    """How to make a value.

    Attributes:
        node: Its description.
        kind: The class of the value.
        tag: What it is, of the words above.
        make: What makes it.
        items: Plans of what it holds.
        value: The value itself, of what is there already.
    """

    node: Any
    kind: type
    tag: str
    make: Callable[[], Any]
    items: Sequence[Plan] = ()
    value: Any = _UNKNOWN

    @property
    def is_key(self) -> bool:
        """Whether it can be hashed and compared without running code of a user."""
        if self.kind is tuple:
            return all(item.is_key for item in self.items)
        is_plain = self.kind in (types.NoneType, bool, int, float, complex, str)
        return (
            is_plain or (self.tag == DTYPE and self.kind is not type) or enum.Enum in mro(self.kind)
        )

    @property
    def is_data(self) -> bool:
        """Whether there is nothing in it that could be called, but what the user has registered."""
        return self.tag in (DTYPE, TRUSTED) or (
            self.tag in (DATA, HOLDER) and all(item.is_data for item in self.items)
        )


def constant(node: Any, value: Any, tag: str = DATA) -> Plan:
    """The plan of a value that is there already."""
    return Plan(node, type(value), tag, lambda: value, value=value)


def shown(node: Any) -> str:
    """A description in a few words, whatever its size."""
    if isinstance(node, str):
        return repr(node[:60]) + "..." * (len(node) > 60)
    if isinstance(node, int) and abs(node) >= 2**64:
        return f"an integer of {node.bit_length()} bits"
    if node is None or isinstance(node, (bool, int, float)):
        return repr(node)
    if isinstance(node, Mapping):
        pairs = [
            f"{shown(key)}: {shown(node[key]) if isinstance(node[key], str) else '...'}"
            for key in list(node)[:3]
        ]
        return "{" + ", ".join(pairs) + ", ..." * (len(node) > 3) + "}"
    return (
        f"a list of {len(node)}"
        if isinstance(node, (list, tuple))
        else f"a value of class {type(node).__name__:.60}"
    )


# Roles: what fields of Flax's own modules may be ------------------------------------------------------------------------


def plays(plan: Plan, role: str) -> bool:
    """Whether a value may be what a field of a module of Flax is for; None is left to the declared type."""
    if plan.tag == TRUSTED or plan.kind is types.NoneType:
        return True
    if role == _allowed.PARTS:
        # Of a list, which could be in anything that holds.
        return plan.kind in (list, tuple) and all(plays(item, _allowed.PART) for item in plan.items)
    if role == _allowed.ITEMS:
        return plan.kind in (list, tuple) and all(
            plays(item, _allowed.PART) or item.is_data for item in plan.items
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


# Declared types ---------------------------------------------------------------------------------------------------------

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
_HELD = (list, tuple, set, frozenset)
_METACLASSES = (type, abc.ABCMeta, enum.EnumMeta)


def fits(plan: Plan, declared: Type) -> bool:
    """Whether a value is of a declared type, as leniently as Flax takes numbers and lists."""
    # None is of every type, as it is in R.
    return (
        not declared
        or plan.tag == TRUSTED
        or plan.kind is types.NoneType
        or any(_fits(plan, alternative) for alternative in declared)
    )


def _fits(plan: Plan, declared: Alternative) -> bool:
    origin, arguments = declared.origin, declared.arguments
    if origin is typing.Literal:
        return any(type(value) is plan.kind and value == plan.value for value in arguments)
    if origin is collections.abc.Callable:
        return plan.tag in (FUNCTION, CLASS, MODULE, DTYPE)
    if origin is type:
        return plan.tag in (CLASS, DTYPE)
    if (origin in _NUMBERS or origin is str) and plan.kind is tuple:
        # A field of R that is declared by a vector.
        return bool(plan.items) and all(_fits(item, declared) for item in plan.items)
    if origin in _NUMBERS:
        return _is_number(plan, origin)
    if origin in _MAPPINGS:
        return plan.kind in (dict, flax.core.FrozenDict) and all(
            fits(item, arguments[-1] if arguments else ()) for item in plan.items
        )
    if origin in _SEQUENCES or origin in _ITERABLES:
        return _is_sequence(plan, origin, arguments)
    if _is_of_arrays(origin):
        return (
            plan.kind in (bool, int, float, complex)
            or _is_of_arrays(plan.kind)
            or plan.tag == DTYPE
            or _is_text(plan, origin)
        )
    if origin is str:
        return str in mro(plan.kind)
    # What a function of the user's makes is known when it has been made.
    is_open = plan.tag == MODULE and plan.kind is LazyModule
    return is_open or origin in mro(plan.kind) or _may_be_more(origin)


def _is_number(plan: Plan, kind: type) -> bool:
    if kind is int and plan.kind is float and plan.value is not _UNKNOWN:
        # R writes 64 for 64L.
        return bool(plan.value.is_integer())
    is_number = plan.kind in _NUMBERS[kind] or _is_of_arrays(plan.kind)
    return is_number or any(base in _NUMBERS[kind] for base in mro(plan.kind))


def _is_sequence(plan: Plan, origin: type, arguments: Sequence[Type]) -> bool:
    if plan.kind is str:
        return origin in _ITERABLES and fits(plan, arguments[0] if arguments else ())
    if _is_of_arrays(plan.kind):
        return origin in _ITERABLES
    if plan.kind in _MAPPINGS:
        return origin in _ITERABLES[3:] or origin is collections.abc.Collection
    if (
        not any(base in _HELD for base in mro(plan.kind))
        and plan.kind is not jax.sharding.PartitionSpec
    ):
        return False
    if origin is tuple and len(arguments) == len(plan.items) > 1:
        return all(map(fits, plan.items, arguments))
    every: Type = (
        () if () in arguments else tuple(each for argument in arguments for each in argument)
    )
    return all(fits(item, every) for item in plan.items)


def _is_of_arrays(kind: Any) -> bool:
    """Whether it is a class of arrays, of NumPy's or JAX's numbers, or of their dtypes."""
    known = (np.ndarray, np.generic, np.dtype, jax.Array)
    return isinstance(kind, type) and (
        any(base in known for base in mro(kind))
        or isinstance(getattr(kind, "dtype", None), np.dtype)
    )


def _is_text(plan: Plan, origin: type) -> bool:
    return plan.kind is str and np.dtype in mro(origin)


def _may_be_more(origin: type) -> bool:
    """Whether a class has instances that do not derive from it: a protocol, or one that decides for itself."""
    is_abstract = origin.__module__ in ("collections.abc", "typing", "numbers", "os")
    own = [
        base
        for base in mro(type(origin))
        if base not in _METACLASSES and "__instancecheck__" in vars(base)
    ]
    return is_abstract or bool(own) or bool(vars(origin).get("_is_protocol"))
