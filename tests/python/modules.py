"""Linen modules that several tests use."""

import jax
import jax.numpy as jnp
from flax import linen as nn


class MLP(nn.Module):
    """Has only params, and no mode."""

    @nn.compact
    def __call__(self, inputs):
        x = nn.tanh(nn.Dense(5)(inputs))
        return nn.Dense(2)(x)


class ConvNet(nn.Module):
    """Has batch statistics and dropout."""

    rate: float = 0.5

    @nn.compact
    def __call__(self, inputs, training=False):
        x = nn.Conv(4, (3, 3))(inputs)
        x = nn.BatchNorm(use_running_average=not training, momentum=0.9)(x)
        x = nn.relu(x).mean((1, 2))
        x = nn.Dropout(self.rate)(x, deterministic=not training)
        return nn.Dense(3)(x)


class SetUp(nn.Module):
    """Has submodules from `setup`, and two methods."""

    def setup(self):
        self.encoder = nn.Dense(4)
        self.decoder = nn.Dense(3)

    def encode(self, inputs):
        return self.encoder(inputs)

    def __call__(self, inputs):
        return self.decoder(self.encode(inputs))


class TwoStreams(nn.Module):
    """Draws from two streams in both modes."""

    @nn.compact
    def __call__(self, inputs):
        return tuple(
            jax.random.normal(self.make_rng(name), inputs.shape) for name in ("left", "right")
        )


class Counter(nn.Module):
    """Has state and no params: counts its calls in both modes."""

    @nn.compact
    def __call__(self, inputs):
        count = self.variable("counts", "n", lambda: jnp.zeros((), jnp.int32))
        if not self.is_initializing():
            count.value = count.value + 1
        return inputs + count.value


class Sower(nn.Module):
    """Sows a loss, an intermediate value, and a sum with its own reduction."""

    @nn.compact
    def __call__(self, inputs, training=False):
        x = nn.Dense(2)(inputs)
        self.sow("losses", "l2", 0.5 * jnp.sum(x**2))
        self.sow("intermediates", "x", x)
        self.sow("metrics", "total", jnp.sum(x), init_fn=lambda: jnp.zeros(()), reduce_fn=jnp.add)
        return self.perturb("out", x)
