"""Models on eight simulated devices, which tests in several rooms share."""

import keras
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from kerasflax import FlaxLayer, LazyModule

MESH = {"batch": 2, "model": 4}
RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(16, 8)).astype(np.float32)
Y = RANDOM.normal(size=(16, 4)).astype(np.float32)

on_eight = pytest.mark.skipif("jax.device_count() < 8", reason="needs eight devices")


class Linen(nn.Module):
    """Has metadata with axes of a mesh, logical axes, state, and dropout."""

    @nn.compact
    def __call__(self, x, training=False):
        named = nn.with_partitioning(nn.initializers.lecun_normal(), (None, "model"))
        x = nn.Dense(8, kernel_init=named, name="named")(x)
        x = nn.BatchNorm(momentum=0.5)(x, use_running_average=not training)
        logical = nn.with_logical_partitioning(nn.initializers.lecun_normal(), ("embed", "mlp"))
        x = nn.Dense(8, kernel_init=logical, name="logical")(x)
        x = nn.Dropout(0.3, deterministic=not training)(x)
        elsewhere = nn.with_partitioning(nn.initializers.lecun_normal(), ("expert", None))
        x = nn.Dense(8, kernel_init=elsewhere, name="elsewhere")(x)
        return nn.Dense(4, name="last")(x)


class Nnx(nnx.Module):
    """The same in NNX."""

    def __init__(self, *, rngs):
        init = nnx.initializers.lecun_normal()
        self.named = nnx.Linear(
            8, 8, kernel_init=nnx.with_partitioning(init, (None, "model")), rngs=rngs
        )
        self.norm = nnx.BatchNorm(8, momentum=0.5, rngs=rngs)
        self.logical = nnx.Linear(
            8, 8, kernel_init=nnx.with_partitioning(init, ("embed", "mlp")), rngs=rngs
        )
        self.dropout = nnx.Dropout(0.3, rngs=rngs)
        self.elsewhere = nnx.Linear(
            8, 8, kernel_init=nnx.with_partitioning(init, ("expert", None)), rngs=rngs
        )
        self.last = nnx.Linear(8, 4, rngs=rngs)

    def __call__(self, x):
        x = self.norm(self.named(x))
        return self.last(self.elsewhere(self.dropout(self.logical(x))))


MODULES = {"linen": Linen, "nnx": lambda: LazyModule(Nnx)}
both = pytest.mark.parametrize("kind", MODULES)


def model_of(kind, **options):
    layer = FlaxLayer(MODULES[kind](), seed=1, name="net", **options)
    model = keras.Sequential([keras.Input((8,)), layer])
    # With Adam, the noise in the gradient of a bias before a normalization becomes a whole step.
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), "mse")
    return model, layer


def axes_of(layer):
    """The spec of each variable, as the devices hold it, without unsplit dimensions at the end."""
    specs = {}
    for path, variable in layer.variables_by_path.items():
        spec = [*variable.value.sharding.spec]
        while spec and spec[-1] is None:
            spec.pop()
        specs[path] = tuple(spec)
    return {path: spec for path, spec in specs.items() if spec}
