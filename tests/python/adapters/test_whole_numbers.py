import functools

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from flax import nnx

from kerasflax.adapters._whole_numbers import integer_arguments


def flags(function, positional=(), keywords=()):
    return integer_arguments(function, list(positional), dict.fromkeys(keywords))


@pytest.mark.parametrize(
    ("function", "positional", "keywords", "expected"),
    [
        (nn.LSTMCell, [None], [], [True]),
        (nn.Conv, [None, None], ["strides", "name"], [True, True, True, False]),
        (nn.Dropout, [None], [], [False]),
        (nn.max_pool, [None, None], ["strides"], [False, True, True]),
        (nnx.Linear, [None, None], ["rngs"], [True, True, False]),
        (nnx.Rngs, [None], ["params"], [True, True]),
        (nnx.Param, [None], [], [False]),
        (jax.random.key, [None], [], [True]),
        (jnp.full, [None, None], [], [True, False]),
        (jnp.ones(3).reshape, [None, None], [], [True, True]),
        (nn.Dense(3).param, [None, nn.initializers.ones, None], [], [False, False, True]),
        (nn.Dense(3).param, [None, lambda key, value: value, None], [], [False, False, False]),
        (nn.Dense(3).variable, [None, None, jnp.zeros, None], [], [False, False, False, True]),
        (functools.partial, [nn.Dense], ["features"], [False, True]),
        (functools.partial(nn.Dense, use_bias=False), [None], [], [True]),
        (print, [None], ["sep"], [False, False]),
    ],
)
def test_the_arguments_that_must_be_integers_are_told(function, positional, keywords, expected):
    assert flags(function, positional, keywords) == expected


def test_a_field_of_a_users_class_is_an_integer_only_if_its_type_says_so():
    class Net(nn.Module):
        units: int
        length: float
        seed: object = None

    assert flags(Net, [None, None], ["seed"]) == [True, False, False]
