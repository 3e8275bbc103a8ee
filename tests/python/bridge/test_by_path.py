"""What a layer says after Keras has lost its values."""

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from support import TARGETS, VECTORS

import kerasflax
from kerasflax import FlaxLayer

TARGETS = TARGETS[:, :2]


def fail_on_three(x):
    """Fail in the trace of a batch of 3."""
    if x.shape[0] == 3:
        raise ValueError("a batch of 3")
    return x


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(fail_on_three(x))


class NnxNet(nnx.Module):
    def __init__(self, *, rngs):
        self.linear = nnx.Linear(3, 2, rngs=rngs)

    def __call__(self, x):
        return self.linear(fail_on_three(x))


def functional(layer):
    inputs = keras.Input((3,))
    return keras.Model(inputs, layer(inputs))


def deferred(layer):
    return keras.Sequential([layer])


FAILING = {
    "predict": lambda model: model.predict(VECTORS[:3], verbose=0),
    "evaluate": lambda model: model.evaluate(VECTORS[:3], TARGETS[:3], verbose=0),
    "fit": lambda model: model.fit(VECTORS[:3], TARGETS[:3], verbose=0),
}
NEXT = {
    "predict": lambda model: model.predict(VECTORS, verbose=0),
    "evaluate": lambda model: model.evaluate(VECTORS, TARGETS, verbose=0),
    "fit": lambda model: model.fit(VECTORS, TARGETS, verbose=0),
    "train_on_batch": lambda model: model.train_on_batch(VECTORS, TARGETS),
    "predict_on_batch": lambda model: model.predict_on_batch(VECTORS),
    "model": lambda model: model(VECTORS),
    "layer": lambda model: model.layers[-1](VECTORS),
    "flax_variables": lambda model: model.layers[-1].flax_variables,
    "to_flax": lambda model: model.layers[-1].to_flax(),
    "get_weights": lambda model: model.get_weights(),
}
LAYERS = {
    "linen": lambda: FlaxLayer(LinenNet()),
    "nnx": lambda: FlaxLayer(NnxNet(rngs=nnx.Rngs(0))),
}
MODELS = {"functional": functional, "deferred": deferred}


@pytest.mark.parametrize(
    ("kind", "build"), [("linen", "functional"), ("linen", "deferred"), ("nnx", "deferred")]
)
@pytest.mark.parametrize("failing", FAILING)
def test_after_a_failed_step_every_use_of_the_weights_says_that_keras_has_lost_them(
    kind, build, failing, tmp_path
):
    model = MODELS[build](LAYERS[kind]())
    model.compile("adam", "mse")
    for use in (NEXT["fit"], NEXT["evaluate"], NEXT["predict"]):
        use(model)
    expected = model.predict(VECTORS, verbose=0)
    model.save_weights(tmp_path / "m.weights.h5")
    with pytest.raises(ValueError, match="a batch of 3"):
        FAILING[failing](model)
    uses = {
        **NEXT,
        "save": lambda model: model.save_weights(tmp_path / "lost.weights.h5"),
        "write": lambda model: kerasflax.write_variables(model, tmp_path / "lost.msgpack"),
    }
    for use in uses.values():
        with pytest.raises(Exception, match="have no values now") as error:
            use(model)
        lost = error.value.__cause__ if type(error.value) is RuntimeError else error.value
        assert lost is None or "`model.load_weights()`" in lost.advice
    model.load_weights(tmp_path / "m.weights.h5")
    model.compile("adam", "mse")
    np.testing.assert_allclose(model.predict(VECTORS, verbose=0), expected, rtol=1e-6)
    for use in NEXT.values():
        use(model)


@pytest.mark.skipif(
    "jax.default_backend() != 'cpu'", reason="a GPU reports an error of a callback at a later time"
)
def test_a_step_that_fails_while_it_runs_deletes_the_weights_and_the_error_says_so(tmp_path):
    def check(x):
        if x.shape[0] == 3 and np.max(x) > 5:
            raise ValueError("more than 5")
        return x

    class Checked(nn.Module):
        @nn.compact
        def __call__(self, x):
            spec = jax.ShapeDtypeStruct(x.shape, x.dtype)
            x = jax.pure_callback(check, spec, jax.lax.stop_gradient(x))
            return nn.Dense(2)(x)

    layer = FlaxLayer(Checked())
    model = functional(layer)
    model.compile("sgd", "mse")
    model.train_on_batch(VECTORS[:3], TARGETS[:3])
    model.save_weights(tmp_path / "m.weights.h5")
    with pytest.raises(Exception, match="more than 5"):
        model.train_on_batch(10 + VECTORS[:3], TARGETS[:3])
    for use in (NEXT["layer"], NEXT["flax_variables"], NEXT["model"]):
        with pytest.raises(kerasflax.StateError, match="have no values now"):
            use(model)
    model.load_weights(tmp_path / "m.weights.h5")
    assert jnp.isfinite(layer(VECTORS)).all()


def test_an_error_of_the_module_is_not_taken_for_lost_weights():
    layer = FlaxLayer(LinenNet())
    layer(VECTORS)
    with pytest.raises(ValueError, match="a batch of 3") as error:
        layer(VECTORS[:3])
    assert type(error.value) is ValueError
