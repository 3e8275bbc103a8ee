"""Builds and changes of a layer, interrupted at every line."""

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
from support import key_data

import kerasflax
from kerasflax import ArgumentError, FlaxLayer, LazyModule, _models

# The cases share their modules, so that several layers copy the weights of one NNX module.
pytestmark = pytest.mark.filterwarnings("ignore:The layers .* copy the weights")

X = np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)
SYMBOL = keras.Input((3,))
KERAS = {module.__file__ for module in (keras_layer, name_scope, tracking)}
OURS = os.path.dirname(kerasflax.__file__)


def is_watched(file):
    return file in KERAS or file.startswith(OURS)


def watched(run, note):
    """Call `run()`, and `note((file, line))` before each watched line.

    The watched lines are those of kerasflax and those that build a layer in Keras.
    """

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
    """Return the watched lines that `run()` executes, in the order of their first execution."""
    lines = {}
    watched(run, lambda line: lines.setdefault(line))
    return list(lines)


def raise_at(run, line, error):
    """Call `run()` and raise `error` at a line; return whether `run()` let the error through."""
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
    """Fill an array with a value of the key: an initializer that compiles fast."""
    return jnp.full(shape, jax.random.key_data(key)[0], dtype)


class Linen(nn.Module):
    """A module with params, a count as state, and a sown value."""

    @nn.compact
    def __call__(self, inputs, training=False):
        x = nn.Dense(2, kernel_init=seeded, name="dense")(inputs)
        self.sow("intermediates", "x", x)
        count = self.variable("counts", "n", lambda: jnp.zeros((), jnp.int32))
        return x + count.value


class Nnx(nnx.Module):
    """A module with params, state and random numbers."""

    def __init__(self, *, rngs):
        self.linear = nnx.Linear(3, 2, kernel_init=seeded, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.note = "a note"

    def __call__(self, inputs):
        self.sow(nnx.Intermediate, "x", inputs)
        return self.dropout(self.linear(inputs))


class Part(nnx.Module):
    """An NNX module for use inside Linen, through `nnx.bridge.ToLinen`."""

    def __init__(self, *, rngs):
        self.linear = nnx.Linear(3, 2, kernel_init=seeded, rngs=rngs)

    def __call__(self, inputs):
        return self.linear(inputs)


USER_MODULE = Nnx(rngs=nnx.Rngs(7))
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
        USER_MODULE, constraints={"**/bias": keras.constraints.NonNeg()}, **L2
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


def state_of(layer):
    """Return all that a build can change: attributes, Keras's tracked objects, thread state."""
    tracker = layer._tracker
    held = [
        {name: id(value) for name, value in vars(each).items()}
        for each in (
            *(layer, layer._adapter, layer._held),
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
    """Return the attributes of an NNX module, and its arrays with the counts of random numbers."""
    graphdef, state = nnx.split(module)
    return graphdef, [np.asarray(leaf) for leaf in jax.tree.leaves(jax.tree.map(key_data, state))]


@functools.cache
def lines_in(case, way):
    layer = CASES[case]()
    return lines_of(lambda: WAYS[way](layer))


def new_lines(case, way):
    """Return the lines of a build that no earlier build of the tables executes."""
    builds = [(each_case, each_way) for each_case in CASES for each_way in WAYS]
    known = {line for each in builds[: builds.index((case, way))] for line in lines_in(*each)}
    return [line for line in lines_in(case, way) if line not in known]


@pytest.mark.parametrize("case", CASES)
def test_a_build_interrupted_at_any_line_leaves_the_layer_unchanged(case):
    make, users = CASES[case], content_of(USER_MODULE)
    counts = {way: len(new_lines(case, way)) for way in WAYS}
    assert sum(counts.values()) > (500 if case == next(iter(CASES)) else 0)
    for way, build in WAYS.items():
        undisturbed, layer = make(), make()
        build(undisturbed)
        expected, before = values_of(undisturbed), state_of(layer)
        for number, line in enumerate(new_lines(case, way)):
            error = (KeyboardInterrupt, MemoryError)[number % 2]("interrupted")
            where = f"{way}, {os.path.basename(line[0])}:{line[1]}"
            # A built layer executes only the lines after the build.
            hit = layer.built and raise_at(functools.partial(build, layer), line, error)
            if layer.built and not hit:
                layer = make()
                before = state_of(layer)
            if not hit:
                hit = raise_at(functools.partial(build, layer), line, error)
            if layer.built:
                # The line was after the build, or the build handles this error.
                assert_built_as(layer, undisturbed, where)
            else:
                assert hit, where
                assert state_of(layer) == before, where
                assert layer.weights == [], where
        if not layer.built:
            build(layer)
        assert_built_as(layer, undisturbed, way)
        np.testing.assert_equal(values_of(layer), expected)
    assert content_of(USER_MODULE)[0] == users[0]
    np.testing.assert_equal(content_of(USER_MODULE)[1], users[1])


def assert_built_as(layer, other, where):
    np.testing.assert_equal(values_of(layer), values_of(other), where)
    for attribute in ("trainable", "regularizer", "constraint", "shape"):
        of_each = (
            [repr(getattr(w, attribute))[:30] for w in each.weights] for each in (layer, other)
        )
        assert next(of_each) == next(of_each), where
    assert layer._tracker.locked, where


class Failing(keras.regularizers.Regularizer, keras.constraints.Constraint):
    """A regularizer, constraint and initializer that raises `error` until it is set to None."""

    def __init__(self, error):
        self.error = error

    def __call__(self, *arguments):
        if self.error is not None:
            raise self.error
        return jnp.full(*arguments[1:2], 2.0) if len(arguments) > 1 else jnp.sum(arguments[0].value)


@pytest.mark.parametrize("argument", ["regularizers", "constraints"])
def test_a_pattern_that_matches_nothing_can_be_corrected(argument):
    value = keras.regularizers.L2(0.1) if argument == "regularizers" else keras.constraints.NonNeg()
    layer = FlaxLayer(USER_MODULE, **{argument: {"**/bias": value, "**/nothing": value}})
    before = state_of(layer)
    for build in WAYS.values():
        with pytest.raises(ArgumentError, match="nothing"):
            build(layer)
        assert state_of(layer) == before
    setattr(layer, argument, {"**/bias": value})
    np.testing.assert_allclose(
        layer(X), X @ USER_MODULE.linear.kernel[...] + USER_MODULE.linear.bias[...], rtol=1e-5
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
def test_a_failing_setup_fails_the_build_and_leaves_the_layer_unchanged(error, way):
    errors = [error]

    class Module(nn.Module):
        def setup(self):
            self.dense = nn.Dense(2, kernel_init=seeded)
            if errors:
                raise errors[0]

        def __call__(self, inputs):
            return self.dense(inputs)

    layer = FlaxLayer(Module(), seed=1)
    before = state_of(layer)
    with pytest.raises(type(error)):
        WAYS[way](layer)
    assert state_of(layer) == before
    errors.clear()
    layer(X)
    assert len(layer.weights) == 2


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), MemoryError(), ValueError("no values")], ids=repr
)
@pytest.mark.parametrize("api", ["linen", "nnx"])
def test_a_failing_initializer_fails_the_build_and_leaves_the_layer_unchanged(api, error):
    failing = Failing(error)
    module = (
        nn.Dense(2, kernel_init=failing)
        if api == "linen"
        else LazyModule(nnx.Linear, 3, 2, kernel_init=failing)
    )
    try:
        layer = FlaxLayer(module, seed=1)
    except type(error):
        # The constructor of the layer traces a lazy module.
        failing.error = None
        layer = FlaxLayer(module, seed=1)
        failing.error = error
    before = state_of(layer)
    with pytest.raises(type(error)):
        layer(X)
    assert state_of(layer) == before
    failing.error = None
    np.testing.assert_allclose(layer(X), 2 * X.sum(1, keepdims=True) * np.ones((1, 2)), rtol=1e-5)
    assert len(layer.weights) == 2


def test_a_second_build_is_an_error_and_leaves_the_weights_unchanged():
    layer = CASES["initial values"]()
    layer(X)
    before, values = state_of(layer), values_of(layer)
    with pytest.raises(ValueError, match="cannot add new elements of state"):
        layer.build((2, 3))
    assert state_of(layer) == before
    np.testing.assert_equal(values_of(layer), values)


def test_a_fit_whose_deferred_build_was_interrupted_can_be_repeated():
    y = np.ones((2, 2), np.float32)

    def model():
        keras.utils.clear_session(free_memory=False)
        model = keras.Sequential([FlaxLayer(USER_MODULE, name="flax")])
        model.compile(keras.optimizers.SGD(0.1), "mse")
        return model

    undisturbed = model()
    reached = set(lines_of(lambda: undisturbed.fit(X, y, shuffle=False, verbose=0)))
    lines = [line for line in lines_in("an NNX module", "build") if line in reached]
    chosen = [line for line in lines if line[0].endswith(("_layer.py", "_variables.py"))][::25]
    assert len(chosen) > 5
    other = model()
    for line in chosen:
        assert raise_at(
            lambda: other.fit(X, y, shuffle=False, verbose=0), line, KeyboardInterrupt()
        )
        assert other.layers[0].weights == []
    other.fit(X, y, shuffle=False, verbose=0)
    np.testing.assert_equal(values_of(other.layers[0]), values_of(undisturbed.layers[0]))


# Values and flags ---------------------------------------------------------------------------------


@contextlib.contextmanager
def either(before, after, current):
    """Assert that after the block, `current()` is all `before` or all `after`."""
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
def test_an_interrupted_assignment_sets_all_values_or_none(change):
    zero = built()
    zero.flax_variables = zeros(GIVEN)
    zero.save_own_variables(STORED)
    layer, set_values = built(), CHANGES[change]
    before, after = values_of(layer), values_of(zero)
    lines = lines_of(lambda: set_values(layer))
    assert len(lines) > 20
    np.testing.assert_equal(values_of(layer), after)
    # A line may run once for each variable: interrupt it between two variables too.
    moments = [(line, count) for line in lines for count in range(1, 4)]
    for line, count in moments:
        layer.flax_variables = GIVEN
        with either(before, after, lambda: values_of(layer)):
            interrupt_at(count, lambda: set_values(layer), line)


def interrupt_at(count, run, line):
    """Interrupt `run()` at the n-th execution of a line."""
    left = [None] * count

    def note(here):
        if here == line and left:
            left.pop()
            if not left:
                raise KeyboardInterrupt

    with contextlib.suppress(KeyboardInterrupt):
        watched(run, note)


@pytest.mark.parametrize("times", [1, 2])
def test_a_failed_assignment_is_undone_in_every_layer_of_a_model(monkeypatch, times):
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


def test_interrupted_freezing_changes_all_weights_or_none():
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
                    interrupt_at(count, change, line)
        undo()


class Broken(nn.Module):
    """Raises the pending error, if there is one, in the first run after `init`."""

    @nn.compact
    def __call__(self, inputs):
        if not self.is_initializing() and PENDING:
            raise PENDING.pop()
        return nn.Dense(2, kernel_init=seeded, name="dense")(inputs)


PENDING = []


class Model(keras.Model):
    """Builds its layer inside its own call, where Keras first creates variables without values."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def call(self, inputs):
        return self.layer(inputs)


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, ValueError])
@pytest.mark.parametrize("kind", ["given", "initial"])
def test_a_call_that_fails_after_the_build_leaves_a_built_layer_in_a_subclassed_model(kind, error):
    variables = {"params": GIVEN["params"]} if kind == "given" else None
    layer = FlaxLayer(Broken(), variables=variables, seed=5)
    undisturbed = FlaxLayer(Broken(), variables=variables, seed=5)
    undisturbed(X)
    expected = values_of(undisturbed)
    model = Model(layer)
    PENDING[:] = [error("interrupted")]
    with contextlib.suppress(error):
        model(X)
    PENDING.clear()
    outputs = model(X)
    np.testing.assert_equal(values_of(layer), expected)
    np.testing.assert_allclose(
        outputs, X @ expected["params/dense/kernel"] + expected["params/dense/bias"], rtol=1e-5
    )
