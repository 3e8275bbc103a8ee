"""The behaviors that every adapter must have, as a table of modules.

Each row is one behavior. This file has the rows for Linen, and `conformance_nnx` those for NNX.
Each case says how plain Flax runs the module, so that outputs, state and gradients can be compared
with those of the layer.
"""

import collections
import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct

from kerasflax import _rng

PyTree = Any


def floats(*shape):
    return np.linspace(-1, 1, int(np.prod(shape)), dtype=np.float32).reshape(shape)


def integers(*shape, below=5, dtype="int32"):
    return (np.arange(int(np.prod(shape))) * 7 % below).reshape(shape).astype(dtype)


@dataclasses.dataclass(frozen=True)
class Case:
    """One behavior.

    Attributes:
        module: The module.
        inputs: A pytree of NumPy arrays, the input of the layer.
        arguments: From the inputs and the mode to the positional and keyword arguments of plain
            `apply`.
        method: The method, or None for `__call__`.
        streams: The streams that the module uses, by mode.
        unknown: The sizes of the input that may be unknown: "batch", "all" or "none".
        prepare: From the module and the mode to the module that plain Flax runs.
        built_on: Inputs of the shapes on which the layer is built, if they differ from `inputs`. If
            the initial values depend on the values of the inputs, these must be ones.
        differentiable: Whether JAX can differentiate the module.
        trainable: The collections that are trained.
        sown: The collections that the module only sows. They are returned, and are not state.
    """

    module: Any
    inputs: PyTree
    arguments: Callable[..., Any] = lambda inputs, training: ((inputs,), {})
    method: Any = None
    streams: dict[bool, tuple[str, ...]] = dataclasses.field(
        default_factory=lambda: {True: (), False: ()}
    )
    unknown: str = "batch"
    prepare: Callable[..., nn.Module] = lambda module, training: module
    built_on: PyTree = None
    differentiable: bool = True
    trainable: tuple[str, ...] = ("params",)
    sown: tuple[str, ...] = ()

    @property
    def first(self):
        return self.inputs if self.built_on is None else self.built_on

    def init(self, key):
        arguments, keywords = self.arguments(self.first, False)
        module = self.prepare(self.module, False)
        rngs = {"params": key} | dict.fromkeys(self.streams[False], key)
        return module.init(rngs, *arguments, method=self.method, **keywords)

    def apply(self, variables, inputs, training, state):
        """The outputs, and everything that the module writes."""
        arguments, keywords = self.arguments(inputs, training)
        return self.prepare(self.module, training).apply(
            variables,
            *arguments,
            method=self.method,
            rngs=_rng.streams(state, self.streams[training]),
            mutable=nn.DenyList(["params"]),
            **keywords,
        )


def with_mode(name, sense=True):
    return lambda inputs, training: ((inputs,), {name: training is sense})


def by_position(inputs, training):
    return (inputs, None, training), {}


DROPOUT = {True: ("dropout",), False: ()}
Pair = collections.namedtuple("Pair", "left right")


@struct.dataclass
class Output:
    """A dataclass with fields that may be None, like the outputs of Hugging Face's models."""

    last: jax.Array
    hidden: tuple[jax.Array, ...] | None = None
    label: str = struct.field(pytree_node=False, default="x")


class Mode(nn.Module):
    """Its mode argument has another name."""

    @nn.compact
    def __call__(self, x, train):
        x = nn.Dense(3)(x)
        x = nn.BatchNorm(use_running_average=not train)(x)
        return nn.Dropout(0.5, deterministic=not train)(x)


class IsTraining(nn.Module):
    @nn.compact
    def __call__(self, x, *, is_training):
        return nn.Dropout(0.5, deterministic=not is_training)(nn.Dense(3)(x))


class Deterministic(nn.Module):
    @nn.compact
    def __call__(self, tokens, deterministic=True):
        return nn.Dropout(0.5)(nn.Embed(5, 3)(tokens), deterministic=deterministic)


class Positional(nn.Module):
    """Takes the mode before the input."""

    @nn.compact
    def __call__(self, deterministic, inputs):
        return nn.Dropout(0.5)(nn.Dense(3)(inputs), deterministic=deterministic)


class FieldMode(nn.Module):
    """Its mode is a field, which is None until the call."""

    train: bool | None = None

    @nn.compact
    def __call__(self, x):
        assert self.train is not None
        x = nn.BatchNorm(use_running_average=not self.train)(nn.Dense(3)(x))
        return nn.Dropout(0.5, deterministic=not self.train)(x)


class NamesAnAxis(nn.Module):
    """Written for `pmap`: it averages its statistics over an axis of devices."""

    axis: str | None = "batch"

    @nn.compact
    def __call__(self, x, train=True):
        return nn.BatchNorm(use_running_average=not train, axis_name=self.axis)(nn.Dense(3)(x))


class KeywordOnly(nn.Module):
    @nn.compact
    def __call__(self, *, inputs, train):
        return nn.Dropout(0.5, deterministic=not train)(nn.Dense(3)(inputs))


class Both(nn.Module):
    """Maps over two arguments, which must then be passed by position."""

    @nn.compact
    def __call__(self, left, right):
        class Inner(nn.Module):
            @nn.compact
            def __call__(self, left, right):
                return nn.Dense(3)(left) + right

        inner = nn.vmap(
            Inner, in_axes=(0, 0), variable_axes={"params": None}, split_rngs={"params": False}
        )
        return inner()(left, right)


CONSTANT = jnp.arange(3.0)


class Constants(nn.Module):
    """Has two weights that start as the same array, which belongs to the user."""

    @nn.compact
    def __call__(self, x):
        return x * self.param("a", lambda key: CONSTANT) + self.param("b", lambda key: CONSTANT)


class Methods(nn.Module):
    def setup(self):
        self.encoder = nn.Dense(4)
        self.decoder = nn.Dense(3)

    def encode(self, x):
        return self.encoder(x)

    def decode(self, x, scale=2.0):
        return self.decoder(x) * scale

    def __call__(self, x):
        return self.decode(self.encode(x))


class TwoArguments(nn.Module):
    @nn.compact
    def __call__(self, left, right, training=False):
        return nn.Dropout(0.5)(nn.Dense(3)(left) + nn.Dense(3)(right), deterministic=not training)


class Streams(nn.Module):
    """Uses two streams in training, and one of them at inference."""

    @nn.compact
    def __call__(self, x, training=False):
        x = nn.Dense(3)(x) + jax.random.normal(self.make_rng("noise"), (3,))
        return x * jax.random.uniform(self.make_rng("other"), (3,)) if training else x


class DefaultStream(nn.Module):
    """Calls `make_rng()` without the name of a stream, in both modes."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(x) + jax.random.normal(self.make_rng(), (3,))


class Sower(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Dense(3)(x)
        self.sow("intermediates", "x", x)
        self.sow("metrics", "sum", jnp.sum(x), init_fn=lambda: jnp.zeros(()), reduce_fn=jnp.add)
        self.sow("own", "x", x, init_fn=lambda: None, reduce_fn=lambda _, x: x)
        return self.perturb("y", x)


class Counter(nn.Module):
    """Has a Python number, a key and a boolean in their own collections, and no params."""

    @nn.compact
    def __call__(self, x):
        count = self.variable("counts", "n", lambda: 0)
        key = self.variable("random", "key", lambda: jax.random.key(3))
        flag = self.variable("flags", "seen", lambda: jnp.zeros((), bool))
        if not self.is_initializing():
            count.value = count.value + 1
            flag.value = jnp.ones((), bool)
            key.value, now = jax.random.split(key.value)
            x = x + jax.random.normal(now, (3,))
        return x + count.value


class Stateless(nn.Module):
    def __call__(self, x):
        return nn.relu(x)


class Partitioned(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Dense(
            4, kernel_init=nn.with_partitioning(nn.initializers.lecun_normal(), (None, "model"))
        )(x)
        return nn.Dense(
            3, kernel_init=nn.with_logical_partitioning(nn.initializers.ones, ("embed", "mlp"))
        )(x)


class Scanned(nn.Module):
    @nn.compact
    def __call__(self, x, training=False):
        class Body(nn.Module):
            @nn.compact
            def __call__(self, x, _):
                x = nn.Dropout(0.5)(nn.tanh(nn.Dense(3)(x)), deterministic=not training)
                self.sow("intermediates", "h", x)
                return nn.BatchNorm(use_running_average=not training)(x), None

        layers = nn.scan(
            Body,
            variable_axes={"params": 0, "batch_stats": 0, "intermediates": 0},
            split_rngs={"params": True, "dropout": True},
            length=2,
        )
        return layers(name="layers")(x, None)[0]


class Ensemble(nn.Module):
    @nn.compact
    def __call__(self, x):
        dense = nn.vmap(
            nn.Dense,
            in_axes=None,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            axis_size=2,
        )
        return dense(3)(x).mean(0)


class Lifted(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.jit(nn.Dense)(3)(nn.remat(nn.Dense)(4)(x))


class Block(nn.Module):
    """Branches on the mode, which must therefore be static in a lifted transform."""

    @nn.compact
    def __call__(self, x, mask=None, training=False):
        x = nn.Dense(3)(x)
        return nn.Dropout(0.5, deterministic=False)(x) if training else x


class Collecting(nn.Module):
    @nn.compact
    def __call__(self, *args, scale=2.0):
        return nn.Dense(3)(args[0]) * scale


class Loop(nn.Module):
    @nn.compact
    def __call__(self, x):
        dense = nn.Dense(3)
        x = dense(x)
        count = self.variable("loop", "n", lambda: jnp.zeros((), jnp.int32))
        count.value = jnp.zeros((), jnp.int32)

        def keep_going(module, carry):
            return module.get_variable("loop", "n") < 2

        def body(module, carry):
            module.put_variable("loop", "n", module.get_variable("loop", "n") + 1)
            return carry * 2

        return nn.while_loop(
            keep_going, body, self, x, carry_variables="loop", broadcast_variables="params"
        )


class Shared(nn.Module):
    @nn.compact
    def __call__(self, x):
        dense = nn.Dense(3)
        return dense(dense(x))


class Parts(nn.Module):
    """Has a submodule as a field, and another one with a dot in its name."""

    part: nn.Module

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, name="block.0")(self.part(x))


class Scoped(nn.Module):
    """Shares its scope with a submodule, and therefore has the weights of the submodule."""

    def setup(self):
        self.dense = nn.Dense(3)
        nn.share_scope(self, self.dense)

    def __call__(self, x):
        return self.dense(x)


class Tied(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        embed = nn.Embed(5, 4)
        return embed.attend(nn.Dense(4)(embed(tokens)))


class Decoder(nn.Module):
    """Attention with a cache of earlier steps."""

    @nn.compact
    def __call__(self, x):
        return nn.MultiHeadDotProductAttention(num_heads=1, decode=True)(x)


class Trees(nn.Module):
    @nn.compact
    def __call__(self, inputs):
        y = nn.Dense(3)(inputs["a"][0]) + inputs["b"].left
        return {
            "list": [y, (inputs["b"].right, None)],
            "pair": Pair(y, 2 * y),
            "name": Output(y, (y,)),
        }


class Dtypes(nn.Module):
    @nn.compact
    def __call__(self, inputs):
        assert inputs["u8"].dtype == jnp.uint8, inputs["u8"].dtype
        assert inputs["bool"].dtype == bool
        assert inputs["tokens"].dtype == jnp.int32
        x = nn.Embed(5, 3)(inputs["tokens"]) * inputs["bool"][:, None] + inputs["u8"].astype(
            jnp.float32
        )
        return x + nn.Dense(3, param_dtype=jnp.bfloat16)(inputs["half"])


class BranchesOnBatch(nn.Module):
    """Cannot be traced with a symbol for the batch size."""

    @nn.compact
    def __call__(self, x):
        dense = nn.Dense(3)
        return jnp.stack([dense(x[i]) for i in range(int(x.shape[0]))])


LINEN = {
    "train": Case(Mode(), floats(4, 2), with_mode("train"), streams=DROPOUT),
    "is_training": Case(IsTraining(), floats(4, 2), with_mode("is_training"), streams=DROPOUT),
    "deterministic": Case(
        Deterministic(),
        integers(4, 6),
        with_mode("deterministic", False),
        streams=DROPOUT,
        unknown="all",
    ),
    "mode first": Case(
        Positional(),
        floats(4, 2),
        lambda x, training: ((), {"inputs": x, "deterministic": not training}),
        streams=DROPOUT,
    ),
    "mode as a field": Case(
        FieldMode(),
        floats(4, 2),
        streams=DROPOUT,
        prepare=lambda module, training: module.clone(train=training),
    ),
    "a field that is set stands": Case(nn.Dropout(0.5, deterministic=True), floats(4, 2)),
    "a field of Flax's own": Case(
        nn.BatchNorm(), floats(4, 2), with_mode("use_running_average", False)
    ),
    "method by name": Case(Methods(), floats(4, 2), method="encode"),
    "method with a default": Case(Methods(), floats(4, 2), method="decode"),
    "method as a function": Case(
        Methods(), floats(4, 2), method=lambda module, x: module.decode(module.encode(x), 3.0)
    ),
    "dict spread over arguments": Case(
        TwoArguments(),
        {"left": floats(4, 2), "right": floats(4, 3)},
        lambda inputs, training: ((), {**inputs, "training": training}),
        streams=DROPOUT,
    ),
    "a list spread over arguments": Case(
        Both(), [floats(4, 2), floats(4, 3)], lambda inputs, training: (tuple(inputs), {})
    ),
    "a mapped method and a dict": Case(
        nn.vmap(
            Both, in_axes=(0, 0), variable_axes={"params": None}, split_rngs={"params": False}
        )(),
        {"left": floats(4, 2, 2), "right": floats(4, 2, 3)},
        lambda inputs, training: ((inputs["left"], inputs["right"]), {}),
    ),
    "keywords only": Case(
        KeywordOnly(),
        floats(4, 2),
        lambda x, training: ((), {"inputs": x, "train": training}),
        streams=DROPOUT,
    ),
    "an unused mask beside a dict": Case(
        nn.MultiHeadDotProductAttention(1),
        {"inputs_q": floats(4, 6, 2), "inputs_k": floats(4, 5, 2)},
        lambda inputs, training: (
            (inputs["inputs_q"], inputs["inputs_k"]),
            {"deterministic": not training},
        ),
    ),
    "inputs and mask in a dict": Case(
        nn.MultiHeadDotProductAttention(1),
        {"inputs_q": floats(4, 6, 2), "mask": integers(4, 1, 6, 6, below=2).astype(bool)},
        lambda inputs, training: (
            (inputs["inputs_q"],),
            {"mask": inputs["mask"], "deterministic": not training},
        ),
        streams={True: (), False: ()},
    ),
    "a mapped axis": Case(
        NamesAnAxis(),
        floats(4, 2),
        with_mode("train"),
        prepare=lambda module, training: module.clone(axis=None),
    ),
    "a constant as initial value": Case(Constants(), floats(4, 3)),
    "several streams": Case(
        Streams(),
        floats(4, 2),
        with_mode("training"),
        streams={True: ("noise", "other"), False: ("noise",)},
    ),
    "the stream without a name": Case(
        DefaultStream(), floats(4, 2), streams={True: ("params",), False: ("params",)}
    ),
    "sown values": Case(
        Sower(), floats(4, 2), sown=("intermediates", "metrics", "own", "perturbations")
    ),
    "state of any kind, and no params": Case(Counter(), floats(4, 3)),
    "no variables": Case(Stateless(), floats(4, 2)),
    "boxes": Case(Partitioned(), floats(4, 2)),
    "scan": Case(
        Scanned(), floats(4, 3), with_mode("training"), streams=DROPOUT, sown=("intermediates",)
    ),
    "vmap": Case(Ensemble(), floats(4, 2)),
    # Lifted transforms take a key from every stream that they get.
    "jit and remat": Case(Lifted(), floats(4, 2), streams=DROPOUT),
    "remat with a static mode": Case(
        nn.remat(Block, static_argnums=(3,))(), floats(4, 2), by_position, streams=DROPOUT
    ),
    "jit with a static mode": Case(
        nn.jit(Block, static_argnums=(3,))(), floats(4, 2), by_position, streams=DROPOUT
    ),
    "jit with a mode static by name": Case(
        nn.jit(Block, static_argnames=("training",))(),
        floats(4, 2),
        with_mode("training"),
        streams=DROPOUT,
    ),
    "any number of arguments": Case(Collecting(), floats(4, 2)),
    "Flax's SpectralNorm": Case(
        nn.SpectralNorm(nn.Dense(3)), floats(4, 2), with_mode("update_stats")
    ),
    "while_loop": Case(Loop(), floats(4, 2), differentiable=False),
    "a shared submodule": Case(Shared(), floats(4, 3)),
    "a submodule as a field, a name with a dot": Case(Parts(nn.Dense(4)), floats(4, 2)),
    "share_scope": Case(Scoped(), floats(4, 2)),
    "tied weights": Case(Tied(), integers(4, 6), unknown="all"),
    "a cache": Case(Decoder(), floats(4, 1, 2), built_on=floats(4, 6, 2), unknown="none"),
    "trees": Case(Trees(), {"a": [floats(4, 2)], "b": Pair(floats(4, 3), floats(4, 1))}),
    "dtypes": Case(
        Dtypes(),
        {
            "u8": integers(4, 3, dtype="uint8"),
            "bool": integers(4, below=2).astype(bool),
            "tokens": integers(4),
            "half": floats(4, 2).astype(jnp.bfloat16).astype(np.float32),
        },
    ),
    "unknown sizes": Case(nn.Conv(3, (3, 3)), floats(4, 6, 6, 2), unknown="all"),
    "no symbol for the batch": Case(BranchesOnBatch(), floats(4, 2)),
    "a Sequential": Case(nn.Sequential([nn.Dense(4), nn.relu, nn.Dense(3)]), floats(4, 2)),
    "an RNN": Case(nn.RNN(nn.LSTMCell(3)), floats(4, 6, 2)),
}
