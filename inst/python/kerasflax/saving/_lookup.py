"""The names of classes and functions in a saved model: how to write them, and what they can load.

A file may name anything. A name can only stand for one of these:

- an entry of the lists in `_allowed`,
- an object in Keras's registry, or a custom object,
- a module class that this process has defined,
- a dataclass, named tuple or enum in the declared type of a field of such a class, or in the
  package of a module class that the description names, unless Python would implicitly call a method
  of it,
- a function of `__main__`, or of a Python module that also defines a module class that the
  description names,
- a config class of `_config_objects`.

Names are compared with those of existing classes. They are never looked up in a package, and
nothing is imported for them.
"""

from __future__ import annotations

import abc
import collections
import dataclasses
import enum
import functools
import inspect
import reprlib
import sys
import types
import typing
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import FunctionType
from typing import Any

import flax.core
import flax.struct
import jax
import keras

from .. import _host, _keras
from .._errors import ConfigError
from ..adapters import _lazy
from ..adapters._protocol import is_base, module_classes
from . import _allowed, _config_objects
from ._field_types import (
    classes,
    is_dataclass,
    is_named_tuple,
    mro,
    types_of_arguments,
    types_of_fields,
)

# Functions ----------------------------------------------------------------------------------------


def function_name(value: Any) -> str | None:
    """Return the name by which a file may refer to a function, or None."""
    return _allowed.reference_to(_allowed.FUNCTIONS, value)


def find_function(reference: str) -> Any:
    """Return the function with a name, or None if a file may not name it."""
    return _allowed.find(_allowed.FUNCTIONS, reference)


def factories() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Yield the factories of initializers, with their names."""
    return _allowed.entries(_allowed.FACTORIES)


# A Python function, and the objects into which JAX's decorators turn one.
_FUNCTIONS = (FunctionType, type(jax.jit(len)), jax.custom_jvp, jax.custom_vjp)


def is_python_function(value: Any) -> bool:
    """Whether a value is a Python function, which may be decorated by JAX."""
    return isinstance(value, _FUNCTIONS) and _host.formals(value) is None


def users_function_name(function: Any, path: str) -> str:
    """Return the name of a Python function that is not in the lists: its module and qualified name.

    Raises:
        ConfigError: The function is a lambda or uses variables of a function around it, or its name
            stands for something else now.
    """
    place, name = function.__module__, function.__qualname__
    held = _held_object(place, name)
    if held is function:
        return f"{place}:{name}"
    codes = [each for each in (function, inspect.unwrap(function)) if hasattr(each, "__code__")]
    used = [
        variable
        for each in codes
        for variable, cell in zip(each.__code__.co_freevars, each.__closure__ or (), strict=True)
        if variable != "__class__"
    ]
    if name.rpartition(".")[2] == "<lambda>":
        problem = "it is a lambda, which has no name"
    elif used:
        names = ", ".join(f"`{variable}`" for variable in dict.fromkeys(used))
        problem = f"the function {name} uses {names} of the function around it"
    elif held is not None:
        problem = f"the name {name} stands for another object in {place} now"
    else:
        return f"{place}:{name}"
    raise ConfigError(
        f"{path} cannot be saved: {problem}.",
        advice="Define it with `def` at the top level of a script or Python module, and pass "
        "further values with `functools.partial`.",
    )


def _held_object(place: str, name: str) -> Any:
    """Return the object with a dotted name in an imported module, or None."""
    found = _imported_object(place, name)
    return found.__func__ if isinstance(found, staticmethod) else found


def _is_named(function: Any, reference: str) -> bool:
    names = (function.__module__, function.__qualname__) if is_python_function(function) else ()
    return ":".join(map(str, names)) == reference


def is_number_type(value: Any) -> bool:
    """Whether a value is a number type, of Python or NumPy, that a file may name."""
    return (
        isinstance(value, type) and _allowed.reference_to(_allowed.NUMBER_TYPES, value) is not None
    )


def find_number_type(reference: str) -> type | None:
    """Return the number type with a name, or None."""
    found: type | None = _allowed.find(_allowed.NUMBER_TYPES, reference)
    return found


# Classes ------------------------------------------------------------------------------------------

NUMBER_TYPES = (bool, int, float, complex)
_CLASS_TABLES = (_allowed.MODULES, _allowed.HOLDERS, _allowed.ENUMS, _allowed.NUMBER_TYPES)
# For these packages, only the lists count. Importing a submodule would not help.
_LIBRARIES = ("flax", "jax", "keras", "kerasflax", "numpy")
# Where scripts and R sessions define their classes. Each namespace also matches the other.
_SESSIONS = {"__main__": "in a Python script", "<r-globalenv>": "in an R session or script"}


def class_name(kind: type, path: str) -> str:
    """Return the name of a class: the name in the lists, or its module and qualified name.

    Raises:
        ConfigError: The class is local to a function, and not a module class.
    """
    listed = next(
        filter(None, (_allowed.reference_to(table, kind) for table in _CLASS_TABLES)), None
    )
    if listed is not None:
        return listed
    if "<locals>" in kind.__qualname__ and not is_module_class(kind):
        raise ConfigError(
            f"{path} cannot be saved: the class {kind.__qualname__} is local to a function.",
            advice="Define it outside of the function.",
        )
    return f"{kind.__module__}:{kind.__qualname__}"


@dataclasses.dataclass(frozen=True, slots=True)
class Found:
    """A class that a file may name.

    Attributes:
        kind: The class.
        is_registered: Whether the user has registered it, or passed it as a custom object.
        is_module: Whether it is a module class.
        owner: The module class in Flax's list that it is or inherits from, if any.
        is_wrapper: Whether it wraps a module of the other Flax API, or any other callable.
    """

    kind: type
    is_registered: bool
    is_module: bool
    owner: type | None
    is_wrapper: bool

    @classmethod
    def of(cls, kind: type, *, is_registered: bool = False) -> Found:
        """Collect the facts about a class."""
        owner = next(
            (base for base in mro(kind) if _allowed.reference_to(_allowed.MODULES, base)), None
        )
        is_wrapper = (
            owner is not None and _allowed.reference_to(_allowed.WRAPPERS, owner) is not None
        )
        return cls(kind, is_registered, is_module_class(kind), owner, is_wrapper)


class Names:
    """Resolves the names of classes and functions while one description is read.

    Args:
        description: The description. The module classes that it names decide which functions and
            settings it may name.
    """

    def __init__(self, description: Any) -> None:
        self._description = description
        self._declared: list[type] | None = None
        self._found: dict[Any, Found] = {}

    def of(self, kind: type) -> Found:
        """Return the facts about a class."""
        if kind not in self._found:
            self._found[kind] = Found.of(kind)
        return self._found[kind]

    def find_class(self, reference: str, is_right: Callable[[Any], bool], path: Any) -> Found:
        """Find the class with a name.

        Args:
            reference: The name, as `namespace:name`.
            is_right: Whether a class is of the expected kind.
            path: Where the name appears, for messages.

        Raises:
            ConfigError: A file may not name such a class, the class is of another kind, or it would
                run its own code.
        """
        # A file can name one class many times.
        if (reference, is_right) not in self._found:
            self._found[reference, is_right] = self._find_class(reference, is_right, path)
        return self._found[reference, is_right]

    def _find_class(self, reference: str, is_right: Callable[[Any], bool], path: Any) -> Found:
        namespace, _, name = reference.partition(":")
        given = [
            keras.saving.get_registered_object(key)
            for key in (reference, name, name.rpartition(".")[2])
        ]
        for found in given:
            if isinstance(found, type) and is_right(found):
                return Found.of(found, is_registered=True)
        tables = (_allowed.find(table, reference) for table in _CLASS_TABLES)
        listed = next(filter(None, tables), None)
        if listed is None and is_right is _config_objects.is_config_class:
            # Some are dataclasses, too.
            listed = _config_objects.find_class(reference)
        if listed is None:
            listed = self._find_defined(reference, path) or self._find_settings(
                reference, is_right, path
            )
        if listed is None:
            found = next(filter(None, given), None) or _imported_object(namespace, name)
            if found is None and namespace.partition(".")[0] not in _LIBRARIES:
                raise _not_found(path, namespace, name)
            if found is None:
                raise ConfigError(
                    f"{path} is of the class {reference!r:.80}, which a file may not name."
                )
            if not isinstance(found, type) or not is_right(found):
                raise _wrong_kind(path, reference)
            raise ConfigError(
                f"{path} is of the class {reference!r:.80}, which a file may not name: it is not a "
                "module, no field of a module is declared to hold it, and the file names no module "
                "of its package.",
                advice=advice_to_trust(found),
            )
        if not is_right(listed):
            raise _wrong_kind(path, reference)
        return Found.of(listed)

    def _find_defined(self, reference: str, path: Any) -> type | None:
        """Return the module class with a name that this process has defined."""
        namespace, _, name = reference.partition(":")
        defined = [
            kind
            for kind in _loadable_module_classes()
            if kind.__qualname__ == name and _same_module(kind.__module__, namespace)
        ]
        if len(defined) > 1 and namespace.startswith("flax."):
            # `nn.vmap(nn.Dense, ...)` has one name, whatever the axes.
            warnings.warn(
                f"{path} is of the class {name!r:.80}. Flax's transformations have created "
                f"{len(defined)} classes with this name here, and the newest is used.\n"
                f"To use another, pass it: {_host.word('own custom object', name[:80])}.",
                stacklevel=2,
            )
        return _newest(defined) if defined else None

    def find_function(self, reference: str, path: Any) -> tuple[Callable[..., Any], bool]:
        """Find a function that is not in the lists.

        Returns:
            The function, and whether the user has registered it or passed it as a custom object.

        Raises:
            ConfigError: A file may not name such a function.
        """
        namespace, _, name = reference.partition(":")
        keys = (reference, name, name.rpartition(".")[2])
        for found in map(keras.saving.get_registered_object, keys):
            if callable(found) and not isinstance(found, type):
                return found, True
        for found in _given_objects():
            if _is_named(found, reference):
                return found, True
        found = _held_object(namespace, name)
        is_near = namespace == "__main__" or namespace in self._places
        # Python modules also hold functions that they have imported.
        if is_near and _is_named(found, reference):
            return found, False
        if namespace.partition(".")[0] in _LIBRARIES or not name:
            raise ConfigError(
                f"{path} is the function {reference!r:.80}, which a file may not name.",
                advice="Register it, or use a function that only computes arrays, from one of "
                f"{', '.join(_allowed.FUNCTIONS)}.",
            )
        raise _function_not_found(path, namespace, name, is_near=is_near)

    @functools.cached_property
    def _places(self) -> set[str]:
        """The Python modules that define the module classes that the description names."""
        named = set(_named_classes(self._description))
        return {
            kind.__module__
            for kind in _loadable_module_classes()
            if f"{kind.__module__}:{kind.__qualname__}" in named
            and kind.__module__.partition(".")[0] not in _LIBRARIES
        }

    def _find_settings(
        self, reference: str, is_right: Callable[[Any], bool], path: Any
    ) -> type | None:
        """Return the dataclass, named tuple or enum with a name, if a file may name it.

        A field of a module class is declared to hold it, or it is in the package of a module class
        that the description names.
        """
        namespace, _, name = reference.partition(":")
        found = [
            kind
            for kind in self.declared()
            if kind.__qualname__ == name and _same_module(kind.__module__, namespace)
        ]
        if not found and _root(namespace) in set(map(_root, self._places)):
            kind = _imported_object("__main__" if namespace in _SESSIONS else namespace, name)
            is_own = isinstance(kind, type) and _same_module(kind.__module__, namespace)
            found = [kind] if is_own and (_has_fields(kind) or is_enum(kind)) else []
        if not found:
            return None
        kind = _newest(found)
        method = implicitly_called_method(kind)
        if method is not None and is_right(kind):
            raise ConfigError(
                f"{path} is of the class {reference!r:.80}, which runs its own code: "
                f"Python calls `{method:.80}`.",
                advice=advice_to_trust(kind),
            )
        return kind

    def declared(self) -> list[type]:
        """Return the dataclasses, named tuples and enums that fields are declared to hold.

        The fields are those of module classes, registered dataclasses, and these classes' own.
        """
        if self._declared is None:
            found: dict[type, None] = {}
            given = [
                kind
                for kind in _registered_classes()
                if is_dataclass(kind) or is_module_class(kind)
            ]
            waiting = [
                *given,
                *(
                    kind
                    for kind in _loadable_module_classes()
                    if _allowed.reference_to(_allowed.MODULES, kind) is None
                ),
            ]
            while waiting:
                kind = waiting.pop()
                types_ = [*(types_of_fields(kind) if _has_fields(kind) else {}).values()]
                if not is_dataclass(kind) and is_module_class(kind):
                    types_ += types_of_arguments(kind, _lazy.parameters(kind)).values()
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
    """Whether a class is an enum."""
    return enum.Enum in mro(kind)


def _given_objects() -> Iterable[Any]:
    """Return what the user has registered with Keras or passed as custom objects."""
    objects = keras.saving.get_custom_objects()
    return (*objects.values(), *_keras.custom_objects_in_scope().values())


def _registered_classes() -> Iterator[type]:
    return (value for value in _given_objects() if isinstance(value, type))


# The keys under which a description names a module class.
_CLASS_KEYS = ("object", "constructor", "class", "custom", "type")


def _named_classes(description: Any) -> Iterator[str]:
    """Yield the names of classes in a description."""
    seen: set[int] = set()
    waiting = [description]
    while waiting:
        node = waiting.pop()
        if isinstance(node, Mapping) and id(node) not in seen:
            yield from (node[key] for key in _CLASS_KEYS if isinstance(node.get(key), str))
        if id(node) not in seen:
            seen.add(id(node))
            waiting += parts_of(node)


# The keys of a description under which another dict has names of its own.
_NAMES_KEYS = ("dict", "frozen_dict", "fields", "arguments", "keywords")


def parts_of(node: Any) -> Iterator[Any]:
    """Yield the descriptions directly in a description, but no dict of names."""
    if isinstance(node, (list, tuple)):
        yield from node
    elif isinstance(node, Mapping):
        for key, value in node.items():
            if key in _NAMES_KEYS and isinstance(value, Mapping):
                yield from value.values()
            else:
                yield value


def _root(namespace: str) -> str:
    return "__main__" if namespace in _SESSIONS else namespace.partition(".")[0]


def advice_to_trust(kind: type) -> str:
    """Return the advice to pass a class that a file may not name otherwise."""
    name = f"{kind.__name__:.80}"
    return f"If you trust the class, pass it: {_host.word('own custom object', name)}."


def _loadable_module_classes() -> Iterator[type]:
    """Return the Flax module classes that a file may name.

    They are the listed classes, those that Flax's transformations have created, and the user's.
    Keras's layers are excluded: in its NNX mode they are modules too, and some of them run code.
    """
    return filter(_is_loadable, module_classes())


def _is_loadable(kind: type) -> bool:
    package = kind.__module__.partition(".")[0]
    # In a package that has classes in the list, such as Flax, only the listed ones count.
    is_packages_own = (
        any(package == namespace.partition(".")[0] for namespace in _allowed.MODULES)
        and _imported_object(kind.__module__, kind.__qualname__) is kind
    )
    return keras.layers.Layer not in mro(kind) and (
        not is_packages_own or _allowed.reference_to(_allowed.MODULES, kind) is not None
    )


def is_module_class(value: type) -> bool:
    """Whether a value is a Flax module class that a file may name."""
    return any(is_base(kind) for kind in mro(value)) and _is_loadable(value)


def _same_module(name: str, other: str) -> bool:
    return name == other or (name in _SESSIONS and other in _SESSIONS)


def _newest(kinds: list[type]) -> type:
    """Return the class that its name refers to now, or else the one that was defined last."""
    for kind in reversed(kinds):
        name = kind.__name__
        if _imported_object(kind.__module__, name) is kind or _host.function_of_name(name) is kind:
            return kind
    return kinds[-1]


def _imported_object(namespace: str, name: str) -> Any:
    """Return the object with a dotted name in an imported module, or None.

    Reads only the dicts of modules and classes, never attributes that they could compute.
    """
    found = sys.modules.get(namespace)
    for part in name.split("."):
        if isinstance(found, types.ModuleType) and found is sys.modules.get(namespace):
            found = vars(found).get(part)
        elif isinstance(found, type):
            found = next((vars(base)[part] for base in mro(found) if part in vars(base)), None)
        else:
            return None
    return None if isinstance(found, types.ModuleType) else found


def _wrong_kind(path: Any, reference: str) -> ConfigError:
    return ConfigError(f"{path} has an invalid description: {reference!r:.80} is of another kind.")


def _not_found(path: Any, namespace: str, name: str) -> ConfigError:
    """Return the error for a class that does not exist: where it was defined, and what to run."""
    short, where, code = _origin(namespace, name)
    return ConfigError(
        f"{path} is of the class {name!r:.80}, {where}.",
        advice=f"Run {code}, or pass the class: {_host.word('own custom object', short)}.",
    )


def _function_not_found(path: Any, namespace: str, name: str, *, is_near: bool) -> ConfigError:
    """Return the error for a function that a file may not name, or that does not exist."""
    short, where, code = _origin(namespace, name)
    passed = f"pass the function: {_host.word('own custom object', short)}."
    where = f", {where}"
    if not is_near and namespace in sys.modules:
        where = f" of {namespace!r:.80}, which defines no module class that the file names"
    # Code that runs again does not define a function of another function under its name.
    is_reachable = is_near and "<locals>" not in name
    return ConfigError(
        f"{path} is the function {name!r:.80}{where}.",
        advice=f"Run {code}, or {passed}" if is_reachable else f"{passed[0].upper()}{passed[1:]}",
    )


def _origin(namespace: str, name: str) -> tuple[str, str, str]:
    """Return the short name of an object, where it was defined, and the code that defines it."""
    short = name.rpartition(".")[2][:80]
    short = short if short.isidentifier() else "Name"
    code = "the code that defines it"
    if namespace in _SESSIONS:
        where = f"which was defined {_SESSIONS[namespace]} and does not exist here"
    elif namespace in sys.modules or namespace.partition(".")[0] in sys.stdlib_module_names:
        where = f"which {namespace!r:.80} does not have"
    else:
        where = f"which was defined in {namespace!r:.80}, a module that is not imported"
        if all(part.isidentifier() and not part.startswith("__") for part in namespace.split(".")):
            code = _host.word("import", namespace[:80])
    return short, where, code


# Classes that only hold values --------------------------------------------------------------------

# Base classes whose methods are written by Python or Flax.
_BASES = (
    *(object, tuple, int, str, float, complex, abc.ABC, typing.Generic, typing.Protocol),
    *(enum.Enum, enum.IntEnum, enum.StrEnum, enum.Flag, enum.IntFlag, enum.ReprEnum),
    flax.struct.PyTreeNode,
)
_METACLASSES = (type, abc.ABCMeta, enum.EnumMeta, type(typing.Protocol))
# Functions that Python itself stores in every class.
_ANNOTATIONS = ("__annotate__", "__annotate_func__")
# Default factories that may run if a file omits a field.
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
    """Shows what functions generated by `dataclasses` look like, in any version of Python."""

    value: int


class _TupleProbe(typing.NamedTuple):
    value: int


# Descriptors that a class holds under the name of a field: with `__slots__`, and in a named tuple.
_SLOTS = (types.MemberDescriptorType, type(vars(_TupleProbe)["value"]))
_GENERATED = _Probe.__init__.__code__
_LIBRARY_FILES = {
    code.__code__.co_filename
    for code in (dataclasses.field, collections.namedtuple, enum.unique, reprlib.recursive_repr)
}


def implicitly_called_method(kind: type) -> str | None:
    """Return the name of code of a user that Python would run implicitly for a class, or None.

    Python implicitly calls special methods such as `__hash__`, and descriptors when a field is
    assigned. Methods that a library has written do not count.
    """
    if type(kind) not in _METACLASSES:
        return type(kind).__name__
    fields = types_of_fields(kind) if _has_fields(kind) else {}
    for base in mro(kind):
        if base in _BASES or _is_listed(base):
            continue
        for name, value in vars(base).items():
            is_special = name.startswith("__") and name.endswith("__") and name not in _ANNOTATIONS
            if is_special and not _is_generated(name, value):
                return name
            if name in fields and not isinstance(value, _SLOTS) and _takes_assignments(value):
                return name
    for field in dataclasses.fields(kind) if is_dataclass(kind) else ():
        if not field.init and not is_harmless_default(field):
            return field.name
    return next((name for name in fields if name.startswith("__")), None)


def is_harmless_default(field: dataclasses.Field[Any]) -> bool:
    """Whether a field gets its default without a call of a user's function."""
    factory = field.default_factory
    if factory is dataclasses.MISSING or any(factory is known for known in _FACTORIES):
        return True
    return (
        isinstance(factory, type)
        and is_dataclass(factory)
        and implicitly_called_method(factory) is None
        and all(map(is_harmless_default, dataclasses.fields(factory)))  # type: ignore[arg-type]
    )


def has_generated_constructor(kind: type) -> bool:
    """Whether `dataclasses` has generated a class's constructor."""
    found = next(vars(base)["__init__"] for base in mro(kind) if "__init__" in vars(base))
    return isinstance(found, FunctionType) and _is_generated_function(found)


def _is_listed(kind: type) -> bool:
    return any(_allowed.reference_to(table, kind) for table in (_allowed.HOLDERS, _allowed.ENUMS))


def _takes_assignments(value: Any) -> bool:
    return any("__set__" in vars(base) or "__delete__" in vars(base) for base in mro(type(value)))


def _is_generated(name: str, value: Any) -> bool:
    """Whether a special name holds no method, or a method that a library has written."""
    if any(vars(base).get(name) is value for base in _BASES):
        return True
    function = value.__func__ if isinstance(value, (classmethod, staticmethod)) else value
    if isinstance(function, FunctionType):
        return _is_generated_function(function)
    if isinstance(function, (types.GetSetDescriptorType, types.MemberDescriptorType)):
        return True
    bases = mro(type(function))
    return not any("__call__" in vars(base) or "__get__" in vars(base) for base in bases)


def _is_generated_function(function: FunctionType) -> bool:
    code = function.__code__
    if code.co_names == ("_tuple_new",):
        return function.__globals__.get("_tuple_new") is tuple.__new__
    if code.co_filename in _LIBRARY_FILES:
        # Functions that they wrap must be generated too.
        kept = [cell.cell_contents for cell in function.__closure__ or ()]
        return all(_is_generated_function(each) for each in kept if isinstance(each, FunctionType))
    return code.co_filename == _GENERATED.co_filename and _qualifier(code) == _qualifier(_GENERATED)


def _qualifier(code: types.CodeType) -> str:
    return code.co_qualname.rpartition(".")[0]
