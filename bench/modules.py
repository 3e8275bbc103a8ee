"""The measured modules, written as Flax users write them.

All take `inputs, training=False`.
"""

from collections.abc import Sequence
from functools import partial

import jax.numpy as jnp
from flax import linen as nn
from jax import Array


class MLP(nn.Module):
    @nn.compact
    def __call__(self, inputs: Array, training: bool = False) -> Array:
        x = inputs
        for features in (256, 256, 128):
            x = nn.relu(nn.Dense(features)(x))
        return nn.Dense(10)(x)


class BatchNorms(nn.Module):
    """Fifty layers with running statistics: as much state as there are weights."""

    layers: int = 50

    @nn.compact
    def __call__(self, inputs: Array, training: bool = False) -> Array:
        x = inputs
        for _ in range(self.layers):
            x = nn.Dense(64, use_bias=False)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not training)(x))
        return nn.Dense(10)(x)


class CNN(nn.Module):
    @nn.compact
    def __call__(self, inputs: Array, training: bool = False) -> Array:
        x = inputs
        for features in (32, 64):
            x = nn.relu(nn.Conv(features, (3, 3))(x))
            x = nn.avg_pool(x, (2, 2), strides=(2, 2))
        x = x.reshape((x.shape[0], -1))
        x = nn.relu(nn.Dense(256)(x))
        return nn.Dense(10)(x)


class EncoderBlock(nn.Module):
    heads: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        width = x.shape[-1]
        y = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(self.heads)(y)
        y = nn.LayerNorm()(x)
        return x + nn.Dense(width)(nn.gelu(nn.Dense(4 * width)(y)))


class ViT(nn.Module):
    """A vision transformer; the defaults are ViT-Ti/16."""

    width: int = 192
    depth: int = 12
    heads: int = 3
    patch: int = 16

    @nn.compact
    def __call__(self, inputs: Array, training: bool = False) -> Array:
        patch = (self.patch, self.patch)
        x = nn.Conv(self.width, patch, strides=patch, padding="VALID", name="embed")(inputs)
        x = x.reshape((x.shape[0], -1, self.width))
        token = self.param("token", nn.initializers.zeros, (1, 1, self.width))
        x = jnp.concatenate([jnp.tile(token, (x.shape[0], 1, 1)), x], axis=1)
        x = x + self.param("position", nn.initializers.normal(0.02), (1, *x.shape[1:]))
        for _ in range(self.depth):
            x = EncoderBlock(self.heads)(x)
        return nn.Dense(1000, name="head")(nn.LayerNorm()(x)[:, 0])


class Bottleneck(nn.Module):
    """A residual block of ResNet v1.5: the stride is in the 3 x 3 convolution."""

    features: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: Array, training: bool) -> Array:
        conv = partial(nn.Conv, use_bias=False)
        norm = partial(nn.BatchNorm, use_running_average=not training, momentum=0.9)
        strides = (self.stride, self.stride)
        y = nn.relu(norm()(conv(self.features, (1, 1))(x)))
        y = nn.relu(norm()(conv(self.features, (3, 3), strides=strides)(y)))
        y = norm(scale_init=nn.initializers.zeros)(conv(4 * self.features, (1, 1))(y))
        if x.shape != y.shape:
            x = norm()(conv(4 * self.features, (1, 1), strides=strides)(x))
        return nn.relu(x + y)


class ResNet(nn.Module):
    """ResNet v1.5; the defaults are ResNet-50."""

    blocks: Sequence[int] = (3, 4, 6, 3)

    @nn.compact
    def __call__(self, inputs: Array, training: bool = False) -> Array:
        x = nn.Conv(64, (7, 7), strides=(2, 2), padding=3, use_bias=False)(inputs)
        x = nn.relu(nn.BatchNorm(use_running_average=not training, momentum=0.9)(x))
        x = nn.max_pool(x, (3, 3), strides=(2, 2), padding="SAME")
        for stage, blocks in enumerate(self.blocks):
            for block in range(blocks):
                x = Bottleneck(64 * 2**stage, stride=2 if stage > 0 and block == 0 else 1)(
                    x, training
                )
        return nn.Dense(1000)(x.mean(axis=(1, 2)))


class DecoderBlock(nn.Module):
    heads: int

    @nn.compact
    def __call__(self, x: Array, mask: Array) -> Array:
        width = x.shape[-1]
        y = nn.RMSNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(self.heads, use_bias=False)(y, mask=mask)
        y = nn.RMSNorm()(x)
        return x + nn.Dense(width, use_bias=False)(nn.gelu(nn.Dense(4 * width, use_bias=False)(y)))


class DecoderLM(nn.Module):
    """A language model on integer tokens; the defaults have 134 M parameters."""

    vocabulary: int = 32_000
    width: int = 768
    depth: int = 12
    heads: int = 12

    @nn.compact
    def __call__(self, inputs: Array, training: bool = False) -> Array:
        length = inputs.shape[1]
        x = nn.Embed(self.vocabulary, self.width)(inputs)
        x = x + nn.Embed(256, self.width, name="position")(jnp.arange(length))
        mask = nn.make_causal_mask(inputs)
        for _ in range(self.depth):
            x = DecoderBlock(self.heads)(x, mask)
        return nn.Dense(self.vocabulary, use_bias=False, name="head")(nn.RMSNorm()(x))


class ManyWeights(nn.Module):
    """Many small weights, each a row of a kernel with at most sixteen rows.

    XLA would compile longer chains of them for minutes.
    """

    weights: int

    @nn.compact
    def __call__(self, inputs: Array, training: bool = False) -> Array:
        x = inputs
        init = nn.initializers.normal(0.01)
        rows = [self.param(f"weight_{i}", init, (inputs.shape[-1],)) for i in range(self.weights)]
        for start in range(0, self.weights, 16):
            kernel = jnp.stack(rows[start : start + 16])
            x = x + nn.tanh(x @ kernel.T) @ kernel
        return x


class Deep(nn.Module):
    depth: int

    @nn.compact
    def __call__(self, inputs: Array, training: bool = False) -> Array:
        x = inputs
        for _ in range(self.depth):
            x = x + nn.relu(nn.Dense(16)(x))
        return x


class OneLarge(nn.Module):
    """One kernel of about `size` numbers."""

    size: int

    @nn.compact
    def __call__(self, inputs: Array, training: bool = False) -> Array:
        return nn.Dense(self.size // inputs.shape[-1], use_bias=False)(inputs)
