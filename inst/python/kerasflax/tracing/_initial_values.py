"""Computing what a jaxpr returns, where it returns many arrays that are made alike: the initial values of a module.

Compiled as a whole, such a computation takes the longer the more arrays it makes. Run one operation at a time, each operation
is compiled for each shape. But a module's arrays are made in few ways: all kernels of one shape come from one initializer, with
other keys. So what makes an array of single numbers (keys, scales) is compiled once for all arrays that are made alike; what
makes the numbers is run one operation at a time, compiled once for each kind of operation.

An accelerator takes longer to compile for than a CPU, and as long to make few numbers as to make many. So beside one, small
arrays are made on a CPU and moved. The random bits are the same on each platform.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal

# With fewer elements, arrays are made sooner than better code for making them is compiled.
_WORTH_OPTIMIZING = 2**19
# The newer code generator for CPUs takes twice as long, for code that is no faster.
_FAST_TO_COMPILE = {"xla_cpu_use_fusion_emitters": False}


def evaluate(
    jaxpr: Any, consts: Sequence[Any], *args: jax.Array, shardings: Sequence[Any] | None = None
) -> list[Any]:
    """Compute the results of a jaxpr at once, inside another trace as well: those of `eval_jaxpr`, up to rounding.

    Where shardings of the results are given, each array is computed in its own.
    """
    shardings = shardings or [None] * len(jaxpr.outvars)
    recipes, shared = _split(jaxpr)
    devices = _devices()
    results: list[Any] = [None] * len(jaxpr.outvars)
    others = [position for position in range(len(results)) if position not in recipes]
    values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args), strict=True))

    def read(var: Any) -> Any:
        if isinstance(var, Literal):
            return np.asarray(var.val, var.aval.dtype)  # type: ignore[attr-defined]
        return values[var]

    operations: dict[Hashable, Callable[..., list[jax.Array]]] = {}
    for eqn in shared:
        kind, arguments = _kind(eqn), [read(var) for var in eqn.invars]
        if kind not in operations:
            operations[kind] = _compiled(_of_any_inputs(jaxpr, eqn), 1, arguments, devices)
        values.update(zip(eqn.outvars, operations[kind](*arguments), strict=True))
    for position in others:
        results[position] = read(jaxpr.outvars[position])
    for alike in _alike(recipes, shardings):
        recipe = recipes[alike[0]]
        compute = _compiled(
            recipe, len(alike), [values[var] for var in recipe.invars], devices, shardings[alike[0]]
        )
        for position in alike:
            (results[position],) = compute(*(values[var] for var in recipes[position].invars))
    return [
        _moved(value, devices[1], sharding)
        for value, sharding in zip(results, shardings, strict=True)
    ]


def _split(jaxpr: Any) -> tuple[dict[int, Any], list[Any]]:
    """For each result by position, the jaxpr that makes its array and nothing else; and the equations that are left."""
    user: dict[Any, int | None] = {}

    def use(var: Any, position: int | None) -> None:
        if not isinstance(var, Literal):
            user[var] = position if user.get(var, position) == position else None

    for number, var in enumerate(jaxpr.outvars):
        use(var, number)
    own: dict[int, list[Any]] = {}
    shared: list[Any] = []
    for eqn in reversed(jaxpr.eqns):
        users = {user[var] for var in eqn.outvars if var in user}
        if not users and not eqn.effects:
            continue
        makes_numbers = all(math.prod(var.aval.shape) == 1 for var in eqn.outvars)
        position = None if makes_numbers or len(users) != 1 else users.pop()
        (shared if position is None else own.setdefault(position, [])).append(eqn)
        for var in eqn.invars:
            use(var, position)
    recipes = {}
    for number, eqns in own.items():
        made = {var for eqn in eqns for var in eqn.outvars}
        used = dict.fromkeys(
            var for eqn in eqns[::-1] for var in eqn.invars if not isinstance(var, Literal)
        )
        recipes[number] = _part(
            jaxpr, eqns[::-1], [var for var in used if var not in made], [jaxpr.outvars[number]]
        )
    return recipes, shared[::-1]


def _part(jaxpr: Any, eqns: list[Any], invars: list[Any], outvars: list[Any]) -> Any:
    return jaxpr.replace(
        eqns=eqns,
        invars=invars,
        outvars=outvars,
        constvars=[],
        debug_info=jaxpr.debug_info.with_unknown_names(),
    )


def _of_any_inputs(jaxpr: Any, eqn: Any) -> Any:
    """One operation as a function of all its inputs, those that are written into the code (literals) included."""
    structs = [jax.ShapeDtypeStruct(var.aval.shape, var.aval.dtype) for var in eqn.invars]  # type: ignore[no-untyped-call]
    inputs = jax.make_jaxpr(lambda *inputs: inputs)(*structs).jaxpr.invars
    return _part(jaxpr, [eqn.replace(invars=inputs)], inputs, eqn.outvars)


def _alike(recipes: dict[int, Any], shardings: Sequence[Any]) -> list[list[int]]:
    """Positions of results whose recipes are the same but for the names of variables, and whose shardings are the same."""
    groups: dict[Hashable, list[int]] = {}
    for position, recipe in recipes.items():
        groups.setdefault((_names_apart(recipe), shardings[position]), []).append(position)
    return list(groups.values())


def _names_apart(recipe: Any) -> Hashable:
    numbers: dict[Any, int] = {}

    def name(var: Any) -> Hashable:
        return (
            np.asarray(var.val).tobytes()
            if isinstance(var, Literal)
            else numbers.setdefault(var, len(numbers))
        )

    return tuple(
        (_kind(eqn), *map(name, eqn.invars), *map(name, eqn.outvars)) for eqn in recipe.eqns
    )


def _kind(eqn: Any) -> Hashable:
    """What operations have in common that one compilation serves: all but the values of their inputs."""
    kind = (eqn.primitive, tuple(sorted(eqn.params.items())), tuple(var.aval for var in eqn.invars))
    try:
        hash(kind)
    except TypeError:
        return id(eqn)
    return kind


def _compiled(
    jaxpr: Any, count: int, arguments: Sequence[Any], devices: tuple[Any, Any], sharding: Any = None
) -> Callable[..., list[jax.Array]]:
    """Compile a computation that is run `count` times, for the first of the devices if it is small, or else for the second.

    It is compiled ahead, since inside of `jax.ensure_compile_time_eval` JAX would make constants of what the code only depends
    on itself for, such as the counters behind random bits.
    """
    elements = count * sum(math.prod(var.aval.shape) for var in (*jaxpr.invars, *jaxpr.outvars))
    is_small = elements < _WORTH_OPTIMIZING
    device = devices[0] if is_small else devices[1]
    is_moved = device != devices[1]
    function = functools.partial(jax.core.eval_jaxpr, jaxpr, ())
    with jax.default_device(device):
        arguments = [_moved(argument, device) for argument in arguments]
        lowered = jax.jit(function, out_shardings=None if is_moved else sharding).lower(*arguments)
        compiled = _compiled_for(device, lowered, is_small)
    return lambda *arguments: compiled(*(_moved(argument, device) for argument in arguments))


def _compiled_for(device: Any, lowered: Any, is_small: bool) -> Callable[..., list[jax.Array]]:
    if device.platform != "cpu":
        return lowered.compile()
    try:
        return lowered.compile(
            _FAST_TO_COMPILE | {"xla_backend_optimization_level": "0" if is_small else "1"}
        )
    except jax.errors.JaxRuntimeError:
        # XLA's options come and go.
        return lowered.compile()


def _devices() -> tuple[Any, Any]:
    """The devices on which small and other arrays are made: a CPU, if JAX has one, and JAX's default device."""
    with jax.ensure_compile_time_eval():
        (default,) = jax.device_put(0).devices()
    if default.platform == "cpu":
        return default, default
    try:
        return jax.local_devices(backend="cpu")[0], default
    except RuntimeError:
        return default, default


def _moved(value: Any, device: Any, sharding: Any = None) -> Any:
    """A value on a device, or in a sharding, and committed to no device that nobody has asked for."""
    if not isinstance(value, jax.Array):
        return value
    is_there = (
        value.devices() == {device}
        if sharding is None
        else value.sharding.is_equivalent_to(sharding, value.ndim)
    )
    if is_there or (sharding is None and len(value.devices()) > 1):
        return value
    with jax.ensure_compile_time_eval(), jax.default_device(device):
        if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
            data = _moved(jax.random.key_data(value), device, sharding)
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(value))
        return jax.device_put(np.asarray(value), sharding)
