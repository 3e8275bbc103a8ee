"""One layer, called from several threads."""

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
    """Call a function of a number in that many threads that begin at once; what each returns, or the error of one."""
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
    """The same types, keys in the same order, and numbers."""
    assert type(output) is type(expected)
    if isinstance(expected, dict):
        assert list(output) == list(expected)
    if isinstance(expected, (dict, list, tuple)):
        for name in expected if isinstance(expected, dict) else range(len(expected)):
            assert_same(output[name], expected[name])
    else:
        np.testing.assert_allclose(output, expected, rtol=1e-6)


def structured(x, training):
    """Another structure in each mode and for each kind of input."""
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
def test_each_call_returns_what_it_would_return_alone(kind):
    cases = [(x, training) for x in INPUTS for training in (False, True)]
    alone = LAYERS[kind]()
    alone(X)
    expected = [alone(x, training=training) for x, training in cases]
    layer = LAYERS[kind]()
    layer(X)

    def calls(number):
        # Each begins elsewhere, so that the first calls, which trace, are different ones.
        order = np.random.default_rng(number).integers(len(cases), size=250)
        for index in order:
            x, training = cases[index]
            assert_same(layer(x, training=training), expected[index])

    in_threads(calls)


def refusal(run):
    """What a function is refused with, if it is."""
    try:
        run()
    except ValueError as error:
        return str(error)


@pytest.mark.parametrize("kind", LAYERS)
def test_several_first_calls_build_once(kind):
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
        refused = [
            *filter(None, in_threads(lambda _, layer=layer: refusal(lambda: layer.build((2, 3)))))
        ]
        assert len(refused) == THREADS - 1
        assert all("cannot add new elements of state" in error for error in refused)
        assert len(layer.weights) == 2
        for path, variable in layer.variables_by_path.items():
            np.testing.assert_array_equal(variable, expected.variables_by_path[path])
        assert gc.isenabled()


def test_first_calls_with_other_inputs_are_told_theirs():
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


def test_no_write_to_the_state_is_lost():
    layer = FlaxLayer(Counter())
    layer(X)
    outputs = in_threads(lambda _: [float(layer(np.zeros(1, np.float32))[0]) for _ in range(100)])
    counts = sorted(count for each in outputs for count in each)
    assert counts == list(range(2, 2 + 100 * THREADS))
    assert layer.flax_variables["counts"]["n"] == 1 + 100 * THREADS


def test_no_two_calls_draw_the_same_random_numbers():
    layer, alone = FlaxLayer(TwoStreams(), seed=3), FlaxLayer(TwoStreams(), seed=3)
    layer(X), alone(X)
    outputs = in_threads(lambda _: [np.asarray(layer(X)[0]).tobytes() for _ in range(50)])
    expected = [np.asarray(alone(X)[0]).tobytes() for _ in range(50 * THREADS)]
    assert sorted(draw for each in outputs for draw in each) == sorted(expected)


def test_a_thread_finds_what_its_own_call_sowed():
    layer = FlaxLayer(Sower())
    layer(X)

    def calls(number):
        x = np.full((1, 3), number, np.float32)
        for _ in range(100):
            y = layer(x)
            np.testing.assert_allclose(layer.sown["intermediates"]["x"][0], y, rtol=1e-6)

    in_threads(calls)
    # One that has called nothing finds the last call's.
    found = []
    thread = threading.Thread(target=lambda: found.append(layer.sown))
    thread.start()
    thread.join()
    assert found[0].keys() >= {"intermediates", "losses", "metrics"}


def test_what_one_thread_learns_of_the_module_is_not_lost_to_another():
    class Streams(nn.Module):
        """Draws from another stream for each shape, and sows under another name."""

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


def test_models_in_several_threads_share_a_layer_in_eager_calls_and_a_module_in_predict():
    x = np.random.default_rng(0).normal(size=(8, 5, 5, 1)).astype(np.float32)
    module = ConvNet()
    layer = FlaxLayer(module, seed=1)
    expected = np.asarray(layer(x))
    # `predict` takes the values out of a model's variables for as long as it runs, so that each has its own.
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


def test_a_mask_is_the_calls_own():
    class Either(nn.Module):
        """Keeps the masked axis, or sums over it."""

        @nn.compact
        def __call__(self, inputs, mask=None, training=False):
            return inputs * 2 if training else inputs.sum(1)

    layer = FlaxLayer(Either())
    x = np.ones((2, 4, 3), np.float32)
    mask = jnp.array([[True, True, False, False]] * 2)
    layer(x)
    # By itself, it knows the shapes of outputs in inference mode.
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
    """Weights and counts that are always equal to each other."""

    @nn.compact
    def __call__(self, inputs):
        weights = [self.param(f"w{i}", nn.initializers.zeros, (1,)) for i in range(20)]
        counts = [self.variable("counts", f"c{i}", lambda: jnp.zeros((1,))) for i in range(20)]
        if not self.is_initializing():
            for count in counts:
                count.value = count.value + 1
        return jnp.concatenate(weights) * jnp.ones((inputs.shape[0], 1))


def is_torn(tree):
    return len({float(np.asarray(leaf).ravel()[0]) for leaf in jax.tree.leaves(tree)}) > 1


def while_it_is(doing, asked, times):
    """Ask for something that often while another thread does something again and again."""
    stop = threading.Event()

    def again():
        number = 0
        while not stop.is_set():
            number += 1
            doing(number)

    thread = threading.Thread(target=again)
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    thread.start()
    try:
        return [asked() for _ in range(times)]
    finally:
        stop.set()
        thread.join()
        sys.setswitchinterval(before)


def test_whoever_reads_the_variables_finds_them_as_one_call_has_left_them(tmp_path):
    layer = FlaxLayer(Equal())
    model = keras.Sequential([keras.Input((3,)), layer])
    ways = {
        "flax_variables": lambda: layer.flax_variables["counts"],
        "numpy_variables": lambda: _models.numpy_variables(layer)["counts"],
        "a file": lambda: (
            kerasflax.write_variables(layer, tmp_path / "w.msgpack"),
            kerasflax.read_variables(tmp_path / "w.msgpack")["counts"],
        )[1],
        "Keras's file": lambda: (
            model.save_weights(tmp_path / "m.weights.h5"),
            [
                h5py.File(tmp_path / "m.weights.h5")[f"layers/{layer.name}/vars/counts/c{i}"][()]
                for i in range(20)
            ],
        )[1],
    }
    for name, way in ways.items():
        assert not any(map(is_torn, while_it_is(lambda _: layer(X), way, 30))), name


def test_a_call_finds_the_variables_as_one_assignment_has_left_them(tmp_path):
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

    for way in (
        assign,
        assign_to_the_model,
        lambda _: (assign(7), model.load_weights(tmp_path / "m.weights.h5")),
    ):
        outputs = while_it_is(way, lambda: np.asarray(layer(X).astype("float32")), 100)
        assert not any(len(np.unique(output)) > 1 for output in outputs)


def test_no_call_undoes_an_assignment_to_the_state():
    layer = FlaxLayer(Equal())
    layer(X)

    def lost():
        layer.flax_variables = {
            "counts": {f"c{i}": np.full(1, -1e6, np.float32) for i in range(20)}
        }
        time.sleep(0.002)
        return float(layer.flax_variables["counts"]["c0"][0]) > -9e5

    assert not any(while_it_is(lambda _: layer(X), lost, 100))
