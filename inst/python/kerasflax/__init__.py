"""Flax modules as Keras layers."""

from ._errors import (
    ArgumentError,
    BackendError,
    FieldError,
    KerasFlaxError,
    MethodError,
    ModuleError,
    NotBuiltError,
    ShapeError,
    StateError,
    VariablesError,
)
from ._layer import FlaxLayer
from ._models import freeze, parameters, unfreeze

__all__ = [
    "ArgumentError",
    "BackendError",
    "FieldError",
    "FlaxLayer",
    "KerasFlaxError",
    "MethodError",
    "ModuleError",
    "NotBuiltError",
    "ShapeError",
    "StateError",
    "VariablesError",
    "freeze",
    "parameters",
    "unfreeze",
]
