import json
import tempfile
from pathlib import Path

import any_tree
import h5py
import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from conformance import LINEN
from flax import linen as nn
from hypothesis import given, settings
from modules import ConvNet

from kerasflax import FlaxLayer, NotBuiltError, VariablesError
from kerasflax._variables import named_leaves

X = np.linspace(-1, 1, 8 * 5 * 5, dtype=np.float32).reshape(8, 5, 5, 1)
Y = np.linspace(0, 1, 8 * 3, dtype=np.float32).reshape(8, 3)


def model_of(module, seed, shape=X.shape[1:], **arguments):
    inputs = keras.Input(shape)
    model = keras.Model(inputs, FlaxLayer(module, seed=seed, name="net", **arguments)(inputs))
    model.compile("adam", "mse")
    return model


def test_the_next_training_step_after_loading_is_the_one_that_would_have_come(tmp_path):
    model = model_of(ConvNet(), 1)
    model.fit(X, Y, epochs=2, verbose=0)
    model.save_weights(tmp_path / "m.weights.h5")
    other = model_of(ConvNet(), 2)
    other.optimizer.build(other.trainable_variables)
    other.load_weights(tmp_path / "m.weights.h5")
    np.testing.assert_array_equal(other.predict(X, verbose=0), model.predict(X, verbose=0))
    # Older versions of Keras go on with the mean of the last epoch.
    model.reset_metrics()
    losses = [m.train_on_batch(X, Y) for m in (model, other)]
    assert losses[0] == losses[1]
    for mine, theirs in zip(model.weights, other.weights, strict=True):
        np.testing.assert_array_equal(mine, theirs, err_msg=mine.path)


class Holder(keras.Model):
    """A model that is nothing but a layer, whatever the layer takes."""

    def __init__(self, layer):
        super().__init__()
        self.net = layer
        self.built = True


@pytest.mark.parametrize("name", LINEN)
def test_every_variable_is_in_the_file_under_its_path(name, tmp_path):
    case = LINEN[name]

    def model():
        layer = FlaxLayer(case.module, method=case.method, name="net")
        layer(jax.tree.map(lambda x: keras.Input(batch_shape=x.shape, dtype=str(x.dtype)), case.first))
        return layer, Holder(layer)

    layer, saved = model()
    other, loaded = model()
    saved.save_weights(tmp_path / "m.weights.h5")
    loaded.load_weights(tmp_path / "m.weights.h5")
    variables = layer.variables_by_path
    assert variables.keys() == other.variables_by_path.keys()
    with h5py.File(tmp_path / "m.weights.h5") as file:
        names = []
        file.visit(names.append)
        (index,) = (name for name in names if name.endswith("/index.json"))
        group = file[index].parent
        for path, variable in variables.items():
            np.testing.assert_array_equal(variable, other.variables_by_path[path], err_msg=path)
            assert group[path].shape == tuple(variable.shape)
    np.testing.assert_array_equal(layer.seed_generator.state, other.seed_generator.state)


@settings(deadline=None, max_examples=50)
@given(any_tree.trees)
def test_any_tree_comes_back_to_the_bit(tree):
    layer, other = any_tree.layer_of(tree), any_tree.layer_of(jax.tree.map(np.zeros_like, tree))
    with tempfile.TemporaryDirectory() as folder:
        Holder(layer).save_weights(Path(folder, "m.weights.h5"))
        Holder(other).load_weights(Path(folder, "m.weights.h5"))
    found = named_leaves(other.flax_variables["state"])
    for path, expected in named_leaves(tree).items():
        got = np.asarray(found[path])
        assert (got.dtype, got.shape) == (expected.dtype, expected.shape), path
        assert got.tobytes() == expected.tobytes(), path


DTYPES = ["float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "int8", "uint32", "bool", "float32"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_values_of_any_dtype_come_back_to_the_bit(dtype, tmp_path):
    values = jnp.arange(-3, 4).astype(dtype)

    class Values(nn.Module):
        @nn.compact
        def __call__(self, x):
            self.variable("state", "values", lambda: jnp.zeros(7, dtype))
            return x

    layer, other = FlaxLayer(Values(), name="net"), FlaxLayer(Values(), name="net")
    models = [Holder(each) for each in (layer, other)]
    for each in (layer, other):
        each(np.ones((1, 2), np.float32))
    layer.flax_variables = {"state": {"values": values}}
    models[0].save_weights(tmp_path / "m.weights.h5")
    models[1].load_weights(tmp_path / "m.weights.h5")
    restored = other.flax_variables["state"]["values"]
    assert restored.dtype == values.dtype
    np.testing.assert_array_equal(restored, values)


def test_weights_in_several_files_come_back(tmp_path):
    layers = [FlaxLayer(nn.Sequential([nn.Dense(256), nn.Dense(256)]), name="net", seed=seed) for seed in (1, 2)]
    models = [keras.Sequential([keras.Input((256,)), layer]) for layer in layers]
    models[0].save_weights(tmp_path / "m.weights.json", max_shard_size=0.0003)
    assert len(list(tmp_path.glob("*.h5"))) > 1
    models[1].load_weights(tmp_path / "m.weights.json")
    for path, leaf in named_leaves(layers[0].flax_variables).items():
        np.testing.assert_array_equal(leaf, named_leaves(layers[1].flax_variables)[path], err_msg=path)


@pytest.mark.filterwarnings("ignore:Skipping nested container")
def test_a_file_that_does_not_fit_is_an_error_that_lists_the_places_and_sets_nothing(tmp_path):
    model_of(nn.Sequential([nn.Dense(3), nn.Dense(2)]), 1, (4,)).save_weights(tmp_path / "m.weights.h5")
    other = model_of(nn.Sequential([nn.Dense(5)]), 2, (4,))
    before = named_leaves(other.get_layer("net").flax_variables)
    with pytest.raises(ValueError, match="could not be loaded") as error:
        other.load_weights(tmp_path / "m.weights.h5")
    assert (
        "What the file holds for the layer 'net' does not fit the module in 4 places:\n"
        "  params/layers_0/bias: expected float32(5), got shape (3)\n"
        "  params/layers_0/kernel: expected float32(4, 5), got shape (4, 3)\n"
        "  params/layers_1/bias: not in the module, got float32(2)\n"
        "  params/layers_1/kernel: not in the module, got float32(3, 2)\n"
        "Load it into a model made of the same layers."
    ) in str(error.value)
    for path, leaf in named_leaves(other.get_layer("net").flax_variables).items():
        np.testing.assert_array_equal(leaf, before[path])


@pytest.mark.filterwarnings("ignore:Skipping nested container")
def test_a_mismatch_can_be_skipped_as_keras_skips_it(tmp_path):
    model_of(nn.Dense(3), 1, (4,)).save_weights(tmp_path / "m.weights.h5")
    other = model_of(nn.Dense(5), 2, (4,))
    before = other.get_layer("net").flax_variables
    with pytest.warns(UserWarning, match="could not be loaded"):
        other.load_weights(tmp_path / "m.weights.h5", skip_mismatch=True)
    jax.tree.map(np.testing.assert_array_equal, before, other.get_layer("net").flax_variables)


def index(**changes):
    text = json.dumps({"format_version": 1, "dtypes": {"params/kernel": "float32"}} | changes)
    return {"index.json": np.frombuffer(text.encode(), np.uint8)}


@pytest.mark.parametrize(
    ("store", "message"),
    [
        ({}, "it names nothing"),
        ({"0": np.ones(3)}, "it names 0"),
        ({"index.json": np.frombuffer(b"\xff{", np.uint8)}, "cannot be read"),
        ({"index.json": np.frombuffer(b"[" * 100_000, np.uint8)}, "cannot be read"),
        ({"index.json": np.frombuffer(b"[1]", np.uint8)}, "cannot be read"),
        (index(format_version=2), "the format's version is 2"),
        (index(dtypes=["params/kernel"]), "cannot be read"),
        (index(dtypes={"params/kernel": 3}), "cannot be read"),
        (index(), "lists params/kernel, which is not there"),
        (index(dtypes={}), "params/kernel: missing"),
    ],
)
def test_a_foreign_or_damaged_file_says_what_it_is(store, message):
    layer = FlaxLayer(nn.Dense(3, use_bias=False))
    layer(np.ones((1, 2), np.float32))
    with pytest.raises(VariablesError) as error:
        layer.load_own_variables(store)
    assert message in str(error.value)


def test_a_layer_without_variables_says_so():
    with pytest.raises(NotBuiltError):
        FlaxLayer(nn.Dense(3)).load_own_variables({})
