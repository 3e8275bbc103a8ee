"""Module classes, and functions and settings beside them, that files refer to by their names."""

import dataclasses
import enum
from os import path as not_a_function  # noqa: F401
from subprocess import call as imported_function  # noqa: F401
from typing import Any

import jax
from flax import linen as nn
from flax import nnx


def normalise(x, by=2.0):
    return x / by


@jax.jit
def compiled(x):
    return x * 3


class Net(nn.Module):
    function: Any = normalise
    settings: Any = None

    @nn.compact
    def __call__(self, inputs):
        return nn.Dense(3)(self.function(inputs))

    @nn.compact
    def scaled(self, inputs, by=1.0):
        return by * nn.Dense(3)(inputs)

    @staticmethod
    def outside(module, inputs):
        return 5 * module(inputs)


class NnxNet(nnx.Module):
    def __init__(self, width, function=normalise, *, rngs):
        self.width, self.function = width, function
        self.linear = nnx.Linear(4, width, rngs=rngs)

    def __call__(self, inputs):
        return self.function(self.linear(inputs))

    def scaled(self, inputs, by=1.0):
        return by * self.linear(inputs)


def encode(module, inputs, training, by=1.0):
    return by * module(inputs)


def make_nnx(width, *, rngs):
    return NnxNet(width, rngs=rngs)


def nested():
    def inner(module, inputs):
        return 7 * module(inputs)

    return inner


def closure(by):
    def inner(module, inputs):
        return by * module(inputs)

    return inner


class Flags(enum.Flag):
    A = 1
    B = 2


class Kind(enum.Enum):
    WIDE = 1


@dataclasses.dataclass
class Settings:
    width: int = 3
    kind: Kind = Kind.WIDE


@dataclasses.dataclass
class Acting:
    width: int = 3

    def __post_init__(self):
        raise AssertionError("A file must not create it.")
