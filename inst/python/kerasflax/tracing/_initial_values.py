"""Evaluation of a jaxpr that returns many similar arrays: the initial values of a module.

If such a jaxpr is compiled as a whole, compilation time grows with the number of arrays. If it runs
one operation at a time, each operation is compiled for each shape. But a module makes its arrays in
few ways: all kernels of one shape come from the same initializer and differ only in their keys.
Therefore:

- The part that turns scalars (keys, scales) into an array is compiled once for all arrays that are
  made in the same way.
- The part that computes the scalars runs one operation at a time. Each kind of operation is
  compiled once.

Compiling for an accelerator takes longer than compiling for a CPU, and an accelerator needs as much
time for a small array as for a large one. If there is an accelerator, small arrays are therefore
computed on a CPU and then moved. The random bits are the same on every platform.
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

from .. import _host, _processes

# Below this number of elements, running unoptimized code is faster than optimizing it.
_WORTH_OPTIMIZING = 2**19
# The newer code generator for CPUs takes twice as long to compile, and its code is not faster here.
# The option is not documented; seen to work with jax 0.8.1 to 0.12.0.
_FAST_TO_COMPILE = {"xla_cpu_use_fusion_emitters": False}


def evaluate(
    jaxpr: Any, consts: Sequence[Any], *args: jax.Array, shardings: Sequence[Any] | None = None
) -> list[Any]:
    """Compute the results of a jaxpr at once, also inside another trace.

    Args:
        jaxpr: The computation, without its constants.
        consts: The values of its constants.
        *args: The values of its inputs.
        shardings: The sharding in which to compute each result, or None.

    Returns:
        The results of `eval_jaxpr`, up to rounding.
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
        kind, arguments = _operation_key(eqn), [read(var) for var in eqn.invars]
        if kind not in operations:
            operations[kind] = _compiled(_with_all_inputs(jaxpr, eqn), 1, arguments, devices)
        values.update(zip(eqn.outvars, operations[kind](*arguments), strict=True))
    for position in others:
        results[position] = read(jaxpr.outvars[position])
    sizes = {position: math.prod(jaxpr.outvars[position].aval.shape) for position in recipes}
    done, total = 0, sum(sizes.values())
    for alike in _group_alike(recipes, shardings):
        recipe = recipes[alike[0]]
        compute = _compiled(
            recipe, len(alike), [values[var] for var in recipe.invars], devices, shardings[alike[0]]
        )
        for position in alike:
            inputs = [values[var] for var in recipes[position].invars]
            # Moved at once: otherwise one device would hold all small arrays whole.
            results[position] = _moved_to(compute(*inputs)[0], devices[1], shardings[position])
        done += sum(sizes[position] for position in alike)
        _host.built(done, total)
    return [
        _moved_to(value, devices[1], sharding)
        for value, sharding in zip(results, shardings, strict=True)
    ]


def _split(jaxpr: Any) -> tuple[dict[int, Any], list[Any]]:
    """Split a jaxpr into recipes and shared equations.

    Returns:
        The recipe of each result by position, which is a jaxpr that makes its array alone, and the
        equations that belong to no recipe: those that compute scalars or serve several results.
    """
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
        recipes[number] = _subjaxpr(
            jaxpr, eqns[::-1], [var for var in used if var not in made], [jaxpr.outvars[number]]
        )
    return recipes, shared[::-1]


def _subjaxpr(jaxpr: Any, eqns: list[Any], invars: list[Any], outvars: list[Any]) -> Any:
    # The names of the old arguments and results would be wrong for the new ones:
    # https://github.com/jax-ml/jax/pull/31696
    # `with_unknown_names` is not documented; seen to work with jax 0.8.1 to 0.12.0.
    return jaxpr.replace(
        eqns=eqns,
        invars=invars,
        outvars=outvars,
        constvars=[],
        debug_info=jaxpr.debug_info.with_unknown_names(),
    )


def _with_all_inputs(jaxpr: Any, eqn: Any) -> Any:
    """Turn one operation into a function of all its inputs, including the literals in the code."""
    structs = [jax.ShapeDtypeStruct(var.aval.shape, var.aval.dtype) for var in eqn.invars]  # type: ignore[no-untyped-call]
    inputs = jax.make_jaxpr(lambda *inputs: inputs)(*structs).jaxpr.invars
    return _subjaxpr(jaxpr, [eqn.replace(invars=inputs)], inputs, eqn.outvars)


def _group_alike(recipes: dict[int, Any], shardings: Sequence[Any]) -> list[list[int]]:
    """Group the positions of results that have the same recipe and sharding.

    Recipes are the same if they differ only in the names of variables.
    """
    groups: dict[Hashable, list[int]] = {}
    for position, recipe in recipes.items():
        groups.setdefault((_without_names(recipe), shardings[position]), []).append(position)
    return list(groups.values())


def _without_names(recipe: Any) -> Hashable:
    """The recipe with its variables numbered in order of appearance."""
    numbers: dict[Any, int] = {}

    def name(var: Any) -> Hashable:
        return (
            np.asarray(var.val).tobytes()
            if isinstance(var, Literal)
            else numbers.setdefault(var, len(numbers))
        )

    return tuple(
        (_operation_key(eqn), *map(name, eqn.invars), *map(name, eqn.outvars))
        for eqn in recipe.eqns
    )


def _operation_key(eqn: Any) -> Hashable:
    """A key that is equal for operations that differ only in the values of their inputs."""
    key = (eqn.primitive, tuple(sorted(eqn.params.items())), tuple(var.aval for var in eqn.invars))
    try:
        hash(key)
    except TypeError:
        return id(eqn)
    return key


def _compiled(
    jaxpr: Any, count: int, arguments: Sequence[Any], devices: tuple[Any, Any], sharding: Any = None
) -> Callable[..., list[jax.Array]]:
    """Compile a computation that runs `count` times.

    A small computation is compiled for the first device, a large one for the second.

    The computation is compiled ahead of time. Inside `jax.ensure_compile_time_eval`, JAX would turn
    everything that does not depend on the inputs into constants, such as the counters that random
    bits are made from.
    """
    elements = sum(math.prod(var.aval.shape) for var in (*jaxpr.invars, *jaxpr.outvars))
    is_small = count * elements < _WORTH_OPTIMIZING
    device = devices[0] if is_small else devices[1]
    if elements < _WORTH_OPTIMIZING or device != devices[1]:
        # Compiling for one device and moving the parts is faster. The device holds a small array
        # whole until then.
        sharding = None
    # `eval_jaxpr` is not documented; seen to work with jax 0.8.1 to 0.12.0.
    function = functools.partial(jax.core.eval_jaxpr, jaxpr, ())
    with jax.default_device(device):
        arguments = [_moved_to(argument, device) for argument in arguments]
        lowered = jax.jit(function, out_shardings=sharding).lower(*arguments)
        compiled = _compiled_for(device, lowered, is_small)
    return lambda *arguments: compiled(*(_moved_to(argument, device) for argument in arguments))


def _compiled_for(device: Any, lowered: Any, is_small: bool) -> Callable[..., list[jax.Array]]:
    if device.platform != "cpu":
        return lowered.compile()
    try:
        return lowered.compile(
            _FAST_TO_COMPILE | {"xla_backend_optimization_level": "0" if is_small else "1"}
        )
    except jax.errors.JaxRuntimeError:
        # This version of XLA does not have one of the options.
        return lowered.compile()


def _devices() -> tuple[Any, Any]:
    """The devices for small and for large arrays: a CPU if JAX has one, and the default device."""
    with jax.ensure_compile_time_eval():
        (default,) = jax.device_put(0).devices()
    if default.platform == "cpu":
        return default, default
    try:
        return jax.local_devices(backend="cpu")[0], default
    except RuntimeError:
        return default, default


def _moved_to(value: Any, device: Any, sharding: Any = None) -> Any:
    """Move a value to a device or into a sharding. Without a sharding, it stays uncommitted."""
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
            data = _moved_to(jax.random.key_data(value), device, sharding)
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(value))
        return _processes.put(np.asarray(value), sharding)
