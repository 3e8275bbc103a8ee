"""A layer called from several threads at once."""

import collections
import gc
import sys
import threading
import time

import h5py
import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from modules import ConvNet, Counter, Sower, TwoStreams

import kerasflax
from kerasflax import FlaxLayer, LazyModule, _models

THREADS = 8
X = np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)
Pair = collections.namedtuple("Pair", ["left", "right"])


def in_threads(function, count=THREADS):
    """Call `function(number)` in `count` threads that start at once.

    Returns:
        The results in the order of the numbers.

    Raises:
        BaseException: The first error that a thread raised.
    """
    results, errors, barrier = [None] * count, [], threading.Barrier(count)

    def run(number):
        try:
            barrier.wait()
            results[number] = function(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results


def assert_same(output, expected):
    """Assert that two outputs have the same types, order of keys, and numbers."""
    assert type(output) is type(expected)
    if isinstance(expected, dict):
        assert list(output) == list(expected)
    if isinstance(expected, (dict, list, tuple)):
        for name in expected if isinstance(expected, dict) else range(len(expected)):
            assert_same(output[name], expected[name])
    else:
        np.testing.assert_allclose(output, expected, rtol=1e-6)


def structured(x, training):
    """Return a different structure in each mode and for each kind of input."""
    if isinstance(x, dict):
        return Pair(x["a"] + x["b"], [x["a"]]) if training else {"z": x["b"], "a": {"b": x["a"]}}
    if isinstance(x, list):
        return (x[0], {"b": x[1], "a": x[0]}) if training else [x[1]]
    return {"b": x, "a": 2 * x} if training else {"a": x, "b": 2 * x}


class LinenStructures(nn.Module):
    @nn.compact
    def __call__(self, inputs, training=False):
        return structured(jax.tree.map(nn.Dense(2), inputs), training)


class NnxStructures(nnx.Module):
    def __init__(self, *, rngs):
        self.linear = nnx.Linear(3, 2, rngs=rngs)

    def __call__(self, inputs, training=False):
        return structured(jax.tree.map(self.linear, inputs), training)


INPUTS = [X, {"a": X, "b": 2 * X}, [X, 3 * X], X[:1], {"b": X, "a": X}]
LAYERS = {
    "linen": lambda: FlaxLayer(LinenStructures(), seed=1),
    "nnx": lambda: FlaxLayer(NnxStructures(rngs=nnx.Rngs(0))),
    "lazy": lambda: FlaxLayer(LazyModule(NnxStructures), seed=1),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_each_concurrent_call_returns_the_same_as_a_call_alone(kind):
    cases = [(x, training) for x in INPUTS for training in (False, True)]
    alone = LAYERS[kind]()
    alone(X)
    expected = [alone(x, training=training) for x, training in cases]
    layer = LAYERS[kind]()
    layer(X)

    def calls(number):
        # Each thread uses its own order, so that the first calls, which trace, differ.
        order = np.random.default_rng(number).integers(len(cases), size=250)
        for index in order:
            x, training = cases[index]
            assert_same(layer(x, training=training), expected[index])

    in_threads(calls)


def error_message(run):
    """Return the message of the ValueError that `run()` raises, or None."""
    try:
        run()
    except ValueError as error:
        return str(error)


@pytest.mark.parametrize("kind", LAYERS)
def test_concurrent_first_calls_build_the_layer_once(kind):
    expected = LAYERS[kind]()
    expected(X)
    for _ in range(3):
        layer = LAYERS[kind]()
        outputs = in_threads(lambda number, layer=layer: layer(X))
        assert len(layer.weights) == 2
        for path, variable in layer.variables_by_path.items():
            np.testing.assert_array_equal(variable, expected.variables_by_path[path])
        for output in outputs:
            assert_same(output, expected(X))
        layer = LAYERS[kind]()
        messages = [
            *filter(
                None, in_threads(lambda _, layer=layer: error_message(lambda: layer.build((2, 3))))
            )
        ]
        assert len(messages) == THREADS - 1
        assert all("cannot add new elements of state" in message for message in messages)
        assert len(layer.weights) == 2
        for path, variable in layer.variables_by_path.items():
            np.testing.assert_array_equal(variable, expected.variables_by_path[path])
        assert gc.isenabled()


def test_concurrent_first_calls_of_several_layers_each_see_their_own_inputs():
    class Embed(nn.Module):
        @nn.compact
        def __call__(self, inputs):
            assert inputs["tokens"].dtype == jnp.int32
            return nn.Embed(5, 2)(inputs["tokens"]) + inputs["x"]

    x = {"tokens": np.array([[1, 2]], np.int32), "x": np.ones((1, 2, 2), np.float32)}
    layers = [FlaxLayer(Embed(), seed=number % 2) for number in range(THREADS)]
    outputs = in_threads(lambda number: layers[number](x))
    for number, output in enumerate(outputs):
        np.testing.assert_array_equal(output, layers[number % 2](x))


def test_concurrent_calls_lose_no_write_to_the_state():
    layer = FlaxLayer(Counter())
    layer(X)
    outputs = in_threads(lambda _: [float(layer(np.zeros(1, np.float32))[0]) for _ in range(100)])
    counts = sorted(count for each in outputs for count in each)
    assert counts == list(range(2, 2 + 100 * THREADS))
    assert layer.flax_variables["counts"]["n"] == 1 + 100 * THREADS


def test_concurrent_calls_never_draw_the_same_random_numbers():
    layer, alone = FlaxLayer(TwoStreams(), seed=3), FlaxLayer(TwoStreams(), seed=3)
    layer(X), alone(X)
    outputs = in_threads(lambda _: [np.asarray(layer(X)[0]).tobytes() for _ in range(50)])
    expected = [np.asarray(alone(X)[0]).tobytes() for _ in range(50 * THREADS)]
    assert sorted(draw for each in outputs for draw in each) == sorted(expected)


def test_a_thread_reads_the_values_that_its_own_call_sowed():
    layer = FlaxLayer(Sower())
    layer(X)

    def calls(number):
        x = np.full((1, 3), number, np.float32)
        for _ in range(100):
            y = layer(x)
            np.testing.assert_allclose(layer.sown["intermediates"]["x"][0], y, rtol=1e-6)

    in_threads(calls)
    # A thread that has not called the layer reads the values of the last call.
    found = []
    thread = threading.Thread(target=lambda: found.append(layer.sown))
    thread.start()
    thread.join()
    assert found[0].keys() >= {"intermediates", "losses", "metrics"}


def test_all_threads_share_what_one_thread_learned_about_the_module():
    class Streams(nn.Module):
        """Draws from a different stream, and sows under a different name, for each shape."""

        @nn.compact
        def __call__(self, inputs, training=False):
            size = inputs.shape[0]
            self.sow(f"sown_{size}", "x", inputs)
            noise = (
                jax.random.normal(self.make_rng(f"stream_{size}"), inputs.shape)
                if training
                else 0.0
            )
            return nn.Dense(2)(inputs) + jnp.sum(noise)

    layer = FlaxLayer(Streams(), seed=1)
    layer(X)
    weights = layer.flax_variables["params"]["Dense_0"]
    expected = 0 * X[:1] @ weights["kernel"] + weights["bias"]

    def calls(number):
        x = np.zeros((number + 1, 3), np.float32)
        assert np.abs(layer(x, training=True) - expected).max() > 1e-3
        np.testing.assert_allclose(layer(x), np.broadcast_to(expected, (number + 1, 2)), rtol=1e-6)
        assert f"sown_{number + 1}" in layer.sown

    in_threads(calls)
    assert list(layer.flax_variables) == ["params"]


def test_models_in_several_threads_can_share_a_layer_in_eager_calls_and_a_module_in_predict():
    x = np.random.default_rng(0).normal(size=(8, 5, 5, 1)).astype(np.float32)
    module = ConvNet()
    layer = FlaxLayer(module, seed=1)
    expected = np.asarray(layer(x))
    # While `predict` runs, it takes the values out of the model's variables: each thread needs a
    # model with variables of its own.
    models = [
        keras.Sequential([keras.Input((5, 5, 1)), FlaxLayer(module, seed=1)])
        for _ in range(THREADS)
    ]
    sharing = [keras.Sequential([keras.Input((5, 5, 1)), layer]) for _ in range(THREADS)]

    def calls(number):
        for _ in range(3):
            np.testing.assert_allclose(
                models[number].predict(x, verbose=0), expected, rtol=1e-5, atol=1e-6
            )
            np.testing.assert_allclose(sharing[number](x), expected, rtol=1e-5, atol=1e-6)

    in_threads(calls)


def test_each_concurrent_call_passes_on_its_own_mask():
    class Either(nn.Module):
        """Keeps the masked axis in training and sums over it at inference."""

        @nn.compact
        def __call__(self, inputs, mask=None, training=False):
            return inputs * 2 if training else inputs.sum(1)

    layer = FlaxLayer(Either())
    x = np.ones((2, 4, 3), np.float32)
    mask = jnp.array([[True, True, False, False]] * 2)
    layer(x)
    # Outside a call, the layer uses the shapes of the outputs at inference.
    assert layer.compute_mask(x, mask) == [None]

    def calls(number):
        training = number % 2 == 0
        for _ in range(50):
            inputs = jnp.asarray(x)
            inputs._keras_mask = mask
            output = layer(inputs, training=training)
            assert (getattr(output, "_keras_mask", None) is not None) == training

    in_threads(calls)


class Equal(nn.Module):
    """All weights are always equal to each other, and so are all counts."""

    @nn.compact
    def __call__(self, inputs):
        weights = [self.param(f"w{i}", nn.initializers.zeros, (1,)) for i in range(20)]
        counts = [self.variable("counts", f"c{i}", lambda: jnp.zeros((1,))) for i in range(20)]
        if not self.is_initializing():
            for count in counts:
                count.value = count.value + 1
        return jnp.concatenate(weights) * jnp.ones((inputs.shape[0], 1))


def is_torn(tree):
    """Whether the leaves, which should all be equal, differ."""
    return len({float(np.asarray(leaf).ravel()[0]) for leaf in jax.tree.leaves(tree)}) > 1


def read_during(write, read, times):
    """Call `read()` this many times while another thread keeps calling `write(number)`."""
    stop = threading.Event()

    def keep_writing():
        number = 0
        while not stop.is_set():
            number += 1
            write(number)

    thread = threading.Thread(target=keep_writing)
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    thread.start()
    try:
        return [read() for _ in range(times)]
    finally:
        stop.set()
        thread.join()
        sys.setswitchinterval(before)


def test_a_reader_never_sees_the_variables_in_the_middle_of_a_call(tmp_path):
    layer = FlaxLayer(Equal())
    model = keras.Sequential([keras.Input((3,)), layer])
    readers = {
        "flax_variables": lambda: layer.flax_variables["counts"],
        "numpy_variables": lambda: _models.numpy_variables(layer)["counts"],
        "a file": lambda: (
            kerasflax.write_variables(layer, tmp_path / "w.msgpack"),
            kerasflax.read_variables(tmp_path / "w.msgpack")["counts"],
        )[1],
        "Keras's file": lambda: (
            model.save_weights(tmp_path / "m.weights.h5"),
            [
                h5py.File(tmp_path / "m.weights.h5")[f"layers/flax_layer/vars/counts/c{i}"][()]
                for i in range(20)
            ],
        )[1],
    }
    for name, reader in readers.items():
        assert not any(map(is_torn, read_during(lambda _: layer(X), reader, 30))), name


def test_a_call_never_sees_the_variables_in_the_middle_of_an_assignment(tmp_path):
    layer = FlaxLayer(Equal(), dtype="mixed_bfloat16")
    model = keras.Sequential([keras.Input((3,)), layer])
    model.save_weights(tmp_path / "m.weights.h5")

    def assign(number):
        layer.flax_variables = {
            "params": {f"w{i}": np.full(1, number, np.float32) for i in range(20)}
        }

    def assign_to_the_model(number):
        _models.set_variables(
            model,
            {layer.name: {"params": {f"w{i}": np.full(1, number, np.float32) for i in range(20)}}},
        )

    for write in (
        assign,
        assign_to_the_model,
        lambda _: (assign(7), model.load_weights(tmp_path / "m.weights.h5")),
    ):
        outputs = read_during(write, lambda: np.asarray(layer(X).astype("float32")), 100)
        assert not any(len(np.unique(output)) > 1 for output in outputs)


def test_a_concurrent_call_does_not_undo_an_assignment_to_the_state():
    layer = FlaxLayer(Equal())
    layer(X)

    def is_lost():
        layer.flax_variables = {
            "counts": {f"c{i}": np.full(1, -1e6, np.float32) for i in range(20)}
        }
        time.sleep(0.002)
        return float(layer.flax_variables["counts"]["c0"][0]) > -9e5

    assert not any(read_during(lambda _: layer(X), is_lost, 100))
