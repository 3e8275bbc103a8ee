"""Flax modules as Keras layers."""

from ._checkpoint import read_variables, write_variables
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
    VariablesError,
)
from ._export import export_model, import_model
from ._layer import FlaxLayer
from ._lazy import LazyModule
from ._models import freeze, parameters, unfreeze
from ._rename import Report
from ._saving import save_model

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
    "VariablesError",
    "export_model",
    "freeze",
    "import_model",
    "parameters",
    "read_variables",
    "save_model",
    "unfreeze",
    "write_variables",
]
