"""The names of classes and functions in a saved model: under which a thing is written down, and what may be had by a name.

A file may name whatever it likes. A name stands for what one of these holds, and for nothing else: the lists in `_allowed`;
Keras's custom objects and registry; the module classes that this process has defined; and the data classes, named tuples and
enums in the declared types of their fields, unless Python would call a method of theirs by itself. A name is compared with
those of classes that are there. It is never looked up in a package, and nothing is imported for it.
"""

from __future__ import annotations

import abc
import collections
import dataclasses
import enum
import reprlib
import sys
import types
import typing
import warnings
from collections.abc import Callable, Iterator
from types import FunctionType
from typing import Any

import flax.core
import flax.struct
import keras
from keras.src.backend.common.global_state import get_global_attribute

from .. import _host
from .._errors import ConfigError
from ..adapters import _lazy
from ..adapters._protocol import is_base, module_classes
from . import _allowed
from ._field_types import classes, is_dataclass, is_named_tuple, mro, of_arguments, of_fields

# Functions ------------------------------------------------------------------------------------------------------------


def function_name(value: Any) -> str | None:
    """The name under which a function may be taken from a file, if there is one."""
    return _allowed.reference(_allowed.FUNCTIONS, value)


def function_named(reference: str) -> Any:
    """The function of a name, or None where there is none that may be taken."""
    return _allowed.named(_allowed.FUNCTIONS, reference)


def factories() -> Iterator[tuple[str, Callable[..., Any]]]:
    """What makes initializers, by name."""
    return _allowed.entries(_allowed.FACTORIES)


def is_number_type(value: Any) -> bool:
    """Whether it is a class of numbers, Python's or NumPy's, that may be taken from a file."""
    return isinstance(value, type) and _allowed.reference(_allowed.NUMBER_TYPES, value) is not None


def number_type_named(reference: str) -> type | None:
    """The class of numbers of a name, or None where there is none."""
    found: type | None = _allowed.named(_allowed.NUMBER_TYPES, reference)
    return found


# Classes --------------------------------------------------------------------------------------------------------------

NUMBER_TYPES = (bool, int, float, complex)
_CLASSES = (_allowed.MODULES, _allowed.HOLDERS, _allowed.ENUMS, _allowed.NUMBER_TYPES)
# Of these the lists hold what may be taken, so that no import helps.
_LIBRARIES = ("flax", "jax", "keras", "kerasflax", "numpy")
# Where scripts and R sessions define their classes: each stands for the other.
_SESSIONS = {"__main__": "in a script of Python", "<r-globalenv>": "in a session or script of R"}


def class_name(kind: type, path: str) -> str:
    """A class by its module and its name in it; what the lists hold, as they name it."""
    listed = next(filter(None, (_allowed.reference(table, kind) for table in _CLASSES)), None)
    if listed is not None:
        return listed
    if "<locals>" in kind.__qualname__ and not is_module_class(kind):
        raise ConfigError(
            f"{path} cannot be saved: the class {kind.__qualname__} is made in a function.\nDefine it outside."
        )
    return f"{kind.__module__}:{kind.__qualname__}"


@dataclasses.dataclass(frozen=True, slots=True)
class Found:
    """A class that a file may name.

    Attributes:
        kind: The class.
        is_given: Whether the user has registered it, or given it as a custom object.
        is_module: Whether it is a class of modules.
        owner: The module class of Flax's own list that it is, or derives from, if any.
        is_wrapper: Whether it makes a module of another module system, or of whatever it is given instead.
    """

    kind: type
    is_given: bool
    is_module: bool
    owner: type | None
    is_wrapper: bool

    @classmethod
    def of(cls, kind: type, *, is_given: bool = False) -> Found:
        """Find out about a class."""
        owner = next(
            (base for base in mro(kind) if _allowed.reference(_allowed.MODULES, base)), None
        )
        is_wrapper = owner is not None and _allowed.reference(_allowed.WRAPPERS, owner) is not None
        return cls(kind, is_given, is_module_class(kind), owner, is_wrapper)


class Names:
    """What names stand for, while one description is read."""

    def __init__(self) -> None:
        self._declared: list[type] | None = None
        self._found: dict[Any, Found] = {}

    def of(self, kind: type) -> Found:
        """What there is to know about a class."""
        if kind not in self._found:
            self._found[kind] = Found.of(kind)
        return self._found[kind]

    def class_named(self, reference: str, is_right: Callable[[Any], bool], path: Any) -> Found:
        """The class of a name.

        Raises:
            ConfigError: There is none that may be taken, or it is of another kind, or would run code of its own.
        """
        # A file may name one class many times.
        if (reference, is_right) not in self._found:
            self._found[reference, is_right] = self._class_named(reference, is_right, path)
        return self._found[reference, is_right]

    def _class_named(self, reference: str, is_right: Callable[[Any], bool], path: Any) -> Found:
        namespace, _, name = reference.partition(":")
        given = [
            keras.saving.get_registered_object(key)
            for key in (reference, name, name.rpartition(".")[2])
        ]
        for found in given:
            if isinstance(found, type) and is_right(found):
                return Found.of(found, is_given=True)
        listed = next(filter(None, (_allowed.named(table, reference) for table in _CLASSES)), None)
        if listed is None:
            listed = self._defined(reference, path) or self._held(reference, is_right, path)
        if listed is None:
            found = next(filter(None, given), None) or _there(namespace, name)
            if found is None and namespace.partition(".")[0] not in _LIBRARIES:
                raise ConfigError(
                    f"{path} is of the class {name!r:.80}, {_where_it_was(namespace, name)}"
                )
            if found is None:
                raise ConfigError(
                    f"{path} is of the class {reference!r:.80}, which is not taken from a file."
                )
            if not isinstance(found, type) or not is_right(found):
                raise ConfigError(
                    f"{path} is described wrongly: {reference!r:.80} is another kind of thing."
                )
            raise ConfigError(
                f"{path} is of the class {reference!r:.80}, which is not taken from a file: it is no module, and no field of a "
                "module is declared to hold it.\n" + trusting(found)
            )
        if not is_right(listed):
            raise ConfigError(
                f"{path} is described wrongly: {reference!r:.80} is another kind of thing."
            )
        return Found.of(listed)

    def _defined(self, reference: str, path: Any) -> type | None:
        """The module class of a name, of those that this process has defined."""
        namespace, _, name = reference.partition(":")
        defined = [
            kind
            for kind in _classes()
            if kind.__qualname__ == name and _same_module(kind.__module__, namespace)
        ]
        if len(defined) > 1 and namespace.startswith("flax."):
            # `nn.vmap(nn.Dense, ...)` has one name, whatever the axes.
            warnings.warn(
                f"{path} is of the class {name!r:.80}, of which Flax's transformations have made {len(defined)} here: the "
                "newest is taken.\n"
                f"Give another one by {_host.word('custom object', name[:80], name[:80])}.",
                stacklevel=2,
            )
        return _newest(defined) if defined else None

    def _held(self, reference: str, is_right: Callable[[Any], bool], path: Any) -> type | None:
        """The class of a name, of those that fields of module classes are declared to hold."""
        namespace, _, name = reference.partition(":")
        found = [
            kind
            for kind in self.declared()
            if kind.__qualname__ == name and _same_module(kind.__module__, namespace)
        ]
        if not found:
            return None
        kind = _newest(found)
        method = called_by_itself(kind)
        if method is not None and is_right(kind):
            raise ConfigError(
                f"{path} is of the class {reference!r:.80}, which runs code of its own: Python calls `{method:.80}`.\n"
                + trusting(kind)
            )
        return kind

    def declared(self) -> list[type]:
        """Data classes, named tuples and enums in the declared types of fields of modules, and of each other's fields."""
        if self._declared is None:
            found: dict[type, None] = {}
            given = [kind for kind in _given() if is_dataclass(kind) or is_module_class(kind)]
            waiting = [
                *given,
                *(
                    kind
                    for kind in _classes()
                    if _allowed.reference(_allowed.MODULES, kind) is None
                ),
            ]
            while waiting:
                kind = waiting.pop()
                types_ = [*(of_fields(kind) if _has_fields(kind) else {}).values()]
                if not is_dataclass(kind) and is_module_class(kind):
                    types_ += of_arguments(kind, _lazy.parameters(kind)).values()
                for held in (each for declared in types_ for each in classes(declared)):
                    if (
                        held not in found
                        and (_has_fields(held) or is_enum(held))
                        and not is_module_class(held)
                    ):
                        found[held] = None
                        waiting.append(held)
            self._declared = list(found)
        return self._declared


def _has_fields(kind: type) -> bool:
    return is_dataclass(kind) or is_named_tuple(kind)


def is_enum(kind: type) -> bool:
    """Whether it is a class of enums."""
    return enum.Enum in mro(kind)


def _given() -> Iterator[type]:
    """The classes that the user has registered with Keras, or given as custom objects."""
    objects = keras.saving.get_custom_objects()
    scope = get_global_attribute("custom_objects_scope_dict", {})
    return (value for value in (*objects.values(), *scope.values()) if isinstance(value, type))


def trusting(kind: type) -> str:
    """What to type, to let a file name a class that it could not."""
    name = f"{kind.__name__:.80}"
    return f"If it is to be trusted, give it: {_host.word('custom object', name, name)}."


def _classes() -> Iterator[type]:
    """Flax's module classes that may be taken: the listed ones, what Flax's transformations have made, and those of users.

    Keras's layers are modules too in its NNX mode, and some of them run code.
    """
    return filter(_may_be_taken, module_classes())


def _may_be_taken(kind: type) -> bool:
    is_flaxs = (
        kind.__module__.partition(".")[0] == "flax"
        and _there(kind.__module__, kind.__qualname__) is kind
    )
    return keras.layers.Layer not in mro(kind) and (
        not is_flaxs or _allowed.reference(_allowed.MODULES, kind) is not None
    )


def is_module_class(value: type) -> bool:
    """Whether it is a class of Flax modules that may be taken from a file."""
    return any(is_base(kind) for kind in mro(value)) and _may_be_taken(value)


def _same_module(name: str, other: str) -> bool:
    return name == other or (name in _SESSIONS and other in _SESSIONS)


def _newest(kinds: list[type]) -> type:
    """Of classes with one name the one that has it now, or else the one that was defined last."""
    for kind in reversed(kinds):
        name = kind.__name__
        if _there(kind.__module__, name) is kind or _host.named(name) is kind:
            return kind
    return kinds[-1]


def _there(namespace: str, name: str) -> Any:
    """What lies under a dotted name in a module that has been imported; nothing that a module or class would make up."""
    found = sys.modules.get(namespace)
    for part in name.split("."):
        if isinstance(found, types.ModuleType) and found is sys.modules.get(namespace):
            found = vars(found).get(part)
        elif isinstance(found, type):
            found = next((vars(base)[part] for base in mro(found) if part in vars(base)), None)
        else:
            return None
    return None if isinstance(found, types.ModuleType) else found


def _where_it_was(namespace: str, name: str) -> str:
    """Of a class that is not found, where it was defined, and the line to type."""
    short = name.rpartition(".")[2][:80]
    short = short if short.isidentifier() else "Name"
    give = f"give the class: {_host.word('custom object', short, short)}."
    if namespace in _SESSIONS:
        return f"defined {_SESSIONS[namespace]}, which is not there.\nRun the code that defines it first, or {give}"
    if namespace in sys.modules or namespace.partition(".")[0] in sys.stdlib_module_names:
        return (
            f"which {namespace!r:.80} does not have.\nRun the code that defines it first, or {give}"
        )
    is_package = all(
        part.isidentifier() and not part.startswith("__") for part in namespace.split(".")
    )
    line = _host.word("import", namespace[:80]) if is_package else "the code that defines it"
    return f"defined in {namespace!r:.80}, which is not there.\nRun {line} first, or {give}"


# Classes that do nothing but hold -----------------------------------------------------------------------------------------

# The bases whose methods are Python's and Flax's own.
_BASES = (
    *(object, tuple, int, str, float, complex, abc.ABC, typing.Generic, typing.Protocol),
    *(enum.Enum, enum.IntEnum, enum.StrEnum, enum.Flag, enum.IntFlag, enum.ReprEnum),
    flax.struct.PyTreeNode,
)
_METACLASSES = (type, abc.ABCMeta, enum.EnumMeta, type(typing.Protocol))
# What Python keeps in every class, where it is a function.
_ANNOTATIONS = ("__annotate__", "__annotate_func__")
# Defaults that may be made when a file leaves a field out.
_FACTORIES = (
    list,
    dict,
    set,
    frozenset,
    tuple,
    str,
    int,
    float,
    complex,
    bool,
    flax.core.FrozenDict,
)


@dataclasses.dataclass(frozen=True)
class _Probe:
    """Shows how functions look that `dataclasses` writes, in any version of Python."""

    value: int


class _TupleProbe(typing.NamedTuple):
    value: int


# What lies under the name of a field with `__slots__`, and in a named tuple.
_SLOTS = (types.MemberDescriptorType, type(vars(_TupleProbe)["value"]))
_WRITTEN = _Probe.__init__.__code__
_LIBRARY = {
    code.__code__.co_filename
    for code in (dataclasses.field, collections.namedtuple, enum.unique, reprlib.recursive_repr)
}


def called_by_itself(kind: type) -> str | None:
    """The name of a method of a class that Python calls without being asked, and that no library has written; None without one.

    Python calls the methods that have names such as `__hash__`, and what lies behind an assignment to a field.
    """
    if type(kind) not in _METACLASSES:
        return type(kind).__name__
    fields = of_fields(kind) if _has_fields(kind) else {}
    for base in mro(kind):
        if base in _BASES or _is_listed(base):
            continue
        for name, value in vars(base).items():
            is_special = name.startswith("__") and name.endswith("__") and name not in _ANNOTATIONS
            if is_special and not _is_written(name, value):
                return name
            if name in fields and not isinstance(value, _SLOTS) and _takes_assignments(value):
                return name
    for field in dataclasses.fields(kind) if is_dataclass(kind) else ():
        if not field.init and not is_harmless_default(field):
            return field.name
    return next((name for name in fields if name.startswith("__")), None)


def is_harmless_default(field: dataclasses.Field[Any]) -> bool:
    """Whether a field gets its default without running a function of a user's."""
    factory = field.default_factory
    if factory is dataclasses.MISSING or any(factory is known for known in _FACTORIES):
        return True
    return (
        isinstance(factory, type)
        and is_dataclass(factory)
        and called_by_itself(factory) is None
        and all(map(is_harmless_default, dataclasses.fields(factory)))  # type: ignore[arg-type]
    )


def is_written_constructor(kind: type) -> bool:
    """Whether `dataclasses` has written a class's constructor."""
    found = next(vars(base)["__init__"] for base in mro(kind) if "__init__" in vars(base))
    return isinstance(found, FunctionType) and _is_written_function(found)


def _is_listed(kind: type) -> bool:
    return any(_allowed.reference(table, kind) for table in (_allowed.HOLDERS, _allowed.ENUMS))


def _takes_assignments(value: Any) -> bool:
    return any("__set__" in vars(base) or "__delete__" in vars(base) for base in mro(type(value)))


def _is_written(name: str, value: Any) -> bool:
    """Whether what lies under a special name is no method, or is one that a library has written."""
    if any(vars(base).get(name) is value for base in _BASES):
        return True
    function = value.__func__ if isinstance(value, (classmethod, staticmethod)) else value
    if isinstance(function, FunctionType):
        return _is_written_function(function)
    if isinstance(function, (types.GetSetDescriptorType, types.MemberDescriptorType)):
        return True
    bases = mro(type(function))
    return not any("__call__" in vars(base) or "__get__" in vars(base) for base in bases)


def _is_written_function(function: FunctionType) -> bool:
    code = function.__code__
    if code.co_names == ("_tuple_new",):
        return function.__globals__.get("_tuple_new") is tuple.__new__
    if code.co_filename in _LIBRARY:
        # What they wrap has to be written as well.
        kept = [cell.cell_contents for cell in function.__closure__ or ()]
        return all(_is_written_function(each) for each in kept if isinstance(each, FunctionType))
    return code.co_filename == _WRITTEN.co_filename and _home(code) == _home(_WRITTEN)


def _home(code: types.CodeType) -> str:
    return code.co_qualname.rpartition(".")[0]
