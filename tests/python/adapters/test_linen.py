import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from modules import MLP, ConvNet, Counter, SetUp, Sower, TwoStreams

from kerasflax import FieldError, FlaxLayer, MethodError, _rng
from kerasflax.adapters._protocol import adapt
from kerasflax.tracing._trace import until_learned

KEY = jax.random.key(1)
STATE = jnp.array([1, 0], jnp.uint32)
X = jnp.linspace(-1, 1, 2 * 3).reshape(2, 3)


def applied(adapter, variables, inputs=X, *, training=False, mask=None, state=STATE):
    return until_learned(
        lambda: adapter.apply(variables, inputs, training=training, mask=mask, seed_state=state)
    )


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_init_gives_the_values_of_plain_flax():
    outputs, variables = adapt(MLP(), None).init(KEY, X)
    expected = MLP().init(KEY, X)
    assert_same(variables, expected)
    assert_same(outputs, MLP().apply(expected, X))


@pytest.mark.parametrize("training", [True, False])
def test_apply_gives_the_outputs_and_the_state_of_plain_flax(training):
    adapter = adapt(ConvNet(rate=0.5), None)
    x = jnp.linspace(-1, 1, 2 * 5 * 5).reshape(2, 5, 5, 1)
    _, variables = adapter.init(KEY, x)
    outputs, state, sown = applied(adapter, variables, x, training=training)
    expected, mutated = ConvNet().apply(
        variables,
        x,
        training=training,
        rngs=_rng.streams(STATE, ["dropout"]),
        mutable=["batch_stats"],
    )
    assert_same((outputs, state), (expected, mutated))
    assert sown == {}
    assert adapter.draws(training) is training


def test_undeclared_streams_are_found_and_differ_from_each_other():
    adapter = adapt(TwoStreams(), None)
    adapter.init(KEY, X)
    left, right = applied(adapter, {})[0]
    assert_same(left, jax.random.normal(_stream_key("left"), X.shape))
    assert not np.allclose(left, right)
    assert adapter.draws(False)


def _stream_key(name):
    class Draw(nn.Module):
        def __call__(self, inputs):
            return jax.random.key_data(self.make_rng(name))

    data = Draw().apply({}, X, rngs=_rng.streams(STATE, [name]))
    return jax.random.wrap_key_data(data, impl="threefry2x32")


def test_a_stream_that_is_used_only_in_training_is_found_in_training():
    class Late(nn.Module):
        def __call__(self, x, training):
            return jax.random.uniform(self.make_rng("noise")) if training else x

    adapter = adapt(Late(), None)
    adapter.init(KEY, X)
    applied(adapter, {})
    assert not adapter.draws(False)
    applied(adapter, {}, training=True)
    assert adapter.draws(True)


def test_a_module_that_checks_for_a_stream_finds_it_only_in_training():
    class Asks(nn.Module):
        def __call__(self, x):
            return self.has_rng("noise")

    adapter = adapt(Asks(), None)
    assert applied(adapter, {}, training=True)[0] is True
    assert applied(adapter, {}, training=False)[0] is False


def test_a_stream_that_cannot_be_supplied_raises_flaxs_error():
    class Split(nn.Module):
        @nn.compact
        def __call__(self, x):
            dropout = nn.vmap(nn.Dropout, split_rngs={"params": True}, variable_axes={})
            return dropout(0.5, deterministic=False)(x)

    adapter = adapt(Split(), None)
    with pytest.raises(Exception, match='needs PRNG for "dropout"'):
        applied(adapter, {})


def test_sown_values_of_any_structure_are_not_state():
    adapter = adapt(Sower(), None)
    _, variables = adapter.init(KEY, X)
    assert set(variables) == {"params"}
    outputs, state, sown = applied(adapter, Sower().init(KEY, X))
    assert state == {}
    assert set(sown) >= {"losses", "intermediates", "metrics"}
    assert_same(sown["losses"]["l2"], (0.5 * jnp.sum(outputs**2),))
    assert_same(sown["metrics"]["total"], jnp.sum(outputs))


@pytest.mark.parametrize("collection", ["intermediates", "metrics"])
@pytest.mark.parametrize("sows_first", [True, False])
def test_the_name_of_a_submodule_cannot_be_sown_in_a_build_either(collection, sows_first):
    class SowsName(nn.Module):
        @nn.compact
        def __call__(self, x):
            if sows_first:
                self.sow(collection, "head", x)
            y = nn.Dense(2, name="head")(x)
            self.sow(collection, "head", y)
            return y

    layer = FlaxLayer(SowsName())
    with pytest.raises(Exception, match=r'(scope name:|submodule) "head"'):
        layer.build(X.shape)


def test_one_name_is_sown_by_several_calls_modules_and_collections():
    class Part(nn.Module):
        @nn.compact
        def __call__(self, x):
            self.sow("intermediates", "x", x)
            self.sow("intermediates", "x", 2 * x)
            self.sow("metrics", "x", 3 * x)
            self.param("x", nn.initializers.ones, (1,))
            return x

    class Whole(nn.Module):
        @nn.compact
        def __call__(self, x):
            part = nn.remat(Part)(name="part")
            return part(part(x))

    adapter = adapt(Whole(), None)
    adapter.init(KEY, X)
    _, state, sown = applied(adapter, {"params": {"part": {"x": jnp.ones(1)}}})
    assert state == {}
    assert_same(sown["intermediates"]["part"]["x"], (X, 2 * X) * 2)
    assert_same(sown["metrics"]["part"]["x"], (3 * X,) * 2)


def test_values_that_only_training_sows_are_removed_from_given_variables():
    class SowsInTraining(nn.Module):
        def __call__(self, x, training):
            if training:
                self.sow("losses", "l", jnp.sum(x))
            return x

    adapter = adapt(SowsInTraining(), None)
    adapter.init(KEY, X)
    _, state, sown = applied(adapter, {"losses": {"l": (jnp.zeros(()),)}}, training=True)
    assert state == {}
    assert_same(sown, {"losses": {"l": (jnp.sum(X),)}})


def test_a_trace_restores_the_methods_of_flax():
    functions = [nn.Module.sow, nn.Module.perturb, nn.Module.has_rng, nn.Module.make_rng]
    adapter = adapt(Sower(), None)
    adapter.init(KEY, X)
    assert [nn.Module.sow, nn.Module.perturb, nn.Module.has_rng, nn.Module.make_rng] == functions


def test_state_is_written_in_either_mode():
    adapter = adapt(Counter(), None)
    _, variables = adapter.init(KEY, X)
    _, state, _ = applied(adapter, variables)
    assert state["counts"]["n"] == 1


def wrapper(module, inputs):
    return module.encode(inputs)


@pytest.mark.parametrize(
    "method",
    [
        "encode",
        SetUp().encode,
        SetUp.encode,
        functools.partial(SetUp().encode),
        wrapper,
        lambda m, x: m.encode(x),
    ],
)
def test_init_and_apply_call_the_method(method):
    adapter = adapt(SetUp(), method)
    _, variables = adapter.init(KEY, X)
    assert set(variables["params"]) == {"encoder"}
    assert_same(applied(adapter, variables)[0], SetUp().apply(variables, X, method="encode"))


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (
            "decode",
            "SetUp has no method `decode`.\nUse a method that it has: `__call__`, `encode`.",
        ),
        ("setup", "SetUp has no method `setup`"),
        (3, "`method` must be a method's name or a function of (module, inputs), got int 3"),
        (
            MLP().__call__,
            "`method` is bound to another module, of class MLP; `module` is of class SetUp",
        ),
        (MLP(), "`method` must be a method's name or a function of (module, inputs), got MLP"),
        (MLP, "`method` must be a method's name or a function"),
        (lambda: 0, "`<lambda>` takes no arguments"),
    ],
)
def test_a_method_that_cannot_be_called_is_an_error(method, message):
    with pytest.raises(MethodError) as error:
        adapt(SetUp(), method)
    assert message in str(error.value)


def test_dropout_that_is_on_at_inference_gives_a_warning():
    class NotTold(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dropout(0.5, deterministic=False)(x)

    adapter = adapt(NotTold(), None)
    with pytest.warns(UserWarning, match="NotTold draws from the stream 'dropout' at inference"):
        applied(adapter, {})
    applied(adapter, {}, training=True)


def test_an_error_of_kerasflax_names_the_path_in_the_same_sentence():
    with pytest.raises(FieldError) as error:
        FlaxLayer(nn.Dense(2.5))(X)
    assert error.value.what == (
        "`Dense.features` must be a whole number, got 2.5. (raised in Dense)"
    )


class Merging(nn.Module):
    """A module that refuses the mode if both the field and the call give it."""

    deterministic: bool | None = None

    @nn.compact
    def __call__(self, x, deterministic=None):
        deterministic = nn.merge_param("deterministic", self.deterministic, deterministic)
        return nn.Dropout(0.5)(x, deterministic=deterministic)


def test_a_method_that_passes_the_mode_on_is_the_only_one_that_sets_it():
    def method(module, inputs, training):
        return module(inputs, deterministic=not training)

    x = np.ones((4, 100), np.float32)
    layer = FlaxLayer(Merging(), method)
    np.testing.assert_array_equal(layer(x), x)
    dropped = np.asarray(layer(x, training=True))
    assert set(np.unique(dropped)) == {0, 2}
    plain = FlaxLayer(Merging(), lambda module, inputs: module(inputs))
    np.testing.assert_array_equal(plain(x), x)
    assert set(np.unique(plain(x, training=True))) == {0, 2}
