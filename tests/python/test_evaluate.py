import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from kerasflax._evaluate import _alike, _split, evaluate


class Wide(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x):
        kernels = [nn.Dense(3, kernel_init=nn.initializers.orthogonal(scale)) for scale in (1.0, 2.0)]
        x = sum(kernel(x) for kernel in kernels)
        return sum(nn.Dense(4)(x) for _ in range(self.width))


def init(module):
    return lambda key: module.init(jax.random.wrap_key_data(key), jnp.ones((2, 5)))


KEY = np.array([0, 7], np.uint32)


def jaxpr_of(function, *args):
    return jax.make_jaxpr(function)(*args)


def assert_evaluated(function, *args):
    closed = jaxpr_of(function, *args)
    got = evaluate(closed.jaxpr, closed.consts, *args)
    for value, expected in zip(got, jax.tree.leaves(function(*args)), strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-6, atol=1e-6)


def test_the_values_are_those_of_init():
    assert_evaluated(init(Wide(4)), KEY)


def test_the_values_of_a_large_array_are_those_of_init():
    # From 2**19 numbers on, the code that makes them is optimized.
    assert_evaluated(init(nn.Dense(2**17)), KEY)


def test_arrays_that_are_made_alike_are_compiled_once():
    def recipes(width):
        return _alike(_split(jaxpr_of(init(Wide(width)), KEY).jaxpr)[0])

    assert len(recipes(4)) == len(recipes(40))
    assert max(map(len, recipes(40))) == 40


CONSTANT = np.arange(6.0, dtype=np.float32).reshape(2, 3)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: (x, x),
        lambda x: (x + 1, x + 2, 3.0),
        lambda x: (CONSTANT @ x, x[:2] * CONSTANT[0, :2]),
        # An array from which others are made, and one made of a number that was made of an array.
        lambda x: (lambda y: (y, y * 2, jnp.full(4, y.sum())))(jnp.sin(x)),
        lambda x: jax.lax.scan(lambda c, _: (c + 1, c), x, None, 3),
        lambda x: (jnp.zeros(3), jnp.zeros(3), jnp.ones(3), jnp.zeros((2, 2), bool)),
        lambda x: (),
    ],
)
def test_any_computation_keeps_its_results(function):
    assert_evaluated(function, np.array([1.0, 2.0, 3.0], np.float32))
