"""The rows for `flax.nnx` in the table of behaviors. See `conformance`."""

import dataclasses

import jax
import jax.numpy as jnp
from conformance import Case, Pair, floats, integers, with_mode
from flax import linen as nn
from flax import nnx

from kerasflax import LazyModule, _rng

NAMES = {
    nnx.Param: "params",
    nnx.BatchStat: "batch_stats",
    nnx.Cache: "cache",
    nnx.Intermediate: "intermediates",
    nnx.Perturbation: "perturbations",
}
ARGUMENT = {True: ("rngs",), False: ()}


def collection(variable):
    """The collection name that Flax's bridge gives to the type of a variable."""
    if not isinstance(variable, nnx.Variable):
        return "arrays"
    return NAMES.get(type(variable), type(variable).__name__)


def put(tree, path, value):
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = value


def variables_of(module):
    """The values of a module, by collection and path."""
    result = {}
    for path, variable in nnx.to_flat_state(nnx.state(module)):
        value = variable.get_value() if isinstance(variable, nnx.Variable) else variable
        put(result, (collection(variable), *path), value)
    return result


@dataclasses.dataclass(frozen=True)
class NnxCase(Case):
    """One behavior of an NNX module.

    Attributes:
        sows: The types of variables that the module sows into.
        sets_mode: Whether plain Flax sets the mode with `train()` and `eval()`.
        takes_rngs: Whether plain Flax passes random streams with each call.
    """

    sows: tuple[type, ...] = ()
    sets_mode: bool = True
    takes_rngs: bool = False

    def made(self, key):
        if isinstance(self.module, LazyModule):
            return self.module.make(nnx.Rngs(key))
        return self.module

    def init(self, key):
        return variables_of(self.made(key))

    def apply(self, variables, inputs, training, state):
        module = nnx.clone(self.made(jax.random.key(0)))
        for path, variable in nnx.to_flat_state(nnx.state(module)):
            if collection(variable) not in variables:
                continue
            value = variables[collection(variable)]
            for name in path:
                value = value[name]
            if isinstance(variable, nnx.Variable):
                nnx.update(module, nnx.from_flat_state([(path, variable.copy(value))]))
            else:
                *parents, name = path
                owner = module
                for parent in parents:
                    owner = getattr(owner, parent)
                setattr(owner, name, value)
        if self.sets_mode:
            (module.train if training else module.eval)()
        arguments, keywords = self.arguments(inputs, training)
        if self.takes_rngs:
            keywords = keywords | {"rngs": nnx.Rngs(_rng.streams(state, ["rngs"])["rngs"])}

        def call(module):
            if callable(self.method):
                return self.method(module, *arguments, **keywords)
            return getattr(module, self.method or "__call__")(*arguments, **keywords)

        outputs, *sown = nnx.capture(call, *self.sows)(module) if self.sows else (call(module),)
        written = variables_of(module)
        for each in sown:
            for path, variable in nnx.to_flat_state(each):
                put(written, (collection(variable), *path), variable.get_value())
        return outputs, written


class MLP(nnx.Module):
    """Has batch statistics and dropout, whose mode is set from outside."""

    def __init__(self, units=4, *, rngs):
        self.units = units
        self.first = nnx.Linear(2, units, rngs=rngs)
        self.norm = nnx.BatchNorm(units, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.last = nnx.Linear(units, 3, rngs=rngs)

    def __call__(self, x):
        return self.last(self.dropout(nnx.relu(self.norm(self.first(x)))))


class Training(nnx.Module):
    """Takes the mode as an argument."""

    def __init__(self, rngs):
        self.linear = nnx.Linear(2, 3, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x, training=False):
        return self.dropout(self.linear(x), deterministic=not training)


class Deterministic(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Embed(5, 3, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, tokens, deterministic):
        return self.dropout(self.embed(tokens), deterministic=deterministic)


class Noisy(nnx.Module):
    """Takes random streams with each call, in both modes."""

    def __init__(self, rngs):
        self.linear = nnx.Linear(2, 3, rngs=rngs)

    def __call__(self, x, rngs):
        return self.linear(x) + jax.random.normal(rngs.noise(), (3,))


class Methods(nnx.Module):
    def __init__(self, rngs):
        self.encoder = nnx.Linear(2, 4, rngs=rngs)
        self.decoder = nnx.Linear(4, 3, rngs=rngs)

    def encode(self, x):
        return self.encoder(x)

    def decode(self, x, scale=2.0):
        return self.decoder(x) * scale

    def __call__(self, x):
        return self.decode(self.encode(x))


class TwoArguments(nnx.Module):
    def __init__(self, rngs):
        self.left = nnx.Linear(2, 3, rngs=rngs)
        self.right = nnx.Linear(3, 3, rngs=rngs)

    def __call__(self, left, right):
        return self.left(left) + self.right(right)


class Nested(nnx.Module):
    """Has submodules in lists and dicts, and one that is None."""

    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(3, 3, rngs=rngs) for _ in range(11)])
        self.heads = nnx.Dict(
            {"a": nnx.Linear(3, 2, rngs=rngs), "b.c": nnx.Linear(3, 2, rngs=rngs)}
        )
        self.optional = None

    def __call__(self, x):
        for layer in self.layers:
            x = nnx.tanh(layer(x))
        return {name: head(x) for name, head in self.heads.items()}


class Tied(nnx.Module):
    """Has one weight in two places, and one submodule in two places."""

    def __init__(self, rngs):
        self.embed = nnx.Embed(5, 4, rngs=rngs)
        self.head = nnx.Linear(4, 5, use_bias=False, rngs=rngs)
        self.scale = nnx.Param(jnp.ones(4) * 2)
        self.same = self.scale
        self.part = nnx.Linear(4, 4, rngs=rngs)
        self.again = self.part

    def __call__(self, tokens):
        x = self.again(self.part(self.embed(tokens) * self.scale)) * self.same
        return self.embed.attend(x) + self.head(x)


class Sower(nnx.Module):
    def __init__(self, rngs):
        self.linear = nnx.Linear(2, 3, rngs=rngs)

    def __call__(self, x):
        x = self.linear(x)
        self.sow(nnx.Intermediate, "x", x)
        self.sow(nnx.Intermediate, "x", 2 * x)
        self.sow("losses", "l2", jnp.sum(x**2))
        self.sow("metrics", "sum", jnp.sum(x), init_fn=lambda: jnp.zeros(()), reduce_fn=jnp.add)
        return self.perturb("y", x)


class Count(nnx.Variable):
    """A type of variables that is not registered."""


class Counter(nnx.Module):
    """Has every kind of state, and no params."""

    def __init__(self):
        self.n = Count(0)
        self.key = nnx.RngKey(jax.random.key(3), tag="own")
        self.flag = nnx.Variable(jnp.zeros((), bool))
        self.tree = nnx.BatchStat({"a": jnp.ones(2), "b": [None, jnp.zeros(())]})
        self.array = jnp.arange(3.0)

    def __call__(self, x):
        self.n.set_value(self.n.get_value() + 1)
        self.flag[...] = jnp.ones((), bool)
        self.key[...], now = jax.random.split(self.key[...])
        self.tree.set_value({"a": self.tree["a"] * 2, "b": self.tree["b"]})
        self.array = self.array + 1
        return x + self.array + self.tree["a"].sum() + jax.random.normal(now, (3,))


class Intermediates(nnx.Module):
    """Keeps an intermediate value, which is not state, as an attribute."""

    def __init__(self, rngs):
        self.linear = nnx.Linear(2, 3, rngs=rngs)
        self.hidden = nnx.Intermediate(jnp.zeros(()))

    def __call__(self, x):
        self.hidden = nnx.Intermediate(self.linear(x))
        return self.hidden[...] * 2


class Sharded(nnx.Module):
    """Has variables with metadata."""

    def __init__(self, rngs):
        init = nnx.with_metadata(
            nnx.initializers.lecun_normal(), out_sharding=(None, "model"), eager_sharding=False
        )
        self.linear = nnx.Linear(2, 3, kernel_init=init, rngs=rngs)
        self.scale = nnx.Param(jnp.ones(3), mine="kept")

    def __call__(self, x):
        assert self.scale.mine == "kept"
        assert self.linear.kernel.out_sharding == (None, "model")
        return self.linear(x) * self.scale


class Scanned(nnx.Module):
    def __init__(self, rngs):
        @nnx.split_rngs(splits=2)
        @nnx.vmap(in_axes=(0,), out_axes=0)
        def make(rngs):
            return Layer(rngs)

        self.layers = make(rngs)

    def __call__(self, x):
        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        def forward(x, layer):
            return layer(x)

        return forward(x, self.layers)


class Layer(nnx.Module):
    def __init__(self, rngs):
        self.linear = nnx.Linear(3, 3, rngs=rngs)
        self.norm = nnx.BatchNorm(3, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.norm(self.dropout(nnx.tanh(self.linear(x))))


class Ensemble(nnx.Module):
    def __init__(self, rngs):
        self.members = nnx.vmap(lambda rngs: nnx.Linear(2, 3, rngs=rngs), in_axes=(0,))(
            rngs.split(2)
        )

    def __call__(self, x):
        return nnx.vmap(lambda member, x: member(x), in_axes=(0, None))(self.members, x).mean(0)


class Lifted(nnx.Module):
    def __init__(self, rngs):
        self.linear = nnx.Linear(2, 3, rngs=rngs)
        self.norm = nnx.BatchNorm(3, rngs=rngs)

    @nnx.jit
    def __call__(self, x):
        return nnx.remat(lambda module, x: module.norm(module.linear(x)))(self, x)


class Decoder(nnx.Module):
    """Attention with a cache of earlier steps."""

    def __init__(self, rngs):
        self.attention = nnx.MultiHeadAttention(1, 2, 4, decode=True, rngs=rngs)
        self.attention.init_cache((4, 6, 2))

    def __call__(self, x):
        return self.attention(x)


class Adapted(nnx.Module):
    def __init__(self, rngs):
        self.linear = nnx.LoRALinear(2, 3, lora_rank=2, rngs=rngs)

    def __call__(self, x):
        return self.linear(x)


class Trees(nnx.Module):
    def __init__(self, rngs):
        self.linear = nnx.Linear(2, 3, rngs=rngs)

    def __call__(self, inputs):
        y = self.linear(inputs["a"][0]) + inputs["b"].left
        return {"list": [y, (inputs["b"].right, None)], "pair": Pair(y, 2 * y)}


class Half(nnx.Module):
    def __init__(self, rngs):
        self.linear = nnx.Linear(2, 3, param_dtype=jnp.bfloat16, rngs=rngs)

    def __call__(self, inputs):
        assert inputs["u8"].dtype == jnp.uint8
        return self.linear(inputs["x"]) + inputs["u8"].astype(jnp.float32)


class BranchesOnBatch(nnx.Module):
    """Cannot be traced with a symbol for the batch size."""

    def __init__(self, rngs):
        self.linear = nnx.Linear(2, 3, rngs=rngs)

    def __call__(self, x):
        return jnp.stack([self.linear(x[i]) for i in range(int(x.shape[0]))])


def rngs():
    return nnx.Rngs(7, dropout=8)


NNX = {
    "a linear layer": NnxCase(nnx.Linear(2, 3, rngs=rngs()), floats(4, 2)),
    "a mode that is set": NnxCase(MLP(rngs=rngs()), floats(4, 2)),
    "training": NnxCase(Training(rngs()), floats(4, 2), with_mode("training"), sets_mode=False),
    "deterministic": NnxCase(
        Deterministic(rngs()),
        integers(4, 6),
        with_mode("deterministic", False),
        unknown="all",
        sets_mode=False,
    ),
    "a mode of Flax's own": NnxCase(
        nnx.BatchNorm(2, rngs=rngs()),
        floats(4, 2),
        with_mode("use_running_average", False),
        sets_mode=False,
    ),
    "streams given with the call": NnxCase(
        nnx.Dropout(0.5),
        floats(4, 2),
        with_mode("deterministic", False),
        streams=ARGUMENT,
        sets_mode=False,
        takes_rngs=True,
    ),
    "streams of its own": NnxCase(
        nnx.Dropout(0.5, rngs=rngs()),
        floats(4, 2),
        with_mode("deterministic", False),
        sets_mode=False,
    ),
    "streams that are required": NnxCase(
        Noisy(rngs()), floats(4, 2), streams={True: ("rngs",), False: ("rngs",)}, takes_rngs=True
    ),
    "method by name": NnxCase(Methods(rngs()), floats(4, 2), method="encode"),
    "method with a default": NnxCase(Methods(rngs()), floats(4, 4), method="decode"),
    "method as a function": NnxCase(
        Methods(rngs()), floats(4, 2), method=lambda module, x: module.decode(module.encode(x), 3.0)
    ),
    "dict spread over arguments": NnxCase(
        TwoArguments(rngs()),
        {"left": floats(4, 2), "right": floats(4, 3)},
        lambda inputs, training: ((), dict(inputs)),
    ),
    "a list spread over arguments": NnxCase(
        TwoArguments(rngs()),
        [floats(4, 2), floats(4, 3)],
        lambda inputs, training: (tuple(inputs), {}),
    ),
    "an unused mask beside a dict": NnxCase(
        nnx.MultiHeadAttention(1, 2, 2, decode=False, rngs=rngs()),
        {"inputs_q": floats(4, 6, 2), "inputs_k": floats(4, 5, 2)},
        lambda inputs, training: (
            (inputs["inputs_q"], inputs["inputs_k"]),
            {"deterministic": not training},
        ),
        sets_mode=False,
    ),
    "lists and dicts of parts": NnxCase(Nested(rngs()), floats(4, 3)),
    "shared weights": NnxCase(Tied(rngs()), integers(4, 6), unknown="all"),
    "sown values": NnxCase(
        Sower(rngs()),
        floats(4, 2),
        sows=(
            nnx.Intermediate,
            nnx.Perturbation,
            *(
                nnx.variable_type_from_name(name, allow_register=True)
                for name in ("losses", "metrics")
            ),
        ),
        sown=("intermediates", "perturbations", "losses", "metrics"),
    ),
    "state of any kind, and no params": NnxCase(Counter(), floats(4, 3)),
    "intermediate values as attributes": NnxCase(
        Intermediates(rngs()), floats(4, 2), sown=("intermediates",)
    ),
    "metadata": NnxCase(Sharded(rngs()), floats(4, 2)),
    "scan": NnxCase(Scanned(rngs()), floats(4, 3)),
    "vmap": NnxCase(Ensemble(rngs()), floats(4, 2)),
    "jit and remat": NnxCase(Lifted(rngs()), floats(4, 2)),
    "a cache": NnxCase(Decoder(rngs()), floats(4, 1, 2), built_on=floats(4, 1, 2), unknown="none"),
    "adapters of low rank": NnxCase(
        Adapted(rngs()), floats(4, 2), trainable=("params", "LoRAParam")
    ),
    "trees": NnxCase(Trees(rngs()), {"a": [floats(4, 2)], "b": Pair(floats(4, 3), floats(4, 1))}),
    "dtypes": NnxCase(Half(rngs()), {"u8": integers(4, 3, dtype="uint8"), "x": floats(4, 2)}),
    "unknown sizes": NnxCase(
        nnx.Conv(2, 3, (3, 3), rngs=rngs()), floats(4, 6, 6, 2), unknown="all"
    ),
    "no symbol for the batch": NnxCase(BranchesOnBatch(rngs()), floats(4, 2)),
    "a Sequential": NnxCase(
        nnx.Sequential(
            nnx.Linear(2, 4, rngs=rngs()),
            nnx.relu,
            nnx.Dropout(0.5, rngs=rngs()),
            nnx.Linear(4, 3, rngs=rngs()),
        ),
        floats(4, 2),
    ),
    "an RNN": NnxCase(nnx.RNN(nnx.LSTMCell(2, 3, rngs=rngs())), floats(4, 6, 2)),
    "a Linen module inside": NnxCase(
        nnx.bridge.ToNNX(nn.Dense(3), rngs=rngs()).lazy_init(jnp.ones((4, 2))), floats(4, 2)
    ),
    "made when the layer is built": NnxCase(LazyModule(MLP, 5), floats(4, 2)),
    "made by a function": NnxCase(
        LazyModule(
            lambda rngs: nnx.Sequential(nnx.Linear(2, 3, rngs=rngs), nnx.Dropout(0.5, rngs=rngs))
        ),
        floats(4, 2),
    ),
}
