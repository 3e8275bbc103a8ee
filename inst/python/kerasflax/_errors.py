"""The exceptions, one for each mistake that a user can make.

    KerasFlaxError
    ├── ArgumentError    (TypeError)     an unknown argument, or one of the wrong kind
    ├── BackendError     (RuntimeError)  Keras does not run on JAX
    ├── ConfigError      (ValueError)    a module cannot be described in a saved model, or created
    │                                    from its description
    ├── FieldError       (ValueError)    a field of a module has a wrong value or name
    ├── FileError        (OSError)       a file is missing, damaged, of another kind, or cannot be
    │                                    written; damaged weights in a Keras file are a
    │                                    VariablesError as well
    ├── MethodError      (TypeError)     a method is missing, its arguments cannot be filled, or it
    │                                    returns a value that is not an array
    ├── ModuleError      (TypeError)     a value is not a Flax module instance
    ├── NotBuiltError    (RuntimeError)  a layer has no variables yet
    ├── PackageError     (ImportError)   an optional Python package is not installed, or cannot be
    │                                    imported
    ├── ShapeError       (ValueError)    the input has a wrong size, or a variable depends on an
    │                                    unknown size of it or is too large
    ├── StateError       (ValueError)    a call changed the structure of the state, two variables
    │                                    have the same path, or the variables have no values now
    ├── UnsupportedError (NotImplementedError)  Keras changes a layer in a way that needs the code
    │                                    of the layer's computation, such as quantization
    └── VariablesError   (ValueError)    variables do not fit the module, or a file cannot hold them

An error is data: `what` is wrong, the `problems` by path, and the `advice`. `str()` puts them
together for Python; R builds a condition from them. `cause` is the name of the class in R: an error
with the cause "module" is a condition of class `kerasflax_error_module` there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar


class KerasFlaxError(Exception):
    """The base of all errors that kerasflax raises.

    Args:
        what: One line: what is wrong, and what kerasflax got instead.
        problems: What is wrong in each place, by path.
        advice: One thing to do.
        **kwargs: Keywords of the built-in exception, such as the `name` of an `ImportError`.
    """

    cause: ClassVar[str] = "internal"

    def __init__(
        self,
        what: str = "",
        *,
        problems: Mapping[str, str] | None = None,
        advice: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(what, **kwargs)
        self.problems = dict(problems or {})
        self.advice = advice

    @property
    def what(self) -> str:
        """What is wrong, in one sentence."""
        return str(self.args[0]) if self.args else ""

    def __str__(self) -> str:
        places = [f"  {path}: {problem}" for path, problem in self.problems.items()]
        lines = [self.what, *places, self.advice]
        return "\n".join(line for line in lines if line)


class ArgumentError(KerasFlaxError, TypeError):
    """An argument is unknown or of the wrong kind."""

    cause = "argument"


class BackendError(KerasFlaxError, RuntimeError):
    """Keras does not run on JAX."""

    cause = "backend"


class ConfigError(KerasFlaxError, ValueError):
    """A module cannot be described in a saved model, or created from its description."""

    cause = "config"


class FieldError(KerasFlaxError, ValueError):
    """A field of a module has a wrong value or name."""

    cause = "field"


class FileError(KerasFlaxError, OSError):
    """A file is missing, damaged, of another kind, or cannot be written."""

    cause = "file"


class MethodError(KerasFlaxError, TypeError):
    """A method is missing, cannot be called, or returns a value that is not an array."""

    cause = "method"


class ModuleError(KerasFlaxError, TypeError):
    """A value is not a Flax module instance."""

    cause = "module"


class NotBuiltError(KerasFlaxError, RuntimeError):
    """A layer has no variables yet."""

    cause = "not_built"


class PackageError(KerasFlaxError, ImportError):
    """An optional Python package cannot be imported; `name` is the package."""

    cause = "package"


class ShapeError(KerasFlaxError, ValueError):
    """The input has a wrong size, or a variable depends on an unknown size or is too large."""

    cause = "shape"


class StateError(KerasFlaxError, ValueError):
    """The structure of the state is wrong, or the variables have no values now."""

    cause = "state"


class UnsupportedError(KerasFlaxError, NotImplementedError, AttributeError):
    """A feature of some Keras layers that a layer of a Flax module cannot have.

    It is an AttributeError, too, so that `hasattr` says that the layer has no such method.
    """

    cause = "unsupported"


class VariablesError(KerasFlaxError, ValueError):
    """Variables do not fit the module, or a file cannot hold them."""

    cause = "variables"
