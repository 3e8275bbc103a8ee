"""The names of classes and functions in a saved model: under which a thing is written down, and what may be had by a name.

A file that is read may name whatever it likes. Functions come from the namespaces below and no others; what makes initializers
is listed. A class is looked for among Keras's custom objects and registered classes, then among the module classes that this
process has defined, and last in its module. That is imported only where its package has defined Flax modules already; of other
packages classes are taken that are there, and that do nothing but hold what they are given.
"""

from __future__ import annotations

import enum
import importlib
import sys
import warnings
from collections.abc import Callable, Iterator
from types import FunctionType
from typing import Any

import jax.numpy as jnp
import keras
import numpy as np

from . import _foreign
from ._adapter import module_classes
from ._errors import ConfigError

# Functions ------------------------------------------------------------------------------------------------------------

# Where functions come from, by name. What reads, writes, or calls other functions is not among them.
NAMESPACES = ("flax.linen", "jax.nn", "jax.nn.initializers", "jax.numpy", "jax.lax", "flax.nnx")
_FUNCTIONS_FROM = ("jax.", "flax.linen.activation", "flax.linen.attention", "flax.linen.pooling", "flax.linen.initializers")
_WITHHELD = {
    *("load", "save", "savez", "savez_compressed", "fromfile", "frombuffer", "fromstring", "from_dlpack", "printoptions"),
    *("set_printoptions", "get_printoptions", "apply_along_axis", "apply_over_axes", "fromfunction", "frompyfunc"),
    *("piecewise", "vectorize", "ufunc", "pool", "associative_scan", "composite", "cond", "custom_linear_solve", "custom_root"),
    *("fori_loop", "map", "platform_dependent", "reduce", "reduce_window", "scan", "scatter_apply", "switch", "while_loop"),
    *("mask_indices", "precv", "psend", "stage"),
}
# What makes initializers. Only these are called with arguments from a file.
_FACTORIES = {
    "jax.nn.initializers": (
        *("constant", "delta_orthogonal", "normal", "orthogonal", "truncated_normal", "uniform", "variance_scaling"),
    ),
    "flax.linen": ("with_partitioning", "with_logical_partitioning"),
}


def function_name(value: Any) -> str | None:
    """The name under which a function may be taken from a file, if there is one."""
    name = getattr(value, "__name__", None)
    for namespace in _loaded():
        if isinstance(name, str) and function_named(f"{namespace}:{name}") is value:
            return f"{namespace}:{name}"
    return None


def _loaded() -> list[str]:
    """The namespaces that have been imported: nothing that is there is of another."""
    return [namespace for namespace in NAMESPACES if namespace in sys.modules]


def function_named(reference: str) -> Any:
    """The function of a name, or None where there is none that may be taken."""
    namespace, _, name = reference.partition(":")
    if namespace not in NAMESPACES or name in _WITHHELD or name.startswith("_"):
        return None
    value = getattr(importlib.import_module(namespace), name, None)
    # NumPy's scalar types are jax.numpy's under its own names, and callable.
    if not callable(value) or (isinstance(value, type) and not _is_jax_scalar(value)):
        return None
    source = f"{getattr(value, '__module__', '')}."
    return value if source.startswith(_FUNCTIONS_FROM) or isinstance(value, jnp.ufunc) else None


def _is_jax_scalar(value: type) -> bool:
    return value.__module__ == "jax.numpy" and isinstance(getattr(value, "dtype", None), np.dtype)


def factories() -> Iterator[tuple[str, Callable[..., Any]]]:
    """What makes initializers, by name."""
    for namespace, names in _FACTORIES.items():
        for name in names:
            yield f"{namespace}:{name}", getattr(importlib.import_module(namespace), name)


# Classes --------------------------------------------------------------------------------------------------------------

NUMBER_TYPES = (bool, int, float, complex)
# Where scripts and R sessions define their classes: each stands for the other.
_SESSIONS = {"__main__": "in a script of Python", "<r-globalenv>": "in a session or script of R"}


def class_name(kind: type, path: str) -> str:
    """A class by its module and its name in it; what `flax.linen` and `jax.lax` offer, as theirs."""
    for namespace in _loaded():
        is_ours = kind.__module__.partition(".")[0] in ("flax", "jax")
        if is_ours and getattr(importlib.import_module(namespace), kind.__name__, None) is kind:
            return f"{namespace}:{kind.__name__}"
    if "<locals>" in kind.__qualname__ and not is_module_class(kind):
        raise ConfigError(f"{path} cannot be saved: the class {kind.__qualname__} is made in a function.\nDefine it outside.")
    return f"{kind.__module__}:{kind.__qualname__}"


def class_named(reference: str, is_right: Callable[[Any], bool], path: str) -> Any:
    """The class of a name.

    Raises:
        ConfigError: It is not there, or another kind of thing is, or one that would run code of its own.
    """
    namespace, _, name = reference.partition(":")
    for known in NAMESPACES:
        if namespace.startswith(f"{known}."):
            # NNX is there when it is needed, and with it its parts.
            importlib.import_module(known)
    given = [keras.saving.get_registered_object(key) for key in (reference, name, name.rpartition(".")[2])]
    for found in given:
        if isinstance(found, type) and is_right(found):
            return found
    defined = [kind for kind in _classes() if kind.__qualname__ == name and _same_module(kind.__module__, namespace)]
    if len(defined) > 1 and namespace.startswith("flax."):
        # `nn.vmap(nn.Dense, ...)` has one name, whatever the axes.
        warnings.warn(
            f"{path} is of the class {name!r:.80}, of which Flax's transformations have made {len(defined)} here: the newest "
            "is taken.\n" + _foreign.words(f"Give another one by `custom_objects={{{name!r:.80}: {name:.80}}}`."),
            stacklevel=2,
        )
    if defined:
        return _of_kind(_newest(defined), is_right, reference, path)
    found = _imported(namespace, name)
    found = _of_kind(next(filter(None, given), None) if found is None else found, is_right, reference, path)
    if not (namespace.partition(".")[0] in _packages() or issubclass(found, enum.Enum) or _only_holds(found)):
        raise ConfigError(
            f"{path} is of the class {reference!r:.80}, which runs code of its own when it is made.\n"
            + _foreign.words(f"If it is to be trusted, give it: `custom_objects={{{found.__name__!r}: {found.__name__}}}`.")
        )
    return found


def is_number_type(value: Any) -> bool:
    """Whether it is a class of numbers, Python's or NumPy's."""
    return isinstance(value, type) and (value in NUMBER_TYPES or (issubclass(value, np.generic) and value is not np.generic))


def number_type_named(reference: str) -> type | None:
    """The class of numbers of a name, or None where there is none."""
    namespace, _, name = reference.partition(":")
    found = getattr(importlib.import_module(namespace), name, None) if namespace in ("builtins", "numpy") else None
    return found if is_number_type(found) else None


def _classes() -> Iterator[type]:
    """Flax's module classes; without Keras's layers, which are modules too in its NNX mode, and of which some run code."""
    return (kind for kind in module_classes() if not issubclass(kind, keras.layers.Layer))


def is_module_class(value: type) -> bool:
    """Whether it is a class of Flax modules."""
    return any(value is kind for kind in _classes())


def _same_module(name: str, other: str) -> bool:
    return name == other or (name in _SESSIONS and other in _SESSIONS)


def _newest(kinds: list[type]) -> type:
    """Of classes with one name the one that has it now, or else the one that was defined last."""
    for kind in reversed(kinds):
        name = kind.__name__
        if getattr(sys.modules.get(kind.__module__), name, None) is kind or _foreign.named(name) is kind:
            return kind
    return kinds[-1]


def _of_kind(found: Any, is_right: Callable[[Any], bool], reference: str, path: str) -> Any:
    namespace, _, name = reference.partition(":")
    if found is None:
        raise ConfigError(_foreign.words(f"{path} is of the class {name!r:.80}, {_where_it_was(namespace, name)}"))
    if not isinstance(found, type) or not is_right(found):
        raise ConfigError(f"{path} is described wrongly: {reference!r:.80} is another kind of thing.")
    return found


def _where_it_was(namespace: str, name: str) -> str:
    """Of a class that is not found, where it was defined, and the line to type."""
    short = name.rpartition(".")[2][:80]
    give = f"give the class: `custom_objects={{{short!r}: {short}}}`."
    if namespace in _SESSIONS:
        return f"defined {_SESSIONS[namespace]}, which is not there.\nRun the code that defines it first, or {give}"
    if namespace in sys.modules or namespace.partition(".")[0] in sys.stdlib_module_names:
        return f"which {namespace!r:.80} does not have.\nRun the code that defines it first, or {give}"
    is_package = namespace.replace(".", "").isidentifier()
    line = f"`import {namespace:.80}`" if is_package else "the code that defines it"
    return f"defined in {namespace!r:.80}, which is not there.\nRun {line} first, or {give}"


def _imported(namespace: str, name: str) -> Any:
    """What stands under a name in a module that is there already, or in a package that has defined Flax modules, or in Flax."""
    parts = name.split(".")
    if not all(part.isidentifier() and not part.startswith("__") for part in parts):
        return None
    root, *others = namespace.split(".")
    # Of Flax what is not there yet would bring other packages with it, and `__main__` is a program.
    may_be_imported = root in _packages() - {"flax"} and not any(part.startswith("__") for part in others)
    if namespace not in (*NAMESPACES, *sys.modules) and not may_be_imported:
        return None
    try:
        found = importlib.import_module(namespace)
        for part in parts:
            found = getattr(found, part)
            # Not through modules, which lead to other packages.
            if not isinstance(found, type) or found.__module__.partition(".")[0] != root:
                return None
    except (ImportError, AttributeError, ValueError):
        return None
    return found


def _packages() -> set[str]:
    """The packages whose code may run: those that have defined Flax modules."""
    return {kind.__module__.partition(".")[0] for kind in _classes()} & {"flax", "__main__", *sys.modules}


def _only_holds(kind: type) -> bool:
    """Whether making one of a class runs no code but what `dataclasses`, or a named tuple, has written for it."""
    names = ("__new__", "__init__", "__setattr__")
    methods = [getattr(kind, name) for name in names if getattr(kind, name) is not getattr(object, name)]
    are_written = all(isinstance(method, FunctionType) and method.__code__.co_filename == "<string>" for method in methods)
    return are_written and not hasattr(kind, "__post_init__") and type(kind).__call__ is type.__call__
