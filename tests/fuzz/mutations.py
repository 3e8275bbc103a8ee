"""Random changes to bytes and to JSON values."""

from __future__ import annotations

import json
from random import Random
from typing import Any

# Values that may break arithmetic, sizes or text.
NUMBERS = (
    0,
    1,
    -1,
    2,
    7,
    8,
    127,
    128,
    255,
    256,
    2**15,
    2**16,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**53,
    2**62,
    2**63 - 1,
    2**63,
    2**64,
)
FLOATS = (0.0, -0.0, 0.5, 1e308, float("inf"), float("nan"))
TEXTS = (
    *(
        "",
        ".",
        "..",
        "/",
        "/etc/passwd",
        "a/b",
        "a//b",
        "%2E",
        "%",
        "~",
        "\0",
        "a\0b",
        "\ud800",
        "\n",
        "é",
        "K",
        "k",
        " ",
    ),
    *(
        "1",
        "-1",
        "0x10",
        "nan",
        "true",
        "None",
        "__class__",
        "__init__",
        "__reduce__",
        "__globals__",
        "__metadata__",
        "index.json",
    ),
    *(
        "float32",
        "float8_e4m3fn",
        "(1,",
        "(1000000000,)f4",
        "O",
        "U1",
        "str",
        "object",
        "<f4,<f4",
        "f4:",
        "M8[s]",
        "bfloat16",
    ),
    *("**/" * 24, "[", "[!]", "a" * 300, "a/" * 5000),
    *(
        "os:system",
        "subprocess:Popen",
        "builtins:exec",
        "builtins:eval",
        "numpy:matlib",
        "jax.numpy:load",
        "jax.nn:relu",
    ),
    *(
        "flax.linen:Dense",
        "flax.linen:Sequential",
        "flax.linen:vmap",
        "flax.nnx:Linear",
        "flax.nnx.bridge:ToLinen",
    ),
    *(
        "flax.nnx.proxy_caller:DelayedAccessor",
        "flax.nnx.bridge.wrappers:ToLinen",
        "jax.numpy:append",
        "flax.core:FrozenDict",
    ),
)
KINDS = (
    *(
        "object",
        "fields",
        "constructor",
        "arguments",
        "keywords",
        "custom",
        "type",
        "function",
        "initializer",
        "partial",
    ),
    *(
        "registered",
        "config",
        "tuple",
        "dict",
        "frozen_dict",
        "set",
        "frozenset",
        "list",
        "named_tuple",
        "enum",
        "member",
    ),
    *(
        "dtype",
        "partition_spec",
        "array",
        "shape",
        "of",
        "number",
        "float",
        "complex",
        "session",
        "class_name",
        "module",
    ),
    *(
        "registered_name",
        "method",
        "variables",
        "regularizers",
        "activity_regularizer",
        "form",
        "name",
        "trainable",
        "seed",
    ),
)


def mutated_bytes(data: bytes, others: list[bytes], random: Random) -> bytes:
    """Make one to four changes to a copy of some bytes."""
    result = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        _change_bytes(result, others, random)
    return bytes(result)


def _change_bytes(data: bytearray, others: list[bytes], random: Random) -> None:
    place, length = random.randrange(len(data) + 1), random.choice((1, 1, 2, 4, 8, 16, 64))
    kind = random.randrange(9)
    if kind == 0 and data:
        data[random.randrange(len(data))] ^= 1 << random.randrange(8)
    elif kind == 1:
        data[place : place + 1] = bytes(
            [random.choice((0, 1, 0x7F, 0x80, 0xC0, 0xC1, 0xFF, random.randrange(256)))]
        )
    elif kind == 2:
        del data[place : place + length]
    elif kind == 3:
        data[place:place] = data[place : place + length] * random.choice((1, 1, 2, 100))
    elif kind == 4:
        data[place:place] = random.randbytes(length)
    elif kind == 5:
        size = random.choice((1, 2, 4, 8))
        number = random.choice(NUMBERS) % 2 ** (8 * size)
        data[place : place + size] = number.to_bytes(size, random.choice(("little", "big")))
    elif kind == 6:
        del data[place:]
    elif kind == 7:
        other = random.choice(others)
        start = random.randrange(len(other) + 1)
        data[place : place + length] = other[start : start + length]
    else:
        data[place : place + length] = random.choice(TEXTS).encode("utf-8", "surrogatepass")[:1000]


def mutated_json(value: Any, others: list[Any], random: Random) -> Any:
    """Make one to three changes to a copy of a JSON value."""
    result = json.loads(json.dumps(value))
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        places = list(_places(result))
        if not places:
            return _odd(others, random)
        holder, key = random.choice(places)
        _change_item(holder, key, others, random)
    return result


def _places(value: Any) -> Any:
    """Yield the container and the key of each item in nested lists and dicts."""
    waiting = [value]
    while waiting:
        holder = waiting.pop()
        items = (
            holder.items()
            if isinstance(holder, dict)
            else enumerate(holder)
            if isinstance(holder, list)
            else ()
        )
        for key, item in items:
            yield holder, key
            waiting.append(item)


def _change_item(holder: Any, key: Any, others: list[Any], random: Random) -> None:
    kind = random.randrange(8)
    if kind < 3:
        holder[key] = _odd(others, random)
    elif kind == 3:
        del holder[key]
    elif kind == 4 and isinstance(holder, dict):
        holder[random.choice((*KINDS, *TEXTS))] = holder.pop(key)
    elif kind == 5 and isinstance(holder, dict):
        holder[random.choice(KINDS)] = _odd(others, random)
    elif kind == 6:
        wrapped = holder[key]
        for _ in range(random.choice((1, 1, 1, 60, 400))):
            wrapped = {random.choice(KINDS): wrapped} if random.random() < 0.5 else [wrapped]
        holder[key] = wrapped
    else:
        places = list(_places(random.choice(others)))
        if places:
            other, where = random.choice(places)
            holder[key] = json.loads(json.dumps(other[where]))


def _odd(others: list[Any], random: Random) -> Any:
    plain = (None, True, False, [], {}, *NUMBERS, *FLOATS, *TEXTS)
    kind = random.randrange(6)
    if kind < 3:
        return random.choice(plain)
    if kind == 3:
        return {random.choice(KINDS): random.choice(plain)}
    if kind == 4:
        return [random.choice(plain) for _ in range(random.randrange(4))]
    places = list(_places(random.choice(others)))
    if not places:
        return None
    holder, key = random.choice(places)
    return json.loads(json.dumps(holder[key]))
