import itertools

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import kerasflax
from kerasflax import FlaxLayer


def ones(*shape):
    return np.ones(shape, np.float32)


class Product(nn.Module):
    """Fails in the user's own line."""

    @nn.compact
    def __call__(self, x):
        return x @ self.param("w", nn.initializers.ones, (3, 2))


class Flattens(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(x.reshape(x.shape[0], -1))


class Two(nn.Module):
    @nn.compact
    def __call__(self, inputs):
        return nn.Dense(2)(inputs["b"]) + nn.Dense(2)(inputs["a"])


def linear(*sizes):
    rngs = nnx.Rngs(0)
    pairs = itertools.pairwise(sizes)
    return nnx.Sequential(*[nnx.Linear(a, b, rngs=rngs) for a, b in pairs])


LAST = "expected axis -1 of input shape to have value 3, but received input with shape"
WRONG = {
    "linen": (nn.Dense(2), ones(4, 3), ones(4, 5), rf"{LAST} \(4, 5\)\."),
    "nnx": (linear(3, 2), ones(4, 3), ones(2, 5), rf"{LAST} \(2, 5\)\."),
    "conv": (nn.Conv(2, (3,)), ones(2, 6, 3), ones(2, 7, 4), rf"{LAST} \(2, 7, 4\)\."),
    "product": (Product(), ones(4, 3), ones(4, 5), rf"{LAST} \(4, 5\)\."),
    "flattens": (Flattens(), ones(2, 4, 3), ones(2, 5, 3), "expected axis 1 .* value 4, but"),
    "rank": (Flattens(), ones(2, 4, 3), ones(2, 4), "expected 3 dimensions, .* shape \\(2, 4\\)"),
    "several": (
        Two(),
        {"b": ones(4, 5), "a": ones(4, 3)},
        {"b": ones(4, 3), "a": ones(4, 5)},
        "a: expected axis -1 .* value 3, .*\n.*b: expected axis -1 .* value 5",
    ),
    "one of several": (
        Two(),
        {"b": ones(4, 5), "a": ones(4, 3)},
        {"b": ones(4, 5), "a": ones(4, 5)},
        rf"incompatible with the layer:\n  a: {LAST} \(4, 5\)$",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_an_input_of_another_size_than_at_the_build_is_an_error_that_names_axis_and_size(case):
    module, first, other, message = WRONG[case]
    layer = FlaxLayer(module)
    layer(first)
    symbolic = jax.tree.map(lambda x: keras.Input(x.shape[1:]), other)
    for inputs in (other, symbolic):
        if inputs is symbolic:
            message = message.replace("\\(4,", "\\(None,").replace("\\(2,", "\\(None,")
        with pytest.raises(kerasflax.ShapeError, match=message) as error:
            layer(inputs)
        assert "is incompatible with the layer" in error.value.what
    layer(first)


@pytest.mark.parametrize("is_lazy", [False, True])
@pytest.mark.parametrize("sizes", [(3, 2), (3, 8, 2)])
def test_an_nnx_module_that_is_built_on_another_size_than_its_weights_names_the_size(
    sizes, is_lazy
):
    module = linear(*sizes)
    layer = FlaxLayer(kerasflax.LazyModule(lambda rngs: linear(*sizes)) if is_lazy else module)
    with pytest.raises(kerasflax.ShapeError, match=LAST):
        layer(ones(4, 5))
    np.testing.assert_allclose(layer(ones(4, 3)), layer.to_flax()(ones(4, 3)), rtol=1e-6)


def test_predict_of_a_model_names_the_wrong_size():
    inputs = keras.Input((3,))
    model = keras.Model(inputs, FlaxLayer(nn.Dense(2))(inputs))
    with pytest.raises(kerasflax.ShapeError, match=rf"{LAST} \(4, 5\)"):
        model.predict(ones(4, 5), verbose=0)


def test_an_error_that_a_module_raises_or_that_sizes_do_not_cause_is_left_alone():
    class Checks(nn.Module):
        @nn.compact
        def __call__(self, x):
            if x.shape[-1] != 3:
                raise ValueError("my own check")
            assert x.shape[0] != 7, "seven"
            if x.shape[0] == 6:
                return jnp.concatenate([x, jnp.ones((1, 1))])
            return nn.Dense(2)(x)

    layer = FlaxLayer(Checks())
    layer(ones(4, 3))
    with pytest.raises(ValueError, match="my own check") as error:
        layer(ones(4, 5))
    assert type(error.value) is ValueError
    with pytest.raises(AssertionError, match="seven"):
        layer(ones(7, 3))
    # The batch is another one, too, but nobody built the layer on it for good.
    with pytest.raises((TypeError, kerasflax.ShapeError)):
        layer(ones(6, 3))
