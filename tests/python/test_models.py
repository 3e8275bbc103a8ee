import warnings

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from modules import MLP, ConvNet
from support import IMAGES, assert_close

import kerasflax
from kerasflax import (
    ArgumentError,
    FlaxLayer,
    LazyModule,
    NotBuiltError,
    StateError,
    VariablesError,
    _models,
)
from kerasflax.bridge._variables import named_leaves

TARGETS = np.linspace(0, 1, 8 * 2, dtype=np.float32).reshape(8, 2)


def compiled_model(*layers):
    model = keras.Sequential([keras.Input(IMAGES.shape[1:]), *layers])
    model.compile(keras.optimizers.Adam(0.1), "mse")
    return model


def two_flax_layers():
    return compiled_model(
        FlaxLayer(ConvNet(), name="net"),
        keras.layers.Dense(4, name="middle"),
        FlaxLayer(nn.Dense(2), name="head"),
    )


def changed_paths(model, before):
    after = named_leaves(_models.variables(model))
    return {path for path in before if not np.array_equal(before[path], after[path])}


def test_frozen_weights_get_no_gradients_and_no_optimizer_slots_but_are_counted():
    model = two_flax_layers()
    assert kerasflax.freeze(model, "net/params/**/kernel") == [
        "net/params/Conv_0/kernel",
        "net/params/Dense_0/kernel",
    ]
    before = named_leaves(_models.variables(model))
    model.fit(IMAGES, TARGETS, verbose=0)
    paths = {path for path in before if path.startswith("net/params") and path.endswith("kernel")}
    assert changed_paths(model, before) == before.keys() - paths
    slots = [v.path for v in model.optimizer.variables]
    assert not any("net_params" in path and "kernel" in path for path in slots)
    assert model.count_params() == sum(leaf.size for leaf in before.values()) + sum(
        w.size for w in model.layers[1].get_weights()
    )
    with pytest.warns(UserWarning, match="Compile it again"):
        assert kerasflax.unfreeze(model) == sorted(paths)


@pytest.mark.parametrize("after_training", [False, True])
def test_freezing_before_or_after_training_takes_effect_and_warns_when_to_compile_again(
    after_training,
):
    model = two_flax_layers()
    if after_training:
        model.fit(IMAGES, TARGETS, verbose=0)
        with pytest.warns(UserWarning, match="Compile it again"):
            kerasflax.freeze(model, "head/params/*")
        model.compile("sgd", "mse")
    else:
        kerasflax.freeze(model, "head/params/*")
    before = named_leaves(_models.variables(model))
    model.fit(IMAGES, TARGETS, verbose=0)
    assert not {path for path in changed_paths(model, before) if path.startswith("head")}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert kerasflax.freeze(model, "head/params/*") == []


def test_freezing_a_nested_model_warns_if_the_outer_model_must_be_compiled_again():
    inner = keras.Sequential(
        [keras.Input(IMAGES.shape[1:]), FlaxLayer(ConvNet(), name="net")], name="inner"
    )
    outer = compiled_model(inner, keras.layers.Dense(2))
    assert kerasflax.freeze(inner, "net/params/Conv_0/*")
    outer.fit(IMAGES, TARGETS, verbose=0)
    with pytest.warns(UserWarning, match="Compile it again"):
        kerasflax.unfreeze(inner)


def test_setting_trainable_on_the_layer_leaves_frozen_weights_frozen():
    layer = FlaxLayer(MLP())
    layer(np.ones((1, 3), np.float32))
    kerasflax.freeze(layer, ["params/Dense_0/*", "params/Dense_1/bias"])
    frozen = ["params/Dense_0/bias", "params/Dense_0/kernel", "params/Dense_1/bias"]
    assert layer.frozen == frozen
    layer.trainable = False
    assert not layer.trainable_weights
    layer.trainable = True
    assert [w.path.partition("/")[2] for w in layer.trainable_weights] == ["params/Dense_1/kernel"]
    assert kerasflax.unfreeze(layer, "params/Dense_0/*") == frozen[:2]
    assert len(layer.trainable_weights) == 3
    assert kerasflax.freeze(layer) == [*frozen[:2], "params/Dense_1/kernel"]
    assert not layer.trainable_weights


def test_freezing_something_that_cannot_be_frozen_is_an_error_and_changes_nothing():
    layer = FlaxLayer(ConvNet())
    with pytest.raises(NotBuiltError):
        kerasflax.freeze(layer, "params/**")
    layer(IMAGES)
    for pattern in ("batch_stats/**", ["params/Dense_0/kernel", "params/Dnse_0/kernel"]):
        with pytest.raises(ArgumentError, match="nearest of 6 are params/"):
            kerasflax.freeze(layer, pattern)
    assert layer.frozen == []
    with pytest.raises(ArgumentError, match="holds no Flax layer; it holds Dense"):
        kerasflax.freeze(keras.Sequential([keras.layers.Dense(1)]))
    with pytest.raises(ArgumentError, match=r"^'empty' holds no Flax layer\.$"):
        kerasflax.freeze(keras.Sequential(name="empty"))
    with pytest.raises(ArgumentError, match="'plain' is not a Flax layer, but a layer of class Re"):
        kerasflax.freeze(keras.layers.ReLU(name="plain"))
    with pytest.raises(ArgumentError, match="got dict"):
        kerasflax.freeze({})


# Variables of another level -----------------------------------------------------------------------

LINEN = nn.Sequential([nn.Dense(4), nn.BatchNorm(use_running_average=True)])


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.linear = nnx.Linear(3, 4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)

    def __call__(self, inputs):
        return self.norm(self.linear(inputs))


MODULES = [LINEN, Nnx(nnx.Rngs(0)), LazyModule(Nnx)]


def model_of(module, *names):
    """A model with a layer of each name, each of a module like the given one."""
    inputs = keras.Input((3,))
    modules = [nnx.clone(module) if isinstance(module, nnx.Module) else module for _ in names]
    layers = [FlaxLayer(each, name=name) for each, name in zip(modules, names, strict=True)]
    return keras.Model(inputs, [layer(inputs) for layer in layers])


def wrapped(value, *names):
    for name in reversed(names):
        value = {name: value}
    return value


def one_sentence(change):
    """The message of the error that a change raises, without its advice."""
    with pytest.raises(VariablesError) as error:
        change()
    assert not error.value.problems
    assert "\n" not in error.value.what
    return error.value.what, error.value.advice


@pytest.mark.parametrize("module", MODULES, ids=["linen", "nnx", "lazy"])
def test_variables_of_another_level_are_named_in_one_sentence(module):
    model = model_of(module, "net", "other")
    both = _models.variables(model)
    layer, variables = model.get_layer("net"), both["net"]
    # (a nested dict for a layer, the problem, the advice)
    cases = [
        (
            variables["params"],
            "lacks one level: the module has these variables in 'params'.",
            "Pass `{'params': ...}`.",
        ),
        (
            variables["params"] | variables["batch_stats"],
            "lacks one level: the module has these variables in 'batch_stats' and 'params'.",
            "Put them into 'batch_stats' and 'params'.",
        ),
        (
            both,
            "has one level too many: the variables of the module are in 'net' or 'other'.",
            "Pass only what is in 'net' or 'other'.",
        ),
        (
            wrapped(variables, "model", "net"),
            "has 2 levels too many: the variables of the module are in 'model/net'.",
            "Pass only what is in 'model/net'.",
        ),
        (
            wrapped(variables["params"], "params", "params"),
            "has one level too many: the variables of the module are in 'params'.",
            "Pass only what is in 'params'.",
        ),
    ]

    def assign(value):
        layer.flax_variables = value

    def build(value):
        FlaxLayer(module, variables=value)(np.ones((1, 3)))

    for value, problem, advice in cases:
        assert one_sentence(lambda value=value: assign(value)) == (f"The value {problem}", advice)
        expected = (f"`variables` {problem}", advice)
        assert one_sentence(lambda value=value: build(value)) == expected
    for name in ("params", "batch_stats"):
        assert_close(variables[name], layer.flax_variables[name])


def test_variables_of_a_layer_or_of_another_model_are_no_variables_of_a_model():
    model = model_of(LINEN, "net", "other")
    both = _models.variables(model)

    def set_to(value):
        return one_sentence(lambda: _models.set_variables(model, value))

    assert set_to(both["net"]) == (
        "The value lacks one level: the model has these variables in 'net' or 'other'.",
        "Pass `{'net': ...}`.",
    )
    assert set_to(both["net"]["params"]) == (
        "The value lacks 2 levels: the model has these variables in 'net/params' or "
        "'other/params'.",
        "Put them into 'net/params' or 'other/params'.",
    )
    assert set_to({"model": both})[0] == (
        "The value has one level too many: the variables of the model are in 'model'."
    )
    with pytest.raises(VariablesError) as error:
        _models.set_variables(model, {"net": both["net"]["params"]})
    assert error.value.problems == {
        "net": "it lacks one level: the module has these variables in 'params'."
    }
    with pytest.raises(VariablesError) as error:
        _models.set_variables(model, {"third": both["net"]})
    assert error.value.problems == {"third": "the model has no Flax layer of this name"}


def test_a_callback_gets_the_weights_during_an_epoch_from_its_model():
    class Read(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            name = layer.name
            if batch == 0:
                # Nothing has asked the callback for its model.
                with pytest.raises(StateError, match="get the layer from `self"):
                    _ = layer.flax_variables
            weights.append(self.model.get_layer(name).flax_variables["params"]["kernel"])

    layer, weights = FlaxLayer(nn.Dense(2)), []
    model = keras.Sequential([keras.Input((3,)), layer])
    model.compile("sgd", "mse")
    before = layer.flax_variables["params"]["kernel"]
    model.fit(np.ones((4, 3)), np.ones((4, 2)), batch_size=2, verbose=0, callbacks=[Read()])
    assert len(weights) == 2
    assert not np.array_equal(weights[0], before)
    np.testing.assert_array_equal(weights[1], layer.flax_variables["params"]["kernel"])


def test_a_model_that_is_checked_and_then_saved_warns_once(tmp_path):
    factory = LazyModule(lambda rngs: nnx.Linear(3, 2, rngs=rngs))
    model = model_of(factory, "net")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _models.check_savable(model)
        kerasflax.save_model(model, tmp_path / "model.keras")
    assert len(caught) == 1


def test_two_layers_with_the_same_name_are_an_error():
    inner = keras.Sequential([keras.Input((3,)), FlaxLayer(nn.Dense(3), name="same")])
    model = keras.Sequential([keras.Input((3,)), inner, FlaxLayer(nn.Dense(3), name="same")])
    with pytest.raises(ArgumentError, match="have the name 'same'"):
        _models.variables(model)


def test_the_variables_of_a_model_are_set_together_or_not_at_all():
    model = two_flax_layers()
    before = _models.variables(model)
    assert set(before) == {"net", "head"}
    good = {"params": {"bias": np.ones(2)}}
    with pytest.raises(VariablesError) as error:
        _models.set_variables(
            model, {"head": good, "net": {"params": {"Dense_0": {"bias": np.ones(9), "x": 1.0}}}}
        )
    assert "in 2 places" in str(error.value)
    assert "\n  net/params/Dense_0/x: " in str(error.value)
    assert not changed_paths(model, named_leaves(before))
    with pytest.raises(VariablesError) as error:
        _models.set_variables(model, {"other": good, "head": {"params": {"bias": np.ones(9)}}})
    for problem in (
        "other: the model has no Flax layer of this name",
        "head/params/bias: expected float32(2)",
    ):
        assert f"\n  {problem}" in str(error.value)
    assert not changed_paths(model, named_leaves(before))
    with pytest.raises(VariablesError, match=r"a dict by layer \('net', 'head'\), got list"):
        _models.set_variables(model, [good])
    _models.set_variables(model, {"head": good})
    np.testing.assert_array_equal(model.get_layer("head").flax_variables["params"]["bias"], 1)


def test_the_table_has_a_row_for_each_weight_and_the_same_totals_as_the_model():
    model = two_flax_layers()
    kerasflax.freeze(model, "net/params/Conv_0/*")
    table = kerasflax.parameters(model, stats=True)
    assert sum(table["size"]) == model.count_params()
    trainable = [
        size
        for size, is_trainable in zip(table["size"], table["trainable"], strict=True)
        if is_trainable
    ]
    assert sum(trainable) == sum(w.value.size for w in model.trainable_weights)
    rows = dict(
        zip(
            zip(table["layer"], table["path"], strict=True),
            zip(*table.values(), strict=True),
            strict=True,
        )
    )
    kernel = np.asarray(model.get_layer("net").flax_variables["params"]["Conv_0"]["kernel"])
    row = rows["net", "net/params/Conv_0/kernel"]
    assert row[1] == "params"
    assert row[3:8] == (list(kernel.shape), "float32", kernel.size, kernel.nbytes, False)
    np.testing.assert_allclose(
        row[8:12], [kernel.mean(), kernel.std(), kernel.min(), kernel.max()], rtol=1e-5
    )
    assert row[12] == 0
    assert rows["middle", "middle/kernel"][1] is None
    assert rows["net", "net/batch_stats/BatchNorm_0/mean"][7] is False


def test_the_table_counts_nonfinite_values_and_covers_empty_and_integer_weights():
    class Odd(nn.Module):
        @nn.compact
        def __call__(self, x):
            self.variable("state", "empty", lambda: jnp.zeros((0, 3)))
            self.variable("state", "count", lambda: jnp.array(3, jnp.int32))
            self.variable("state", "bad", lambda: jnp.array([1.0, np.nan, np.inf]))
            self.variable("state", "wave", lambda: jnp.array([1j, np.nan]))
            return x

    layer = FlaxLayer(Odd())
    with pytest.raises(NotBuiltError):
        kerasflax.parameters(layer)
    layer(np.ones((1, 2), np.float32))
    table = kerasflax.parameters(layer, stats=True)
    assert table["path"] == ["state/bad", "state/count", "state/empty", "state/wave"]
    assert table["n_nonfinite"] == [2, 0, 0, 1]
    assert table["mean"][1] == 3
    assert np.isnan(table["mean"][2:]).all()
    assert table["size"] == [3, 1, 0, 2]


def test_a_shared_layer_has_one_row_per_weight():
    shared = FlaxLayer(nn.Dense(3), name="shared")
    inputs = keras.Input((3,))
    model = keras.Model(inputs, shared(shared(inputs)))
    assert kerasflax.parameters(model)["path"] == ["shared/params/bias", "shared/params/kernel"]


def test_a_path_of_the_table_is_a_pattern_that_selects_its_weight_alone():
    model = two_flax_layers()
    head = model.get_layer("head")
    kernel = head.variables_by_path["params/kernel"]
    for target, path in ((model, "head/params/kernel"), (head, "params/kernel")):
        table = kerasflax.parameters(target)
        assert table["size"][table["path"].index(path)] == kernel.value.size
        assert kerasflax.freeze(target, path) == [path]
        frozen = [weight for weight in head.weights if not weight.trainable]
        assert [weight is kernel for weight in frozen] == [True]
        kerasflax.unfreeze(target, path)


@pytest.mark.parametrize(
    "dtype", ["float16", "float32", "float64", "int32", "uint32", "bool", "complex64"]
)
def test_values_converted_for_r_are_exact(dtype):
    array = (
        np.array([0, 1, 250]).astype(dtype) / 3
        if dtype == "float64"
        else np.array([0, 1, 250]).astype(dtype)
    )
    np.testing.assert_array_equal(_models._for_r(array), array)


def test_weights_set_through_keras_and_through_flax_are_the_same_weights():
    layer = FlaxLayer(nn.Dense(2))
    layer(np.ones((1, 3), np.float32))
    layer.set_weights([np.full(2, 5.0), np.ones((3, 2))])
    np.testing.assert_array_equal(layer.flax_variables["params"]["bias"], 5)
    layer.flax_variables = {"params": {"bias": jnp.zeros(2)}}
    np.testing.assert_array_equal(layer.get_weights()[0], 0)
    assert jax.tree.structure(layer.flax_variables) == jax.tree.structure(_models.variables(layer))
