import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from modules import MLP, ConvNet, Counter, SetUp, Sower, TwoStreams
from support import IMAGES, TARGETS, VECTORS, assert_close, functional_model, run_code

import kerasflax
from kerasflax import ArgumentError, FlaxLayer, LazyModule, _rng


def mse(outputs, targets):
    return jnp.mean((outputs - targets) ** 2)


def test_a_module_variable_at_the_path_of_the_seed_is_an_error():
    class Module(nn.Module):
        @nn.compact
        def __call__(self, inputs):
            return (
                inputs
                + self.variable(
                    "seed_generator", "seed_generator_state", lambda: jnp.zeros(2)
                ).value
            )

    with pytest.raises(
        kerasflax.StateError, match="has a variable seed_generator/seed_generator_state"
    ):
        FlaxLayer(Module())(np.ones((1, 2), np.float32))


# Parity with plain Flax --------------------------------------------------------------------------


@pytest.mark.parametrize("given", [True, False], ids=["given", "initialised"])
@pytest.mark.parametrize(
    ("module", "x"), [(MLP(), VECTORS), (ConvNet(), IMAGES), (SetUp(), VECTORS)]
)
def test_outputs_equal_those_of_plain_apply(module, x, given):
    variables = module.init(jax.random.key(5), x)
    layer = FlaxLayer(module, variables=variables if given else None, seed=0 if given else 5)
    model = functional_model(layer, x.shape[1:])
    assert_close(layer.flax_variables, variables)
    expected = module.apply(variables, x)
    assert_close(layer(x), expected)
    assert_close(model.predict(x, verbose=0), expected)


def test_gradients_equal_those_of_plain_apply():
    module = MLP()
    variables = module.init(jax.random.key(5), VECTORS)
    layer = FlaxLayer(module, variables=variables)
    layer(VECTORS)

    def keras_loss(trainable):
        outputs, _ = layer.stateless_call(trainable, layer.non_trainable_variables, VECTORS)
        return mse(outputs, TARGETS[:, :2])

    gradients = jax.grad(keras_loss)([v.value for v in layer.trainable_variables])
    expected = jax.grad(lambda variables: mse(module.apply(variables, VECTORS), TARGETS[:, :2]))(
        variables
    )
    paths = [v.path.partition("/")[2] for v in layer.trainable_variables]
    named = kerasflax.bridge._variables.named_leaves(expected)
    assert_close(dict(zip(paths, gradients, strict=True)), named)


def test_five_training_steps_with_batch_statistics_and_dropout_equal_those_of_plain_flax():
    module = ConvNet(rate=0.3)
    variables = module.init(jax.random.key(5), IMAGES)
    layer = FlaxLayer(module, variables=variables, seed=11)
    model = functional_model(layer, IMAGES.shape[1:])
    model.compile(keras.optimizers.SGD(0.1), "mse")
    losses = model.fit(
        IMAGES, TARGETS, batch_size=len(IMAGES), epochs=5, shuffle=False, verbose=0
    ).history["loss"]

    def loss(params, stats, step):
        outputs, written = module.apply(
            {"params": params, "batch_stats": stats},
            IMAGES,
            training=True,
            rngs=_rng.streams(jnp.array([11, step], jnp.uint32), ["dropout"]),
            mutable=["batch_stats"],
        )
        return mse(outputs, TARGETS), written["batch_stats"]

    params, stats, expected = variables["params"], variables["batch_stats"], []
    for step in range(5):
        (value, stats), gradients = jax.value_and_grad(loss, has_aux=True)(params, stats, step)
        params = jax.tree.map(lambda p, g: p - 0.1 * g, params, gradients)
        expected.append(float(value))
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    assert_close(
        layer.flax_variables, {"params": params, "batch_stats": stats}, rtol=1e-4, atol=1e-5
    )


# State, modes and random streams -----------------------------------------------------------------


def test_batch_statistics_change_in_training_but_not_at_inference():
    layer = FlaxLayer(ConvNet())
    model = functional_model(layer, IMAGES.shape[1:])
    model.compile("sgd", "mse")
    before = layer.flax_variables["batch_stats"]
    model.predict(IMAGES, verbose=0)
    model.evaluate(IMAGES, TARGETS, verbose=0)
    assert_close(layer.flax_variables["batch_stats"], before, rtol=0, atol=0)
    model.fit(IMAGES, TARGETS, verbose=0)
    after = layer.flax_variables["batch_stats"]
    assert not np.allclose(before["BatchNorm_0"]["mean"], after["BatchNorm_0"]["mean"])


def test_state_written_at_inference_is_kept():
    layer = FlaxLayer(Counter())
    model = functional_model(layer, (3,))
    assert [w.trainable for w in layer.weights] == [False]
    np.testing.assert_array_equal(layer(VECTORS), VECTORS + 1)
    model.predict(VECTORS, batch_size=4, verbose=0)
    assert layer.flax_variables["counts"]["n"] == 3


def test_a_frozen_layer_runs_in_inference_mode():
    layer = FlaxLayer(ConvNet(), trainable=False)
    model = functional_model(layer, IMAGES.shape[1:])
    before = layer.flax_variables
    assert_close(layer(IMAGES, training=True), layer(IMAGES, training=False), rtol=0, atol=0)
    assert model.trainable_weights == []
    assert_close(layer.flax_variables, before, rtol=0, atol=0)


def test_random_numbers_differ_between_streams_calls_and_layers():
    layers = FlaxLayer(TwoStreams()), FlaxLayer(TwoStreams())
    draws = [np.asarray(draw) for layer in layers for _ in range(2) for draw in layer(VECTORS)]
    assert len({draw.tobytes() for draw in draws}) == len(draws)


def test_the_same_seed_gives_the_same_run():
    def run(seed):
        keras.utils.clear_session()
        model = functional_model(FlaxLayer(ConvNet(), seed=seed), IMAGES.shape[1:])
        model.compile("sgd", "mse")
        return model.fit(IMAGES, TARGETS, verbose=0, shuffle=False, epochs=2).history["loss"]

    assert run(3) == run(3)
    assert run(3) != run(4)


def test_without_a_seed_the_layer_follows_the_seed_of_keras():
    def initial():
        keras.utils.set_random_seed(8)
        first, second = FlaxLayer(MLP()), FlaxLayer(MLP())
        return np.asarray(first(VECTORS)), np.asarray(second(VECTORS))

    first, second = initial()
    assert not np.allclose(first, second)
    np.testing.assert_array_equal(initial(), (first, second))


def test_a_call_without_randomness_does_not_advance_the_seed():
    layer = FlaxLayer(ConvNet(), seed=1)
    layer(IMAGES)
    assert layer.seed_generator.state.value.tolist() == [1, 0]
    layer(IMAGES, training=True)
    assert layer.seed_generator.state.value.tolist() == [1, 1]


def test_sown_losses_are_added_to_the_loss_of_the_model_in_training_and_evaluation():
    layer = FlaxLayer(Sower())
    model = functional_model(layer, (3,))
    assert {w.path for w in model.weights} == {
        "sower/params/Dense_0/bias",
        "sower/params/Dense_0/kernel",
    }
    model.compile(keras.optimizers.SGD(0.0), "mse")
    targets = TARGETS[:, :2]
    outputs = layer(VECTORS)
    expected = mse(outputs, targets) + 0.5 * jnp.sum(outputs**2)
    np.testing.assert_allclose(
        model.evaluate(VECTORS, targets, batch_size=8, verbose=0), expected, rtol=1e-5
    )
    np.testing.assert_allclose(
        model.fit(VECTORS, targets, batch_size=8, verbose=0).history["loss"], [expected], rtol=1e-5
    )


# Variables ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (MLP(), "mlp"),
        (nn.LayerNorm(), "layer_norm"),
        (nnx.Linear(3, 2, rngs=nnx.Rngs(0)), "linear"),
        (LazyModule(nnx.Linear, 3, 2), "linear"),
        (LazyModule(lambda rngs: nnx.Linear(3, 2, rngs=rngs)), "linear"),
        (type("Conv2DTranspose", (nn.Dense,), {})(2), "conv2d_transpose"),
        (type("_Größe", (nn.Dense,), {})(2), "größe"),
        (type("a/b", (nn.Dense,), {})(2), "flax_layer"),
        (type("__", (nn.Dense,), {})(2), "flax_layer"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.filterwarnings("ignore:The layers .* copy the weights")
def test_the_default_name_of_a_layer_is_that_of_its_modules_class(module, name):
    layers = [FlaxLayer(module), FlaxLayer(module, name=None), FlaxLayer(module, name="own")]
    assert [layer.name for layer in layers] == [name, f"{name}_1", "own"]
    assert functional_model(layers[1], (3,)).layers[1].variables[0].path.startswith(f"{name}_1/")


def test_default_names_and_those_of_keras_layers_differ():
    layers = [FlaxLayer(nn.Dense(2)), keras.layers.Dense(2), FlaxLayer(nn.Dense(2))]
    assert [layer.name for layer in layers] == ["dense", "dense_1", "dense_2"]
    assert FlaxLayer.from_config(layers[0].get_config()).name == "dense"


def test_weights_have_their_flax_paths():
    layer = FlaxLayer(ConvNet(), name="net")
    functional_model(layer, IMAGES.shape[1:])
    assert {w.path for w in layer.trainable_weights} == {
        f"net/params/{path}"
        for path in (
            "BatchNorm_0/bias",
            "BatchNorm_0/scale",
            "Conv_0/bias",
            "Conv_0/kernel",
            "Dense_0/bias",
            "Dense_0/kernel",
        )
    }
    assert {w.path for w in layer.non_trainable_weights} == {
        "net/batch_stats/BatchNorm_0/mean",
        "net/batch_stats/BatchNorm_0/var",
    }


def test_metadata_boxes_reach_apply_and_are_returned_as_init_created_them():
    seen = []

    class Boxed(nn.Module):
        @nn.compact
        def __call__(self, inputs):
            x = nn.Dense(
                2, kernel_init=nn.with_partitioning(nn.initializers.lecun_normal(), ("in", "out"))
            )(inputs)
            seen.append(self.variables["params"]["Dense_0"]["kernel"])
            return x

    module = Boxed()
    variables = module.init(jax.random.key(0), VECTORS)
    for given in (None, variables, nn.meta.unbox(variables)):
        seen.clear()
        layer = FlaxLayer(module, variables=given)
        layer(VECTORS)
        assert all(isinstance(box, nn.Partitioned) for box in seen)
        kernel = layer.flax_variables["params"]["Dense_0"]["kernel"]
        assert kernel.names == ("in", "out")
        assert layer.weights[1].path.startswith("boxed")
        assert layer.weights[1].path.endswith("/params/Dense_0/kernel")


def test_assigning_some_variables_leaves_the_others_unchanged():
    layer = FlaxLayer(ConvNet())
    functional_model(layer, IMAGES.shape[1:])
    before = layer.flax_variables
    layer.flax_variables = {"params": {"Dense_0": {"bias": np.ones(3)}}}
    after = layer.flax_variables
    assert_close(after["params"].pop("Dense_0")["bias"], np.ones(3))
    before["params"].pop("Dense_0")
    assert_close(after, before, rtol=0, atol=0)


def test_a_wrong_assignment_sets_nothing_and_lists_every_problem():
    layer = FlaxLayer(ConvNet())
    functional_model(layer, IMAGES.shape[1:])
    before = layer.flax_variables
    with pytest.raises(kerasflax.VariablesError) as error:
        layer.flax_variables = {
            "params": {"Dense_0": {"bias": np.ones(3), "kernel": np.ones(3)}},
            "batch_stats": {"BatchNorm_0": {"mean": np.ones(5)}},
            "other": {"a": 1},
        }
    for line in (
        "params/Dense_0/kernel: expected float32(4, 3), got shape (3)",
        "batch_stats/BatchNorm_0/mean: expected float32(4), got shape (5)",
        "other/a: not in the module",
    ):
        assert line in str(error.value)
    assert_close(layer.flax_variables, before, rtol=0, atol=0)


def test_reading_or_setting_the_variables_of_an_unbuilt_layer_is_an_error():
    layer = FlaxLayer(MLP())
    with pytest.raises(kerasflax.NotBuiltError, match="has no variables yet"):
        _ = layer.flax_variables
    with pytest.raises(kerasflax.NotBuiltError, match="has no variables yet"):
        layer.flax_variables = {}


def test_the_build_lists_all_given_variables_that_do_not_fit():
    with pytest.raises(kerasflax.VariablesError) as error:
        FlaxLayer(
            MLP(),
            variables={"params": {"Dense_0": {"kernel": np.ones((3, 4)), "bias": np.ones(5)}}},
        )(VECTORS)
    for line in (
        "params/Dense_0/kernel: expected float32(3, 5), got shape (3, 4)",
        "params/Dense_1/bias: missing, expected float32(2)",
        "params/Dense_1/kernel: missing, expected float32(5, 2)",
    ):
        assert line in str(error.value)


def test_a_module_can_read_a_collection_that_only_the_user_provides():
    class Scaled(nn.Module):
        def __call__(self, inputs):
            return inputs * (
                self.get_variable("constants", "scale")
                if self.has_variable("constants", "scale")
                else 1
            )

    layer = FlaxLayer(Scaled(), variables={"constants": {"scale": np.float32(3)}})
    np.testing.assert_allclose(layer(VECTORS), 3 * VECTORS)
    assert [w.path for w in layer.weights] == ["scaled/constants/scale"]


# Input specs and building ------------------------------------------------------------------------


class ReturnsLinen(nn.Module):
    value: object

    def __call__(self, inputs):
        return {"y": inputs, "other": self.value}


class SowsLinen(nn.Module):
    value: object

    def __call__(self, inputs):
        self.sow("intermediates", "other", self.value)
        return inputs


class ReturnsNnx(nnx.Module):
    def __init__(self, value, *, rngs):
        self.value = value

    def __call__(self, inputs):
        return [inputs, self.value]


@pytest.mark.parametrize(
    "value", ["a text", nn.initializers.normal(0.1), dict], ids=["text", "function", "class"]
)
@pytest.mark.parametrize("module", [ReturnsLinen, SowsLinen, ReturnsNnx])
def test_the_error_for_a_returned_or_sown_value_that_is_not_an_array_names_its_class(module, value):
    made = module(value, rngs=nnx.Rngs(0)) if module is ReturnsNnx else module(value)
    layer = FlaxLayer(made)
    for inputs in (np.ones((2, 3), np.float32), keras.Input((3,))):
        with pytest.raises(
            kerasflax.MethodError,
            match=rf"a value of class {type(value).__name__}, which is not an array",
        ):
            layer(inputs)


class ReturnsNothing(nn.Module):
    @nn.compact
    def __call__(self, inputs):
        nn.Dense(2)(inputs)


def test_a_module_that_returns_no_array_is_an_error_in_a_model():
    layer = FlaxLayer(ReturnsNothing(), name="nothing")
    with pytest.raises(kerasflax.MethodError, match=r"'nothing' returns no array\.\nReturn the"):
        layer(keras.Input((3,)))
    with pytest.raises(kerasflax.MethodError, match="returns no array"):
        keras.Sequential([keras.Input((3,)), FlaxLayer(ReturnsNothing())])


def test_a_module_that_returns_a_module_is_told_to_call_it():
    class Uncalled(nn.Module):
        @nn.compact
        def __call__(self, inputs):
            return nn.Dense(3)

    with pytest.raises(TypeError, match=r"class Dense, which is not an array\.") as error:
        FlaxLayer(Uncalled())(np.ones((2, 3), "float32"))
    assert "Call the object of class Dense on an input, and return the result." in str(error.value)


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [((5, 5, 1), (None, 3)), ((None, None, 1), (None, 3))],
)
def test_output_shapes_are_known_if_the_input_determines_them(inputs, outputs):
    assert functional_model(FlaxLayer(ConvNet()), inputs).output_shape == outputs
    assert FlaxLayer(ConvNet()).compute_output_shape((None, *inputs)) == outputs


def test_init_sees_the_dtypes_of_the_inputs():
    class Embedded(nn.Module):
        @nn.compact
        def __call__(self, inputs):
            return nn.Embed(7, 4)(inputs["tokens"]) * inputs["keep"][..., None]

    inputs = {
        "tokens": keras.Input((None,), dtype="int32", name="tokens"),
        "keep": keras.Input((None,), dtype="bool", name="keep"),
    }
    model = keras.Model(inputs, FlaxLayer(Embedded())(inputs))
    assert model.output_shape == (None, None, 4)
    data = {"tokens": np.array([[1, 2, 3]]), "keep": np.array([[True, False, True]])}
    assert model.predict(data, verbose=0)[0, 1].tolist() == [0, 0, 0, 0]


def test_inputs_and_outputs_can_be_nested_structures():
    class Nested(nn.Module):
        @nn.compact
        def __call__(self, inputs):
            a, rest = inputs
            return {"sum": nn.Dense(2)(a) + rest["b"], "rest": [rest["b"], (a,)]}

    inputs = [keras.Input((3,)), {"b": keras.Input((2,))}]
    layer = FlaxLayer(Nested())
    outputs = layer(inputs)
    assert outputs["sum"].shape == (None, 2)
    assert outputs["rest"][1][0].shape == (None, 3)
    model = keras.Model(inputs, outputs)
    data = [VECTORS, {"b": VECTORS[:, :2]}]
    assert_close(model(data), Nested().apply(layer.flax_variables, data))


def test_fit_builds_a_sequential_model():
    model = keras.Sequential([FlaxLayer(ConvNet(), seed=5)])
    model.compile(keras.optimizers.SGD(0.0), "mse")
    model.fit(IMAGES, TARGETS, verbose=0, epochs=1)
    expected = ConvNet().init(jax.random.key(5), IMAGES)["params"]
    assert_close(model.layers[0].flax_variables["params"], expected)


def test_an_unknown_size_that_a_weight_needs_is_an_error_that_names_the_weight():
    class Positions(nn.Module):
        @nn.compact
        def __call__(self, inputs):
            return inputs + self.param("table", nn.initializers.zeros, inputs.shape[1:])

    with pytest.raises(kerasflax.ShapeError, match=r"params/table: float32\(None, 3\)"):
        FlaxLayer(Positions())(keras.Input((None, 3)))


def test_sizes_that_overflow_raise_an_error_instead_of_crashing_the_process():
    with pytest.raises(
        kerasflax.ShapeError, match=r"params/kernel: float32\(3, 4611686018427387904\)"
    ):
        FlaxLayer(nn.Dense(2**62))(np.ones((1, 3), np.float32))


def test_an_activity_regularizer_adds_the_same_loss_as_in_a_keras_layer():
    layer = FlaxLayer(MLP(), activity_regularizer=keras.regularizers.L2(0.1))
    plain = keras.layers.Identity(activity_regularizer=keras.regularizers.L2(0.1))
    plain(layer(VECTORS))
    np.testing.assert_allclose(layer.losses, plain.losses, rtol=1e-6)
    assert layer.losses[0] > 0


@pytest.mark.parametrize("globally", [True, False])
def test_a_dtype_policy_applies_to_params_and_computation_but_not_to_state(globally):
    if globally:
        keras.config.set_dtype_policy("mixed_bfloat16")
    seen = []

    class Sees(ConvNet):
        @nn.compact
        def __call__(self, inputs, training=False):
            seen.append(inputs.dtype)
            return super().__call__(inputs, training)

    layer = FlaxLayer(Sees(), **({} if globally else {"dtype": "mixed_bfloat16"}))
    assert layer(IMAGES).dtype == jnp.bfloat16
    assert set(seen) == {jnp.dtype("bfloat16")}
    assert {w.dtype for w in layer.weights} == {"float32"}


def test_without_a_policy_the_module_determines_the_dtypes():
    layer = FlaxLayer(nn.Dense(2, param_dtype=jnp.bfloat16))
    layer(VECTORS)
    assert {w.dtype for w in layer.weights} == {"bfloat16"}
    assert layer.flax_variables["params"]["kernel"].dtype == jnp.bfloat16


def test_the_module_runs_once_for_each_mode_and_input_spec():
    runs = []

    class Counts(nn.Module):
        @nn.compact
        def __call__(self, inputs, training=False):
            runs.append(training)
            return nn.Dense(3)(inputs)

    model = functional_model(FlaxLayer(Counts()), (3,))
    assert runs == [False]
    model.compile("sgd", "mse")
    model.fit(VECTORS, TARGETS, verbose=0, epochs=2)
    model.fit(VECTORS, TARGETS, verbose=0, epochs=2)
    model.evaluate(VECTORS, TARGETS, verbose=0)
    model.predict(VECTORS, verbose=0)
    model(VECTORS)
    # The build traces with a symbol for the batch size; each mode then traces once with its number.
    assert sorted(runs) == [False, False, True]


# Errors ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"units": 3}, "The layer has no argument `units`"),
        ({"seed": 1.5}, "`seed` must be an integer from 0"),
        ({"seed": -1}, "`seed` must be an integer from 0"),
    ],
)
def test_an_unknown_or_invalid_argument_is_an_error(keywords, message):
    with pytest.raises(kerasflax.ArgumentError, match=message):
        FlaxLayer(MLP(), **keywords)


def test_an_exception_raised_by_the_module_reaches_the_user_unchanged():
    class OwnError(Exception):
        def __init__(self, code, detail):
            super().__init__(f"{code}: {detail}")
            self.code = code

    class Fails(nn.Module):
        def __call__(self, inputs, training=False):
            if training:
                raise OwnError(5, "in training")
            return inputs

    model = functional_model(FlaxLayer(Fails()), (3,))
    model.compile("sgd", "mse")
    with pytest.raises(OwnError, match="5: in training") as error:
        model.fit(VECTORS, VECTORS, verbose=0)
    assert error.value.code == 5


def test_another_backend_is_an_error_and_tensorflow_is_not_imported():
    code = """
import os, sys
os.environ["KERAS_BACKEND"] = "numpy"
import flax.linen as nn, kerasflax
try:
    kerasflax.FlaxLayer(nn.Dense(3))
except kerasflax.BackendError as error:
    print(error)
assert "tensorflow" not in sys.modules
"""
    assert "A Flax module needs Keras on JAX, but Keras runs on 'numpy'" in run_code(code)


def test_build_fit_evaluate_and_predict_do_not_import_tensorflow():
    code = """
import sys, numpy as np, keras, kerasflax
from modules import ConvNet
x, y = np.ones((4, 5, 5, 1)), np.ones((4, 3))
model = keras.Sequential([kerasflax.FlaxLayer(ConvNet())])
model.compile("sgd", "mse")
model.fit(x, y, verbose=0), model.evaluate(x, y, verbose=0), model.predict(x, verbose=0)
print([name for name in sys.modules if name.partition(".")[0] == "tensorflow"])
"""
    assert run_code(code).strip() == "[]"


class Attention(nn.Module):
    @nn.compact
    def __call__(self, q, kv):
        return nn.MultiHeadAttention(1)(q, kv)


def test_several_inputs_by_position_or_by_name_are_an_error_that_says_how_to_pass_them():
    q, kv = np.ones((2, 3, 4), np.float32), np.ones((2, 5, 4), np.float32)
    layer = FlaxLayer(Attention())
    symbol = keras.Input((3, 4))
    for call in (
        lambda: layer(q, kv),
        lambda: layer(symbol, keras.Input((5, 4))),
        lambda: layer([q, kv], False),
    ):
        with pytest.raises(ArgumentError, match=r"got 2 arguments by position\.\nCall the"):
            call()
    with pytest.raises(ArgumentError, match="got `kv`"):
        layer(q, kv=kv)
    with pytest.raises(ArgumentError, match=r"got `q`, `kv`\.\nCall the layer on a list"):
        layer(q=q, kv=kv)
    with pytest.raises(ArgumentError, match="got none"):
        layer()
    assert not layer.built
    np.testing.assert_array_equal(layer([q, kv]), layer({"q": q, "kv": kv}))
