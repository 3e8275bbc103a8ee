"""The types that classes and functions declare for their fields and arguments.

An annotation can be text (`from __future__ import annotations`). The text is parsed, and its names
are looked up in the scope where they were written. No text is evaluated, and nothing is imported.
An annotation that cannot be resolved allows any value.
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
    """One of the types that a value may have.

    Attributes:
        origin: A class, or a typing form such as `typing.Literal`.
        arguments: The arguments of the class or form.
    """

    origin: Any
    arguments: tuple[Any, ...] = ()


# The alternatives of a type. An empty tuple allows any value.
Type = tuple[Alternative, ...]
ANYTHING: Type = ()
_NOTHING: Type = (Alternative(types.NoneType),)
_FORWARD = ("Annotated", "ClassVar", "Final", "NotRequired", "ReadOnly", "Required")
Scope = Sequence[Mapping[str, Any]]


def mro(kind: type) -> tuple[type, ...]:
    """Return a class and its bases without calling its metaclass."""
    result: tuple[type, ...] = type.__dict__["__mro__"].__get__(kind)
    return result


def is_dataclass(value: Any) -> bool:
    """Whether a value is a dataclass. Reads no attribute that a metaclass could invent."""
    return isinstance(value, type) and any(
        "__dataclass_fields__" in vars(base) for base in mro(value)
    )


def is_named_tuple(value: Any) -> bool:
    """Whether a value is a named tuple class."""
    return (
        isinstance(value, type)
        and tuple in mro(value)
        and any("_fields" in vars(base) for base in mro(value))
    )


def types_of_fields(kind: type) -> dict[str, Type]:
    """Return the declared types of the fields of a dataclass or named tuple."""
    if is_dataclass(kind):
        fields: Mapping[str, dataclasses.Field[Any]] = kind.__dataclass_fields__  # type: ignore[attr-defined]
        return {name: resolve(field.type, _scope_of(kind, name)) for name, field in fields.items()}
    declared = {
        name: (base, kind)
        for base in reversed(mro(kind))
        for name, kind in _annotations(base).items()
    }
    return {name: resolve(kind, _scope_of(base)) for name, (base, kind) in declared.items()}


def types_of_arguments(
    function: Callable[..., Any], parameters: Mapping[str, inspect.Parameter]
) -> dict[str, Type]:
    """Return the declared types of the parameters of a function, or of a class's constructor."""
    code = function.__init__ if isinstance(function, type) else function  # type: ignore[misc]
    scope = [getattr(inspect.unwrap(code), "__globals__", {}), vars(builtins)]
    return {name: resolve(parameter.annotation, scope) for name, parameter in parameters.items()}


def classes(kind: Type) -> Iterator[type]:
    """Yield every class that a type names."""
    for alternative in kind:
        if isinstance(alternative.origin, type):
            yield alternative.origin
        for argument in alternative.arguments if alternative.origin is not typing.Literal else ():
            yield from classes(argument)


def resolve(annotation: Any, scope: Scope) -> Type:
    """Resolve an annotation, an object or text, into alternatives."""
    try:
        return _resolve(annotation, scope)
    except Exception:
        # A foreign type can raise anything. It then allows any value.
        return ANYTHING


def _resolve(annotation: Any, scope: Scope) -> Type:
    if isinstance(annotation, typing.ForwardRef):
        annotation = annotation.__forward_arg__
    if isinstance(annotation, str):
        try:
            return _parse(ast.parse(annotation.strip(), mode="eval").body, scope)
        except (SyntaxError, ValueError):
            return ANYTHING
    if annotation is None or annotation is types.NoneType:
        return _NOTHING
    if isinstance(annotation, dataclasses.InitVar):
        return _resolve(annotation.type, scope)
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is None:
        if isinstance(annotation, typing.NewType):
            return _resolve(annotation.__supertype__, scope)
        no_type = (object, Any, inspect.Parameter.empty)
        is_class = isinstance(annotation, type) and all(annotation is not each for each in no_type)
        return (Alternative(annotation),) if is_class else ANYTHING
    return _subscripted(
        origin, [functools.partial(_resolve, each, scope) for each in arguments], arguments
    )


def _subscripted(
    origin: Any, arguments: Sequence[Callable[[], Type]], values: Sequence[Any]
) -> Type:
    """Return the type of a subscripted form or class. Resolves only arguments that are types."""
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


def _parse(node: ast.expr, scope: Scope) -> Type:
    if isinstance(node, ast.Constant):
        return (
            _resolve(node.value, scope)
            if node.value is None or isinstance(node.value, str)
            else ANYTHING
        )
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return _union([_parse(node.left, scope), _parse(node.right, scope)])
    if isinstance(node, (ast.Name, ast.Attribute)):
        found = _look_up(node, scope)
        return ANYTHING if found is _MISSING else _resolve(found, scope)
    if not isinstance(node, ast.Subscript):
        return ANYTHING
    form = _look_up(node.value, scope)
    items = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    if form is typing.Optional:
        return _union([_parse(items[0], scope), _NOTHING])
    values = [item.value if isinstance(item, ast.Constant) else item for item in items]
    origin = form if form in (typing.Union, typing.Literal) else typing.get_origin(form) or form
    return _subscripted(origin, [functools.partial(_parse, item, scope) for item in items], values)


_MISSING = object()


def _look_up(node: ast.expr, scope: Scope) -> Any:
    """Look up a dotted name in the namespaces of modules and classes, never by `getattr()`."""
    if isinstance(node, ast.Name):
        return next((names[node.id] for names in scope if node.id in names), _MISSING)
    if not isinstance(node, ast.Attribute):
        return _MISSING
    owner = _look_up(node.value, scope)
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
        # Newer versions of Python evaluate annotations.
        return {}


def _scope_of(kind: type, field: str | None = None) -> Scope:
    """Return the namespaces in which the annotations of a class, or of one field, were written.

    A field's annotation was written in the base class that declares the field.
    """
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
