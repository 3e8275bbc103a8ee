"""The workloads: a module, its input, and the number of steps in an epoch.

An epoch takes some tenths of a second or more.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import modules
import numpy as np
import optax
from flax import linen as nn


@dataclasses.dataclass(frozen=True)
class Workload:
    """One module with its data.

    Attributes:
        make_module: Creates the module.
        shape: The input's shape without the batch.
        batch: The rows of a training step and of an eager call.
        steps: The steps of an epoch.
        tokens: The size of the vocabulary if the input is integers; 0 if it is floats.
        labels: The shape of the labels of one row.
        grows: Whether the workload belongs to a growth series, which is only built and trained.
    """

    make_module: Callable[[], nn.Module]
    shape: tuple[int, ...]
    batch: int
    steps: int
    tokens: int = 0
    labels: tuple[int, ...] = ()
    grows: bool = False

    def inputs(self, rows: int) -> np.ndarray:
        generator = np.random.default_rng(0)
        shape = (rows, *self.shape)
        if self.tokens:
            return generator.integers(0, self.tokens, shape, dtype=np.int32)
        return generator.normal(size=shape).astype(np.float32)

    def targets(self, rows: int) -> np.ndarray:
        return np.random.default_rng(1).integers(0, 10, (rows, *self.labels), dtype=np.int32)


# The module of `r-cnn` comes from R: see r_cnn.R.
WORKLOADS = {
    "mlp": Workload(modules.MLP, (784,), batch=32, steps=200),
    "batchnorms": Workload(modules.BatchNorms, (64,), batch=32, steps=100),
    "cnn": Workload(modules.CNN, (28, 28, 1), batch=32, steps=20),
    "vit": Workload(modules.ViT, (224, 224, 3), batch=2, steps=3),
    "resnet50": Workload(modules.ResNet, (96, 96, 3), batch=2, steps=3),
    "lm": Workload(modules.DecoderLM, (32,), batch=2, steps=2, tokens=32_000, labels=(32,)),
    "r-cnn": Workload(modules.CNN, (28, 28, 1), batch=32, steps=20),
    "weights-2000": Workload(lambda: modules.ManyWeights(2000), (16,), batch=8, steps=20),
}

# The growth series: in each family one size varies, and everything else is the same.
_FAMILIES: dict[str, Callable[[int], Workload]] = {
    "weights": lambda n: Workload(
        lambda: modules.ManyWeights(n), (16,), batch=8, steps=20, grows=True
    ),
    "depth": lambda n: Workload(lambda: modules.Deep(n), (16,), batch=8, steps=20, grows=True),
    "size": lambda n: Workload(lambda: modules.OneLarge(n), (1000,), batch=8, steps=3, grows=True),
}


def workload(name: str) -> Workload:
    """Return the workload with a name: one of `WORKLOADS`, or `<family>-<n>`."""
    if name in WORKLOADS:
        return WORKLOADS[name]
    family, _, n = name.partition("-")
    return _FAMILIES[family](int(n))


def loss(labels: jax.Array, logits: jax.Array) -> jax.Array:
    """Return the loss of each prediction; all contenders use it.

    Keras passes the labels as floats of another rank.
    """
    labels = labels.astype("int32").reshape(logits.shape[:-1])
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)
