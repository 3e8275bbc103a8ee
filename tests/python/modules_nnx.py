"""NNX modules that several tests use."""

import jax
import jax.numpy as jnp
from flax import nnx


class ConvNet(nnx.Module):
    """Has batch statistics and dropout, and keeps its arguments."""

    def __init__(self, features: int, rate: float = 0.5, *, activation=nnx.relu, rngs: nnx.Rngs):
        self.features, self.rate, self.activation = features, rate, activation
        self.conv = nnx.Conv(1, features, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(features, momentum=0.9, rngs=rngs)
        self.dropout = nnx.Dropout(rate, rngs=rngs)
        self.head = nnx.Linear(features, 3, rngs=rngs)

    def __call__(self, x):
        x = self.activation(self.norm(self.conv(x))).mean((1, 2))
        return self.head(self.dropout(x))


class Forgetful(nnx.Module):
    """Does not keep its arguments."""

    def __init__(self, units, rngs):
        self.linear = nnx.Linear(3, units, rngs=rngs)

    def __call__(self, x):
        return self.linear(x)


class Block(nnx.Module):
    """A transformer block, with a cache if it decodes."""

    def __init__(self, width, heads, *, decode=False, rngs):
        self.norm_1 = nnx.LayerNorm(width, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(
            heads, width, width, decode=decode, dropout_rate=0.1, rngs=rngs
        )
        self.norm_2 = nnx.LayerNorm(width, rngs=rngs)
        self.mlp = nnx.Sequential(
            nnx.Linear(width, 2 * width, rngs=rngs),
            nnx.gelu,
            nnx.Linear(2 * width, width, rngs=rngs),
        )

    def __call__(self, x, mask=None):
        x = x + self.attention(self.norm_1(x), mask=mask)
        return x + self.mlp(self.norm_2(x))


class ViT(nnx.Module):
    """A vision transformer: patches, a class token, positions, and blocks."""

    def __init__(self, size=8, patch=4, width=8, depth=2, heads=2, classes=5, *, rngs):
        self.embed = nnx.Conv(
            3, width, (patch, patch), strides=(patch, patch), padding="VALID", rngs=rngs
        )
        self.token = nnx.Param(jnp.zeros((1, 1, width)))
        self.positions = nnx.Param(
            0.02 * jax.random.normal(rngs.params(), (1, (size // patch) ** 2 + 1, width))
        )
        self.blocks = nnx.List([Block(width, heads, rngs=rngs) for _ in range(depth)])
        self.head = nnx.Linear(width, classes, rngs=rngs)

    def __call__(self, images):
        x = self.embed(images)
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        x = (
            jnp.concatenate(
                [jnp.broadcast_to(self.token[...], (x.shape[0], 1, x.shape[-1])), x], axis=1
            )
            + self.positions[...]
        )
        for block in self.blocks:
            x = block(x)
        return self.head(x[:, 0])


class Decoder(nnx.Module):
    """A language model with tied embeddings. With a cache, it takes one token at a time."""

    def __init__(self, tokens=11, width=8, heads=2, depth=2, *, cache=None, rngs):
        self.embed = nnx.Embed(tokens, width, rngs=rngs)
        self.blocks = nnx.List(
            [Block(width, heads, decode=cache is not None, rngs=rngs) for _ in range(depth)]
        )
        self.is_cached = cache is not None
        if cache is not None:
            for block in self.blocks:
                block.attention.init_cache((*cache, width))

    def __call__(self, tokens):
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x, None if self.is_cached else nnx.make_causal_mask(tokens))
        return self.embed.attend(x)
