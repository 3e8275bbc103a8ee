"""Builds and changes that are broken off at every line of them."""

import contextlib
import functools
import gc
import os
import sys

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from keras.src.backend.common import global_state, name_scope
from keras.src.layers import layer as keras_layer
from keras.src.utils import tracking

import kerasflax
from kerasflax import ArgumentError, FlaxLayer, LazyModule, _models

X = np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)
SYMBOL = keras.Input((3,))
KERAS = {module.__file__ for module in (keras_layer, name_scope, tracking)}
OURS = os.path.dirname(kerasflax.__file__)


def is_watched(file):
    return file in KERAS or file.startswith(OURS)


def watched(run, note):
    """Call a function, and before each line of kerasflax, and of Keras where it builds layers, another one."""

    def in_function(frame, event, argument):
        if event == "line":
            note((frame.f_code.co_filename, frame.f_lineno))
        return in_function

    before = sys.gettrace()
    sys.settrace(
        lambda frame, event, argument: in_function if is_watched(frame.f_code.co_filename) else None
    )
    try:
        return run()
    finally:
        sys.settrace(before)


def lines_of(run):
    """The lines that a function runs, in the order in which it comes to them first."""
    lines = {}
    watched(run, lambda line: lines.setdefault(line))
    return list(lines)


def broken_off(run, line, error):
    """Call a function, and raise an error when it comes to a line; whether it did, and let the error through."""
    errors = [error]

    def note(here):
        if here == line and errors:
            raise errors.pop()

    try:
        watched(run, note)
    except BaseException as raised:
        if raised is error or error in (raised.__cause__, raised.__context__):
            return True
        raise
    return False


def seeded(key, shape, dtype=jnp.float32):
    """An initializer whose values are the key's, and cheap to compile."""
    return jnp.full(shape, jax.random.key_data(key)[0], dtype)


class Linen(nn.Module):
    """Params, batch statistics, and what is sown."""

    @nn.compact
    def __call__(self, inputs, training=False):
        x = nn.Dense(2, kernel_init=seeded, name="dense")(inputs)
        self.sow("intermediates", "x", x)
        count = self.variable("counts", "n", lambda: jnp.zeros((), jnp.int32))
        return x + count.value


class Nnx(nnx.Module):
    """Params, state, and random numbers."""

    def __init__(self, *, rngs):
        self.linear = nnx.Linear(3, 2, kernel_init=seeded, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.note = "a note"

    def __call__(self, inputs):
        self.sow(nnx.Intermediate, "x", inputs)
        return self.dropout(self.linear(inputs))


class Part(nnx.Module):
    """A part of a Linen module."""

    def __init__(self, *, rngs):
        self.linear = nnx.Linear(3, 2, kernel_init=seeded, rngs=rngs)

    def __call__(self, inputs):
        return self.linear(inputs)


USERS = Nnx(rngs=nnx.Rngs(7))
GIVEN = {
    "params": {
        "dense": {
            "kernel": np.arange(6, dtype=np.float32).reshape(3, 2),
            "bias": np.ones(2, np.float32),
        }
    },
    "counts": {"n": np.int32(3)},
}
L2 = {"regularizers": {"**/kernel": keras.regularizers.L2(0.1)}}
CASES = {
    "an NNX module": lambda: FlaxLayer(
        USERS, constraints={"**/bias": keras.constraints.NonNeg()}, **L2
    ),
    "given variables": lambda: FlaxLayer(Linen(), variables=GIVEN, trainable=False),
    "initial values": lambda: FlaxLayer(Linen(), seed=5, **L2),
    "a lazy module": lambda: FlaxLayer(LazyModule(Nnx), seed=5),
    "a bridged module": lambda: FlaxLayer(nnx.bridge.ToLinen(Part), seed=5),
}
WAYS = {
    "call": lambda layer: layer(X),
    "build": lambda layer: layer.build((2, 3)),
    "symbolic": lambda layer: layer(SYMBOL),
    "stateless": lambda layer: _in_stateless_scope(layer),
}


def _in_stateless_scope(layer):
    with keras.StatelessScope():
        layer.build((2, 3))


def values_of(layer):
    return {path: np.asarray(variable.value) for path, variable in layer.variables_by_path.items()}


def everything(layer):
    """What a layer is, and what Keras notes of it: attributes, tracked objects, the thread's scopes."""
    tracker = layer._tracker
    held = [
        {name: id(value) for name, value in vars(each).items()}
        for each in (
            *(layer, layer._adapter, layer.by_path),
            *(layer._recorded, layer._given, layer._known_outputs),
        )
    ]
    tracked = (
        [list(map(id, store)) for _, store in tracker.config.values()],
        [set(ids) for ids in tracker.stored_ids.values()],
    )
    scopes = ("name_scope_stack", "uninitialized_variables")
    thread = [list(global_state.get_global_attribute(name) or ()) for name in scopes]
    return (
        held,
        tracked,
        tracker.locked,
        thread,
        global_state.get_global_attribute("current_call_ctx"),
        gc.isenabled(),
    )


def content_of(module):
    """The arrays of an NNX module, its counts of random numbers, and its attributes."""
    graphdef, state = nnx.split(module)
    return graphdef, [np.asarray(leaf) for leaf in jax.tree.leaves(jax.tree.map(_data, state))]


def _data(x):
    return jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x


@functools.cache
def lines_in(case, way):
    layer = CASES[case]()
    return lines_of(lambda: WAYS[way](layer))


def new_lines(case, way):
    """The lines of a build that no build before it in the tables comes to."""
    builds = [(each_case, each_way) for each_case in CASES for each_way in WAYS]
    known = {line for each in builds[: builds.index((case, way))] for line in lines_in(*each)}
    return [line for line in lines_in(case, way) if line not in known]


@pytest.mark.parametrize("case", CASES)
def test_a_build_that_is_broken_off_at_any_line_leaves_the_layer_as_it_was(case):
    make, users = CASES[case], content_of(USERS)
    counts = {way: len(new_lines(case, way)) for way in WAYS}
    assert sum(counts.values()) > (500 if case == next(iter(CASES)) else 0)
    for way, build in WAYS.items():
        undisturbed, layer = make(), make()
        build(undisturbed)
        expected, before = values_of(undisturbed), everything(layer)
        for number, line in enumerate(new_lines(case, way)):
            error = (KeyboardInterrupt, MemoryError)[number % 2]("broken off")
            where = f"{way}, {os.path.basename(line[0])}:{line[1]}"
            # A layer that has been built comes to the lines after the build.
            hit = layer.built and broken_off(functools.partial(build, layer), line, error)
            if layer.built and not hit:
                layer = make()
                before = everything(layer)
            if not hit:
                hit = broken_off(functools.partial(build, layer), line, error)
            if layer.built:
                # What comes after the build was broken off, or the error was one that the build survives.
                assert_built_as(layer, undisturbed, where)
            else:
                assert hit, where
                assert everything(layer) == before, where
                assert layer.weights == [], where
        if not layer.built:
            build(layer)
        assert_built_as(layer, undisturbed, way)
        np.testing.assert_equal(values_of(layer), expected)
    assert content_of(USERS)[0] == users[0]
    np.testing.assert_equal(content_of(USERS)[1], users[1])


def assert_built_as(layer, other, where):
    np.testing.assert_equal(values_of(layer), values_of(other), where)
    for attribute in ("trainable", "regularizer", "constraint", "shape"):
        of_each = (
            [repr(getattr(w, attribute))[:30] for w in each.weights] for each in (layer, other)
        )
        assert next(of_each) == next(of_each), where
    assert layer._tracker.locked, where


class Told(keras.regularizers.Regularizer, keras.constraints.Constraint):
    """A regularizer and initializer that fails until it is told not to."""

    def __init__(self, error):
        self.error = error

    def __call__(self, *arguments):
        if self.error is not None:
            raise self.error
        return jnp.full(*arguments[1:2], 2.0) if len(arguments) > 1 else jnp.sum(arguments[0].value)


@pytest.mark.parametrize("argument", ["regularizers", "constraints"])
def test_a_pattern_that_fits_nothing_can_be_corrected(argument):
    value = keras.regularizers.L2(0.1) if argument == "regularizers" else keras.constraints.NonNeg()
    layer = FlaxLayer(USERS, **{argument: {"**/bias": value, "**/nothing": value}})
    before = everything(layer)
    for build in WAYS.values():
        with pytest.raises(ArgumentError, match="nothing"):
            build(layer)
        assert everything(layer) == before
    setattr(layer, argument, {"**/bias": value})
    np.testing.assert_allclose(
        layer(X), X @ USERS.linear.kernel[...] + USERS.linear.bias[...], rtol=1e-5
    )
    assert [bool(getattr(w, argument.rstrip("s"))) for w in layer.weights] == [
        True,
        False,
        False,
        False,
    ]
    assert len(layer.weights) == 4


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("not set up")], ids=repr)
def test_a_setup_that_fails_fails_the_build_and_no_more(error, way):
    errors = [error]

    class Module(nn.Module):
        def setup(self):
            self.dense = nn.Dense(2, kernel_init=seeded)
            if errors:
                raise errors[0]

        def __call__(self, inputs):
            return self.dense(inputs)

    layer = FlaxLayer(Module(), seed=1)
    before = everything(layer)
    with pytest.raises(type(error)):
        WAYS[way](layer)
    assert everything(layer) == before
    errors.clear()
    layer(X)
    assert len(layer.weights) == 2


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), MemoryError(), ValueError("no values")], ids=repr
)
@pytest.mark.parametrize("api", ["linen", "nnx"])
def test_an_initializer_that_fails_fails_the_build_and_no_more(api, error):
    told = Told(error)
    module = (
        nn.Dense(2, kernel_init=told)
        if api == "linen"
        else LazyModule(nnx.Linear, 3, 2, kernel_init=told)
    )
    try:
        layer = FlaxLayer(module, seed=1)
    except type(error):
        # A lazy module is made abstractly first.
        told.error = None
        layer = FlaxLayer(module, seed=1)
        told.error = error
    before = everything(layer)
    with pytest.raises(type(error)):
        layer(X)
    assert everything(layer) == before
    told.error = None
    np.testing.assert_allclose(layer(X), 2 * X.sum(1, keepdims=True) * np.ones((1, 2)), rtol=1e-5)
    assert len(layer.weights) == 2


def test_a_second_build_is_refused_and_leaves_the_weights():
    layer = CASES["initial values"]()
    layer(X)
    before, values = everything(layer), values_of(layer)
    with pytest.raises(ValueError, match="cannot add new elements of state"):
        layer.build((2, 3))
    assert everything(layer) == before
    np.testing.assert_equal(values_of(layer), values)


def test_a_fit_whose_deferred_build_was_broken_off_can_be_begun_again():
    y = np.ones((2, 2), np.float32)

    def model():
        keras.utils.clear_session(free_memory=False)
        model = keras.Sequential([FlaxLayer(USERS, name="flax")])
        model.compile(keras.optimizers.SGD(0.1), "mse")
        return model

    undisturbed = model()
    reached = set(lines_of(lambda: undisturbed.fit(X, y, shuffle=False, verbose=0)))
    lines = [line for line in lines_in("an NNX module", "build") if line in reached]
    chosen = [line for line in lines if line[0].endswith(("_layer.py", "_variables.py"))][::25]
    assert len(chosen) > 5
    other = model()
    for line in chosen:
        assert broken_off(
            lambda: other.fit(X, y, shuffle=False, verbose=0), line, KeyboardInterrupt()
        )
        assert other.layers[0].weights == []
    other.fit(X, y, shuffle=False, verbose=0)
    np.testing.assert_equal(values_of(other.layers[0]), values_of(undisturbed.layers[0]))


# Values and flags -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def either(before, after, current):
    """What is there at the end is one of the two, whole."""
    yield
    now = current()
    try:
        np.testing.assert_equal(now, before)
    except AssertionError:
        np.testing.assert_equal(now, after)


def built():
    layer = FlaxLayer(Linen(), variables=GIVEN)
    layer(X)
    return layer


def zeros(tree):
    return jax.tree.map(np.zeros_like, tree)


CHANGES = {
    "flax_variables": lambda layer: setattr(layer, "flax_variables", zeros(GIVEN)),
    "set_variables": lambda layer: _models.set_variables(layer, zeros(GIVEN)),
    "load_own_variables": lambda layer: layer.load_own_variables(STORED),
}
STORED = {}


@pytest.mark.parametrize("change", CHANGES)
def test_values_are_set_all_or_none_wherever_that_is_broken_off(change):
    zero = built()
    zero.flax_variables = zeros(GIVEN)
    zero.save_own_variables(STORED)
    layer, set_values = built(), CHANGES[change]
    before, after = values_of(layer), values_of(zero)
    lines = lines_of(lambda: set_values(layer))
    assert len(lines) > 20
    np.testing.assert_equal(values_of(layer), after)
    # Between two variables, too.
    moments = [(line, count) for line in lines for count in range(1, 4)]
    for line, count in moments:
        layer.flax_variables = GIVEN
        with either(before, after, lambda: values_of(layer)):
            broken_off_at_the(count, lambda: set_values(layer), line)


def broken_off_at_the(count, run, line):
    """Interrupt a function when it comes to a line for the n-th time."""
    left = [None] * count

    def note(here):
        if here == line and left:
            left.pop()
            if not left:
                raise KeyboardInterrupt

    with contextlib.suppress(KeyboardInterrupt):
        watched(run, note)


@pytest.mark.parametrize("times", [1, 2])
def test_an_assignment_that_fails_is_undone_in_every_layer_of_a_model(monkeypatch, times):
    model = keras.Sequential(
        [keras.Input((3,)), FlaxLayer(nn.Dense(3), name="a"), FlaxLayer(nn.Dense(2), name="b")]
    )
    before = [np.asarray(w) for w in model.weights]
    value, assign = zeros(_models.variables(model)), keras.Variable.assign
    for number in range(4):
        calls = []

        def failing(variable, value, number=number, calls=calls):
            calls.append(variable)
            if number < len(calls) <= number + times:
                raise MemoryError
            return assign(variable, value)

        monkeypatch.setattr(keras.Variable, "assign", failing)
        with pytest.raises(MemoryError):
            _models.set_variables(model, value)
        monkeypatch.undo()
        np.testing.assert_equal([np.asarray(w) for w in model.weights], before)
    with keras.StatelessScope() as scope:
        monkeypatch.setattr(keras.Variable, "assign", failing)
        calls.clear()
        with pytest.raises(MemoryError):
            _models.set_variables(model, value)
        assert not scope.state_mapping


def test_what_is_trained_changes_as_a_whole_or_not_at_all():
    model = keras.Sequential(
        [keras.Input((3,)), FlaxLayer(nn.Dense(3), name="a"), FlaxLayer(nn.Dense(2), name="b")]
    )

    def flags():
        return [w.trainable for w in model.weights], [layer.frozen for layer in model.layers]

    before = flags()
    for change, undo in (
        (lambda: kerasflax.freeze(model), lambda: kerasflax.unfreeze(model)),
        (
            lambda: setattr(model.layers[0], "trainable", False),
            lambda: setattr(model.layers[0], "trainable", True),
        ),
    ):
        lines = lines_of(change)
        after = flags()
        assert before != after
        for line in lines:
            for count in (1, 2, 3):
                undo()
                with either(before, after, flags):
                    broken_off_at_the(count, change, line)
        undo()


class Broken(nn.Module):
    """Raises an error that is pending, in a run after `init`."""

    @nn.compact
    def __call__(self, inputs):
        if not self.is_initializing() and PENDING:
            raise PENDING.pop()
        return nn.Dense(2, kernel_init=seeded, name="dense")(inputs)


PENDING = []


class Holding(keras.Model):
    """Builds its layer in a call of its own, in which Keras makes variables without values at first."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def call(self, inputs):
        return self.layer(inputs)


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, ValueError])
@pytest.mark.parametrize("kind", ["given", "initial"])
def test_a_call_that_fails_after_the_build_leaves_a_built_layer_in_a_model_of_ones_own(kind, error):
    variables = {"params": GIVEN["params"]} if kind == "given" else None
    layer = FlaxLayer(Broken(), variables=variables, seed=5)
    undisturbed = FlaxLayer(Broken(), variables=variables, seed=5)
    undisturbed(X)
    expected = values_of(undisturbed)
    model = Holding(layer)
    PENDING[:] = [error("broken off")]
    with contextlib.suppress(error):
        model(X)
    PENDING.clear()
    outputs = model(X)
    np.testing.assert_equal(values_of(layer), expected)
    np.testing.assert_allclose(
        outputs, X @ expected["params/dense/kernel"] + expected["params/dense/bias"], rtol=1e-5
    )
