"""Clones of layers, whether or not a file could describe them."""

import json

import flax
import keras
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from modules_nnx import Forgetful

from kerasflax import ConfigError, FlaxLayer, LazyModule, freeze
from kerasflax.saving._in_memory import InMemory

X = np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)


class Own(keras.regularizers.Regularizer):
    """A regularizer that cannot be saved."""

    def __call__(self, x):
        return keras.ops.sum(x)


def unsavable():
    factor = 2.0
    return FlaxLayer(
        nn.Sequential([nn.Dense(4), lambda x: factor * x]),
        lambda module, inputs: module(inputs),
        regularizers={"**/kernel": Own()},
        activity_regularizer=Own(),
        seed=1,
    )


LAYERS = {
    "Linen": unsavable,
    "a lazy module": lambda: FlaxLayer(LazyModule(lambda rngs: Forgetful(4, rngs=rngs)), seed=1),
    "a method by name": lambda: FlaxLayer(nn.Dense(4), "__call__", dtype="bfloat16", seed=1),
    "given values": lambda: FlaxLayer(
        nn.Dense(2), variables={"params": {"kernel": np.ones((3, 2)), "bias": np.ones(2)}}
    ),
}


def sequential(layer):
    return keras.Sequential([keras.Input((3,)), layer])


def functional(layer):
    inputs = keras.Input((3,))
    return keras.Model(inputs, layer(inputs))


def nested(layer):
    inputs = keras.Input((3,))
    return keras.Model(inputs, functional(sequential(layer))(inputs))


def in_a_wrapper(layer):
    inputs = keras.Input((3,))
    steps = keras.layers.Reshape((1, 3))(inputs)
    return keras.Model(inputs, keras.layers.TimeDistributed(layer)(steps))


@pytest.mark.parametrize("model_of", [sequential, functional, nested, in_a_wrapper])
@pytest.mark.parametrize("name", LAYERS)
def test_a_clone_has_the_same_weights_and_losses_and_values_of_its_own(name, model_of):
    model = model_of(LAYERS[name]())
    freeze(model, "**/bias")
    clone = keras.models.clone_model(model)
    for each in (clone, keras.models.clone_model(clone)):
        assert [(w.path, w.shape, w.dtype, w.trainable) for w in each.weights] == [
            (w.path, w.shape, w.dtype, w.trainable) for w in model.weights
        ]
        assert len(each.losses) == len(model.losses)
    clone.set_weights(model.get_weights())
    np.testing.assert_array_equal(clone(X), model(X))
    before = model(X)
    for weight in clone.weights:
        weight.assign(0 * weight)
    np.testing.assert_array_equal(model(X), before)


def test_a_clone_of_an_nnx_module_of_unknown_arguments_starts_with_the_layers_values():
    model = sequential(FlaxLayer(Forgetful(4, rngs=nnx.Rngs(0))))
    clone = keras.models.clone_model(model)
    np.testing.assert_array_equal(clone(X), model(X))
    before = model(X)
    for weight in clone.weights:
        weight.assign(weight + 1)
    np.testing.assert_array_equal(model(X), before)
    unbuilt = keras.Sequential([FlaxLayer(Forgetful(4, rngs=nnx.Rngs(0)))])
    np.testing.assert_array_equal(keras.models.clone_model(unbuilt)(X), before)


def test_a_clone_of_a_known_nnx_module_has_values_of_its_own():
    model = sequential(FlaxLayer(nnx.Linear(3, 4, rngs=nnx.Rngs(0))))
    clone = keras.models.clone_model(model)
    assert not np.array_equal(clone(X), model(X))


def test_a_clone_repeats_calls_on_a_tree_of_a_local_class():
    @flax.struct.dataclass
    class Local:
        a: object
        b: object

    class Sum(nn.Module):
        @nn.compact
        def __call__(self, inputs):
            return nn.Dense(3)(inputs.a) + inputs.b

    inputs = keras.Input((3,)), keras.Input((3,))
    inner = keras.Model(inputs, FlaxLayer(Sum())(Local(*inputs)))
    outer = keras.Input((3,)), keras.Input((3,))
    model = keras.Model(outer, inner(outer))
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    np.testing.assert_array_equal(clone([X, X]), model([X, X]))


def test_a_clone_function_can_change_the_config():
    def with_seed(layer):
        config = layer.get_config()
        if "seed" in config:
            config["seed"] = 5
        return layer.__class__.from_config(config)

    clone = keras.models.clone_model(sequential(unsavable()), clone_function=with_seed)
    assert clone.layers[-1].seed == 5


def test_a_layer_that_cannot_be_saved_is_refused_outside_of_a_clone(tmp_path):
    layer = FlaxLayer(nn.Sequential([nn.Dense(4), lambda x: 2 * x]))
    with pytest.raises(ConfigError, match="lambda"):
        layer.get_config()
    with pytest.raises(ConfigError, match="lambda"):
        sequential(layer).save(tmp_path / "m.keras")


def test_the_text_of_a_value_in_memory_means_nothing_in_a_file():
    config = FlaxLayer(nn.Dense(1)).get_config()
    text = json.loads(json.dumps(InMemory(nn.Dense(1))))
    for key in ("module", "method", "dtype", "regularizers", "activity_regularizer"):
        with pytest.raises(ConfigError):
            FlaxLayer.from_config(config | {key: text})
