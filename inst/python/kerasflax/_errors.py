"""The exceptions, one per mistake that a user can make.

    KerasFlaxError
    ├── ArgumentError    (TypeError)     an argument that the layer does not take, or of a kind that it does not take
    ├── BackendError     (RuntimeError)  Keras runs on another backend than JAX
    ├── ConfigError      (ValueError)    a module that cannot be described in a saved model, or made from its description
    ├── FieldError       (ValueError)    a field of a module that holds what it cannot hold
    ├── FileError        (OSError)       a file that is not there, damaged, of another kind, or cannot be written; damaged
    │                                    weights in a Keras file are a VariablesError as well
    ├── MethodError      (TypeError)     a method that is not there, whose arguments cannot be filled, or that returns no array
    ├── ModuleError      (TypeError)     something that is no Flax module instance
    ├── NotBuiltError    (RuntimeError)  variables were asked of a layer that has none yet
    ├── PackageError     (ImportError)   an optional Python package that is not installed
    ├── ShapeError       (ValueError)    an input shape that leaves the shape of a variable open
    ├── StateError       (ValueError)    a call changed the structure of the state
    └── VariablesError   (ValueError)    variables that do not fit the module, or that a file cannot hold

Every message says what is wrong and what was got, then one thing to do. `cause` is the short name under which R knows it: an
exception with cause "module" arrives there as a condition of class `kerasflax_error_module`.
"""

from __future__ import annotations

from typing import ClassVar


class KerasFlaxError(Exception):
    """Base of all errors that kerasflax itself raises."""

    cause: ClassVar[str] = "internal"


class ArgumentError(KerasFlaxError, TypeError):
    """An argument that the layer does not take, or of a kind that it does not take."""

    cause = "argument"


class BackendError(KerasFlaxError, RuntimeError):
    """Keras runs on another backend than JAX."""

    cause = "backend"


class ConfigError(KerasFlaxError, ValueError):
    """A module that cannot be described in a saved model, or made from its description."""

    cause = "config"


class FieldError(KerasFlaxError, ValueError):
    """A field of a module that holds what it cannot hold."""

    cause = "field"


class FileError(KerasFlaxError, OSError):
    """A file that is not there, damaged, of another kind, or cannot be written."""

    cause = "file"


class MethodError(KerasFlaxError, TypeError):
    """A method that is not there, whose arguments cannot be filled, or that returns no array."""

    cause = "method"


class ModuleError(KerasFlaxError, TypeError):
    """Something that is no Flax module instance."""

    cause = "module"


class NotBuiltError(KerasFlaxError, RuntimeError):
    """Variables were asked of a layer that has none yet."""

    cause = "not_built"


class PackageError(KerasFlaxError, ImportError):
    """An optional Python package that is not installed; `name` is what it is installed by."""

    cause = "package"


class ShapeError(KerasFlaxError, ValueError):
    """An input shape that leaves the shape of a variable open."""

    cause = "shape"


class StateError(KerasFlaxError, ValueError):
    """A call changed the structure of the state."""

    cause = "state"


class VariablesError(KerasFlaxError, ValueError):
    """Variables that do not fit the module, or that a file cannot hold."""

    cause = "variables"
