"""The inputs that Keras passes to the layer: masks, nested structures, dtypes and sizes."""

import flax.core
import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from conformance import Output, Pair
from flax import linen as nn
from flax import nnx, struct
from modules import MLP
from support import SEQUENCES, TARGETS, VECTORS

import kerasflax
from kerasflax import FlaxLayer


@pytest.mark.parametrize("dtype", ["int32", "int64", "uint8"])
def test_a_sequential_model_without_an_input_layer_calls_the_module_with_integers(dtype):
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


def test_a_sequential_model_without_an_input_layer_knows_its_shapes_after_fit():
    model = keras.Sequential([FlaxLayer(nn.Dense(2))])
    model.compile("sgd", "mse")
    model.fit(VECTORS.astype("float64"), TARGETS[:, :2], verbose=0)
    assert model.output_shape == (8, 2)
    with pytest.raises(ValueError, match="kernel"):
        keras.Sequential([FlaxLayer(nn.Dense(2), variables={"params": {}})])(VECTORS)


def test_a_mask_reaches_the_module_and_the_next_layer():
    class Masked(nn.Module):
        @nn.compact
        def __call__(self, x, mask):
            return nn.Dense(3)(x) * mask[..., None]

    class Pooled(nn.Module):
        def __call__(self, x, mask=None):
            return (x * mask[..., None]).sum(1)

    x = SEQUENCES.copy()
    x[:, 2:] = 0
    layer = FlaxLayer(Masked())
    inputs = keras.Input(SEQUENCES.shape[1:])
    masked = layer(keras.layers.Masking()(inputs))
    pooled = FlaxLayer(Pooled())(masked)
    model = keras.Model(inputs, [masked, pooled])
    steps, total = model.predict(x, verbose=0)
    mask = np.arange(4) < 2
    expected = Masked().apply(layer.flax_variables, x, np.broadcast_to(mask, (8, 4)))
    np.testing.assert_allclose(steps, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(total, expected.sum(1), rtol=1e-5, atol=1e-6)
    assert getattr(pooled, "_keras_mask", None) is None


def test_an_eager_call_takes_and_returns_dataclasses_and_a_symbolic_call_returns_dicts():
    class Structs(nn.Module):
        @nn.compact
        def __call__(self, inputs):
            x = nn.Dense(2)(inputs.last)
            return Output(x, hidden=(x, inputs.hidden[0])) if inputs.hidden else Output(x)

    layer = FlaxLayer(Structs())
    symbolic = layer(Output(keras.Input((3,)), hidden=(keras.Input((2,)),)))
    assert isinstance(symbolic, dict)
    assert symbolic["last"].shape == (None, 2)
    given = Output(VECTORS, hidden=(TARGETS,))
    outputs = layer(given)
    assert isinstance(outputs, Output)
    expected = Structs().apply(layer.flax_variables, given)
    jax.tree.map(np.testing.assert_allclose, outputs, expected)
    assert layer(Output(VECTORS)).hidden is None


def test_inputs_can_be_frozen_dicts_and_named_tuples():
    class Takes(nn.Module):
        def __call__(self, inputs):
            return inputs["a"].left + inputs["a"].right

    layer = FlaxLayer(Takes())
    np.testing.assert_allclose(layer(flax.core.freeze({"a": Pair(VECTORS, VECTORS)})), 2 * VECTORS)


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


def test_input_and_output_dicts_keep_their_order():
    class Order(nn.Module):
        def __call__(self, inputs):
            first, second = inputs.values()
            return {"z": first - second, "a": {"y": first, "b": second}}

    layer = FlaxLayer(Order())
    given = {"query": 3 * VECTORS, "context": VECTORS}
    inputs = {name: keras.Input((3,), name=name) for name in given}
    symbolic = layer(inputs)
    assert list(symbolic) == ["z", "a"]
    assert list(symbolic["a"]) == ["y", "b"]
    model = keras.Model(inputs, symbolic)
    for call in (layer, layer, model, model.predict_on_batch):
        np.testing.assert_allclose(call(given)["z"], 2 * VECTORS, rtol=1e-6)
    assert list(layer(given)) == ["z", "a"]


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "float16", None])
def test_the_keras_tensor_has_the_dtype_of_the_output(policy):
    layer = FlaxLayer(MLP(), dtype=policy)
    for _ in range(2):
        assert keras.backend.standardize_dtype(layer(keras.Input((3,))).dtype) == str(
            layer(VECTORS).dtype
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


def test_inputs_that_differ_in_types_static_fields_or_order_are_traced_separately():
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


def test_flax_attention_ignores_the_keys_that_a_padding_mask_excludes():
    attention = FlaxLayer(nn.MultiHeadDotProductAttention(2))
    embedding = keras.layers.Embedding(10, 4, mask_zero=True)
    model = keras.Sequential([keras.Input((4,)), embedding, attention])
    tokens = np.array([[1, 2, 0, 0], [3, 4, 5, 6], [1, 1, 1, 1], [2, 0, 0, 0]])
    mask = (tokens != 0)[:, None, None, :]
    expected = attention.module.apply(attention.flax_variables, embedding(tokens), mask=mask)
    np.testing.assert_allclose(model.predict(tokens, verbose=0), expected, rtol=1e-5, atol=1e-6)


def test_initial_values_that_depend_on_the_input_are_computed_from_the_first_input():
    class Centred(nn.Module):
        @nn.compact
        def __call__(self, x):
            return x - self.param("mean", lambda key: x.mean(0))

    layer = FlaxLayer(Centred())
    layer(VECTORS + 7)
    np.testing.assert_allclose(
        layer.flax_variables["params"]["mean"], VECTORS.mean(0) + 7, rtol=1e-6
    )
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

    with pytest.raises(kerasflax.ShapeError, match="depend on an unknown size"):
        FlaxLayer(Sized())(keras.Input((None, 3)))
    layer = FlaxLayer(Sized())
    layer(keras.Input(batch_shape=(8, 4, 3)))
    np.testing.assert_allclose(layer.flax_variables["params"]["scale"], value(SEQUENCES), rtol=1e-6)


def test_a_mask_is_passed_on_only_if_the_output_keeps_its_axes():
    class Strided(nn.Module):
        @nn.compact
        def __call__(self, x, mask):
            return nn.Conv(4, (3,), strides=2)(x)

    inputs = keras.Input((4, 3))
    outputs = FlaxLayer(Strided())(keras.layers.Masking()(inputs))
    assert keras.Model(inputs, keras.layers.GlobalAveragePooling1D()(outputs)).predict(
        SEQUENCES, verbose=0
    ).shape == (8, 4)


def linen_dense(units):
    return FlaxLayer(nn.Dense(units), seed=1)


def nnx_dense(units):
    return FlaxLayer(nnx.Linear(3, units, rngs=nnx.Rngs(0)))


TOKENS = np.array([[1, 2, 0, 0, 0], [3, 4, 5, 0, 0], [6, 0, 0, 0, 0], [1, 2, 3, 4, 5]], "int32")


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize("length", [5, None])
@pytest.mark.parametrize("dense", [linen_dense, nnx_dense])
def test_a_mask_passes_through_a_module_that_does_not_take_one(dense, length):
    layer, keras_dense = dense(3), keras.layers.Dense(3)
    embedding, lstm = keras.layers.Embedding(9, 3, mask_zero=True), keras.layers.LSTM(2)

    def models(middle):
        tokens = keras.Input((length,), dtype="int32")
        yield keras.Model(tokens, lstm(middle(embedding(tokens))))
        yield keras.Sequential([embedding, middle, lstm])
        wrapped = keras.layers.TimeDistributed(middle)
        yield keras.Model(tokens, lstm(wrapped(embedding(tokens))))

    keras_dense.build((None, None, 3))
    layer.build((None, None, 3))
    keras_dense.set_weights([layer.variables_by_path[f"params/{n}"] for n in ("kernel", "bias")])
    expected = lstm(keras_dense(embedding(TOKENS)))
    assert not np.allclose(expected, lstm(keras_dense(embedding(TOKENS)), mask=TOKENS == TOKENS))
    for model in models(layer):
        for call in (model, model.predict_on_batch):
            np.testing.assert_allclose(call(TOKENS), expected, rtol=1e-5, atol=1e-6)
        model.compile("sgd", "mse")
        loss = model.evaluate(TOKENS, np.zeros((4, 2)), verbose=0)
        np.testing.assert_allclose(loss, np.square(expected).mean(), rtol=1e-5)
    np.testing.assert_allclose(lstm(layer(embedding(TOKENS))), expected, rtol=1e-5, atol=1e-6)


class Strided(nn.Module):
    branches: bool = False

    @nn.compact
    def __call__(self, x):
        if self.branches and int(x.shape[1]) > 1000:
            return x
        return nn.Conv(4, (3,), strides=2)(x)


class Pooled(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(5)(x.mean(1))


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize("module", [Strided(), Strided(branches=True), Pooled()])
@pytest.mark.parametrize("length", [5, None])
def test_a_module_that_changes_or_drops_the_time_axis_passes_no_mask(module, length):
    tokens = keras.Input((length,), dtype="int32")
    embedding, layer = keras.layers.Embedding(9, 3, mask_zero=True), FlaxLayer(module)
    output = layer(embedding(tokens))
    assert getattr(output, "_keras_mask", None) is None
    if output.ndim == 2:
        output = keras.layers.Reshape((5, 1))(output)
    lstm = keras.layers.LSTM(2)
    model = keras.Model(tokens, lstm(output))
    expected = lstm(np.reshape(layer(np.asarray(embedding(TOKENS))), (4, -1, output.shape[-1])))
    for call in (model, model.predict_on_batch):
        np.testing.assert_allclose(call(TOKENS), expected, rtol=1e-5, atol=1e-6)
    assert getattr(layer(embedding(TOKENS)), "_keras_mask", None) is None


def test_each_output_gets_the_first_mask_of_several_inputs_that_fits():
    class Two(nn.Module):
        def __call__(self, query, context):
            return query * 2, context * 3, query.sum(1)

    layer, masking = FlaxLayer(Two()), keras.layers.Masking()
    query = masking(np.pad(SEQUENCES, ((0, 0), (0, 2), (0, 0))))
    context = masking(np.pad(SEQUENCES, ((0, 0), (0, 1), (0, 0))))
    outputs = layer({"query": query, "context": context})
    np.testing.assert_array_equal(outputs[0]._keras_mask, query._keras_mask)
    np.testing.assert_array_equal(outputs[1]._keras_mask, context._keras_mask)
    assert getattr(outputs[2], "_keras_mask", None) is None
    for inputs in ({"query": query, "context": query + 0}, {"query": query + 0, "context": query}):
        for output in layer(inputs)[:2]:
            np.testing.assert_array_equal(output._keras_mask, query._keras_mask)
    other = masking(np.pad(SEQUENCES, ((0, 0), (2, 0), (0, 0))))
    first = layer({"query": query, "context": other})[0]
    np.testing.assert_array_equal(first._keras_mask, query._keras_mask)


def test_a_list_of_two_inputs_fills_the_input_and_the_mask():
    class Masked(nn.Module):
        def __call__(self, x, mask):
            return x * mask

    np.testing.assert_array_equal(
        FlaxLayer(Masked())([VECTORS, np.zeros_like(VECTORS)]), np.zeros_like(VECTORS)
    )


def with_optional_part(dense, inputs):
    """Add up the parts of the input that are not None."""
    parts = inputs.items() if isinstance(inputs, dict) else zip("xa", inputs, strict=True)
    return sum(dense[name](part) for name, part in parts if part is not None)


class LinenOptional(nn.Module):
    @nn.compact
    def __call__(self, inputs):
        return with_optional_part({name: nn.Dense(2, name=name) for name in "xa"}, inputs)


class NnxOptional(nnx.Module):
    def __init__(self, *, rngs):
        self.x, self.a = nnx.Linear(3, 2, rngs=rngs), nnx.Linear(3, 2, rngs=rngs)

    def __call__(self, inputs):
        return with_optional_part({"x": self.x, "a": self.a}, inputs)


class LinenArguments(nn.Module):
    @nn.compact
    def __call__(self, x, a=None):
        return LinenOptional(name="parts")({"x": x, "a": a})


OPTIONAL = {
    "linen": LinenOptional,
    "nnx": lambda: NnxOptional(rngs=nnx.Rngs(0)),
    "arguments": LinenArguments,
}


def optional_inputs(order):
    return {name: keras.Input((3,), name=name, optional=name == "a") for name in order}


def plain_output(layer, inputs):
    flax = layer.to_flax()
    return flax[0].apply(flax[1], inputs) if isinstance(flax, tuple) else flax(inputs)


def plain_arguments(layer, inputs):
    module, variables = layer.to_flax()
    return module.apply(variables, **inputs)


@pytest.mark.parametrize("order", ["xa", "ax"])
@pytest.mark.parametrize("kind", OPTIONAL)
def test_an_optional_input_may_be_none_in_any_call(kind, order, tmp_path):
    inputs = optional_inputs(order)
    layer = FlaxLayer(OPTIONAL[kind]())
    model = keras.Model(inputs, layer(inputs))
    model.compile(keras.optimizers.SGD(0.0), "mse")
    given = {name: VECTORS * (1 + (name == "a")) for name in order}
    without = given | {"a": None}
    plain = plain_arguments if kind == "arguments" else plain_output
    for x in (without, given, without):
        expected = plain(layer, x)
        for call in (model, model.predict_on_batch, lambda x: model.predict(x, verbose=0)):
            np.testing.assert_allclose(call(x), expected, rtol=1e-5, atol=1e-6)
        loss = np.square(expected - TARGETS[:, :2]).mean()
        history = model.fit(x, TARGETS[:, :2], batch_size=8, verbose=0).history
        np.testing.assert_allclose(history["loss"], loss, rtol=1e-5)
        np.testing.assert_allclose(model.evaluate(x, TARGETS[:, :2], verbose=0), loss, rtol=1e-5)
    custom = {"custom_objects": {type(layer.module).__name__: type(layer.module)}}
    if kind != "nnx":
        kerasflax.save_model(model, tmp_path / "m.keras")
        loaded = keras.saving.load_model(tmp_path / "m.keras", **custom)
        for x in (without, given):
            np.testing.assert_allclose(loaded(x), model(x), rtol=1e-5)


def test_an_optional_input_in_a_list_or_a_nested_input_may_be_none():
    class Nested(nn.Module):
        @nn.compact
        def __call__(self, inputs):
            first, rest = inputs
            return LinenOptional()({"x": first, "a": rest["z"][0]}) + rest["b"]

    listed = FlaxLayer(LinenOptional())
    inputs = [keras.Input((3,)), keras.Input((3,), optional=True)]
    model = keras.Model(inputs, listed(inputs))
    for x in ([VECTORS, None], [VECTORS, VECTORS]):
        expected = plain_output(listed, x)
        np.testing.assert_allclose(model(x), expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(model.predict(x, verbose=0), expected, rtol=1e-5, atol=1e-6)
    nested = FlaxLayer(Nested())
    a, b = keras.Input((3,), name="a", optional=True), keras.Input((2,), name="b")
    first = keras.Input((3,), name="x")
    model = keras.Model([first, {"z": (a,), "b": b}], nested([first, {"z": (a,), "b": b}]))
    for part in (None, VECTORS):
        x = [VECTORS, {"z": (part,), "b": TARGETS[:, :2]}]
        np.testing.assert_allclose(model(x), plain_output(nested, x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["linen", "nnx"])
def test_an_eager_call_or_a_subclassed_model_may_pass_none_for_a_part(kind):
    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.layer = FlaxLayer(OPTIONAL[kind]())

        def call(self, inputs):
            return self.layer(inputs)

    model = Model()
    for x in ({"x": VECTORS, "a": VECTORS}, {"x": VECTORS, "a": None}, {"x": None, "a": VECTORS}):
        for call in (model, model.layer, model.predict_on_batch):
            output = call(x)
            np.testing.assert_allclose(output, plain_output(model.layer, x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("first", [{"x": VECTORS, "a": None}, {"x": None, "a": None}])
def test_a_part_that_was_none_at_the_build_is_an_error_if_it_needs_weights(first):
    class WithBias(nn.Module):
        @nn.compact
        def __call__(self, inputs):
            parts = {name: inputs[name] for name in "xa"}
            return LinenOptional()(parts) + inputs["y"]

    layer = FlaxLayer(WithBias())
    layer({**first, "y": TARGETS[:, :2]})
    with pytest.raises(
        kerasflax.StateError, match="needs a weight that did not exist when the layer was built"
    ) as error:
        layer({"x": VECTORS, "a": VECTORS, "y": TARGETS[:, :2]})
    assert "WithBias/LinenOptional_0/" in error.value.what
    lazy = FlaxLayer(kerasflax.LazyModule(NnxOptional))
    lazy({"x": VECTORS, "a": None})
    x = {"x": VECTORS, "a": VECTORS}
    np.testing.assert_allclose(lazy(x), plain_output(lazy, x), rtol=1e-5, atol=1e-6)
