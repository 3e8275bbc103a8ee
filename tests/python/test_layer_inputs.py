"""The inputs that Keras passes to the layer: masks, nested structures, dtypes and sizes."""

import flax.core
import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from conformance import Output, Pair
from flax import linen as nn
from flax import struct
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


def test_a_list_of_two_inputs_fills_the_input_and_the_mask():
    class Masked(nn.Module):
        def __call__(self, x, mask):
            return x * mask

    np.testing.assert_array_equal(
        FlaxLayer(Masked())([VECTORS, np.zeros_like(VECTORS)]), np.zeros_like(VECTORS)
    )
