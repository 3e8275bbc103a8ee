"""Hostile classes and descriptions: classes that act, and attempts on each allowed name.

Run as a script, this file tries every object in the allowlist and prints what it found as JSON.
"""

import dataclasses
import enum
import importlib
import inspect
import json
import os
import sys

os.environ["KERAS_BACKEND"] = "jax"

# Part of every value in a hostile file. An audit hook recognizes the value by it.
TOKEN = "hostile_token"

# Methods that Python, JAX or NumPy call implicitly. Each creates a folder.
METHODS = (
    *(
        "__post_init__",
        "__call__",
        "__del__",
        "__hash__",
        "__eq__",
        "__repr__",
        "__str__",
        "__format__",
        "__getattr__",
    ),
    *(
        "__getattribute__",
        "__setattr__",
        "__new__",
        "__init__",
        "__iter__",
        "__len__",
        "__bool__",
        "__getitem__",
        "__index__",
    ),
    *(
        "__float__",
        "__array__",
        "__jax_array__",
        "__add__",
        "__lt__",
        "__enter__",
        "__reduce__",
        "__copy__",
        "__contains__",
    ),
)


def package_of(mark):
    """Return the source of a package whose dataclasses act.

    A module of the package declares each of them as the type of a field.
    """
    lines = [
        "import dataclasses, enum, os, typing",
        "from flax import linen as nn",
        "import flax.struct",
        "def act(*args, **kwargs):",
        f"    os.makedirs({str(mark)!r}, exist_ok=True)",
        "    return 0",
        "class Meta(type):",
        "    __call__ = act",
        "class Descriptor:",
        "    def __get__(self, owner, kind): return 1",
        "    def __set__(self, owner, value): act()",
    ]
    for method in METHODS:
        name = method.strip("_")
        lines += [
            "@dataclasses.dataclass",
            f"class Data_{name}:",
            "    value: typing.Any = None",
            f"    def {method}(self, *args, **kwargs): return act()",
            f"class Tuple_{name}(typing.NamedTuple('Base_{name}', [('value', typing.Any)])):",
            f"    def {method}(self, *args, **kwargs): return act()",
            f"class Enum_{name}(enum.Enum):",
            "    ONE = 1",
        ]
        if method not in (
            "__new__",
            "__init__",
            "__setattr__",
            "__getattribute__",
            "__getattr__",
            "__hash__",
            "__eq__",
        ):
            lines += [f"    def {method}(self, *args, **kwargs): return act()"]
        else:
            lines += ["    def __call__(self, *args): return act()"]
    lines += [
        "@dataclasses.dataclass",
        "class Data_assigned:",
        "    value: typing.Any = None",
        "Data_assigned.value = property(lambda self: 1, act)",
        "@dataclasses.dataclass",
        "class Data_descriptor:",
        "    value: typing.Any = Descriptor()",
        "@dataclasses.dataclass",
        "class Data_meta(metaclass=Meta):",
        "    value: typing.Any = None",
        "@dataclasses.dataclass",
        "class Data_factory:",
        "    value: typing.Any = None",
        "    made: int = dataclasses.field(default_factory=act)",
        "@dataclasses.dataclass",
        "class Data_made:",
        "    value: typing.Any = None",
        "    made: int = dataclasses.field(default_factory=act, init=False)",
        "class Base:",
        "    __call__ = act",
        "@dataclasses.dataclass",
        "class Data_inherited(Base):",
        "    value: typing.Any = None",
        "@flax.struct.dataclass",
        "class Data_struct:",
        "    value: typing.Any = None",
        "    def __call__(self, *args): return act()",
        "class Data_node(flax.struct.PyTreeNode):",
        "    value: typing.Any = None",
        "    def __hash__(self): return act()",
        "PREFIXES = ('Data_', 'Tuple_', 'Enum_')",
        "KINDS = [kind for name, kind in list(globals().items()) if name.startswith(PREFIXES)]",
        "class Declares(nn.Module):",
        "    held: typing.Any = None",
        "    def __call__(self, inputs): return inputs",
        "Declares.__dataclass_fields__['held'].type = typing.Union[tuple(KINDS)]",
    ]
    return "\n".join(lines)


def described(kind, value=TOKEN):
    """Describe an instance of a class."""
    name = f"{kind.__module__}:{kind.__qualname__}"
    if issubclass(kind, enum.Enum):
        return {"enum": name, "member": "ONE"}
    if issubclass(kind, tuple):
        return {"named_tuple": name, "fields": [value]}
    return {"object": name, "fields": {"value": value}}


# A walk over every name that a file may use -------------------------------------------------------

FOUND = []


def watch(event, arguments):
    """Record each audit event that involves a value of the file."""
    if event.startswith(("object.__", "sys._getframe", "code.__new__")):
        return
    if any(
        TOKEN in str(argument)[:2000]
        for argument in arguments
        if isinstance(argument, (str, bytes, list, tuple))
    ):
        FOUND.append((event, [str(argument)[:80] for argument in arguments]))


class Spy:
    """A callable that records its calls, and lookups of attributes with names from the file."""

    def __call__(self, *args, **kwargs):
        FOUND.append(("call", [str(args)[:80]]))

    def __getattr__(self, name):
        if TOKEN in name:
            FOUND.append(("attribute", [name]))
        raise AttributeError(name)


def attempt(call, *args, **kwargs):
    """Call something, and ignore any exception."""
    try:
        return call(*args, **kwargs)
    except Exception:
        return None


# Arguments by which attention takes the functions that it calls. A file may pass only data to a
# listed function.
CALLS_BACK = {
    "einsum",
    "module",
    "einsum_dot_general",
    "qk_attn_weights_einsum",
    "attn_weights_value_einsum",
}


def walk_functions():
    """Call each listed function with text, containers of text, and callables as each argument."""
    import jax.numpy as jnp

    from kerasflax.saving import _allowed

    x = jnp.ones((2, 2))
    texts = [f"{TOKEN}.__class__", {TOKEN: TOKEN}, (TOKEN, [TOKEN])]
    functions = {}
    for table in (_allowed.FUNCTIONS, _allowed.FACTORIES):
        for name, function in _allowed.entries(table):
            if not any(function is known for known in functions.values()):
                functions[name] = function
    for name, function in functions.items():
        before = len(FOUND)
        for value in (*texts, Spy()):
            for args in (
                (value,),
                (value, value),
                (x, value),
                (value, x),
                (x, x, value),
                (x, value, value),
            ):
                attempt(function, *args)
        parameters = attempt(lambda function=function: inspect.signature(function).parameters) or {}
        for key, parameter in parameters.items():
            if parameter.kind is parameter.KEYWORD_ONLY or (
                parameter.kind is parameter.POSITIONAL_OR_KEYWORD
                and parameter.default is not parameter.empty
            ):
                for value in (texts[0], *([] if key in CALLS_BACK else [Spy()])):
                    attempt(function, x, **{key: value})
                    attempt(function, x, x, **{key: value})
        if len(FOUND) > before:
            FOUND.append(("of", [name]))
    return len(functions)


DENSE = {"object": "flax.linen:Dense", "fields": {"features": 2}}
CELL = {"object": "flax.linen:GRUCell", "fields": {"features": 2}}
NNX_CELL = {"constructor": "flax.nnx:GRUCell", "arguments": [2, 2]}
REQUIRED = {
    "features": 2,
    "num_heads": 2,
    "kernel_size": [2],
    "shape": [2, 2],
    "num_embeddings": 3,
    "in_features": 2,
    "out_features": 2,
    "num_features": 2,
    "hidden_features": 2,
    "einsum_str": "...ab,bc->...ac",
    "kernel_shape": [2, 2],
    "rate": 0.5,
    "num_groups": 1,
    "lora_rank": 1,
    "use_running_average": False,
    "deterministic": True,
    "decode": False,
}
PARTS = {
    "linen": {
        "layer_instance": DENSE,
        "layers": [DENSE],
        "cell": CELL,
        "forward_rnn": {"object": "flax.linen:RNN", "fields": {"cell": CELL}},
        "backward_rnn": {"object": "flax.linen:RNN", "fields": {"cell": CELL}},
        "nnx_class": {"type": "flax.nnx:Linear"},
        "args": {"tuple": [2, 2]},
    },
    "nnx": {
        "layer_instance": {"constructor": "flax.nnx:Linear", "arguments": [2, 2]},
        "module": DENSE,
        "cell": NNX_CELL,
        "forward_rnn": {"constructor": "flax.nnx:RNN", "arguments": [NNX_CELL]},
        "backward_rnn": {"constructor": "flax.nnx:RNN", "arguments": [NNX_CELL]},
    },
}


def calls(x):
    """Yield arguments with which at least one of the modules can be called."""
    import jax.numpy as jnp

    state = jnp.ones((2, 2))
    dims = (((x.ndim - 1,), (0,)), ((), ()))
    yield from [((x,), {}), ((x, state, dims), {}), ((x,), {"update_stats": True})]
    yield from [
        ((state, state), {}),
        (((state, state), state), {}),
        (("ab,bc->ac", state, state), {}),
    ]
    yield ((jnp.ones((2, 4, 2)),) * 2, jnp.ones((2, 4, 2))), {}


def values_of_files():
    """Return descriptions to try in each field: any kind of listed object, holding hostile text."""
    get = {"object": "flax.nnx.proxy_caller:GetAttr", "fields": {"name": TOKEN}}
    return [
        TOKEN,
        {"tuple": [TOKEN, TOKEN]},
        {"dict": {TOKEN: TOKEN, "on_get_value": TOKEN, "name": TOKEN}},
        {"function": "jax.numpy:append"},
        {"partial": {"function": "flax.linen:gelu"}, "keywords": {"approximate": TOKEN}},
        {"type": "flax.linen:Dense"},
        {"partial": {"type": "flax.linen:Dense"}, "keywords": {"name": TOKEN}},
        DENSE,
        {
            "object": "flax.linen:Sequential",
            "fields": {"layers": [DENSE, {"function": "jax.numpy:append"}]},
        },
        [{"function": "jax.numpy:append"}, DENSE],
        {
            "object": "flax.nnx.proxy_caller:DelayedAccessor",
            "fields": {"actions": {"tuple": [get]}},
        },
        {
            "initializer": "jax.nn.initializers:variance_scaling",
            "arguments": {"scale": 1.0, "mode": TOKEN, "distribution": TOKEN},
        },
        {
            "object": "flax.linen:Partitioned",
            "fields": {"value": TOKEN, "names": {"tuple": [TOKEN]}},
        },
        {"named_tuple": "jax.lax:ConvDimensionNumbers", "fields": [TOKEN, TOKEN, TOKEN]},
    ]


def runs_abstractly(module, args, kwargs):
    """Run a module abstractly with the given arguments, and return whether that succeeded."""
    import jax
    from flax import linen as nn
    from flax import nnx

    def run():
        if isinstance(module, nn.Module):
            module.init(jax.random.key(0), *args, **kwargs)
        else:
            made = module.make(nnx.Rngs(0))
            (
                nnx.bridge.lazy_init
                if isinstance(made, nnx.bridge.ToNNX)
                else lambda m, *a, **k: m(*a, **k)
            )(made, *args, **kwargs)
        return 1.0

    return attempt(jax.eval_shape, run) is not None


def walk_classes():
    """Describe each listed module class with each hostile value in each field. Run the accepted."""
    import jax.numpy as jnp
    from flax import linen as nn

    from kerasflax import ConfigError
    from kerasflax.adapters import _lazy
    from kerasflax.saving import _allowed
    from kerasflax.saving._from_json import from_config

    counts = {"accepted": 0, "refused": 0, "not run": []}
    for name, kind in _allowed.entries(_allowed.MODULES):
        is_linen = issubclass(kind, nn.Module)
        fields = (
            [f.name for f in dataclasses.fields(kind) if f.init]
            if is_linen
            else list(_lazy.parameters(kind))
        )
        base = {
            key: value
            for key, value in (REQUIRED | PARTS["linen" if is_linen else "nnx"]).items()
            if key in fields
        }
        x = jnp.ones((2, 3, 2), jnp.int32 if name.endswith("Embed") else jnp.float32)
        for field, value in [
            (None, None),
            *((field, value) for field in fields for value in values_of_files()),
        ]:
            given = base if field is None else base | {field: value}
            node = (
                {"object": name, "fields": given}
                if is_linen
                else {"constructor": name, "keywords": given}
            )
            if name == "flax.nnx:Sequential":
                node = {"constructor": name, "arguments": [value or {"function": "jax.nn:relu"}]}
            before = len(FOUND)
            try:
                module = from_config(node, "it")
            except ConfigError:
                counts["refused"] += 1
                continue
            counts["accepted"] += 1
            if field is None:
                call = next((call for call in calls(x) if runs_abstractly(module, *call)), None)
                counts["not run"] += [name] * (call is None)
            elif call is not None:
                runs_abstractly(module, *call)
            if len(FOUND) > before:
                FOUND.append(("of", [name, field, str(value)[:200]]))
    return counts


if __name__ == "__main__":
    for module in (
        "kerasflax",
        "flax.nnx",
        "flax.linen",
        "jax.scipy.linalg",
        "scipy.linalg",
        "ml_dtypes",
    ):
        attempt(importlib.import_module, module)
    sys.addaudithook(watch)
    counts = {"functions": walk_functions()} if "functions" in sys.argv else walk_classes()
    print(json.dumps({"counts": counts, "found": FOUND}))
    # Show that the hook and the spy do find something.
    FOUND.clear()
    attempt(open, TOKEN)
    attempt(getattr, Spy(), TOKEN)
    attempt(Spy())
    assert [event for event, _ in FOUND] == ["open", "attribute", "call"]
