"""Flax modules as Keras layers."""

from ._errors import (
    ArgumentError,
    BackendError,
    ConfigError,
    FieldError,
    FileError,
    KerasFlaxError,
    MethodError,
    ModuleError,
    NotBuiltError,
    PackageError,
    ShapeError,
    StateError,
    UnsupportedError,
    VariablesError,
)
from ._layer import FlaxLayer
from ._models import freeze, parameters, unfreeze
from .adapters._lazy import LazyModule
from .bridge._distribution import distribute
from .files._checkpoint import read_variables, write_variables
from .files._keras_model import save_model
from .files._rename import Report
from .files._stablehlo import export_model, import_model

__all__ = [
    "ArgumentError",
    "BackendError",
    "ConfigError",
    "FieldError",
    "FileError",
    "FlaxLayer",
    "KerasFlaxError",
    "LazyModule",
    "MethodError",
    "ModuleError",
    "NotBuiltError",
    "PackageError",
    "Report",
    "ShapeError",
    "StateError",
    "UnsupportedError",
    "VariablesError",
    "distribute",
    "export_model",
    "freeze",
    "import_model",
    "parameters",
    "read_variables",
    "save_model",
    "unfreeze",
    "write_variables",
]

# Show users the public path, not that of the file that defines the object.
for _name in __all__:
    globals()[_name].__module__ = __name__
del _name
