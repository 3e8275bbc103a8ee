"""The types that classes and functions declare for their fields and arguments.

A declared type may be text (`from __future__ import annotations`). It is then taken apart, and its names are looked up where
they were written: no text is evaluated, and nothing is imported. What cannot be told is no type, and checks nothing.
"""

from __future__ import annotations

import ast
import builtins
import dataclasses
import functools
import inspect
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True, slots=True)
class Alternative:
    """One of the types that a value may have: a class, or a form such as `typing.Literal`, and its arguments."""

    origin: Any
    arguments: tuple[Any, ...] = ()


# Alternatives; without any, whatever there is.
Type = tuple[Alternative, ...]
ANYTHING: Type = ()
_NOTHING: Type = (Alternative(types.NoneType),)
_FORWARD = ("Annotated", "ClassVar", "Final", "NotRequired", "ReadOnly", "Required")
Scope = Sequence[Mapping[str, Any]]


def mro(kind: type) -> tuple[type, ...]:
    """A class and its bases, without asking its metaclass."""
    result: tuple[type, ...] = type.__dict__["__mro__"].__get__(kind)
    return result


def is_dataclass(value: Any) -> bool:
    """Whether it is a dataclass; a class is not asked for attributes that it may make up."""
    return isinstance(value, type) and any(
        "__dataclass_fields__" in vars(base) for base in mro(value)
    )


def is_named_tuple(value: Any) -> bool:
    """Whether it is a class of named tuples."""
    return (
        isinstance(value, type)
        and tuple in mro(value)
        and any("_fields" in vars(base) for base in mro(value))
    )


def of_fields(kind: type) -> dict[str, Type]:
    """The declared types of the fields of a dataclass, or of a named tuple."""
    if is_dataclass(kind):
        fields: Mapping[str, dataclasses.Field[Any]] = kind.__dataclass_fields__  # type: ignore[attr-defined]
        return {name: resolved(field.type, _scope_of(kind, name)) for name, field in fields.items()}
    declared = {
        name: (base, kind)
        for base in reversed(mro(kind))
        for name, kind in _annotations(base).items()
    }
    return {name: resolved(kind, _scope_of(base)) for name, (base, kind) in declared.items()}


def of_arguments(
    function: Callable[..., Any], parameters: Mapping[str, inspect.Parameter]
) -> dict[str, Type]:
    """The declared types of the parameters of a function, or of a class's constructor."""
    code = function.__init__ if isinstance(function, type) else function  # type: ignore[misc]
    scope = [getattr(inspect.unwrap(code), "__globals__", {}), vars(builtins)]
    return {name: resolved(parameter.annotation, scope) for name, parameter in parameters.items()}


def classes(kind: Type) -> Iterator[type]:
    """Every class that a type names."""
    for alternative in kind:
        if isinstance(alternative.origin, type):
            yield alternative.origin
        for argument in alternative.arguments if alternative.origin is not typing.Literal else ():
            yield from classes(argument)


def resolved(annotation: Any, scope: Scope) -> Type:
    """A type as a person has written it, or as text of it, in alternatives."""
    try:
        return _resolved(annotation, scope)
    except Exception:
        # Whatever a foreign type may raise, it says nothing then.
        return ANYTHING


def _resolved(annotation: Any, scope: Scope) -> Type:
    if isinstance(annotation, typing.ForwardRef):
        annotation = annotation.__forward_arg__
    if isinstance(annotation, str):
        try:
            return _parsed(ast.parse(annotation.strip(), mode="eval").body, scope)
        except (SyntaxError, ValueError):
            return ANYTHING
    if annotation is None or annotation is types.NoneType:
        return _NOTHING
    if isinstance(annotation, dataclasses.InitVar):
        return _resolved(annotation.type, scope)
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is None:
        if isinstance(annotation, typing.NewType):
            return _resolved(annotation.__supertype__, scope)
        no_type = (object, Any, inspect.Parameter.empty)
        is_class = isinstance(annotation, type) and all(annotation is not each for each in no_type)
        return (Alternative(annotation),) if is_class else ANYTHING
    return _subscripted(
        origin, [functools.partial(_resolved, each, scope) for each in arguments], arguments
    )


def _subscripted(
    origin: Any, arguments: Sequence[Callable[[], Type]], values: Sequence[Any]
) -> Type:
    """What stands for a form or a class and its arguments, which are resolved only where they are types."""
    if origin in (typing.Union, types.UnionType):
        return _union([argument() for argument in arguments])
    if origin is typing.Literal:
        return (Alternative(origin, tuple(values)),)
    if getattr(origin, "_name", None) in _FORWARD or origin is typing.Annotated:
        return arguments[0]()
    if not isinstance(origin, type):
        return ANYTHING
    if origin.__module__ == "collections.abc" and origin.__name__ == "Callable":
        return (Alternative(origin),)
    return (
        Alternative(
            origin,
            tuple(
                argument()
                for argument, value in zip(arguments, values, strict=True)
                if value is not ...
            ),
        ),
    )


def _union(members: Sequence[Type]) -> Type:
    return ANYTHING if ANYTHING in members else tuple(each for member in members for each in member)


def _parsed(node: ast.expr, scope: Scope) -> Type:
    if isinstance(node, ast.Constant):
        return (
            _resolved(node.value, scope)
            if node.value is None or isinstance(node.value, str)
            else ANYTHING
        )
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return _union([_parsed(node.left, scope), _parsed(node.right, scope)])
    if isinstance(node, (ast.Name, ast.Attribute)):
        found = _looked_up(node, scope)
        return ANYTHING if found is _MISSING else _resolved(found, scope)
    if not isinstance(node, ast.Subscript):
        return ANYTHING
    form = _looked_up(node.value, scope)
    items = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    if form is typing.Optional:
        return _union([_parsed(items[0], scope), _NOTHING])
    values = [item.value if isinstance(item, ast.Constant) else item for item in items]
    origin = form if form in (typing.Union, typing.Literal) else typing.get_origin(form) or form
    return _subscripted(origin, [functools.partial(_parsed, item, scope) for item in items], values)


_MISSING = object()


def _looked_up(node: ast.expr, scope: Scope) -> Any:
    """What a dotted name stands for: of a module or class what lies in it, and nothing that it would make up."""
    if isinstance(node, ast.Name):
        return next((names[node.id] for names in scope if node.id in names), _MISSING)
    if not isinstance(node, ast.Attribute):
        return _MISSING
    owner = _looked_up(node.value, scope)
    if isinstance(owner, types.ModuleType):
        return vars(owner).get(node.attr, _MISSING)
    if isinstance(owner, type):
        return next(
            (vars(base)[node.attr] for base in mro(owner) if node.attr in vars(base)), _MISSING
        )
    return _MISSING


def _annotations(kind: type) -> Mapping[str, Any]:
    try:
        return inspect.get_annotations(kind) if kind is not object else {}
    except Exception:
        # Newer versions of Python evaluate them.
        return {}


def _scope_of(kind: type, field: str | None = None) -> Scope:
    """The names that stand where a class declares its fields: its own module's, or that of the base that has the field."""
    owner = next(
        (base for base in mro(kind) if field is not None and field in _annotations(base)), kind
    )
    return [
        vars(owner),
        *filter(
            None, [vars(sys.modules[owner.__module__]) if owner.__module__ in sys.modules else None]
        ),
        vars(builtins),
    ]
