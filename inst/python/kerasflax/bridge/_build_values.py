"""The values with which a layer begins: given ones, or initial ones computed from a trace."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from .. import _host, _limits, _rng
from .._errors import ShapeError
from .._messages import spec_text
from ..adapters._protocol import Adapter
from ..tracing._trace import DependsOnSizeError, Spec, Trace
from . import _variables
from ._forms import Form, Formed

PyTree = Any
Template = _variables.Template


class Init:
    """`Adapter.init` as a function of arrays, which a trace calls.

    Attributes:
        template: The template of the variables, after a trace.
    """

    def __init__(self, adapter: Adapter, form: Form | None) -> None:
        self._adapter, self._form = adapter, form
        self.template = _variables.split({})[0]

    def __call__(
        self, key_data: jax.Array, inputs: PyTree, mask: PyTree
    ) -> tuple[Formed, dict[str, jax.Array]]:
        """Return the outputs and the variables by path."""
        key = jax.random.wrap_key_data(key_data)
        inputs = self._form.merge(inputs) if self._form else inputs
        outputs, variables = self._adapter.init(key, inputs, mask=mask)
        self.template, arrays = _variables.split(variables)
        return Formed.of(outputs), arrays


def key_spec() -> Spec:
    """The spec of the data of `Init`'s random key."""
    key_data = jax.eval_shape(lambda: jax.random.key_data(_rng.initial_key(0)))
    return Spec(key_data.shape, str(key_data.dtype))


def initial_values(traced: Trace, inputs: PyTree, seed: int, name: str) -> dict[str, jax.Array]:
    """Compute initial values from a trace of `Init`.

    Args:
        traced: The trace.
        inputs: The inputs of the call that builds the layer, if there is one.
        seed: The layer's seed.
        name: The module's class, for messages.

    Raises:
        ShapeError: The shape or the value of a variable depends on an unknown size of the input,
            or the array is too large for any memory.
    """
    outputs, expected = traced.result
    _check_shapes(expected, name)
    wanted = [False] * len(jax.tree.leaves(outputs)) + [True] * len(expected)
    with jax.ensure_compile_time_eval():
        key_data = jax.random.key_data(_rng.initial_key(seed))
    # JAX sorts a dict by its keys.
    paths = sorted(expected)
    shardings = [_variables.sharding(path, expected[path].shape) for path in paths]
    try:
        arrays = traced.evaluate(wanted, key_data, inputs, shardings)
    except DependsOnSizeError as error:
        raise ShapeError(
            f"The initial values of {name} depend on an unknown size of the input.",
            advice=_give_the_shape(),
        ) from error
    return dict(zip(paths, arrays, strict=True))


def _check_shapes(expected: Mapping[str, Spec], name: str) -> None:
    unknown = {path: spec_text(spec) for path, spec in expected.items() if None in spec.shape}
    if unknown:
        raise ShapeError(
            f"The shapes of these variables of {name} depend on an unknown size of the input:",
            problems=unknown,
            advice=_give_the_shape(),
        )
    too_large = {
        path: spec_text(spec)
        for path, spec in expected.items()
        if spec.size > _limits.MOST_ELEMENTS
    }
    if too_large:
        raise ShapeError(
            f"These variables of {name} are too large for any memory:",
            problems=too_large,
            advice="Check the module's sizes and the shape of the input.",
        )


def _give_the_shape() -> str:
    return f"Give the input's whole shape, with the batch size: {_host.word('batch shape')}."


def given_values(
    adapter: Adapter,
    given: Mapping[str, PyTree],
    template: Template,
    expected: Mapping[str, Spec],
    *,
    is_trainable: Any,
) -> tuple[Template, dict[str, jax.Array], dict[str, Spec]]:
    """Fit given values to the variables that `init` creates.

    Returns:
        The template with the collections that only the user provides; the arrays by path; and the
        specs of the arrays that `init` does not create, or creates with another shape or dtype.

    Raises:
        VariablesError: Something does not fit; the error lists every place by path.
    """

    def fixed_shape(path: str) -> bool:
        return is_trainable(path) or not (adapter.allows_extra_collections or path in expected)

    arrays = _variables.fitted(
        expected,
        given,
        fixed_shape=fixed_shape,
        place=_variables.sharding,
        surplus=adapter.allows_unused,
    )
    known = {_variables.collection_of(path) for path in template.leaves}
    provided = {name: tree for name, tree in given.items() if name not in known}
    specs = {path: Spec.of(array) for path, array in arrays.items()}
    differing = {path: spec for path, spec in specs.items() if expected.get(path) != spec}
    return template.extended(provided, arrays), arrays, differing


def with_specs(
    template: Template, arrays: Mapping[str, jax.Array], specs: Mapping[str, Spec]
) -> tuple[Template, dict[str, jax.Array]]:
    """Add zeros for the variables that a loaded config lists as given.

    Loading replaces the zeros by the saved values.
    """
    if not specs:
        return template, dict(arrays)
    with jax.ensure_compile_time_eval():
        zeros = {path: jnp.zeros(spec.shape, spec.dtype) for path, spec in specs.items()}
    known = {_variables.collection_of(path) for path in template.leaves}
    others = {p: array for p, array in zeros.items() if _variables.collection_of(p) not in known}
    arrays = {**arrays, **zeros}
    return template.extended(_variables.nested(others), arrays), arrays
