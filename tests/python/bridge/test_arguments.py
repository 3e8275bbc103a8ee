import gc
import warnings

import keras
import numpy as np
import pytest
from flax import nnx
from support import TARGETS, VECTORS

import kerasflax
from kerasflax import FlaxLayer


class Tied(nnx.Module):
    def __init__(self, part):
        self.part = part

    def __call__(self, x):
        return self.part(x)


def linear():
    return nnx.Linear(3, 3, rngs=nnx.Rngs(0))


def test_two_layers_that_copy_the_weights_of_one_nnx_module_warn_and_train_apart():
    module = linear()
    first = FlaxLayer(module, name="first")
    with pytest.warns(UserWarning, match="'first' and 'second' copy the weights of the same NNX"):
        second = FlaxLayer(module, name="second")
    with pytest.warns(UserWarning, match="'first' and 'outer' .* put both uses into one module"):
        FlaxLayer(Tied(module), name="outer")
    inputs = keras.Input((3,))
    model = keras.Model(inputs, second(first(inputs)))
    assert len(model.weights) == 4
    model.compile(keras.optimizers.SGD(0.1), "mse")
    model.fit(VECTORS, TARGETS, verbose=0)
    assert not np.allclose(*(x.flax_variables["params"]["kernel"] for x in (first, second)))


def test_what_shares_no_weights_or_shares_them_on_purpose_does_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module = linear()
        layer = FlaxLayer(module)
        FlaxLayer(nnx.clone(module))
        FlaxLayer(linear())
        lazy = kerasflax.LazyModule(nnx.Linear, 3, 3)
        lazy_layers = [FlaxLayer(lazy), FlaxLayer(lazy)]
        inputs = keras.Input((3,))
        model = keras.Model(inputs, layer(layer(inputs)))
        clones = [keras.models.clone_model(model) for _ in range(2)]
        del layer, inputs, model, clones, lazy_layers
        gc.collect()
        FlaxLayer(module)
    one_module = FlaxLayer(nnx.Sequential(module, nnx.relu, module))
    one_module(VECTORS)
    assert len(one_module.weights) == 2
