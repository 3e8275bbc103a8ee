"""Parts that normalize by the batch at inference, because their mode is fixed."""

import re
import warnings

import jax
import keras
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from support import TARGETS, VECTORS, assert_close, functional_model

from kerasflax import FlaxLayer, LazyModule

FIXED = "normalizes by the batch at inference"


class Argument(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.BatchNorm(name="norm")(nn.Dense(3)(x), use_running_average=False)


class Field(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.BatchNorm(use_running_average=False, name="norm")(nn.Dense(3)(x))


class Scanned(nn.Module):
    """A transformation returns new statistics, whether they change or not."""

    fixed: bool | None = None

    @nn.compact
    def __call__(self, x, training):
        class Step(nn.Module):
            @nn.compact
            def __call__(self, x, _):
                norm = nn.BatchNorm(use_running_average=outer, name="norm")
                return norm(x), None

        outer = not training if self.fixed is None else self.fixed
        axes = {"params": 0, "batch_stats": 0}
        return nn.scan(Step, axes, split_rngs={"params": True}, length=2)(name="steps")(x, None)[0]


class Norm(nn.Module):
    """A user's own part."""

    use_running_average: bool | None = None

    @nn.compact
    def __call__(self, x, use_running_average=None):
        given = (self.use_running_average, use_running_average)
        average = next(each for each in given if each is not None)
        mean = self.variable("batch_stats", "mean", lambda: x.mean(0) * 0)
        if not average and not self.is_initializing():
            mean.value = x.mean(0)
        return x - (mean.value if average else x.mean(0))


class Spectral(nn.Module):
    fixed: bool | None = None

    @nn.compact
    def __call__(self, x, training):
        update = training if self.fixed is None else self.fixed
        return nn.SpectralNorm(nn.Dense(3), name="norm")(x, update_stats=update)


class NnxSpectral(nnx.Module):
    def __init__(self, rngs, **keywords):
        self.keywords = keywords
        self.norm = nnx.SpectralNorm(nnx.Linear(3, 3, rngs=rngs), rngs=rngs)

    def __call__(self, x):
        return self.norm(x, **self.keywords)


class NnxArgument(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.BatchNorm(3, rngs=rngs)

    def __call__(self, x):
        return self.norm(x, use_running_average=False)


class NnxTrains(NnxArgument):
    def __call__(self, x):
        self.norm.train()
        return self.norm(x)


class NnxNorm(nnx.Module):
    def __init__(self):
        self.mean, self.use_running_average = nnx.BatchStat(np.zeros(3, np.float32)), False

    def __call__(self, x, use_running_average=None):
        average = self.use_running_average if use_running_average is None else use_running_average
        if not average:
            self.mean[...] = x.mean(0)
        return x - self.mean[...]


class NnxOuter(nnx.Module):
    def __init__(self):
        self.part = NnxNorm()

    def __call__(self, x):
        return self.part(x, use_running_average=False)


class NnxOfLinen(nnx.Module):
    def __init__(self, rngs):
        self.part = nnx.bridge.ToNNX(Field(), rngs=rngs).lazy_init(VECTORS)

    def __call__(self, x):
        return self.part(x)


@pytest.mark.parametrize(
    ("make", "place"),
    [
        (lambda: nn.BatchNorm(use_running_average=False), "BatchNorm. Leave it None"),
        (lambda: Norm(use_running_average=False), "Norm. Leave it None"),
        (Argument, "Argument/norm. Give the module's method an argument `training`"),
        (Field, "Field/norm. Give"),
        (lambda: nn.remat(Field)(), "CheckpointField/norm. Give"),
        (lambda: Scanned(fixed=False), "Scanned/steps/norm. Give"),
        (lambda: nn.Sequential([nn.Dense(3), Field()]), "Sequential/layers_1/norm. Give"),
        (lambda: NnxArgument(nnx.Rngs(0)), "NnxArgument/norm. Do not pass it"),
        (lambda: LazyModule(NnxArgument), "NnxArgument/norm. Do not pass it"),
        (lambda: NnxTrains(nnx.Rngs(0)), "NnxTrains/norm"),
        (NnxOuter, "NnxOuter/part"),
        (lambda: nnx.bridge.ToLinen(NnxArgument), "ToLinen/BatchNorm. Give"),
        (lambda: NnxOfLinen(nnx.Rngs(0)), "NnxOfLinen/BatchNorm"),
    ],
)
def test_a_part_that_always_normalizes_by_the_batch_is_named_once_when_the_layer_is_built(
    make, place
):
    layer = FlaxLayer(make(), seed=1)
    with pytest.warns(UserWarning, match=f"{FIXED}.* is off in {re.escape(place)}"):
        model = functional_model(layer, (3,))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.compile("sgd", "mse")
        model.fit(VECTORS, TARGETS, verbose=0)
        model.predict(VECTORS, verbose=0)
        layer(VECTORS[:5])


def test_a_part_that_always_normalizes_by_the_batch_gives_the_numbers_of_plain_flax():
    variables = Field().init(jax.random.key(1), VECTORS)
    layer = FlaxLayer(Field(), variables=variables)
    with pytest.warns(UserWarning, match=FIXED):
        outputs = layer(VECTORS)
    expected, state = Field().apply(variables, VECTORS, mutable=["batch_stats"])
    assert_close(outputs, expected)
    assert_close(layer.flax_variables["batch_stats"], state["batch_stats"])


@pytest.mark.parametrize(
    "make",
    [lambda: Spectral(fixed=True), lambda: NnxSpectral(nnx.Rngs(0), update_stats=True)],
)
def test_a_spectral_norm_that_always_changes_its_statistics_is_named(make):
    layer = FlaxLayer(make(), seed=1)
    message = r"Spectral changes its statistics at inference: `update_stats` is on in \w+/norm\."
    with pytest.warns(UserWarning, match=message):
        layer(VECTORS)
    before = jax.tree.leaves(layer.flax_variables["batch_stats"])
    layer(VECTORS)
    after = jax.tree.leaves(layer.flax_variables["batch_stats"])
    assert any(np.any(old != new) for old, new in zip(before, after, strict=True))


@pytest.mark.parametrize(
    "make",
    [
        Spectral,
        lambda: NnxSpectral(nnx.Rngs(0)),
        nn.BatchNorm,
        Norm,
        Scanned,
        lambda: nn.BatchNorm(use_running_average=True),
        lambda: nnx.BatchNorm(3, use_running_average=False, rngs=nnx.Rngs(0)),
        NnxNorm,
    ],
)
def test_a_part_that_follows_the_mode_gives_no_warning_and_keeps_its_statistics(make):
    layer = FlaxLayer(make(), seed=1)
    model = keras.Sequential([keras.Input((3,)), layer])
    model.compile("sgd", "mse")
    model.fit(VECTORS + 1, TARGETS, verbose=0)
    before = layer.flax_variables["batch_stats"]
    assert_close(model(VECTORS[:4]), model(VECTORS)[:4])
    assert_close(layer.flax_variables["batch_stats"], before)
