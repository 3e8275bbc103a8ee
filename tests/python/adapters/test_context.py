import keras
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from support import run_code

import kerasflax
from kerasflax import FlaxLayer, LazyModule

X = np.linspace(-1, 1, 12, dtype="float32").reshape(4, 3)


class Linen(nn.Module):
    """A Linen module that calls a function on its input, and may keep a part."""

    function: object
    part: object = None

    @nn.compact
    def __call__(self, inputs):
        return nn.Dense(1)(self.function(self, inputs))


class Nnx(nnx.Module):
    """An NNX module that calls a function on its input, and may keep a part."""

    def __init__(self, function, part=None, *, rngs):
        self.function, self.part = function, part
        self.dense = nnx.Linear(3, 1, rngs=rngs)

    def __call__(self, inputs):
        return self.dense(self.function(self, inputs))


modules = pytest.mark.parametrize(
    "make", [Linen, lambda *args: Nnx(*args, rngs=nnx.Rngs(1))], ids=["linen", "nnx"]
)


@modules
@pytest.mark.parametrize(
    ("kind", "use"),
    [
        ("a Keras layer", lambda part: lambda self, x: keras.layers.Dense(3)(x)),
        ("a Keras layer", lambda part: lambda self, x: self.part(x)),
        ("a Keras layer", lambda part: lambda self, x: part(x)),
        ("a Keras layer", lambda part: lambda self, x: FlaxLayer(nn.Dense(3))(x)),
        ("a Keras layer", lambda part: lambda self, x: keras.Sequential([part])(x)),
        ("a Keras variable", lambda part: lambda self, x: x * keras.Variable(2.0)),
        ("a Keras variable", lambda part: lambda self, x: x @ part.kernel),
        ("a Keras variable", lambda part: lambda self, x: keras.ops.matmul(x, part.kernel)),
        ("a Keras variable", lambda part: lambda self, x: keras.metrics.Mean()(x)),
        (
            "a Keras seed generator",
            lambda part: (
                lambda self, x: keras.random.dropout(x, 0.5, seed=keras.random.SeedGenerator(1))
            ),
        ),
    ],
)
def test_what_holds_values_in_keras_cannot_be_used_inside_a_module(make, kind, use):
    dense = keras.layers.Dense(3)
    dense.build((None, 3))
    layer = FlaxLayer(make(use(dense), dense))
    with pytest.raises(kerasflax.StateError, match=f"A Flax module cannot use {kind}") as error:
        layer(X)
    assert error.value.advice
    # Outside the run, Keras is unchanged.
    assert dense(X).shape == (4, 3)
    assert keras.Variable(2.0).value == 2


@modules
def test_a_known_seed_generator_cannot_be_used_inside_a_module(make):
    seed = keras.random.SeedGenerator(1)
    before = np.array(seed.state)
    layer = FlaxLayer(make(lambda self, x: x + keras.random.normal(x.shape, seed=seed)))
    with pytest.raises(kerasflax.StateError, match="cannot use a Keras "):
        layer(X)
    np.testing.assert_array_equal(seed.state, before)


def test_a_part_that_is_created_in_setup_or_by_a_factory_is_checked_as_well():
    class Net(nn.Module):
        def setup(self):
            self.scale = keras.Variable(2.0)

        def __call__(self, inputs):
            return self.scale * inputs

    class Lazy(nnx.Module):
        def __init__(self, rngs):
            self.dense = keras.layers.Dense(3)

        def __call__(self, inputs):
            return self.dense(inputs)

    with pytest.raises(kerasflax.StateError, match=r"Keras variable .*\(raised in Net"):
        FlaxLayer(Net())(X)
    with pytest.raises(kerasflax.StateError, match="Keras layer"):
        FlaxLayer(LazyModule(Lazy))


@modules
def test_functions_of_keras_that_hold_no_values_can_be_used_inside_a_module(make):
    def function(self, x):
        noise = keras.random.normal((3,), seed=3)
        return keras.ops.relu(x) + noise + keras.initializers.GlorotUniform(seed=1)((3,))

    layer = FlaxLayer(make(function))
    outputs, made = layer(X), layer.to_flax()
    expected = made[0].apply(made[1], X) if make is Linen else made(X)
    np.testing.assert_allclose(outputs, expected, rtol=1e-5)


def test_in_keras_nnx_mode_nnx_modules_use_keras_layers_and_linen_modules_do_not():
    code = """
        import keras, numpy as np
        from flax import linen as nn, nnx
        from kerasflax import FlaxLayer, StateError

        class Net(nnx.Module):
            def __init__(self, rngs):
                self.hidden = keras.layers.Dense(8)
                self.hidden.build((None, 3))
                self.out = nnx.Linear(8, 1, rngs=rngs)

            def __call__(self, inputs):
                return self.out(self.hidden(inputs))

        class Linen(nn.Module):
            @nn.compact
            def __call__(self, inputs):
                return keras.layers.Dense(1)(inputs)

        module, x = Net(nnx.Rngs(1)), np.ones((4, 3), np.float32)
        layer = FlaxLayer(module)
        np.testing.assert_allclose(layer(x), module(x), rtol=1e-6)
        try:
            FlaxLayer(Linen())(x)
        except StateError as error:
            assert "Keras layer" in str(error)
        else:
            raise AssertionError
    """
    run_code(code, KERAS_NNX_ENABLED="true")
