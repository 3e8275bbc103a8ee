"""The layer in Keras's own ways of putting models together and training them."""

import collections
import gc
import os
import re
import subprocess
import sys

import flax.core
import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from conformance import CONSTANT, Constants, Decoder, Output, Pair
from flax import linen as nn
from flax import struct
from modules import MLP, ConvNet

import kerasflax
from kerasflax import FlaxLayer

X = np.linspace(-1, 1, 8 * 5 * 5, dtype=np.float32).reshape(8, 5, 5, 1)
V = np.linspace(-1, 1, 8 * 3, dtype=np.float32).reshape(8, 3)
S = np.linspace(-1, 1, 8 * 4 * 3, dtype=np.float32).reshape(8, 4, 3)
Y = np.linspace(0, 1, 8 * 3, dtype=np.float32).reshape(8, 3)


def losses_of(**compile_arguments):
    inputs = keras.Input(X.shape[1:])
    model = keras.Model(inputs, FlaxLayer(ConvNet(), seed=5)(inputs))
    model.compile(
        keras.optimizers.SGD(0.1, **compile_arguments.pop("sgd", {})), "mse", **compile_arguments
    )
    return model.fit(X, Y, epochs=3, batch_size=4, shuffle=False, verbose=0).history["loss"]


@pytest.mark.usefixtures("optimized")
@pytest.mark.parametrize("arguments", [{"run_eagerly": True}, {"jit_compile": False}])
def test_training_is_the_same_however_it_is_compiled(arguments):
    np.testing.assert_allclose(losses_of(**arguments), losses_of(), rtol=1e-4)


def test_gradients_can_be_accumulated():
    accumulated = losses_of(sgd={"gradient_accumulation_steps": 2})
    assert np.isfinite(accumulated).all()
    assert accumulated != losses_of()


def test_train_on_batch_moves_weights_and_state():
    inputs = keras.Input(X.shape[1:])
    layer = FlaxLayer(ConvNet())
    model = keras.Model(inputs, layer(inputs))
    model.compile("sgd", "mse")
    before = layer.flax_variables
    model.train_on_batch(X, Y)
    moved = jax.tree.map(lambda a, b: not np.allclose(a, b), before, layer.flax_variables)
    assert moved["params"]["Dense_0"]["kernel"]
    assert moved["batch_stats"]["BatchNorm_0"]["mean"]


def test_a_subclassed_model_and_a_layer_that_holds_the_layer_are_built_by_fit():
    class Block(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.inner = FlaxLayer(ConvNet(), seed=5, name="net")

        def call(self, x):
            return self.inner(x)

    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.block = Block()

        def call(self, x):
            return self.block(x)

    model = Model()
    model.compile(keras.optimizers.SGD(0.0), "mse")
    model.fit(X, Y, verbose=0)
    params = ConvNet().init(jax.random.key(5), X)["params"]
    got = model.block.inner.flax_variables["params"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), got, params)
    assert all("net/" in weight.path for weight in model.weights)


def test_a_sequential_model_of_tokens_trains():
    model = keras.Sequential(
        [keras.Input((None,), dtype="int32"), FlaxLayer(nn.Embed(5, 3), seed=1)]
    )
    model.compile(keras.optimizers.SGD(0.0), "mse")
    tokens = np.array([[1, 2], [3, 4]], np.int32)
    model.fit(tokens, np.zeros((2, 2, 3)), verbose=0)
    expected = nn.Embed(5, 3).init(jax.random.key(1), tokens)["params"]["embedding"]
    np.testing.assert_allclose(model.predict(tokens, verbose=0), expected[tokens], rtol=1e-6)


@pytest.mark.parametrize("dtype", ["int32", "int64", "uint8"])
def test_a_sequential_model_without_an_input_calls_the_module_on_integers(dtype):
    seen = set()

    class Net(nn.Module):
        @nn.compact
        def __call__(self, tokens):
            seen.add(str(tokens.dtype))
            return nn.Embed(5, 3)(tokens).mean(1)

    layer = FlaxLayer(Net(), seed=1)
    model = keras.Sequential([layer, keras.layers.Dense(2)])
    model.compile(keras.optimizers.SGD(0.1), "mse")
    tokens = np.arange(32).reshape(8, 4).astype(dtype) % 5
    model.fit(tokens, np.zeros((8, 2)), batch_size=4, verbose=0)
    assert seen <= {"int32", "uint8"}
    expected = Net().apply(layer.flax_variables, tokens[:3]) @ model.layers[1].kernel.value
    np.testing.assert_allclose(
        model.predict(tokens[:3], verbose=0), expected + model.layers[1].bias.value, rtol=1e-5
    )


def test_a_sequential_model_without_an_input_knows_its_shapes_after_floats():
    model = keras.Sequential([FlaxLayer(nn.Dense(2))])
    model.compile("sgd", "mse")
    model.fit(V.astype("float64"), Y[:, :2], verbose=0)
    assert model.output_shape == (8, 2)
    with pytest.raises(ValueError, match="kernel"):
        keras.Sequential([FlaxLayer(nn.Dense(2), variables={"params": {}})])(V)


def test_weights_are_regularized_and_constrained_by_path():
    layer = FlaxLayer(
        MLP(),
        regularizers={"params/**/kernel": keras.regularizers.L2(0.5), "params/Dense_1/*": "l1"},
        constraints={"params/Dense_0/kernel": keras.constraints.NonNeg()},
    )
    inputs = keras.Input((3,))
    model = keras.Model(inputs, layer(inputs))
    model.compile(keras.optimizers.SGD(0.1), "mse")
    params = layer.flax_variables["params"]
    one = sum(np.abs(leaf).sum() for leaf in jax.tree.leaves(params["Dense_1"]))
    expected = 0.5 * np.square(params["Dense_0"]["kernel"]).sum() + 0.01 * one
    np.testing.assert_allclose(sum(layer.losses), expected, rtol=1e-5)
    assert params["Dense_0"]["kernel"].min() < 0
    model.train_on_batch(V, np.zeros((8, layer(V).shape[-1])))
    params = layer.flax_variables["params"]
    assert params["Dense_0"]["kernel"].min() >= 0
    assert params["Dense_1"]["kernel"].min() < 0


@pytest.mark.parametrize("argument", ["regularizers", "constraints"])
def test_a_pattern_that_no_trainable_weight_fits_is_an_error(argument):
    module = nn.Sequential([nn.Dense(3), nn.BatchNorm(True)])
    with pytest.raises(kerasflax.ArgumentError, match="batch_stats/\\*\\*"):
        FlaxLayer(module, **{argument: {"batch_stats/**": None}})(V)
    with pytest.raises(kerasflax.ArgumentError, match="dict by pattern"):
        FlaxLayer(module, **{argument: ["l2"]})


def test_used_twice_the_layer_shares_its_weights_and_two_layers_of_one_module_do_not():
    module = nn.Dense(3)
    layer, other = FlaxLayer(module), FlaxLayer(module)
    inputs = keras.Input((3,))
    model = keras.Model(inputs, [layer(layer(inputs)), other(inputs)])
    assert len(model.weights) == 4
    assert not np.allclose(layer.weights[1], other.weights[1])


@pytest.mark.parametrize("module", [MLP(), nn.Sequential([nn.Dense(4), nn.LayerNorm()])])
def test_time_distributed_applies_the_layer_to_each_step(module):
    layer = FlaxLayer(module)
    inputs = keras.Input(S.shape[1:])
    model = keras.Model(inputs, keras.layers.TimeDistributed(layer)(inputs))
    expected = module.apply(layer.flax_variables, S)
    np.testing.assert_allclose(model.predict(S, verbose=0), expected, rtol=1e-5, atol=1e-6)


def test_a_mask_reaches_the_module_and_goes_on():
    class Masked(nn.Module):
        @nn.compact
        def __call__(self, x, mask):
            return nn.Dense(3)(x) * mask[..., None]

    class Pooled(nn.Module):
        def __call__(self, x, mask=None):
            return (x * mask[..., None]).sum(1)

    x = S.copy()
    x[:, 2:] = 0
    layer = FlaxLayer(Masked())
    inputs = keras.Input(S.shape[1:])
    masked = layer(keras.layers.Masking()(inputs))
    pooled = FlaxLayer(Pooled())(masked)
    model = keras.Model(inputs, [masked, pooled])
    steps, total = model.predict(x, verbose=0)
    mask = np.arange(4) < 2
    expected = Masked().apply(layer.flax_variables, x, np.broadcast_to(mask, (8, 4)))
    np.testing.assert_allclose(steps, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(total, expected.sum(1), rtol=1e-5, atol=1e-6)
    assert getattr(pooled, "_keras_mask", None) is None


def test_dataclasses_go_in_and_come_out_of_an_eager_call_and_are_dicts_among_keras_tensors():
    class Structs(nn.Module):
        @nn.compact
        def __call__(self, inputs):
            x = nn.Dense(2)(inputs.last)
            return Output(x, hidden=(x, inputs.hidden[0])) if inputs.hidden else Output(x)

    layer = FlaxLayer(Structs())
    symbolic = layer(Output(keras.Input((3,)), hidden=(keras.Input((2,)),)))
    assert isinstance(symbolic, dict)
    assert symbolic["last"].shape == (None, 2)
    given = Output(V, hidden=(Y,))
    outputs = layer(given)
    assert isinstance(outputs, Output)
    expected = Structs().apply(layer.flax_variables, given)
    jax.tree.map(np.testing.assert_allclose, outputs, expected)
    assert layer(Output(V)).hidden is None


def test_frozen_dicts_and_named_tuples_are_inputs():
    class Takes(nn.Module):
        def __call__(self, inputs):
            return inputs["a"].left + inputs["a"].right

    layer = FlaxLayer(Takes())
    np.testing.assert_allclose(layer(flax.core.freeze({"a": Pair(V, V)})), 2 * V)


def test_a_cache_is_stepped_and_reset():
    x = S[:, :, :2]
    layer = FlaxLayer(Decoder())
    layer(keras.Input(batch_shape=x.shape))
    empty = jax.tree.map(np.array, layer.flax_variables["cache"])
    steps = [np.asarray(layer(x[:, t : t + 1])) for t in range(4)]
    whole = nn.MultiHeadDotProductAttention(num_heads=1)
    params = {"params": layer.flax_variables["params"]["MultiHeadDotProductAttention_0"]}
    expected = whole.apply(params, x, mask=nn.make_causal_mask(x[..., 0]))
    np.testing.assert_allclose(np.concatenate(steps, 1), expected, rtol=1e-4, atol=1e-5)
    layer.flax_variables = {"cache": empty}
    np.testing.assert_array_equal(layer(x[:, :1]), steps[0])


def test_a_cache_made_for_other_lengths_is_taken_as_given():
    x = S[:, :, :2]
    variables = Decoder().init(jax.random.key(0), x)
    layer = FlaxLayer(Decoder(), variables=variables)
    layer(x[:, :1])
    assert layer.flax_variables["cache"]["MultiHeadDotProductAttention_0"]["cache_index"] == 1


@pytest.mark.parametrize(
    "dtype", ["float16", "bfloat16", "uint8", "int8", "bool", "int32", "uint32", "float64", "int64"]
)
@pytest.mark.parametrize("autocast", [True, False])
def test_init_and_call_see_the_same_dtype(dtype, autocast):
    seen = set()

    class Sees(nn.Module):
        @nn.compact
        def __call__(self, x):
            seen.add(str(x.dtype))
            return nn.Dense(2)(x.astype(jnp.float32))

    x = np.ones((2, 3), dtype)
    FlaxLayer(Sees(), autocast=autocast)(x)
    expected = {"float64": "float32", "int64": "int32"}.get(dtype, dtype)
    assert seen == {"float32" if autocast and "float" in dtype else expected}


@pytest.mark.parametrize("policy", ["float16", "mixed_float16", "bfloat16", "mixed_bfloat16"])
def test_a_policy_trains(policy):
    inputs = keras.Input(X.shape[1:])
    layer = FlaxLayer(ConvNet(), dtype=policy)
    model = keras.Model(inputs, layer(inputs))
    model.compile("sgd", "mse")
    assert np.isfinite(model.fit(X, Y, verbose=0).history["loss"]).all()
    variable_dtype = policy if not policy.startswith("mixed") else "float32"
    assert {w.dtype for w in layer.trainable_weights} == {variable_dtype}
    assert {w.dtype for w in layer.non_trainable_weights} == {"float32"}


def test_whole_floats_do_in_integer_fields_and_the_users_module_stays_what_it_is():
    class Net(nn.Module):
        features: int

        def setup(self):
            self.conv = nn.Conv(self.features, [3.0, 3.0], strides=2.0)

        def __call__(self, x):
            return self.conv(x)

    module = Net(4.0)
    assert FlaxLayer(module)(X).shape == (8, 3, 3, 4)
    assert isinstance(module.features, float)
    with pytest.raises(
        kerasflax.FieldError, match=r"`Conv\.kernel_size` must be a whole number, got 2\.5"
    ):
        FlaxLayer(nn.Conv(2, (2.5, 3)))(X)
    with pytest.raises(kerasflax.FieldError, match=r"Net\.features"):
        FlaxLayer(Net(1.5))(X)


def test_an_exception_names_the_module_in_which_it_was_raised():
    class Inner(nn.Module):
        def __call__(self, x):
            raise ValueError("too {small}")

    class Outer(nn.Module):
        def setup(self):
            self.blocks = [nn.Dense(2), Inner()]

        def __call__(self, x):
            for block in self.blocks:
                x = block(x)
            return x

    with pytest.raises(
        ValueError, match=r"too {small}\n.*raised in Outer/blocks_1, of class Inner"
    ) as error:
        FlaxLayer(Outer())(V)
    assert type(error.value) is ValueError


def test_constants_as_initial_values_stay_the_users_and_train():
    inputs = keras.Input((3,))
    model = keras.Model(inputs, FlaxLayer(Constants())(FlaxLayer(Constants())(inputs)))
    model.compile("sgd", "mse")
    model.fit(V, Y, epochs=2, verbose=0)
    np.testing.assert_array_equal(CONSTANT, [0, 1, 2])


def test_dicts_keep_their_order_on_the_way_in_and_out():
    class Order(nn.Module):
        def __call__(self, inputs):
            first, second = inputs.values()
            return {"z": first - second, "a": {"y": first, "b": second}}

    layer = FlaxLayer(Order())
    given = {"query": 3 * V, "context": V}
    inputs = {name: keras.Input((3,), name=name) for name in given}
    symbolic = layer(inputs)
    assert list(symbolic) == ["z", "a"]
    assert list(symbolic["a"]) == ["y", "b"]
    model = keras.Model(inputs, symbolic)
    for call in (layer, layer, model, model.predict_on_batch):
        np.testing.assert_allclose(call(given)["z"], 2 * V, rtol=1e-6)
    assert list(layer(given)) == ["z", "a"]


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "float16", None])
def test_the_keras_tensor_has_the_dtype_of_the_output(policy):
    layer = FlaxLayer(MLP(), dtype=policy)
    for _ in range(2):
        assert keras.backend.standardize_dtype(layer(keras.Input((3,))).dtype) == str(
            layer(V).dtype
        )
    with pytest.raises(kerasflax.ArgumentError, match="must be a floating-point dtype"):
        FlaxLayer(MLP(), dtype="int32")


@struct.dataclass
class Scaled:
    array: jax.Array
    scale: float = struct.field(pytree_node=False, default=1.0)


class TakesAnything(nn.Module):
    def __call__(self, q):
        if isinstance(q, dict):
            return jnp.stack(list(q.values()))
        return q.array * q.scale


def test_calls_with_other_types_static_fields_or_orders_are_other_calls():
    layer = FlaxLayer(TakesAnything())
    x = np.ones((1, 2), np.float32)
    assert [float(layer(q)[0, 0]) for q in (Scaled(x, 1.0), Scaled(x, 5.0), Scaled(x, 1.0))] == [
        1,
        5,
        1,
    ]
    assert layer({"array": x}).shape == (1, 1, 2)
    for names in ("ab", "ba"):
        outputs = layer({name: x * (1 + (name == "b")) for name in names})
        assert outputs[:, 0, 0].tolist() == ([1, 2] if names == "ab" else [2, 1])
    inputs = keras.Input((2,))
    model = keras.Model(inputs, [layer(Scaled(inputs, 2.0)), layer(Scaled(inputs, 5.0))])
    assert [float(output[0, 0]) for output in model.predict(x, verbose=0)] == [2, 5]


def test_losses_of_any_shape_are_summed_up_under_lifted_transforms_too():
    class Expert(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            self.sow("losses", "aux", jnp.float32(1.0))
            return nn.Dense(3)(x), None

    class Experts(nn.Module):
        @nn.compact
        def __call__(self, x):
            scan = nn.scan(
                Expert,
                variable_axes={"params": 0, "losses": 0},
                split_rngs={"params": True},
                length=4,
            )
            self.sow("losses", "sum", x.sum(-1))
            return scan()(x, None)[0]

    layer = FlaxLayer(Experts())
    model = keras.Sequential([keras.Input((3,)), layer])
    model.compile("sgd", "mse")
    loss = model.evaluate(V, model.predict(V, verbose=0), verbose=0)
    np.testing.assert_allclose(loss, 4 + V.sum(), rtol=1e-5)


def test_a_padding_mask_hides_keys_from_flaxs_attention():
    attention = FlaxLayer(nn.MultiHeadDotProductAttention(2))
    embedding = keras.layers.Embedding(10, 4, mask_zero=True)
    model = keras.Sequential([keras.Input((4,)), embedding, attention])
    tokens = np.array([[1, 2, 0, 0], [3, 4, 5, 6], [1, 1, 1, 1], [2, 0, 0, 0]])
    mask = (tokens != 0)[:, None, None, :]
    expected = attention.module.apply(attention.flax_variables, embedding(tokens), mask=mask)
    np.testing.assert_allclose(model.predict(tokens, verbose=0), expected, rtol=1e-5, atol=1e-6)


def test_initial_values_that_depend_on_the_input_are_made_of_the_first_one():
    class Centred(nn.Module):
        @nn.compact
        def __call__(self, x):
            return x - self.param("mean", lambda key: x.mean(0))

    layer = FlaxLayer(Centred())
    layer(V + 7)
    np.testing.assert_allclose(layer.flax_variables["params"]["mean"], V.mean(0) + 7, rtol=1e-6)
    symbolic = FlaxLayer(Centred())
    symbolic(keras.Input((3,)))
    np.testing.assert_allclose(symbolic.flax_variables["params"]["mean"], 1, rtol=1e-6)


@pytest.mark.parametrize(
    "value",
    [
        lambda x: jnp.full(3, 1 / np.sqrt(int(x.shape[1]))),
        lambda x: jnp.ones(3) / jnp.sqrt(x.shape[1]),
        lambda x: jnp.ones(3) * x.shape[0],
    ],
)
def test_an_initial_value_that_depends_on_an_unknown_size_is_an_error(value):
    class Sized(nn.Module):
        @nn.compact
        def __call__(self, x):
            return x * self.param("scale", lambda key: value(x))

    with pytest.raises(kerasflax.ShapeError, match="depend on a size"):
        FlaxLayer(Sized())(keras.Input((None, 3)))
    layer = FlaxLayer(Sized())
    layer(keras.Input(batch_shape=(8, 4, 3)))
    np.testing.assert_allclose(layer.flax_variables["params"]["scale"], value(S), rtol=1e-6)


def test_a_collection_may_hold_state_and_what_is_sown():
    class Both(nn.Module):
        @nn.compact
        def __call__(self, x, training=False):
            count = self.variable("stats", "n", lambda: jnp.zeros((), jnp.int32))
            count.value += not self.is_initializing()
            if training:
                self.sow("stats", "h", x)
            return x + count.value

    layer = FlaxLayer(Both())
    x = np.zeros((1, 1), np.float32)
    assert [float(layer(x, training=mode)[0, 0]) for mode in (False, True, False, True, False)] == [
        1,
        2,
        3,
        4,
        5,
    ]
    assert list(layer.flax_variables["stats"]) == ["n"]


def test_a_layer_with_state_survives_inference_in_traces_that_keras_knows_nothing_of():
    layer = FlaxLayer(ConvNet())
    expected = layer(X)
    for transform in (jax.jit, jax.checkpoint):
        np.testing.assert_allclose(transform(lambda x: layer(x))(X), expected, rtol=1e-5)
    assert jax.eval_shape(lambda x: layer(x), X).shape == expected.shape
    np.testing.assert_allclose(layer(X), expected, rtol=1e-6)


def test_a_mask_goes_on_only_where_its_axes_do():
    class Strided(nn.Module):
        @nn.compact
        def __call__(self, x, mask):
            return nn.Conv(4, (3,), strides=2)(x)

    inputs = keras.Input((4, 3))
    outputs = FlaxLayer(Strided())(keras.layers.Masking()(inputs))
    assert keras.Model(inputs, keras.layers.GlobalAveragePooling1D()(outputs)).predict(
        S, verbose=0
    ).shape == (8, 4)


def test_a_method_is_given_the_whole_modules_variables():
    class Coder(nn.Module):
        def setup(self):
            self.encoder, self.decoder = nn.Dense(2), nn.Dense(3)

        def encode(self, x):
            return self.encoder(x)

        def __call__(self, x):
            return self.decoder(self.encode(x))

    variables = Coder().init(jax.random.key(1), V)
    layer = FlaxLayer(Coder(), method="encode", variables=variables)
    np.testing.assert_allclose(layer(V), Coder().apply(variables, V, method="encode"), rtol=1e-6)
    assert list(layer.flax_variables["params"]) == ["encoder"]


def test_a_list_is_spread_over_an_input_and_a_mask():
    class Masked(nn.Module):
        def __call__(self, x, mask):
            return x * mask

    np.testing.assert_array_equal(FlaxLayer(Masked())([V, np.zeros_like(V)]), np.zeros_like(V))


def test_names_with_a_separator_are_an_error_where_paths_would_be_the_same():
    class Ambiguous(nn.Module):
        @nn.compact
        def __call__(self, x):
            self.param("a/bias", nn.initializers.zeros, (3,))
            return nn.Dense(3, name="a")(x)

    with pytest.raises(kerasflax.StateError, match="params/a/bias"):
        FlaxLayer(Ambiguous())(V)


# What it costs ------------------------------------------------------------------------------------------------------------


def copies(shape):
    """The buffers that hold arrays of a shape."""
    gc.collect()
    return {
        array.unsafe_buffer_pointer()
        for array in jax.live_arrays()
        if array.shape == shape and not array.is_deleted()
    }


@pytest.mark.parametrize("is_enabled", [True, False])
def test_a_build_leaves_the_search_for_cycles_as_it_was(is_enabled):
    class Failing(nn.Module):
        @nn.compact
        def __call__(self, inputs):
            assert not gc.isenabled()
            raise OSError("no file")

    (gc.enable if is_enabled else gc.disable)()
    try:
        with pytest.raises(OSError, match="no file"):
            FlaxLayer(Failing())(V)
        assert gc.isenabled() == is_enabled
    finally:
        gc.enable()


@pytest.mark.parametrize("given", [False, True])
def test_at_no_time_after_build_is_there_a_second_copy_of_a_weight(given, tmp_path):
    shape = (31, 777)
    x, y = np.ones((4, 31), np.float32), np.ones((4, 777), np.float32)
    variables = nn.Dense(777).init(jax.random.key(0), x) if given else None
    # The user's own, which a compiled step leaves alone.
    own = copies(shape)
    assert len(own) == given
    model = keras.Sequential([keras.Input((31,)), FlaxLayer(nn.Dense(777), variables=variables)])
    assert len(copies(shape) - own) == 1
    model.compile("sgd", "mse")
    model.predict(x, verbose=0)
    assert len(copies(shape) - own) == 1
    model.fit(x, y, verbose=0)
    assert len(copies(shape) - own) == 1
    handed_out = model.layers[-1].flax_variables
    assert len(copies(shape) - own) == 2
    del handed_out
    assert len(copies(shape) - own) == 1
    model.save_weights(tmp_path / "m.weights.h5")
    model.load_weights(tmp_path / "m.weights.h5")
    assert len(copies(shape) - own) == 1
    assert variables is None or not variables["params"]["kernel"].is_deleted()


def test_the_modules_code_runs_once_for_each_mode_and_spec():
    runs = []

    class Noting(nn.Module):
        @nn.compact
        def __call__(self, inputs, training=False):
            runs.append((inputs.shape[0], training))
            return nn.Dropout(0.5, deterministic=not training)(nn.Dense(2)(inputs))

    model = keras.Sequential([keras.Input((3,)), FlaxLayer(Noting())])
    model.compile("sgd", "mse")
    assert len(runs) == 1
    x, y = np.ones((8, 3), np.float32), np.ones((8, 2), np.float32)
    for _ in range(2):
        model.fit(x, y, batch_size=4, verbose=0)
        model.evaluate(x, y, batch_size=4, verbose=0)
        model.predict(x, batch_size=4, verbose=0)
        model.fit(x, y, batch_size=8, verbose=0)
        model(x[:4])
    assert sorted(runs[1:]) == [(4, False), (4, True), (8, True)]


class Plain(keras.layers.Layer):
    """A layer that only calls `module.apply`."""

    def __init__(self, module, inputs):
        super().__init__(autocast=False)
        variables = module.init(jax.random.key(0), inputs)
        named = jax.tree_util.tree_flatten_with_path(variables)[0]
        self.held = [
            keras.Variable(value, trainable=path[0].key == "params") for path, value in named
        ]
        self.apply = lambda values, *args, **kwargs: module.apply(
            jax.tree.unflatten(jax.tree.structure(variables), values),
            *args,
            mutable=["batch_stats"],
            **kwargs,
        )
        self.built = True

    def call(self, inputs, training=False):
        outputs, state = self.apply(
            [variable.value for variable in self.held], inputs, training=training
        )
        written = [variable for variable in self.held if not variable.trainable]
        for variable, value in zip(written, jax.tree.leaves(state), strict=True):
            variable.assign(value)
        return outputs


def compiled_step(layer, x, y):
    """The training step that Keras makes of a model with the layer: its operations by name, and its arithmetic."""
    model = keras.Sequential([keras.Input(x.shape[1:]), layer])
    model.compile(keras.optimizers.SGD(0.1), "mse")
    model._symbolic_build(data_batch=(x, y))
    variables = (
        model.trainable_variables,
        model.non_trainable_variables,
        model.optimizer.variables,
        model.metrics_variables,
    )
    state = tuple([variable.value for variable in group] for group in variables)
    program = jax.jit(model.train_step, donate_argnums=0).lower(state, (x, y)).compile()
    operations = re.findall(
        r"^\s*(?:ROOT )?%\S+ = .*?\s([\w-]+)\(", program.as_text(), re.MULTILINE
    )
    return collections.Counter(operations), program.cost_analysis()["flops"]


@pytest.mark.usefixtures("optimized")
def test_a_training_step_is_compiled_to_what_the_thinnest_layer_compiles_to():
    # Without dropout: the random streams of the two would differ.
    module = ConvNet(rate=0.0)
    operations, flops = compiled_step(FlaxLayer(module), X, Y)
    expected, expected_flops = compiled_step(Plain(module, X), X, Y)
    assert expected["fusion"] + expected["dot"] > 20
    # The state of the layer's seed goes in and out.
    assert operations - expected == {"parameter": 1}
    assert not expected - operations
    assert flops == expected_flops


@pytest.mark.usefixtures("optimized")
def test_initial_values_are_made_where_they_will_live():
    # Devices are counted when JAX starts, hence a new process.
    code = """
import gc, jax, keras, numpy as np
from flax import linen as nn
from kerasflax import FlaxLayer

def places(shape):
    gc.collect()
    return [sorted(device.id for device in array.devices()) for array in jax.live_arrays() if array.shape == shape]

layer = FlaxLayer(nn.Dense(777))
with jax.default_device(jax.devices()[1]), jax.transfer_guard_device_to_device("disallow_explicit"):
    layer.build((None, 31))
assert places((31, 777)) == [[1]], places((31, 777))

mesh = keras.distribution.DeviceMesh((1, 2), ["batch", "model"], keras.distribution.list_devices("cpu"))
layouts = keras.distribution.LayoutMap(mesh)
layouts[".*kernel"] = (None, "model")
keras.distribution.set_distribution(keras.distribution.ModelParallel(layout_map=layouts, batch_dim_name="batch"))
x = np.ones((4, 31), np.float32)
model = keras.Sequential([keras.Input((31,)), FlaxLayer(nn.Dense(778), seed=5)])
assert places((31, 778)) == [[0, 1]], places((31, 778))
kernel = model.layers[0].variables_by_path["params/kernel"].value
assert {shard.data.shape for shard in kernel.addressable_shards} == {(31, 389)}
expected = nn.Dense(778).init(jax.random.key(5), x)["params"]["kernel"]
np.testing.assert_allclose(kernel, expected, rtol=1e-6, atol=1e-6)
"""
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
    )
    assert run.returncode == 0, run.stderr
