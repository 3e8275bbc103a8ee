"""Modules and values that the tests of saving share."""

import dataclasses
import enum
import json
import os
from collections import namedtuple
from typing import Any

import flax
import keras
import numpy as np
from flax import linen as nn

from kerasflax import FlaxLayer
from kerasflax.saving._from_json import from_config
from kerasflax.saving._to_json import to_config

X = np.linspace(-1, 1, 8 * 5 * 5, dtype=np.float32).reshape(8, 5, 5, 1)
Y = np.linspace(0, 1, 8 * 3, dtype=np.float32).reshape(8, 3)


class Kind(enum.Enum):
    WIDE = 1
    DEEP = 2


@dataclasses.dataclass
class Settings:
    width: int
    kind: Kind = Kind.WIDE
    sizes: list = dataclasses.field(default_factory=list)


Pair = namedtuple("Pair", ["a", "b"])


class Holder(nn.Module):
    """Holds any value in a field."""

    value: Any = None
    part: nn.Module | None = None

    @nn.compact
    def __call__(self, inputs):
        return (self.part or nn.Dense(3))(inputs)


@flax.struct.dataclass
class Two:
    a: Any
    b: Any


class Declares(nn.Module):
    """Declares the classes above as types of a module's fields, so that files may name them."""

    settings: Settings | None = None
    pairs: "tuple[Pair, ...]" = ()
    inputs: "dict[str, Two]" = dataclasses.field(default_factory=dict)


class Sum(nn.Module):
    @nn.compact
    def __call__(self, inputs):
        return nn.Dense(3)(inputs.a) + inputs.b


@keras.saving.register_keras_serializable(package="tests")
class Scale:
    def __init__(self, by):
        self.by = by

    def get_config(self):
        return {"by": self.by}

    def __eq__(self, other):
        return isinstance(other, Scale) and self.by == other.by

    __hash__ = None


@keras.saving.register_keras_serializable(package="tests")
def twice(module, inputs):
    return module(module(inputs))


@keras.saving.register_keras_serializable(package="tests")
def make_folder(path):
    os.mkdir(path)


def again(value):
    return from_config(json.loads(json.dumps(to_config(value, "value"))), "value")


def model_of(module, **arguments):
    model = keras.Sequential([keras.Input(X.shape[1:]), FlaxLayer(module, name="net", **arguments)])
    model.compile("adam", "mse")
    return model


SETTINGS_PACKAGE = """
from __future__ import annotations
import dataclasses, enum, typing
import typing as tp
from flax import linen as nn
import flax.struct
class Kind(enum.Enum):
    WIDE = 1
class Level(enum.IntEnum):
    LOW = 1
class Bits(enum.Flag):
    A = 1
class Pair(typing.NamedTuple):
    a: int
@flax.struct.dataclass
class Inner:
    pair: Pair | None = None
    def doubled(self):
        return 2 * self.pair.a
    @property
    def half(self):
        return self.pair.a / 2
class Node(flax.struct.PyTreeNode):
    rate: float = 0.5
@dataclasses.dataclass(frozen=True, order=True, slots=True)
class Plain:
    width: int
    kind: Kind = Kind.WIDE
    more: tuple = ()
    inner: tp.Optional[Inner] = None
    parts: dict = dataclasses.field(default_factory=dict)
@dataclasses.dataclass
class Undeclared:
    width: int
class Net(nn.Module):
    plain: typing.Sequence["Plain"] = ()
    node: tp.Dict[str, Node] | None = None
    level: tp.Optional[tp.Union[Level, Bits]] = None
    unknown: Missing = None
    def __call__(self, inputs):
        return inputs
"""
