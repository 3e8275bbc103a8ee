"""The values with which a layer begins: given ones, or initial ones computed from a trace."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from .. import _host, _limits, _rng
from .._errors import ShapeError, VariablesError
from .._messages import spec_text
from ..adapters._protocol import Adapter
from ..tracing._trace import DependsOnSizeError, Spec, Trace, trace
from . import _layouts, _setting, _variables
from ._forms import Form, Formed

PyTree = Any
Template = _variables.Template
Layouts = _layouts.Layouts


class Init:
    """`Adapter.init` as a function of arrays, which a trace calls.

    Attributes:
        template: The template of the variables, after a trace.
        named: The `PartitionSpec` from the module's metadata by path, after a trace.
    """

    def __init__(self, adapter: Adapter, form: Form | None, given: Template | None = None) -> None:
        self._adapter, self._form, self._given = adapter, form, given
        self.template = _variables.split({})[0]
        self.named: dict[str, Any] = {}

    def __call__(
        self,
        key_data: jax.Array,
        inputs: PyTree,
        mask: PyTree,
        given: Mapping[str, jax.Array] | None = None,
    ) -> tuple[Formed, dict[str, jax.Array]]:
        """Return the outputs and the variables by path.

        With given variables by path, call the method with these.
        """
        key = jax.random.wrap_key_data(key_data)
        inputs = self._form.merge(inputs) if self._form else inputs
        overlay = None if given is None else functools.partial(self._overlaid, given)
        setting = _setting.Setting.now()
        with setting.in_force():
            outputs, variables = self._adapter.init(key, inputs, mask=mask, overlay=overlay)
            if setting.mesh is not None:
                self.named = _variables.named_leaves(self._adapter.partition_specs(variables))
        self.template, arrays = _variables.split(variables)
        return Formed.of(outputs), arrays

    def _overlaid(self, given: Mapping[str, jax.Array], known: Mapping[str, PyTree]) -> PyTree:
        if not known:
            return self._given.merge(given) if self._given else {}
        template, arrays = _variables.split(known)
        return template.merge({path: given.get(path, array) for path, array in arrays.items()})


def traced_init(
    adapter: Adapter,
    inputs: PyTree,
    mask: PyTree,
    form: Form | None,
    given: Mapping[str, PyTree] | None,
) -> tuple[Init, Trace, bool]:
    """Trace `Adapter.init`, without given variables if that is possible, and otherwise with them.

    A decoder may have to be initialized for a whole sequence, and then be called step by step with
    the variables for that.

    Args:
        adapter: The adapter.
        inputs: The specs of the inputs.
        mask: The specs of the mask, or None.
        form: The form of the inputs.
        given: Variables that the user has given, if there are any.

    Returns:
        The traced `Init`, the trace, and whether the given variables were used.

    Raises:
        Exception: The module's own code failed, in both cases if variables are given.
    """
    init = Init(adapter, form)
    try:
        traced = trace(init, _key_spec(), inputs, mask)
    except Exception as error:
        # Any code of the module may have failed.
        if not isinstance(given, Mapping) or not given:
            raise
        template, arrays = _variables.split(_variables.plain(given))
        init = Init(adapter, form, template)
        specs = {path: Spec.of(jax.eval_shape(jnp.asarray, x)) for path, x in arrays.items()}
        try:
            traced = trace(init, _key_spec(), inputs, mask, specs)
        except Exception as other:
            if (type(other), str(other)) == (type(error), str(error)):
                raise error from error.__cause__
            raise other from error
        return init, traced, True
    return init, traced, False


def _key_spec() -> Spec:
    """The spec of the data of `Init`'s random key."""
    key_data = jax.eval_shape(lambda: jax.random.key_data(_rng.initial_key(0)))
    return Spec(key_data.shape, str(key_data.dtype))


def initial_values(
    traced: Trace,
    inputs: PyTree,
    seed: int,
    name: str,
    layouts: Layouts,
    wanted: Callable[[str], bool] = lambda path: True,
) -> dict[str, jax.Array]:
    """Compute initial values from a trace of `Init`.

    Args:
        traced: The trace.
        inputs: The inputs of the call that builds the layer, if there is one.
        seed: The layer's seed.
        name: The module's class, for messages.
        layouts: From the shapes of variables by path to their shardings.
        wanted: Whether to compute the value of a path.

    Raises:
        ShapeError: The shape or the value of a variable depends on an unknown size of the input,
            or the array is too large for any memory.
    """
    outputs, expected = traced.result
    # JAX sorts a dict by its keys.
    paths = sorted(filter(wanted, expected))
    if not paths:
        return {}
    _check_shapes({path: expected[path] for path in paths}, name)
    leaves = [False] * len(jax.tree.leaves(outputs)) + [path in paths for path in sorted(expected)]
    with jax.ensure_compile_time_eval():
        key_data = jax.random.key_data(_rng.initial_key(seed))
    placed = layouts({path: expected[path].shape for path in paths})
    shardings = [placed[path] for path in paths]
    try:
        arrays = traced.evaluate(leaves, key_data, inputs, shardings)
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
    first_values: Callable[..., dict[str, jax.Array]],
    *,
    is_trainable: Callable[[str], bool],
    layouts: Layouts,
    used_given: bool = False,
) -> tuple[Template, dict[str, jax.Array], dict[str, Spec]]:
    """Fit given values to the variables that `init` creates.

    Args:
        adapter: The adapter.
        given: The values.
        template: The template of the variables.
        expected: The specs of the variables by path.
        first_values: `initial_values`, as a function of the paths for which it is `wanted`.
        is_trainable: Whether a path is that of a weight.
        layouts: From the shapes of variables by path to their shardings.
        used_given: Whether the specs are known because the method was called with these values.

    Returns:
        The template with the collections that only the user provides; the arrays by path; and the
        specs of the arrays that `init` does not create, or creates with another shape or dtype.

    Raises:
        VariablesError: Something does not fit; the error lists every place by path.
    """

    def fixed_shape(path: str) -> bool:
        return is_trainable(path) or not (adapter.allows_extra_collections or path in expected)

    if isinstance(given, Mapping):
        own = set(_variables.unboxed(_variables.named_leaves(given), expected).values())
        made = first_values(
            wanted=lambda path: path not in own and adapter.restarts(_variables.collection_of(path))
        )
        if adapter.is_abstract:
            _variables.refuse_other_level(expected, own)
            _check_all_given(expected.keys() - own - made.keys(), expected, adapter.name)
        given = _variables.overlaid(_variables.nested(made), given) if made else given
    # An error then lists all weights. State may have another shape than the module's.
    weights: dict[str, Any] = {
        path: spec.shape for path, spec in expected.items() if fixed_shape(path)
    }
    layouts({path: shape for path, shape in weights.items() if None not in shape})
    arrays = _variables.fitted(
        expected,
        given,
        fixed_shape=fixed_shape,
        place=lambda path, shape: layouts({path: shape})[path],
        surplus=adapter.allows_unused,
    )
    known = {_variables.collection_of(path) for path in template.leaves}
    provided = {
        name: tree
        for name, tree in given.items()
        if _variables.collection_of(str(name)) not in known
    }
    specs = {path: Spec.of(array) for path, array in arrays.items()}
    differing = {
        path: spec for path, spec in specs.items() if used_given or expected.get(path) != spec
    }
    return template.extended(provided, arrays), arrays, differing


def _check_all_given(missing: Iterable[str], expected: Mapping[str, Spec], name: str) -> None:
    if missing:
        raise VariablesError(
            f"{name} is abstract, and these variables have no values:",
            problems={
                path: f"missing, expected {spec_text(expected[path])}" for path in sorted(missing)
            },
            advice="Give their values as `variables`, or let the layer create the module: "
            f"{_host.word('lazy module')}.",
        )


def stand_ins(specs: Mapping[str, Spec]) -> dict[str, PyTree]:
    """Nested dicts of arrays without values."""
    return _variables.nested(
        {path: jax.ShapeDtypeStruct(spec.shape, spec.dtype) for path, spec in specs.items()}  # type: ignore[no-untyped-call]
    )


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
