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

An error is data: `what` is wrong, the `problems` by path, and the `advice`. `str()` puts them
together for Python; R makes a condition of them. `cause` is the name of the class in R: an error
with the cause "module" is a condition of class `kerasflax_error_module` there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar


class KerasFlaxError(Exception):
    """Base of all errors that kerasflax itself raises.

    Args:
        what: What is wrong and what was got, in one sentence.
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
