"""The layer in Keras models: composition, training, state and errors."""

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from conformance import CONSTANT, Constants, Decoder
from flax import linen as nn
from flax import nnx
from modules import MLP, ConvNet
from support import IMAGES, SEQUENCES, TARGETS, VECTORS, assert_close

import kerasflax
from kerasflax import FlaxLayer


def losses_of(**compile_arguments):
    inputs = keras.Input(IMAGES.shape[1:])
    model = keras.Model(inputs, FlaxLayer(ConvNet(), seed=5)(inputs))
    model.compile(
        keras.optimizers.SGD(0.1, **compile_arguments.pop("sgd", {})), "mse", **compile_arguments
    )
    return model.fit(IMAGES, TARGETS, epochs=3, batch_size=4, shuffle=False, verbose=0).history[
        "loss"
    ]


@pytest.mark.usefixtures("optimized")
@pytest.mark.parametrize("arguments", [{"run_eagerly": True}, {"jit_compile": False}])
def test_training_gives_the_same_losses_eagerly_and_compiled(arguments):
    np.testing.assert_allclose(losses_of(**arguments), losses_of(), rtol=1e-4)


def test_gradients_can_be_accumulated():
    accumulated = losses_of(sgd={"gradient_accumulation_steps": 2})
    assert np.isfinite(accumulated).all()
    assert accumulated != losses_of()


def test_train_on_batch_updates_weights_and_state():
    inputs = keras.Input(IMAGES.shape[1:])
    layer = FlaxLayer(ConvNet())
    model = keras.Model(inputs, layer(inputs))
    model.compile("sgd", "mse")
    before = layer.flax_variables
    model.train_on_batch(IMAGES, TARGETS)
    moved = jax.tree.map(lambda a, b: not np.allclose(a, b), before, layer.flax_variables)
    assert moved["params"]["Dense_0"]["kernel"]
    assert moved["batch_stats"]["BatchNorm_0"]["mean"]


def test_fit_builds_a_subclassed_model_and_a_layer_that_holds_the_layer():
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
    model.fit(IMAGES, TARGETS, verbose=0)
    params = ConvNet().init(jax.random.key(5), IMAGES)["params"]
    got = model.block.inner.flax_variables["params"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), got, params)
    assert all("net/" in weight.path for weight in model.weights)


def test_a_sequential_model_trains_on_tokens():
    model = keras.Sequential(
        [keras.Input((None,), dtype="int32"), FlaxLayer(nn.Embed(5, 3), seed=1)]
    )
    model.compile(keras.optimizers.SGD(0.0), "mse")
    tokens = np.array([[1, 2], [3, 4]], np.int32)
    model.fit(tokens, np.zeros((2, 2, 3)), verbose=0)
    expected = nn.Embed(5, 3).init(jax.random.key(1), tokens)["params"]["embedding"]
    np.testing.assert_allclose(model.predict(tokens, verbose=0), expected[tokens], rtol=1e-6)


def test_patterns_of_paths_select_the_weights_to_regularize_and_constrain():
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
    model.train_on_batch(VECTORS, np.zeros((8, layer(VECTORS).shape[-1])))
    params = layer.flax_variables["params"]
    assert params["Dense_0"]["kernel"].min() >= 0
    assert params["Dense_1"]["kernel"].min() < 0


@pytest.mark.parametrize("argument", ["regularizers", "constraints"])
def test_a_pattern_that_matches_no_trainable_weight_is_an_error(argument):
    module = nn.Sequential([nn.Dense(3), nn.BatchNorm(True)])
    with pytest.raises(kerasflax.ArgumentError, match="batch_stats/\\*\\*"):
        FlaxLayer(module, **{argument: {"batch_stats/**": None}})(VECTORS)
    with pytest.raises(kerasflax.ArgumentError, match="dict by pattern"):
        FlaxLayer(module, **{argument: ["l2"]})


def test_a_layer_used_twice_shares_its_weights_but_two_layers_of_one_module_do_not():
    module = nn.Dense(3)
    layer, other = FlaxLayer(module), FlaxLayer(module)
    inputs = keras.Input((3,))
    model = keras.Model(inputs, [layer(layer(inputs)), other(inputs)])
    assert len(model.weights) == 4
    assert not np.allclose(layer.weights[1], other.weights[1])


@pytest.mark.parametrize("module", [MLP(), nn.Sequential([nn.Dense(4), nn.LayerNorm()])])
def test_time_distributed_applies_the_layer_to_each_step(module):
    layer = FlaxLayer(module)
    inputs = keras.Input(SEQUENCES.shape[1:])
    model = keras.Model(inputs, keras.layers.TimeDistributed(layer)(inputs))
    expected = module.apply(layer.flax_variables, SEQUENCES)
    np.testing.assert_allclose(model.predict(SEQUENCES, verbose=0), expected, rtol=1e-5, atol=1e-6)


def test_time_distributed_passes_integers_to_a_module_that_needs_them(tmp_path):
    tokens = np.arange(24).reshape(4, 3, 2) % 5
    layer = FlaxLayer(nn.Embed(5, 2))
    inputs = keras.Input((3, 2), dtype="int32")
    model = keras.Model(inputs, keras.layers.TimeDistributed(layer)(inputs))
    expected = nn.Embed(5, 2).apply(layer.flax_variables, tokens)
    np.testing.assert_allclose(model.predict(tokens, verbose=0), expected, rtol=1e-6)
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    np.testing.assert_allclose(loaded.predict(tokens, verbose=0), expected, rtol=1e-6)


def test_time_distributed_keeps_the_state_of_a_module_in_training():
    inputs = keras.Input((4, 3))
    layer = FlaxLayer(nn.BatchNorm(), method=normalize)
    model = keras.Model(inputs, keras.layers.TimeDistributed(layer)(inputs))
    model.compile("sgd", "mse")
    model.fit(SEQUENCES, SEQUENCES, batch_size=8, verbose=0)
    expected = nn.BatchNorm(use_running_average=False)
    params = nn.BatchNorm(use_running_average=True).init(jax.random.key(0), SEQUENCES[:, 0])
    for step in range(4):
        _, state = expected.apply(params, SEQUENCES[:, step], mutable=["batch_stats"])
        params = {**params, **state}
    got = layer.flax_variables["batch_stats"]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), got, state["batch_stats"]
    )


def normalize(module, inputs, training):
    return module(inputs, use_running_average=not training)


def test_bidirectional_says_to_use_flax_s_own_module_which_gives_the_same_as_plain_apply():
    recurrent = nn.RNN(nn.SimpleCell(2))
    for arguments in ({}, {"backward_layer": FlaxLayer(recurrent)}):
        with pytest.raises(kerasflax.KerasFlaxError, match="cannot reverse a Flax module") as error:
            keras.layers.Bidirectional(FlaxLayer(recurrent), **arguments)
        assert "`flax.linen.Bidirectional`" in error.value.advice
    assert not hasattr(FlaxLayer(recurrent), "go_backwards")
    module = nn.Bidirectional(recurrent, nn.RNN(nn.SimpleCell(2)))
    layer = FlaxLayer(module)
    output = layer(SEQUENCES)
    expected = module.apply(layer.flax_variables, SEQUENCES)
    np.testing.assert_allclose(output, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("optimized")
def test_several_steps_per_execution_give_the_same_losses_and_state():
    results = []
    for steps in (1, 2):
        layer = FlaxLayer(ConvNet(rate=0.0), seed=5)
        model = keras.Sequential([keras.Input(IMAGES.shape[1:]), layer])
        model.compile(keras.optimizers.SGD(0.1), "mse", steps_per_execution=steps)
        model.fit(IMAGES, TARGETS, epochs=2, batch_size=2, shuffle=False, verbose=0)
        loss = model.evaluate(IMAGES, TARGETS, batch_size=2, verbose=0)
        prediction = model.predict(IMAGES[:7], batch_size=2, verbose=0)
        results.append((layer.flax_variables, loss, prediction))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *results)


@pytest.mark.filterwarnings("error::UserWarning")
def test_a_distribution_over_one_device_does_not_warn_of_a_mix_of_variables():
    layer = FlaxLayer(ConvNet(), seed=5)
    devices = jax.devices()[:1]
    for kind in (keras.distribution.DataParallel, None):
        before = keras.distribution.distribution()
        keras.distribution.set_distribution(kind and kind(devices=devices))
        try:
            model = keras.Sequential([keras.Input(IMAGES.shape[1:]), layer, keras.layers.Dense(3)])
            model.compile("sgd", "mse")
            model.fit(IMAGES, TARGETS, verbose=0)
            model.predict(IMAGES, verbose=0)
            # With a distribution, Keras 3.13 fails here without sample weights.
            model.train_on_batch(IMAGES, TARGETS, sample_weight=np.ones(len(IMAGES)))
        finally:
            keras.distribution.set_distribution(before)


def test_a_cache_advances_with_each_call_and_can_be_reset():
    x = SEQUENCES[:, :, :2]
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


def test_a_given_cache_may_have_another_length_than_the_input():
    x = SEQUENCES[:, :, :2]
    variables = Decoder().init(jax.random.key(0), x)
    layer = FlaxLayer(Decoder(), variables=variables)
    layer(x[:, :1])
    assert layer.flax_variables["cache"]["MultiHeadDotProductAttention_0"]["cache_index"] == 1


@pytest.mark.parametrize("policy", ["float16", "mixed_float16", "bfloat16", "mixed_bfloat16"])
def test_a_model_trains_under_each_dtype_policy(policy):
    inputs = keras.Input(IMAGES.shape[1:])
    layer = FlaxLayer(ConvNet(), dtype=policy)
    model = keras.Model(inputs, layer(inputs))
    model.compile("sgd", "mse")
    assert np.isfinite(model.fit(IMAGES, TARGETS, verbose=0).history["loss"]).all()
    variable_dtype = policy if not policy.startswith("mixed") else "float32"
    assert {w.dtype for w in layer.trainable_weights} == {variable_dtype}
    assert {w.dtype for w in layer.non_trainable_weights} == {"float32"}


def test_integer_fields_accept_whole_floats_and_the_users_module_does_not_change():
    class Net(nn.Module):
        features: int

        def setup(self):
            self.conv = nn.Conv(self.features, [3.0, 3.0], strides=2.0)

        def __call__(self, x):
            return self.conv(x)

    module = Net(4.0)
    assert FlaxLayer(module)(IMAGES).shape == (8, 3, 3, 4)
    assert isinstance(module.features, float)
    with pytest.raises(
        kerasflax.FieldError, match=r"`Conv\.kernel_size` must be a whole number, got 2\.5"
    ):
        FlaxLayer(nn.Conv(2, (2.5, 3)))(IMAGES)
    with pytest.raises(kerasflax.FieldError, match=r"Net\.features"):
        FlaxLayer(Net(1.5))(IMAGES)


def test_an_exception_names_the_submodule_that_raised_it():
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
        FlaxLayer(Outer())(VECTORS)
    assert type(error.value) is ValueError


def test_initial_values_that_are_constants_train_without_changing_the_users_arrays():
    inputs = keras.Input((3,))
    model = keras.Model(inputs, FlaxLayer(Constants())(FlaxLayer(Constants())(inputs)))
    model.compile("sgd", "mse")
    model.fit(VECTORS, TARGETS, epochs=2, verbose=0)
    np.testing.assert_array_equal(CONSTANT, [0, 1, 2])


def test_sown_losses_of_any_shape_are_summed_under_lifted_transforms_too():
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
    loss = model.evaluate(VECTORS, model.predict(VECTORS, verbose=0), verbose=0)
    np.testing.assert_allclose(loss, 4 + VECTORS.sum(), rtol=1e-5)


def test_a_collection_can_hold_both_state_and_sown_values():
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


def test_inference_inside_a_trace_that_keras_did_not_start_leaves_the_state_intact():
    layer = FlaxLayer(ConvNet())
    expected = layer(IMAGES)
    for transform in (jax.jit, jax.checkpoint):
        np.testing.assert_allclose(transform(lambda x: layer(x))(IMAGES), expected, rtol=1e-5)
    assert jax.eval_shape(lambda x: layer(x), IMAGES).shape == expected.shape
    np.testing.assert_allclose(layer(IMAGES), expected, rtol=1e-6)


def test_a_layer_of_a_method_accepts_the_variables_of_the_whole_module():
    class Coder(nn.Module):
        def setup(self):
            self.encoder, self.decoder = nn.Dense(2), nn.Dense(3)

        def encode(self, x):
            return self.encoder(x)

        def __call__(self, x):
            return self.decoder(self.encode(x))

    variables = Coder().init(jax.random.key(1), VECTORS)
    layer = FlaxLayer(Coder(), method="encode", variables=variables)
    np.testing.assert_allclose(
        layer(VECTORS), Coder().apply(variables, VECTORS, method="encode"), rtol=1e-6
    )
    assert list(layer.flax_variables["params"]) == ["encoder"]


def test_names_with_a_separator_are_an_error_if_two_paths_would_be_equal():
    class Ambiguous(nn.Module):
        @nn.compact
        def __call__(self, x):
            self.param("a/bias", nn.initializers.zeros, (3,))
            return nn.Dense(3, name="a")(x)

    with pytest.raises(kerasflax.StateError, match="params/a/bias"):
        FlaxLayer(Ambiguous())(VECTORS)


class NnxNet(nnx.Module):
    """Has weights, batch statistics and a random stream."""

    def __init__(self, rngs):
        self.linear = nnx.Linear(3, 3, rngs=rngs)
        self.norm = nnx.BatchNorm(3, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.dropout(self.norm(self.linear(x)))


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x, training=False):
        x = nn.BatchNorm(use_running_average=not training)(nn.Dense(3)(x))
        return nn.Dropout(0.5, deterministic=not training)(x)


NETS = {
    "linen": LinenNet,
    "nnx": lambda: NnxNet(nnx.Rngs(0)),
    "lazy": lambda: kerasflax.LazyModule(NnxNet),
}
nets = pytest.mark.parametrize("net", NETS.values(), ids=NETS)


@nets
@pytest.mark.parametrize("entry", ["fit", "evaluate", "predict", "jit"])
def test_a_layer_that_is_built_inside_a_trace_equals_one_that_is_built_before(net, entry):
    def run(builds_first):
        layer = FlaxLayer(net(), seed=1)
        model = keras.Sequential([layer])
        model.compile("sgd", "mse", steps_per_execution=2)
        if builds_first:
            model.build(VECTORS.shape)
        if entry == "fit":
            model.fit(VECTORS, TARGETS, batch_size=2, shuffle=False, verbose=0)
        elif entry == "evaluate":
            model.evaluate(VECTORS, TARGETS, batch_size=2, verbose=0)
        elif entry == "predict":
            model.predict(VECTORS, verbose=0)
        else:
            jax.jit(lambda x: layer(x))(VECTORS)
        return [layer(VECTORS), layer(VECTORS, training=True), model.predict(VECTORS, verbose=0)]

    for got, expected in zip(run(False), run(True), strict=True):
        assert_close(got, expected, rtol=1e-4)


@nets
@pytest.mark.parametrize(
    "scope", [{"mode": "full"}, {"mode": "larger_than", "output_size_threshold": 1}]
)
def test_a_layer_in_a_remat_scope_trains_as_without_it(net, scope):
    def run(scope):
        with keras.RematScope(**scope):
            layer = FlaxLayer(net(), seed=1)
        model = keras.Sequential([keras.Input((3,)), layer, keras.layers.Activation("tanh")])
        model.compile("sgd", "mse")
        model.fit(VECTORS, TARGETS, batch_size=4, shuffle=False, verbose=0)
        return [model.predict(VECTORS, verbose=0), layer(VECTORS, training=True)]

    for got, expected in zip(run(scope), run({"mode": None}), strict=True):
        assert_close(got, expected, rtol=1e-4)


def test_the_backward_pass_of_a_layer_in_a_remat_scope_computes_the_module_again():
    def residuals(mode):
        with keras.RematScope(mode=mode):
            layer = FlaxLayer(nn.Sequential([nn.Dense(64), nn.tanh, nn.Dense(64), nn.tanh]))
        layer(VECTORS)
        jaxpr = jax.make_jaxpr(jax.grad(lambda x: layer(x).sum()))(VECTORS)
        return str(jaxpr).count(" tanh ")

    assert residuals("full") > residuals(None)


def test_a_remat_scope_around_a_whole_model_is_an_error_that_says_what_to_do():
    with keras.RematScope(mode="full"):
        model = keras.Sequential([keras.Input((3,)), FlaxLayer(nn.Dense(3))])
    model.compile("sgd", "mse")
    with pytest.raises(RuntimeError, match="Create only the layers in the scope"):
        model.fit(VECTORS, TARGETS, verbose=0)


@nets
def test_quantizing_a_model_leaves_its_flax_layers_as_they_are_and_warns(net):
    layer = FlaxLayer(net(), seed=1, name="net")
    model = keras.Sequential([keras.Input((3,)), layer, keras.layers.Dense(8)])
    expected = layer(VECTORS)
    # The input layer warns as well.
    with pytest.warns(UserWarning, match="quantize") as caught:
        model.quantize("int8")
    messages = [str(each.message) for each in caught]
    assert any(each.startswith("net keeps its weights as they are") for each in messages)
    assert model.layers[1].quantization_mode == "int8"
    np.testing.assert_array_equal(layer(VECTORS), expected)
    with pytest.raises(kerasflax.UnsupportedError, match="cannot quantize"):
        layer.quantize("int8")


@nets
def test_a_layer_has_no_lora_and_says_so(net):
    layer = FlaxLayer(net(), name="net")
    assert not hasattr(layer, "enable_lora")
    with pytest.raises(
        kerasflax.UnsupportedError, match=r"net has no `enable_lora`(.|\n)*nnx.LoRA"
    ):
        layer.enable_lora(4)
