"""The Keras layer: build, call, config. What is Flax's is the adapter's, what is a variable's is the bridge's."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
import inspect
import random
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import keras
from keras.src.backend.common.global_state import get_global_attribute
from keras.src.backend.common.stateless_scope import in_stateless_scope
from keras.src.saving.serialization_lib import SafeModeScope

from . import _paths, _rng
from ._errors import (
    ArgumentError,
    BackendError,
    ConfigError,
    NotBuiltError,
    ShapeError,
    StateError,
    VariablesError,
)
from .adapters._context import module_is_running
from .adapters._protocol import Method, adapt, is_module
from .bridge import _arguments, _variables, _weights_file
from .bridge._call import Call, call_of, current
from .bridge._forms import Form, Formed, map_leaves, split
from .bridge._memory import copied
from .bridge._transaction import all_or_nothing, scopes_kept
from .saving import _plan, _to_json
from .tracing._trace import DependsOnSizeError, Spec, Trace, as_array, trace, until_learned

PyTree = Any

_FORMAT_VERSION = 1
# What a config gives to the constructor as it is.
_CONFIGURED = {"name", "trainable", "autocast", "seed"}
# What it gives when it has been checked: Keras would make whatever is described.
_CHECKED: Mapping[str, Callable[[Any, str], Callable[[], Any]]] = {
    "dtype": _to_json.policy_from_config,
    "activity_regularizer": _to_json.regularizers_from_config,
    "regularizers": functools.partial(_to_json.by_pattern, check=_to_json.regularizers_from_config),
    "constraints": functools.partial(_to_json.by_pattern, check=_to_json.constraints_from_config),
}
_LOSSES = "losses"
# As Keras names it below the layer's own path.
_SEED_PATH = "seed_generator/seed_generator_state"


@contextlib.contextmanager
def _without_gc() -> Iterator[None]:
    """Spare the block the search for cycles: a trace makes objects by the thousand, among which there are few."""
    with contextlib.ExitStack() as stack:
        if gc.isenabled():
            # Not so where another thread's block has disabled it, and will enable it.
            stack.callback(gc.enable)
        gc.disable()
        yield


@keras.saving.register_keras_serializable(package="kerasflax")
class FlaxLayer(keras.layers.Layer):
    """A Flax module as a Keras layer.

    The layer's weights have their Flax paths, `<layer>/params/Dense_0/kernel`. The collection `params` is trainable; every
    other collection is non-trainable state, and what the module writes to it is kept. Random streams are supplied by name,
    without being declared. What the module sows is not kept, but what is sown into `losses`, summed up, is added to the
    model's losses.

    The method receives the layer's input as `inputs` (or as its first argument), and the mode as `training`, `train`,
    `is_training`, or negated as `deterministic` or `use_running_average`, whichever of them it has. The rule is written
    down in `kerasflax.adapters._signature`. With `trainable=False` the module runs in inference mode, as Keras's own
    `BatchNormalization` does.

    Initial values are those of `module.init(jax.random.key(seed), inputs)`, in inference mode, for the true shapes and
    dtypes of the input (float32 is assumed where Keras gives a shape alone). Where they depend on the input's values, those
    of the first call's arrays count, and ones where the layer is built without arrays. Where a size of the input is unknown, it
    is a symbol in the trace; no variable can depend on it.

    A `flax.nnx.Module` holds its values: the layer copies them, and leaves the module as it was. A `LazyModule` builds without
    a second copy. Subclasses of `nnx.Param` are trainable, every other type of variable is state, in collections of the names
    that Flax's bridge gives them (of the types' own names where it has none; arrays that are attributes by themselves are the
    collection `arrays`).
    Unless the method takes the mode, `deterministic` and `use_running_average` of all parts are set to it. Random streams are
    the module's own state; where the method takes `rngs`, and the module has none, they come from the layer's seed.

    Args:
        module: A `flax.linen.Module` or `flax.nnx.Module` instance, or a `LazyModule`, which the layer makes when it is built.
        method: The method to call, for initialisation too: None for `__call__`, a name, a method of the module, or a function
            that takes the module first.
        variables: A nested dict of arrays, as `module.init()` returns it, to use in place of initial values; of an NNX module
            those named are replaced. The arrays are copied when the layer is built, to where Keras keeps its variables: the
            layout of `keras.distribution`, or else the default device. They stay the caller's, so that the weights take twice
            their memory until the caller drops them. Trainable weights must have the shapes that the module gives them; other
            collections may have other shapes.
        seed: An integer from 0 to 2**32 - 1: of the initial values and of the random streams. None draws one.
        regularizers: By pattern of paths (see `kerasflax._paths`), Keras regularizers of trainable weights:
            `{"params/**/kernel": keras.regularizers.L2(1e-4)}`. Where several patterns fit a weight, the last one counts.
        constraints: Likewise, Keras constraints.
        **kwargs: What every Keras layer takes: `name`, `trainable`, `dtype`, `autocast`, `activity_regularizer`. A `dtype`
            given here, or a global policy other than `float32`, rules the params and the computation; otherwise the dtypes
            that the module declares stand. State always keeps its dtype.

    Raises:
        ArgumentError: An argument that the layer does not take.
        BackendError: Keras does not run on JAX.
        MethodError: The module has no such method, its arguments cannot be filled, or it returns no array.
        ModuleError: `module` is no Flax module instance.
        ShapeError: At build, when the shape of a variable depends on an unknown size of the input.
        VariablesError: At build, when `variables` does not fit; it lists every place by path.
    """

    def __init__(
        self,
        module: Any,
        method: Method = None,
        variables: Mapping[str, PyTree] | None = None,
        *,
        seed: int | None = None,
        regularizers: Mapping[str, Any] | None = None,
        constraints: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        _arguments.check_backend()
        _arguments.check_keywords(kwargs)
        seed = _arguments.checked_seed(seed)
        super().__init__(**kwargs)
        if not keras.backend.is_float_dtype(self.variable_dtype):
            raise ArgumentError(
                f"`dtype` must be a floating-point dtype or policy, got {self.variable_dtype!r}."
            )
        self.seed = seed
        self.regularizers = _arguments.by_pattern(
            "regularizers", regularizers, keras.regularizers.get
        )
        self.constraints = _arguments.by_pattern("constraints", constraints, keras.constraints.get)
        self._adapter = adapt(_arguments.checked_module(module), method)
        # A bound method would keep its module, with all values of one of NNX.
        self.method = method if method is None or isinstance(method, str) else self._adapter.method
        self.supports_masking = self._adapter.takes_mask
        # Python's generator, which `keras.utils.set_random_seed` seeds, is what Keras draws unset seeds from, too.
        self._drawn_seed = random.randint(1, 10**9) if seed is None else seed
        self.seed_generator = keras.random.SeedGenerator(self._drawn_seed)
        self._follows_policy = (
            kwargs.get("dtype") is not None or self.dtype_policy.name != "float32"
        )
        self._paths: tuple[str, ...] = ()
        self._ordered_variables: tuple[keras.Variable, ...] = ()
        self._memory = _Memory(
            given=_variables.overlaid(self._adapter.values_of(module), variables)
        )
        # What Keras has put around the method belongs to a build, too: it marks the layer as built.
        self.build = self._once(self.build)  # type: ignore[method-assign]
        self._compiled = jax.jit(self._apply, static_argnames=("training", "form"), inline=True)

    # Build ---------------------------------------------------------------------------------------------------------------

    def __call__(self, inputs: PyTree, *args: Any, form: Form | None = None, **kwargs: Any) -> Any:
        """Call the layer on a pytree of arrays or Keras tensors; see `keras.layers.Layer`.

        Keras nests lists, tuples, named tuples and dicts. Other pytrees are taken apart for it, and dicts by field stand in
        their place among Keras tensors, and wherever a model calls the layer. The module is given what the layer was called
        with, and an eager call of the layer itself returns what the module returned.
        """
        if form is not None and type(form) is not Form:
            raise ConfigError(f"The input's form is described wrongly: {_plan.shown(form)}.")
        is_called_by_keras = (
            in_stateless_scope() or get_global_attribute("current_call_ctx") is not None
        )
        if form is None:
            form, inputs = split(inputs)
        if not form.is_plain:
            # A model repeats this call with what Keras was given, and hands the form on.
            kwargs["form"] = form
        _refuse_misdeclared_input(self._memory.input_dtypes, inputs)
        call = Call(self, form=None if form.is_plain else form)
        with contextlib.ExitStack() as stack:
            if not self.built:
                stack.enter_context(self._memory.lock)
                stack.enter_context(
                    all_or_nothing(self, self._memory, self._adapter, is_done=lambda: self.built)
                )
                # Keras tells `build` the shapes alone.
                call.inputs, call.input_dtypes = inputs, jax.tree.map(self._dtype_in_call, inputs)
                mask = kwargs.get(
                    "mask", jax.tree.map(lambda x: getattr(x, "_keras_mask", None), inputs)
                )
                call.mask_spec = jax.tree.map(_spec_of, _mask_if_any(mask))
            else:
                stack.enter_context(scopes_kept())
            stack.callback(current.set, current.get())
            current.set(call)
            outputs = super().__call__(inputs, *args, **kwargs)
        if is_called_by_keras or any(
            isinstance(x, keras.KerasTensor) for x in jax.tree.leaves(outputs)
        ):
            return outputs
        return outputs if call.output_form is None else call.output_form.merge(outputs)

    def _once(self, build: Callable[..., None]) -> Callable[..., None]:
        """Make a build all or nothing, and let one thread at a time build. Keras refuses a second build."""

        @functools.wraps(build)
        def build_once(*args: Any, **kwargs: Any) -> None:
            with self._memory.lock, all_or_nothing(self, self._memory, self._adapter):
                build(*args, **kwargs)

        return build_once

    @_without_gc()
    def build(self, input_shape: PyTree) -> None:
        """Create the variables: one abstract trace of the module, then the values.

        Args:
            input_shape: A shape, with None for unknown sizes, or a nested structure of shapes.
        """
        call, memory = call_of(self), self._memory
        spec = _specs(input_shape, call.input_dtypes)
        template, traced = self._trace_init(spec, call.mask_spec, call.form)
        outputs, expected = traced.result
        given_specs = memory.given_specs
        if memory.given is not None:
            template, arrays, given_specs = self._given_values(template, expected)
        else:
            arrays = self._initial_values(traced, call.inputs)
            if given_specs:
                template, arrays = self._with_given_specs(template, arrays)
        variables = _variables.create(
            arrays,
            trainable=self._path_is_trainable,
            parameter_dtype=self.variable_dtype if self._follows_policy else None,
        )
        if _SEED_PATH in variables:
            raise StateError(
                f"{self._adapter.name} has a variable {_SEED_PATH}, where the layer keeps its seed.\nRename it."
            )
        trainable = [path for path in variables if self._path_is_trainable(path)]
        unknown = set(memory.frozen) - set(trainable)
        if unknown:
            names = ", ".join(f"{path:.200}" for path in sorted(unknown)[:5])
            raise ConfigError(
                f"{self._adapter.name} has no trainable weights {names}, to be frozen."
            )
        for attribute, values in (
            ("regularizer", self.regularizers),
            ("constraint", self.constraints),
        ):
            for pattern, value in values.items():
                for path in _paths.matched(pattern, trainable):
                    setattr(variables[path], attribute, value)
        # All is there. What follows is undone where it is broken off: see `_once`.
        memory.given, memory.given_specs, memory.input_dtypes = None, given_specs, call.input_dtypes
        if not self._follows_policy:
            # A policy casts the params that the module is called with, and `init` knows nothing of it.
            memory.output_specs = {_hashable((spec, call.mask_spec), False, call.form): outputs}
        self._template, self._paths = template, tuple(variables)
        # In a tuple they are part of the layer for NNX too, whose transformations exchange the variables of Keras's layers.
        self._ordered_variables = tuple(variables.values())
        # Only now that they are tracked as trainable: Keras hands the layer's own setting to them.
        self.trainable = self.trainable

    def _trace_init(
        self, spec: PyTree, mask_spec: PyTree, form: Form | None
    ) -> tuple[_variables.Template, Trace]:
        templates = []

        def init(
            key_data: jax.Array, inputs: PyTree, mask: PyTree
        ) -> tuple[Formed, dict[str, jax.Array]]:
            key = jax.random.wrap_key_data(key_data)
            outputs, variables = self._adapter.init(
                key, form.merge(inputs) if form else inputs, mask=mask
            )
            template, arrays = _variables.split(variables)
            templates.append(template)
            return Formed.of(outputs), arrays

        key_data = jax.eval_shape(lambda: jax.random.key_data(_rng.initial_key(0)))
        traced = trace(init, Spec(key_data.shape, str(key_data.dtype)), spec, mask_spec)
        return templates[-1], traced

    def _given_values(
        self, template: _variables.Template, expected: Mapping[str, Spec]
    ) -> tuple[_variables.Template, dict[str, jax.Array], dict[str, Spec]]:
        given = self._kept(self._memory.given)

        def fixed_shape(path: str) -> bool:
            return self._path_is_trainable(path) or not (
                self._adapter.allows_extra_collections or path in expected
            )

        arrays = _variables.fitted(
            expected,
            given,
            fixed_shape=fixed_shape,
            place=_variables.sharding,
            surplus=self._adapter.allows_unused,
        )
        known = {_variables.collection_of(path) for path in template.leaves}
        provided = {name: tree for name, tree in given.items() if name not in known}
        specs = {path: _spec_of(array) for path, array in arrays.items()}
        given_specs = {path: spec for path, spec in specs.items() if expected.get(path) != spec}
        return template.extended(provided, arrays), arrays, given_specs

    def _with_given_specs(
        self, template: _variables.Template, arrays: Mapping[str, jax.Array]
    ) -> tuple[_variables.Template, dict[str, jax.Array]]:
        """Zeros in the place of variables that were given to the layer whose config this one was made from."""
        with jax.ensure_compile_time_eval():
            zeros = {
                path: jnp.zeros(spec.shape, spec.dtype)
                for path, spec in self._memory.given_specs.items()
            }
        known = {_variables.collection_of(path) for path in template.leaves}
        others = {
            path: array
            for path, array in zeros.items()
            if _variables.collection_of(path) not in known
        }
        arrays = {**arrays, **zeros}
        return template.extended(_variables.nested(others), arrays), arrays

    def _initial_values(self, traced: Trace, inputs: PyTree) -> dict[str, jax.Array]:
        outputs, expected = traced.result
        open_ = [
            f"  {path}: {spec.dtype}{spec.shape}"
            for path, spec in expected.items()
            if None in spec.shape
        ]
        if open_:
            raise ShapeError(
                f"The input's shape leaves the shape of these variables of {self._adapter.name} open (None):\n"
                + "\n".join(open_)
                + "\nGive the input's whole shape: the batch size by `keras.Input(batch_shape=...)`, say."
            )
        too_large = [
            f"  {path}: {spec.dtype}{spec.shape}"
            for path, spec in expected.items()
            if spec.size > 2**48
        ]
        if too_large:
            # JAX ends the process where a product of sizes overflows.
            raise ShapeError(
                f"No memory holds these variables of {self._adapter.name}:\n" + "\n".join(too_large)
            )
        wanted = [False] * len(jax.tree.leaves(outputs)) + [True] * len(expected)
        with jax.ensure_compile_time_eval():
            key_data = jax.random.key_data(_rng.initial_key(self._drawn_seed))
        # JAX sorts a dict by its keys.
        shardings = [_variables.sharding(path, expected[path].shape) for path in sorted(expected)]
        try:
            arrays = traced.evaluate(wanted, key_data, inputs, shardings)
        except DependsOnSizeError as error:
            raise ShapeError(
                f"Initial values of {self._adapter.name} depend on a size of the input that is not known (None).\n"
                "Give the input's whole shape: the batch size by `keras.Input(batch_shape=...)`, say."
            ) from error
        return dict(zip(sorted(expected), arrays, strict=True))

    def _path_is_trainable(self, path: str) -> bool:
        return self._adapter.trainable(_variables.collection_of(path))

    def _dtype_in_call(self, x: Any) -> str | None:
        """The dtype in which Keras hands an input to `call`."""
        if not hasattr(x, "dtype"):
            return None
        dtype = keras.backend.standardize_dtype(jax.dtypes.canonicalize_dtype(x.dtype))
        return self.input_dtype if self.autocast and keras.backend.is_float_dtype(dtype) else dtype

    # Call ----------------------------------------------------------------------------------------------------------------

    def call(
        self,
        inputs: PyTree,
        training: bool | None = None,
        mask: PyTree = None,
        form: Form | None = None,
    ) -> PyTree:
        """Call the module; see `keras.layers.Layer.call`. `form` says what `inputs` were before they were simplified."""
        self._memory.has_been_trained |= bool(training) and in_stateless_scope()
        training = bool(training) and self.trainable
        mask = _mask_if_any(mask)
        with self.alone():
            arrays = _variables.values(self._ordered_variables, cast=self._follows_policy)
            seed_state = self.seed_generator.state
            with _raised_as_is():
                formed, state, sown, next_seed_state = until_learned(
                    lambda: self._compiled(
                        arrays, inputs, mask, seed_state.value, training=training, form=form
                    )
                )
            self._take_sown(sown)
            if state or next_seed_state is not None:
                variables = self._saved_variables()
                drawn = {} if next_seed_state is None else {_SEED_PATH: next_seed_state}
                _variables.assign(
                    (variables[path], value) for path, value in (state | drawn).items()
                )
        call, outputs = call_of(self), formed.for_keras()
        call.output_form, call.output_shapes = formed.form, [x.shape for x in formed.leaves]
        return outputs

    def alone(self) -> contextlib.AbstractContextManager[Any]:
        """Keep other threads from the variables: a call, an assignment and whatever reads them all take turns."""
        # In a stateless scope the values are the scope's, and what calls the layer while a module runs must not wait for a
        # thread that waits for the module.
        return (
            contextlib.nullcontext()
            if in_stateless_scope() or module_is_running()
            else self._memory.lock
        )

    def _apply(
        self,
        arrays: list[jax.Array],
        inputs: PyTree,
        mask: PyTree,
        seed_state: jax.Array,
        training: bool,
        form: Form | None,
    ) -> tuple[Formed, dict[str, jax.Array], Mapping[str, PyTree], jax.Array | None]:
        """One application as a function of arrays, compiled once per mode and input spec, and inlined where Keras traces.

        Returns:
            The outputs, what becomes of the state, what was sown, and where random numbers were drawn what becomes of the seed.
        """
        held = dict(zip(self._paths, arrays, strict=True))
        variables = self._template.merge(held)
        outputs, state, sown = self._adapter.apply(
            variables,
            form.merge(inputs) if form else inputs,
            training=training,
            mask=mask,
            seed_state=seed_state,
        )
        # What is no array is refused. A tree that JAX maps would come back with its dicts sorted.
        for value in jax.tree.leaves((outputs, sown)):
            as_array(value)
        _, updates = _variables.split(state)
        # What was read and not written need not be assigned.
        updates = {path: value for path, value in updates.items() if value is not held.get(path)}
        (formed, sown), updates = _variables.apart((Formed.of(outputs), sown), updates, arrays)
        updates = _variables.checked_update(self.variables_by_path, updates, self._adapter.name)
        # A count of calls: see `_rng`.
        next_seed_state = (
            seed_state + jnp.array([0, 1], seed_state.dtype)
            if self._adapter.draws(training)
            else None
        )
        return formed, updates, sown, next_seed_state

    def _take_sown(self, sown: Mapping[str, PyTree]) -> None:
        for value in jax.tree.leaves(sown.get(_LOSSES)):
            self.add_loss(value.sum())
        if not any(isinstance(value, jax.core.Tracer) for value in jax.tree.leaves(sown)):
            self._memory.sown = self._memory.sown_here.value = sown

    def compute_output_spec(
        self,
        inputs: PyTree,
        training: bool | None = None,
        mask: PyTree = None,
        form: Form | None = None,
    ) -> PyTree:
        """The Keras tensors that the layer returns for Keras tensors; a size that depends on an unknown one is None."""
        specs = jax.tree.map(_spec_of, (inputs, _mask_if_any(mask)))
        with _raised_as_is():
            outputs = self._output_spec(
                *specs, training=bool(training) and self.trainable, form=form
            )
        call_of(self).output_shapes = [spec.shape for spec in outputs.leaves]
        return map_leaves(
            lambda spec: keras.KerasTensor(spec.shape, spec.dtype), outputs.for_keras()
        )

    def compute_mask(self, inputs: PyTree, previous_mask: PyTree) -> list[Any] | None:
        """Hand the input's mask on to the outputs that still have the axes that it masks."""
        if not hasattr(previous_mask, "shape"):
            return None
        axes, shapes = tuple(previous_mask.shape), call_of(self).output_shapes
        if shapes is None:
            specs = jax.tree.map(_spec_of, (inputs, previous_mask))
            shapes = [
                spec.shape for spec in self._output_spec(*specs, training=False, form=None).leaves
            ]
        return [
            previous_mask if len(shape) > len(axes) and tuple(shape[: len(axes)]) == axes else None
            for shape in shapes
        ]

    def compute_output_shape(self, input_shape: PyTree) -> PyTree:
        """The output's shape for an input's shape, or a nested structure of shapes."""
        outputs = self._output_spec(
            _specs(input_shape, self._memory.input_dtypes), None, training=False, form=None
        )
        return map_leaves(lambda spec: spec.shape, outputs.for_keras())

    def _output_spec(
        self, inputs: PyTree, mask: PyTree, *, training: bool, form: Form | None
    ) -> Formed:
        if not self.built:
            return self._trace_init(inputs, mask, form)[1].result[0]
        known = self._memory.output_specs
        key = _hashable((inputs, mask), training, form)
        if key not in known:
            arrays = [Spec(tuple(v.shape), v.dtype) for v in self._ordered_variables]
            # What a call of the same spec will find compiled, or at least traced.
            apply = functools.partial(self._compiled, training=training, form=form)
            known[key] = trace(apply, arrays, inputs, mask, Spec((2,), "uint32")).result[0]
        return known[key]

    # Variables -----------------------------------------------------------------------------------------------------------

    @property
    def module(self) -> Any:
        """The module, as Flax has it. One of NNX is here without the values of its variables, which `to_flax` gives it."""
        return self._adapter.module

    def to_flax(self) -> Any:
        """What Flax's users work with, holding copies of the layer's values.

        Returns:
            Of an NNX module another such module. Of a Linen module the pair of it and its variables. The arrays are
            copies, which training does not change.

        Raises:
            NotBuiltError: The layer has no variables yet.
        """
        return self._adapter.to_flax(self.flax_variables)

    @property
    def flax_variables(self) -> dict[str, PyTree]:
        """The module's variables by collection, with the structure that `module.init()` gives them.

        The arrays are copies, on the devices of the layer's weights; training does not change them. Assigning a nested dict
        sets what it names and leaves the rest; where anything in it does not fit, nothing is set.

        Raises:
            NotBuiltError: The layer has no variables yet.
            VariablesError: On assignment, when something does not fit; it lists every place by path.
        """
        values = self.values_by_path()
        return self._template.merge({path: copied(value) for path, value in values.items()})

    @flax_variables.setter
    def flax_variables(self, value: Mapping[str, PyTree]) -> None:
        self.assign_variables(self.fitted_variables(value))

    @property
    def _own_variables(self) -> dict[str, PyTree]:
        """What `flax_variables` returns, of the layer's own arrays: to be read at once, since the next step deletes them."""
        values = self.values_by_path()
        return self._template.merge(values)

    def values_by_path(self) -> dict[str, jax.Array]:
        """The layer's own arrays, as they were at one time: to be read at once, since the next training step deletes them."""
        with self.alone():
            self.check_values()
            return {path: variable.value for path, variable in self.variables_by_path.items()}

    def fitted_variables(self, value: Mapping[str, PyTree]) -> dict[str, jax.Array]:
        """Arrays by path for a nested dict that may be assigned to `flax_variables`; nothing is set.

        Raises:
            NotBuiltError: The layer has no variables yet.
            VariablesError: Something does not fit; it lists every place by path.
        """
        self.check_values()
        variables = self.variables_by_path
        return _variables.fitted(
            variables,
            self._kept(value),
            fixed_shape=lambda path: True,
            place=lambda path, _: variables[path].value.sharding,
            partial=True,
        )

    def _kept(self, variables: Any) -> Any:
        """Given variables without what the module sows; anything else is `fitted`'s to refuse."""
        return (
            self._adapter.state(_variables.plain(variables))
            if isinstance(variables, Mapping)
            else variables
        )

    def assign_variables(self, arrays: Mapping[str, jax.Array]) -> None:
        """Set variables by path, as `fitted_variables` returns them: all, or where that is broken off, none."""
        variables = self.variables_by_path
        with self.alone():
            _variables.assign((variables[path], array) for path, array in arrays.items())

    @property
    def variables_by_path(self) -> dict[str, keras.Variable]:
        """The Keras variables of every collection, by path; empty before the layer is built."""
        return dict(zip(self._paths, self._ordered_variables, strict=True))

    @property
    def trainable_paths(self) -> list[str]:
        """The paths of the weights that training changes, unless they are frozen."""
        return [path for path in self.variables_by_path if self._path_is_trainable(path)]

    @property
    def frozen(self) -> list[str]:
        """The paths of the weights that are excluded from training, one by one."""
        return list(self._memory.frozen)

    @frozen.setter
    def frozen(self, paths: Sequence[str]) -> None:
        with self.alone(), self.training_kept():
            self._memory.frozen = tuple(paths)
            self.trainable = self.trainable

    @property
    def trainable(self) -> bool:
        """Whether the layer is trained, and its module run in training mode; frozen weights are excluded all the same."""
        return bool(super().trainable)

    @trainable.setter
    def trainable(self, value: bool) -> None:
        with self.alone(), self.training_kept():
            keras.layers.Layer.trainable.fset(self, value)
            variables = self.variables_by_path
            for path in self._memory.frozen if variables else ():
                variables[path].trainable = False

    @contextlib.contextmanager
    def training_kept(self) -> Iterator[None]:
        """Where the block is broken off, leave trained and frozen what was."""
        frozen, trainable = self._memory.frozen, self.trainable
        flags = [(variable, variable.trainable) for variable in self._ordered_variables]
        try:
            yield
        except BaseException:
            self._memory.frozen, self._trainable = frozen, trainable
            for variable, flag in flags:
                variable.trainable = flag
            raise

    @property
    def sown(self) -> dict[str, PyTree]:
        """What the module sowed in the last eager call, by collection: of each name a tuple of values.

        The last call is this thread's, if it has made one. Calls inside a compiled step, as `fit` and `predict` make them, are
        not recorded.
        """
        return dict(getattr(self._memory.sown_here, "value", self._memory.sown))

    # Config --------------------------------------------------------------------------------------------------------------

    def get_config(self) -> dict[str, Any]:
        """The layer in JSON, without the values of its weights; see `kerasflax.saving._to_json`.

        Raises:
            ConfigError: The module, or its method, cannot be described; the message names the field.
        """
        config: dict[str, Any] = super().get_config()
        if not self._follows_policy:
            # Keras writes a policy that nobody has asked for.
            config.pop("dtype", None)
        return config | {
            "format_version": _FORMAT_VERSION,
            "module": _to_json.described(self.module),
            "method": self._memory.method_config
            or _to_json.method_to_config(self.method, self.module),
            "seed": self.seed,
            "autocast": self.autocast,
            "regularizers": {
                path: keras.regularizers.serialize(value)
                for path, value in self.regularizers.items()
            },
            "constraints": {
                path: keras.constraints.serialize(value) for path, value in self.constraints.items()
            },
            "frozen": self.frozen,
            "given": {
                path: [list(spec.shape), spec.dtype]
                for path, spec in self._memory.given_specs.items()
            },
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> FlaxLayer:
        """Make a layer as `get_config` describes it, with weights of its own.

        Raises:
            ConfigError: It is no such description, or of a later version, or names a class that is not there.
        """
        config = dict(_to_json.checked(config, Mapping, "The layer"))
        version = config.pop("format_version", None)
        if type(version) is not int or version != _FORMAT_VERSION:
            raise ConfigError(
                f"The layer is described in version {_plan.shown(version)} of the format; this kerasflax reads "
                f"{_FORMAT_VERSION}.\n"
                "A newer one may read it."
            )
        with _made_as_described():
            return cls._from_config(config)

    @classmethod
    def _from_config(cls, config: dict[str, Any]) -> FlaxLayer:
        # Everything is checked before anything is made.
        plan = _to_json.planned(config.pop("module", None), "The module")
        if plan.tag not in (_plan.MODULE, _plan.TRUSTED):
            raise ConfigError(
                f"The layer's module is described as {_plan.shown(plan.node)}, which is no Flax module."
            )
        method_config = config.pop("method", None)
        method = _to_json.method_from_config(method_config)
        for name, kind in (("autocast", bool), ("trainable", bool), ("name", str | None)):
            if name in config and not isinstance(config[name], kind):
                raise ConfigError(f"`{name}` is described wrongly: {_plan.shown(config[name])}.")
        frozen = tuple(_to_json.checked_names(config.pop("frozen", []), "frozen"))
        given = _to_json.checked_specs(config.pop("given", {}), "given")
        makers = {
            name: check(config.pop(name), name)
            for name, check in _CHECKED.items()
            if name in config
        }
        seed = config.get("seed")
        if type(seed) is int and -(2**31) <= seed < 0:
            # A config that R has handed on: its integers have 31 bits and a sign.
            config["seed"] = seed + 2**32
        unknown = config.keys() - _CONFIGURED
        if unknown:
            names = ", ".join(map(_plan.shown, list(unknown)[:5]))
            raise ConfigError(f"The layer is described with {names}, which no layer has.")
        module = plan.make()
        if not is_module(module):
            raise ConfigError(
                f"The layer's module is described as {_plan.shown(plan.node)}, which is no Flax module."
            )
        _to_json.checked_method(method, module)
        layer = cls(module, method, **config, **{name: make() for name, make in makers.items()})
        layer._memory.method_config = method_config
        layer._memory.frozen, layer._memory.given_specs = frozen, given
        return layer

    def get_build_config(self) -> dict[str, Any] | None:
        """The shape and dtype of an input of integers: a Sequential model would take it for one of floats."""
        config: dict[str, Any] | None = super().get_build_config()
        dtype = self._memory.input_dtypes
        is_integer = isinstance(dtype, str) and not keras.backend.is_float_dtype(dtype)
        return config | {"input_dtype": dtype} if config and is_integer else None

    def build_from_config(self, config: Mapping[str, Any]) -> None:
        """Build the layer for such an input."""
        config = _to_json.checked(config, Mapping, "The input")
        spec = _to_json.checked_spec(
            config.get("input_shape"), config.get("input_dtype"), "The input", unknown=True
        )
        with contextlib.ExitStack() as stack:
            stack.callback(current.set, current.get())
            current.set(Call(self, input_dtypes=spec.dtype))
            self.build(spec.shape)

    def save_own_variables(self, store: MutableMapping[str, Any]) -> None:
        """Write the weights by path, and the seed's state, for Keras's files; see `kerasflax.bridge._weights_file`."""
        with self.alone():
            values = {path: variable.value for path, variable in self._saved_variables().items()}
        _weights_file.save(values, store)

    def load_own_variables(self, store: Mapping[str, Any]) -> None:
        """Set the weights and the seed's state from one of Keras's files.

        Raises:
            NotBuiltError: The layer has no variables yet.
            VariablesError: The file does not fit; nothing is set then.
        """
        try:
            with self.alone():
                _weights_file.load(self._saved_variables(), store, self.name)
        except VariablesError:
            # A layer that has not been built fits what such a layer has saved.
            self.check_built()
            raise

    def _saved_variables(self) -> dict[str, keras.Variable]:
        return self.variables_by_path | {_SEED_PATH: self.seed_generator.state}

    def check_built(self) -> None:
        """Raise NotBuiltError where the layer has no variables yet."""
        if not self.built:
            raise NotBuiltError(
                f"The layer {self.name!r} has no variables yet.\nBuild it first: call it on an input, or put it in a model."
            )

    def check_values(self) -> None:
        """Raise where the layer has no variables yet, or where Keras has taken their values.

        Raises:
            NotBuiltError: The layer has no variables yet.
            StateError: Keras holds the values, inside an epoch, or has lost them.
        """
        self.check_built()
        if any(variable._value is None for variable in self._ordered_variables):
            raise StateError(
                f"The weights of the layer {self.name!r} have no values now: inside an epoch Keras holds them, and it loses "
                "them where training is broken off by an error.\n"
                "Read and set them between epochs (`on_epoch_end`); after an error, load the weights."
            )

    @property
    def has_been_trained(self) -> bool:
        """Whether a model has trained the layer, so that its optimizer knows which weights are frozen."""
        return self._memory.has_been_trained


@dataclasses.dataclass
class _Memory:
    """What a layer knows besides its configuration and variables.

    It is kept in an object of its own, since Keras searches (and replaces) the containers among a layer's attributes.

    Attributes:
        given: Variables that await the build.
        given_specs: The specs, by path, of variables that were given and that `init` does not make so.
        frozen: Paths of weights that are not trained.
        method_config: What described the method, where the layer has been made from a config.
        input_dtypes: Dtypes of the inputs that the layer was built for, as `call` sees them.
        has_been_trained: Whether a compiled training step has called the layer.
        output_specs: Known specs of outputs, by those of the inputs and the mode.
        sown: What was sown in the last eager call.
        sown_here: Likewise, as `value`, in each thread.
        lock: Held by the thread that builds the layer, and in turn by those that read and write its state in eager calls.
    """

    given: Mapping[str, PyTree] | None = None
    given_specs: Mapping[str, Spec] = dataclasses.field(default_factory=dict)
    frozen: tuple[str, ...] = ()
    method_config: Any = None
    input_dtypes: PyTree = None
    has_been_trained: bool = False
    output_specs: dict[Any, Formed] = dataclasses.field(default_factory=dict)
    sown: Mapping[str, PyTree] = dataclasses.field(default_factory=dict)
    sown_here: threading.local = dataclasses.field(default_factory=threading.local)
    lock: Any = dataclasses.field(default_factory=threading.RLock)


@contextlib.contextmanager
def _made_as_described() -> Iterator[None]:
    """Say of whatever a wrong description leads to that it is one; and keep to Keras's safe mode, if it has been left too."""
    try:
        with SafeModeScope(True):
            yield
    except (BackendError, ConfigError):
        raise
    except Exception as error:
        raise ConfigError(
            f"The layer cannot be made as it is described: {error!s:.1000}"
        ) from error


@contextlib.contextmanager
def _raised_as_is() -> Iterator[None]:
    """Keep Keras from replacing an exception by one of its own, which would lose what this one carries."""
    try:
        yield
    except Exception as error:
        # Keras marks exceptions that it has replaced already in this way, and lets them pass.
        error._keras_call_info_injected = True  # type: ignore[attr-defined]
        raise


def _refuse_misdeclared_input(built_on: PyTree, inputs: PyTree) -> None:
    """Refuse an input that a Sequential model has declared in another kind of dtype than it is called with, or was.

    A Sequential model without an input declares one in its first layer's compute dtype as soon as it is called, or loaded,
    integers or not. NotImplementedError makes it call its layers on what it is called with instead.
    """
    if not isinstance(inputs, keras.KerasTensor):
        return
    for frame, _ in traceback.walk_stack(inspect.currentframe()):
        if frame.f_globals.get("__name__", "").partition(".")[0] != "keras":
            # Looking at a frame's variables keeps alive what its function has let go.
            continue
        model = frame.f_locals.get("self")
        if not isinstance(model, keras.Sequential) or not isinstance(
            model._layers[0], keras.layers.InputLayer
        ):
            continue
        meant = built_on if isinstance(built_on, str) else None
        if frame.f_code.co_name == "_maybe_build":
            meant = getattr(frame.f_locals["call_spec"].first_arg, "dtype", "float32")
        if meant is not None and _is_float(meant) != _is_float(model._layers[0].dtype):
            raise NotImplementedError("The model's input has been declared in another dtype.")


def _is_float(dtype: Any) -> bool:
    return bool(keras.backend.is_float_dtype(keras.backend.standardize_dtype(dtype)))


def _spec_of(x: Any) -> Spec:
    return Spec(tuple(x.shape), keras.backend.standardize_dtype(x.dtype))


def _mask_if_any(mask: PyTree) -> PyTree:
    """None for the masks of nested inputs of which none has one."""
    return mask if jax.tree.leaves(mask) else None


def _hashable(spec: PyTree, training: bool, form: Form | None) -> tuple[Any, ...]:
    leaves, treedef = jax.tree.flatten(spec)
    return treedef, tuple(leaves), training, form


def _specs(shapes: PyTree, dtypes: PyTree) -> PyTree:
    """Specs in the place of the shapes of a nested structure; a shape is a tuple or list of integers and None.

    Where dtypes are known, their nesting is the result's: Keras makes lists of some tuples of shapes.
    """
    nest = shapes if dtypes is None else dtypes
    if isinstance(nest, Mapping):
        return {name: _specs(shapes[name], dtypes and dtypes[name]) for name in nest}
    if isinstance(nest, str) or all(size is None or isinstance(size, int) for size in nest):
        return Spec(tuple(shapes), dtypes or "float32")
    specs = [_specs(shape, dtypes and dtypes[i]) for i, shape in enumerate(shapes)]
    return type(nest)(*specs) if hasattr(nest, "_fields") else type(nest)(specs)
