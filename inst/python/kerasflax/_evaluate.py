"""Computing what a jaxpr returns, where it returns many arrays that are made alike: the initial values of a module.

Compiled as a whole, such a computation takes the longer the more arrays it makes. Run one operation at a time, each operation
is compiled for each shape. But a module's arrays are made in few ways: all kernels of one shape come from one initializer, with
other keys. So what makes single numbers (keys, scales) is run one operation at a time, and what makes an array of them is
compiled once for all arrays that are made alike.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend.core import Literal

# With fewer elements, arrays are made sooner than better code for making them is compiled.
_WORTH_OPTIMIZING = 2**19
_FAST_TO_COMPILE = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def evaluate(jaxpr: Any, consts: Sequence[Any], *args: jax.Array) -> list[Any]:
    """Compute the results of a jaxpr at once, inside another trace as well: those of `eval_jaxpr`, up to rounding."""
    recipes, shared = _split(jaxpr)
    results: list[Any] = [None] * len(jaxpr.outvars)
    others = [position for position in range(len(results)) if position not in recipes]
    inputs = [var for recipe in recipes.values() for var in recipe.invars]
    wanted = [*inputs, *(jaxpr.outvars[position] for position in others)]
    with jax.ensure_compile_time_eval():
        values = iter(jax.core.eval_jaxpr(_part(jaxpr, shared, jaxpr.invars, wanted, jaxpr.constvars), consts, *args))
    arguments = {position: [next(values) for _ in recipe.invars] for position, recipe in recipes.items()}
    for position in others:
        results[position] = next(values)
    for alike in _alike(recipes):
        # Compiled ahead, since inside of `ensure_compile_time_eval` JAX would make constants of what the code only depends on
        # itself for, such as the counters behind random bits.
        compute = _compiled(recipes[alike[0]], len(alike), arguments[alike[0]])
        for position in alike:
            (results[position],) = compute(*arguments[position])
    return results


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
        used = dict.fromkeys(var for eqn in eqns[::-1] for var in eqn.invars if not isinstance(var, Literal))
        recipes[number] = _part(jaxpr, eqns[::-1], [var for var in used if var not in made], [jaxpr.outvars[number]])
    return recipes, shared[::-1]


def _part(jaxpr: Any, eqns: list[Any], invars: list[Any], outvars: list[Any], constvars: Sequence[Any] = ()) -> Any:
    return jaxpr.replace(
        eqns=eqns, invars=invars, outvars=outvars, constvars=list(constvars), debug_info=jaxpr.debug_info.with_unknown_names()
    )


def _alike(recipes: dict[int, Any]) -> list[list[int]]:
    """Positions of results whose recipes are the same but for the names of variables."""
    groups: dict[Hashable, list[int]] = {}
    for position, recipe in recipes.items():
        key = _key(recipe)
        try:
            groups.setdefault(key, []).append(position)
        except TypeError:
            groups[position] = [position]
    return list(groups.values())


def _key(recipe: Any) -> Hashable:
    numbers: dict[Any, int] = {}

    def name(var: Any) -> Hashable:
        if isinstance(var, Literal):
            return _type(var), np.asarray(var.val).tobytes()
        return _type(var), numbers.setdefault(var, len(numbers))

    return tuple(
        (eqn.primitive, tuple(sorted(eqn.params.items())), tuple(map(name, eqn.invars)), tuple(map(name, eqn.outvars)))
        for eqn in recipe.eqns
    )


def _type(var: Any) -> Hashable:
    return str(var.aval), getattr(var.aval, "weak_type", False)


def _compiled(recipe: Any, count: int, arguments: Sequence[jax.Array]) -> Callable[..., list[jax.Array]]:
    elements = count * sum(math.prod(var.aval.shape) for var in recipe.outvars)
    options = _FAST_TO_COMPILE if elements < _WORTH_OPTIMIZING and jax.default_backend() == "cpu" else None
    return jax.jit(functools.partial(jax.core.eval_jaxpr, recipe, ()), compiler_options=options).lower(*arguments).compile()
