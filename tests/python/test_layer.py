import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from modules import MLP, ConvNet, Counter, SetUp, Sower, TwoStreams

import kerasflax
from kerasflax import FlaxLayer, _rng

X = np.linspace(-1, 1, 8 * 5 * 5, dtype=np.float32).reshape(8, 5, 5, 1)
V = np.linspace(-1, 1, 8 * 3, dtype=np.float32).reshape(8, 3)
Y = np.linspace(0, 1, 8 * 3, dtype=np.float32).reshape(8, 3)


def model_of(layer, shape):
    inputs = keras.Input(shape)
    return keras.Model(inputs, layer(inputs))


def assert_close(a, b, **tolerance):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, **({"rtol": 1e-5, "atol": 1e-6} | tolerance)),
        a,
        b,
    )


def mse(outputs, targets):
    return jnp.mean((outputs - targets) ** 2)


def test_a_variable_where_the_seed_is_kept_is_refused():
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


# Parity with plain Flax


@pytest.mark.parametrize("given", [True, False], ids=["given", "initialised"])
@pytest.mark.parametrize(("module", "x"), [(MLP(), V), (ConvNet(), X), (SetUp(), V)])
def test_outputs_are_those_of_plain_apply(module, x, given):
    variables = module.init(jax.random.key(5), x)
    layer = FlaxLayer(module, variables=variables if given else None, seed=0 if given else 5)
    model = model_of(layer, x.shape[1:])
    assert_close(layer.flax_variables, variables)
    expected = module.apply(variables, x)
    assert_close(layer(x), expected)
    assert_close(model.predict(x, verbose=0), expected)


def test_gradients_are_those_of_plain_apply():
    module = MLP()
    variables = module.init(jax.random.key(5), V)
    layer = FlaxLayer(module, variables=variables)
    layer(V)

    def keras_loss(trainable):
        outputs, _ = layer.stateless_call(trainable, layer.non_trainable_variables, V)
        return mse(outputs, Y[:, :2])

    gradients = jax.grad(keras_loss)([v.value for v in layer.trainable_variables])
    expected = jax.grad(lambda variables: mse(module.apply(variables, V), Y[:, :2]))(variables)
    paths = [v.path.partition("/")[2] for v in layer.trainable_variables]
    named = kerasflax.bridge._variables.named_leaves(expected)
    assert_close(dict(zip(paths, gradients, strict=True)), named)


def test_five_steps_of_training_are_those_of_plain_flax_batch_statistics_and_dropout_included():
    module = ConvNet(rate=0.3)
    variables = module.init(jax.random.key(5), X)
    layer = FlaxLayer(module, variables=variables, seed=11)
    model = model_of(layer, X.shape[1:])
    model.compile(keras.optimizers.SGD(0.1), "mse")
    losses = model.fit(X, Y, batch_size=len(X), epochs=5, shuffle=False, verbose=0).history["loss"]

    def loss(params, stats, step):
        outputs, written = module.apply(
            {"params": params, "batch_stats": stats},
            X,
            training=True,
            rngs=_rng.streams(jnp.array([11, step], jnp.uint32), ["dropout"]),
            mutable=["batch_stats"],
        )
        return mse(outputs, Y), written["batch_stats"]

    params, stats, expected = variables["params"], variables["batch_stats"], []
    for step in range(5):
        (value, stats), gradients = jax.value_and_grad(loss, has_aux=True)(params, stats, step)
        params = jax.tree.map(lambda p, g: p - 0.1 * g, params, gradients)
        expected.append(float(value))
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    assert_close(
        layer.flax_variables, {"params": params, "batch_stats": stats}, rtol=1e-4, atol=1e-5
    )


# State, modes, streams


def test_batch_statistics_move_in_training_and_stand_at_inference():
    layer = FlaxLayer(ConvNet())
    model = model_of(layer, X.shape[1:])
    model.compile("sgd", "mse")
    before = layer.flax_variables["batch_stats"]
    model.predict(X, verbose=0)
    model.evaluate(X, Y, verbose=0)
    assert_close(layer.flax_variables["batch_stats"], before, rtol=0, atol=0)
    model.fit(X, Y, verbose=0)
    after = layer.flax_variables["batch_stats"]
    assert not np.allclose(before["BatchNorm_0"]["mean"], after["BatchNorm_0"]["mean"])


def test_state_that_is_written_at_inference_is_kept():
    layer = FlaxLayer(Counter())
    model = model_of(layer, (3,))
    assert [w.trainable for w in layer.weights] == [False]
    np.testing.assert_array_equal(layer(V), V + 1)
    model.predict(V, batch_size=4, verbose=0)
    assert layer.flax_variables["counts"]["n"] == 3


def test_a_frozen_layer_runs_in_inference_mode():
    layer = FlaxLayer(ConvNet(), trainable=False)
    model = model_of(layer, X.shape[1:])
    before = layer.flax_variables
    assert_close(layer(X, training=True), layer(X, training=False), rtol=0, atol=0)
    assert model.trainable_weights == []
    assert_close(layer.flax_variables, before, rtol=0, atol=0)


def test_streams_differ_from_each_other_between_calls_and_between_layers():
    layers = FlaxLayer(TwoStreams()), FlaxLayer(TwoStreams())
    draws = [np.asarray(draw) for layer in layers for _ in range(2) for draw in layer(V)]
    assert len({draw.tobytes() for draw in draws}) == len(draws)


def test_the_same_seed_gives_the_same_run():
    def run(seed):
        keras.utils.clear_session()
        model = model_of(FlaxLayer(ConvNet(), seed=seed), X.shape[1:])
        model.compile("sgd", "mse")
        return model.fit(X, Y, verbose=0, shuffle=False, epochs=2).history["loss"]

    assert run(3) == run(3)
    assert run(3) != run(4)


def test_an_unset_seed_follows_keras():
    def initial():
        keras.utils.set_random_seed(8)
        first, second = FlaxLayer(MLP()), FlaxLayer(MLP())
        return np.asarray(first(V)), np.asarray(second(V))

    first, second = initial()
    assert not np.allclose(first, second)
    np.testing.assert_array_equal(initial(), (first, second))


def test_a_call_without_randomness_leaves_the_seed_alone():
    layer = FlaxLayer(ConvNet(), seed=1)
    layer(X)
    assert layer.seed_generator.state.value.tolist() == [1, 0]
    layer(X, training=True)
    assert layer.seed_generator.state.value.tolist() == [1, 1]


def test_sown_losses_are_losses_of_the_model_in_training_and_evaluation():
    layer = FlaxLayer(Sower())
    model = model_of(layer, (3,))
    assert {w.path for w in model.weights} == {
        "flax_layer/params/Dense_0/bias",
        "flax_layer/params/Dense_0/kernel",
    }
    model.compile(keras.optimizers.SGD(0.0), "mse")
    targets = Y[:, :2]
    outputs = layer(V)
    expected = mse(outputs, targets) + 0.5 * jnp.sum(outputs**2)
    np.testing.assert_allclose(
        model.evaluate(V, targets, batch_size=8, verbose=0), expected, rtol=1e-5
    )
    np.testing.assert_allclose(
        model.fit(V, targets, batch_size=8, verbose=0).history["loss"], [expected], rtol=1e-5
    )


# Variables


def test_weights_have_their_flax_paths():
    layer = FlaxLayer(ConvNet(), name="net")
    model_of(layer, X.shape[1:])
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


def test_boxes_reach_apply_and_come_out_as_init_made_them():
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
    variables = module.init(jax.random.key(0), V)
    for given in (None, variables, nn.meta.unbox(variables)):
        seen.clear()
        layer = FlaxLayer(module, variables=given)
        layer(V)
        assert all(isinstance(box, nn.Partitioned) for box in seen)
        kernel = layer.flax_variables["params"]["Dense_0"]["kernel"]
        assert kernel.names == ("in", "out")
        assert "flax_layer" in layer.weights[1].path
        assert layer.weights[1].path.endswith("/params/Dense_0/kernel")


def test_assigning_variables_sets_what_is_named_and_leaves_the_rest():
    layer = FlaxLayer(ConvNet())
    model_of(layer, X.shape[1:])
    before = layer.flax_variables
    layer.flax_variables = {"params": {"Dense_0": {"bias": np.ones(3)}}}
    after = layer.flax_variables
    assert_close(after["params"].pop("Dense_0")["bias"], np.ones(3))
    before["params"].pop("Dense_0")
    assert_close(after, before, rtol=0, atol=0)


def test_a_wrong_assignment_sets_nothing_and_lists_every_place():
    layer = FlaxLayer(ConvNet())
    model_of(layer, X.shape[1:])
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


def test_variables_of_an_unbuilt_layer_are_an_error():
    layer = FlaxLayer(MLP())
    with pytest.raises(kerasflax.NotBuiltError, match="has no variables yet"):
        _ = layer.flax_variables
    with pytest.raises(kerasflax.NotBuiltError, match="has no variables yet"):
        layer.flax_variables = {}


def test_variables_that_do_not_fit_are_listed_at_build():
    with pytest.raises(kerasflax.VariablesError) as error:
        FlaxLayer(
            MLP(),
            variables={"params": {"Dense_0": {"kernel": np.ones((3, 4)), "bias": np.ones(5)}}},
        )(V)
    for line in (
        "params/Dense_0/kernel: expected float32(3, 5), got shape (3, 4)",
        "params/Dense_1/bias: missing, expected float32(2)",
        "params/Dense_1/kernel: missing, expected float32(5, 2)",
    ):
        assert line in str(error.value)


def test_a_module_reads_a_collection_that_only_its_user_provides():
    class Scaled(nn.Module):
        def __call__(self, inputs):
            return inputs * (
                self.get_variable("constants", "scale")
                if self.has_variable("constants", "scale")
                else 1
            )

    layer = FlaxLayer(Scaled(), variables={"constants": {"scale": np.float32(3)}})
    np.testing.assert_allclose(layer(V), 3 * V)
    assert [w.path for w in layer.weights] == ["flax_layer/constants/scale"]


# Specs and building


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
def test_a_module_that_returns_no_array_is_refused_by_the_values_class(module, value):
    made = module(value, rngs=nnx.Rngs(0)) if module is ReturnsNnx else module(value)
    layer = FlaxLayer(made)
    for inputs in (np.ones((2, 3), np.float32), keras.Input((3,))):
        with pytest.raises(
            kerasflax.MethodError,
            match=rf"a value of class {type(value).__name__}, which is not an array",
        ):
            layer(inputs)


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [((5, 5, 1), (None, 3)), ((None, None, 1), (None, 3))],
)
def test_output_shapes_are_known_where_the_input_allows(inputs, outputs):
    assert model_of(FlaxLayer(ConvNet()), inputs).output_shape == outputs
    assert FlaxLayer(ConvNet()).compute_output_shape((None, *inputs)) == outputs


def test_init_sees_the_true_dtypes():
    class Tokens(nn.Module):
        @nn.compact
        def __call__(self, inputs):
            return nn.Embed(7, 4)(inputs["tokens"]) * inputs["keep"][..., None]

    inputs = {
        "tokens": keras.Input((None,), dtype="int32", name="tokens"),
        "keep": keras.Input((None,), dtype="bool", name="keep"),
    }
    model = keras.Model(inputs, FlaxLayer(Tokens())(inputs))
    assert model.output_shape == (None, None, 4)
    data = {"tokens": np.array([[1, 2, 3]]), "keep": np.array([[True, False, True]])}
    assert model.predict(data, verbose=0)[0, 1].tolist() == [0, 0, 0, 0]


def test_nested_structures_go_in_and_come_out():
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
    data = [V, {"b": V[:, :2]}]
    assert_close(model(data), Nested().apply(layer.flax_variables, data))


def test_a_sequential_model_is_built_by_fit():
    model = keras.Sequential([FlaxLayer(ConvNet(), seed=5)])
    model.compile(keras.optimizers.SGD(0.0), "mse")
    model.fit(X, Y, verbose=0, epochs=1)
    expected = ConvNet().init(jax.random.key(5), X)["params"]
    assert_close(model.layers[0].flax_variables["params"], expected)


def test_an_open_size_that_a_weight_needs_is_an_error_that_names_the_weight():
    class Positions(nn.Module):
        @nn.compact
        def __call__(self, inputs):
            return inputs + self.param("table", nn.initializers.zeros, inputs.shape[1:])

    with pytest.raises(kerasflax.ShapeError, match=r"params/table: float32\(None, 3\)"):
        FlaxLayer(Positions())(keras.Input((None, 3)))


def test_sizes_that_overflow_are_an_error_and_not_the_end_of_the_process():
    with pytest.raises(
        kerasflax.ShapeError, match=r"params/kernel: float32\(3, 4611686018427387904\)"
    ):
        FlaxLayer(nn.Dense(2**62))(np.ones((1, 3), np.float32))


def test_an_activity_regularizer_counts_as_in_a_keras_layer():
    layer = FlaxLayer(MLP(), activity_regularizer=keras.regularizers.L2(0.1))
    plain = keras.layers.Identity(activity_regularizer=keras.regularizers.L2(0.1))
    plain(layer(V))
    np.testing.assert_allclose(layer.losses, plain.losses, rtol=1e-6)
    assert layer.losses[0] > 0


@pytest.mark.parametrize("globally", [True, False])
def test_a_dtype_policy_rules_the_params_and_the_computation_but_not_the_state(globally):
    if globally:
        keras.config.set_dtype_policy("mixed_bfloat16")
    seen = []

    class Sees(ConvNet):
        @nn.compact
        def __call__(self, inputs, training=False):
            seen.append(inputs.dtype)
            return super().__call__(inputs, training)

    layer = FlaxLayer(Sees(), **({} if globally else {"dtype": "mixed_bfloat16"}))
    assert layer(X).dtype == jnp.bfloat16
    assert set(seen) == {jnp.dtype("bfloat16")}
    assert {w.dtype for w in layer.weights} == {"float32"}


def test_without_a_policy_the_dtypes_of_the_module_stand():
    layer = FlaxLayer(nn.Dense(2, param_dtype=jnp.bfloat16))
    layer(V)
    assert {w.dtype for w in layer.weights} == {"bfloat16"}
    assert layer.flax_variables["params"]["kernel"].dtype == jnp.bfloat16


def test_the_module_runs_once_per_mode_and_spec():
    runs = []

    class Counts(nn.Module):
        @nn.compact
        def __call__(self, inputs, training=False):
            runs.append(training)
            return nn.Dense(3)(inputs)

    model = model_of(FlaxLayer(Counts()), (3,))
    assert runs == [False]
    model.compile("sgd", "mse")
    model.fit(V, Y, verbose=0, epochs=2)
    model.fit(V, Y, verbose=0, epochs=2)
    model.evaluate(V, Y, verbose=0)
    model.predict(V, verbose=0)
    model(V)
    # At build with a symbol for the batch size; with its number once in each mode.
    assert sorted(runs) == [False, False, True]


# Misuse


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"units": 3}, "The layer has no argument `units`"),
        ({"seed": 1.5}, "`seed` must be an integer from 0"),
        ({"seed": -1}, "`seed` must be an integer from 0"),
    ],
)
def test_an_argument_that_no_layer_takes_is_an_error(keywords, message):
    with pytest.raises(kerasflax.ArgumentError, match=message):
        FlaxLayer(MLP(), **keywords)


def test_an_exception_of_the_module_comes_out_as_it_was_raised():
    class OwnError(Exception):
        def __init__(self, code, detail):
            super().__init__(f"{code}: {detail}")
            self.code = code

    class Fails(nn.Module):
        def __call__(self, inputs, training=False):
            if training:
                raise OwnError(5, "in training")
            return inputs

    model = model_of(FlaxLayer(Fails()), (3,))
    model.compile("sgd", "mse")
    with pytest.raises(OwnError, match="5: in training") as error:
        model.fit(V, V, verbose=0)
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
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=_environment(), check=True
    )
    assert "A Flax module needs Keras on JAX, but Keras runs on 'numpy'" in run.stdout


def test_tensorflow_is_not_imported_by_build_fit_evaluate_and_predict():
    code = """
import sys, numpy as np, keras, kerasflax
from modules import ConvNet
x, y = np.ones((4, 5, 5, 1)), np.ones((4, 3))
model = keras.Sequential([kerasflax.FlaxLayer(ConvNet())])
model.compile("sgd", "mse")
model.fit(x, y, verbose=0), model.evaluate(x, y, verbose=0), model.predict(x, verbose=0)
print([name for name in sys.modules if name.partition(".")[0] == "tensorflow"])
"""
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=_environment(), check=True
    )
    assert run.stdout.strip() == "[]"


def _environment():
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        "KERAS_BACKEND": "jax",
    }
