"""The Keras layer around a Flax module: build, call, config.

The adapter hides the differences between Flax's module systems. `by_path` reads, sets and freezes
the variables.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
import random
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np

from . import _host, _keras, _paths
from ._errors import (
    ArgumentError,
    ConfigError,
    MethodError,
    StateError,
    UnsupportedError,
    VariablesError,
)
from .adapters._protocol import Method, adapt
from .bridge import (
    _arguments,
    _build_values,
    _layouts,
    _setting,
    _sizes,
    _variables,
    _weights_file,
)
from .bridge._by_path import SEED_PATH, Held, VariablesByPath
from .bridge._call import Call, LastSown, call_of, running
from .bridge._forms import Form, Formed, map_leaves, split
from .bridge._memory import copied
from .bridge._transaction import all_or_nothing
from .saving import _from_json, _plan, _to_json
from .saving._in_memory import InMemory
from .saving._layer_config import (
    FORMAT_VERSION,
    LayerPlan,
    Recorded,
    blamed_on_the_config,
    not_recurrent,
    spec_from_config,
)
from .tracing._trace import Spec, Trace, as_array, trace, until_learned

PyTree = Any

_LOSSES = "losses"
# The input of a call that passes none.
_NOTHING = object()


@contextlib.contextmanager
def _without_gc() -> Iterator[None]:
    """Disable garbage collection: tracing creates thousands of objects, few of them cyclic."""
    with contextlib.ExitStack() as stack:
        if gc.isenabled():
            # If another thread's block has disabled it, that block enables it again.
            stack.callback(gc.enable)
        gc.disable()
        yield


@keras.saving.register_keras_serializable(package="kerasflax")
class FlaxLayer(keras.layers.Layer):
    """A Flax module as a Keras layer.

    The layer's weights have their Flax paths: `<layer>/params/Dense_0/kernel`. The collection
    `params` is trainable. All other collections are non-trainable state, which the module may
    change. The layer supplies random streams by name; you need not declare them. Values that the
    module sows are not stored; the sum of what it sows into `losses` is added to the model's
    losses.

    The method gets the layer's input as `inputs`, or as its first argument if it has no `inputs`.
    It gets the mode if it has an argument for it: `training`, `train`, `is_training`,
    `enable_dropout` and `update_stats` are True in training; `deterministic` and
    `use_running_average` are False. `kerasflax.adapters._signature` has all rules. With
    `trainable=False` the module runs in inference mode, as Keras's `BatchNormalization` does.

    Initial values are those of `module.init(jax.random.key(seed), inputs)` in inference mode, for
    the input's own shapes and dtypes (float32 if Keras gives only a shape). If they depend on the
    input's values, the arrays of the first call count, or ones if the layer is built without
    arrays. An unknown size of the input is a symbol in the trace; no variable may depend on it.

    A `flax.nnx.Module` holds its values. The layer copies them and leaves the module unchanged; a
    `LazyModule` is built without a second copy. Two layers of one module have two sets of weights;
    to share weights, call one layer twice, or put both uses into one module. Variables of a
    subclass of `nnx.Param` are trainable, all others are state. The collections have the names that
    Flax's bridge gives the types of variables, or the types' own names; arrays that are attributes
    themselves are the collection `arrays`. Unless the method takes the mode, the layer sets
    `deterministic` and `use_running_average` of all parts. Random streams are the module's own
    state. If the method takes `rngs` and the module has none, they come from the layer's seed.

    `keras.layers.TimeDistributed` can wrap the layer. `keras.layers.RNN` and `Bidirectional`
    cannot: use the modules `RNN` and `Bidirectional` of Linen or NNX.

    If a model cannot be saved, `model.save()` has already emptied an older file when the layer
    raises the error. `kerasflax.save_model()` leaves the older file alone.

    Keras's mask goes on to every output that keeps the axes that it masks. A part of the input may
    be None in one call and an array in the next. A Linen module must get a part that needs weights
    as an array when the layer is built.

    Args:
        module: A `flax.linen.Module` or `flax.nnx.Module` instance, or a `LazyModule`, which the
            layer creates when it is built.
        method: The method to call, also for initialization: None for `__call__`, a method's name, a
            method of the module, or a function that takes the module first.
        variables: A nested dict of arrays, as `module.init()` returns it, to use instead of initial
            values. For an NNX module, it may name only some variables. The arrays are copied when
            the layer is built, to where Keras keeps its variables: the layout of
            `keras.distribution`, or the default device. The weights take twice their memory until
            the caller drops the arrays. Trainable weights must have the module's shapes; other
            collections may have other shapes. If the module cannot be initialized for the input,
            but can be called with these variables, they decide which weights there are. An abstract
            NNX module needs them for all weights; its random streams start from the seed.
        seed: An integer from 0 to 2**32 - 1 for the initial values and the random streams. None
            draws one.
        regularizers: Keras regularizers of weights, by pattern of paths (see `kerasflax._paths`):
            `{"params/**/kernel": keras.regularizers.L2(1e-4)}`. If several patterns match a weight,
            the last one counts.
        constraints: Keras constraints of weights, by pattern of paths.
        **kwargs: The arguments of every Keras layer: `name`, `trainable`, `dtype`, `autocast`,
            `activity_regularizer`. The default name is that of the module's class: `my_module`,
            `my_module_1`. A `dtype` given here, or a global policy other than `float32`,
            applies to the params and the computation. Otherwise the module's own dtypes apply.
            State always keeps its dtype.

    Raises:
        ArgumentError: The layer has no such argument, or the argument is of another kind.
        BackendError: Keras does not run on JAX.
        MethodError: The module has no such method, the method's arguments cannot be filled, or it
            returns a value that is not an array.
        ModuleError: `module` is not a Flax module instance.
        ShapeError: At build, if the shape of a variable depends on an unknown size of the input.
        VariablesError: At build, if `variables` does not fit; the error lists every place by path.
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
        adapter = adapt(_arguments.checked_module(module), method)
        if kwargs.get("name") is None:
            kwargs["name"] = _arguments.default_name(adapter.name)
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
        self._adapter = adapter
        # A bound method would keep its module alive, with all values of an NNX module.
        is_named = method is None or isinstance(method, str)
        self.method = method if is_named else self._adapter.method
        # `compute_mask` decides which outputs get the mask.
        self.supports_masking = True
        # Keras, too, draws seeds from Python's generator, which `keras.utils.set_random_seed` sets.
        self._drawn_seed = random.randint(1, 10**9) if seed is None else seed
        self.seed_generator = keras.random.SeedGenerator(self._drawn_seed)
        self._follows_policy = (
            kwargs.get("dtype") is not None or self.dtype_policy.name != "float32"
        )
        self._ordered_variables: tuple[keras.Variable, ...] = ()
        self._held = Held()
        self._recorded = Recorded()
        self._given = _Given(
            _variables.overlaid(self._adapter.values_of(module), variables),
            has_some_of_the_user=variables is not None,
        )
        _arguments.warn_of_shared_weights(self, self._adapter.holders_of(module))
        self._known_outputs = _KnownOutputs()
        self._last_sown = LastSown()
        # Keras has wrapped the method, and its wrapper marks the layer as built: that is part of
        # the transaction.
        self.build = self._in_transaction(self.build)  # type: ignore[method-assign]
        self._compiled = jax.jit(self._apply, static_argnames=("training", "form"), inline=True)

    # Build

    def __call__(
        self, inputs: PyTree = _NOTHING, *args: Any, form: Form | None = None, **kwargs: Any
    ) -> Any:
        """Call the layer on a pytree of arrays or Keras tensors; see `keras.layers.Layer`.

        Keras handles lists, tuples, named tuples and dicts. For Keras, any other node is converted
        to a dict of its fields, or to a list if they have no names. The module always gets the tree
        that the layer was called with. A direct eager call returns the module's own tree; a call on
        Keras tensors, or from a model, returns the converted one.
        """
        _check_one_input(inputs, args, kwargs)
        if form is not None and type(form) is not Form:
            raise ConfigError(
                f"The input's form has an invalid description: {_plan.summary(form)}."
            )
        is_called_by_keras = _keras.is_called_by_keras()
        if form is not None:
            # A model repeats a call with the form of that call. Optional inputs may now be None.
            inputs = form.merge(inputs)
        form, inputs = split(inputs)
        if not form.is_plain:
            # A model records the call's arguments.
            kwargs["form"] = form
        _keras.refuse_misdeclared_input(self._recorded.input_dtypes, inputs)
        call = Call(self, form=None if form.is_plain else form)
        with contextlib.ExitStack() as stack:
            if self.built:
                with _keras.raised_as_is():
                    self._held.setting.check(self.name)
                stack.enter_context(_keras.scopes_kept())
            else:
                stack.enter_context(self._transaction(is_done=lambda: self.built))
                # Keras passes only the shapes to `build`.
                call.inputs = inputs
                call.input_dtypes = jax.tree.map(self._dtype_in_call, inputs)
                mask = kwargs.get("mask", jax.tree.map(_keras.mask_of, inputs))
                call.mask_spec = jax.tree.map(Spec.of, self._mask_to_pass(mask))
            stack.enter_context(running(call))
            outputs = super().__call__(inputs, *args, **kwargs)
        if is_called_by_keras or any(
            isinstance(x, keras.KerasTensor) for x in jax.tree.leaves(outputs)
        ):
            return outputs
        return outputs if call.output_form is None else call.output_form.merge(outputs)

    @contextlib.contextmanager
    def _transaction(self, is_done: Callable[[], bool] = lambda: False) -> Iterator[None]:
        """Let one thread at a time change the layer, completely or not at all."""
        parts = (self._held, self._recorded, self._given, self._known_outputs, self._adapter)
        with self._held.lock, all_or_nothing(self, *parts, is_done=is_done):
            yield

    def _in_transaction(self, build: Callable[..., None]) -> Callable[..., None]:
        """Make a build a transaction. Keras refuses a second build."""

        @functools.wraps(build)
        def build_once(*args: Any, **kwargs: Any) -> None:
            with self._transaction():
                build(*args, **kwargs)

        return build_once

    @_without_gc()
    def build(self, input_shape: PyTree) -> None:
        """Create the variables: trace the module once, then compute or take the values.

        Args:
            input_shape: A shape, with None for unknown sizes, or a nested structure of shapes.
        """
        call = call_of(self)
        spec, (init, traced, used_given) = self._trace_build(input_shape, call)
        layouts = _layouts.Layouts(init.named, is_weight=self.by_path.is_trainable)
        template, arrays, given = self._first_values(
            init.template, traced, call.inputs, layouts, used_given
        )
        variables = _variables.create(
            arrays,
            layouts({path: array.shape for path, array in arrays.items()}),
            trainable=self.by_path.is_trainable,
            parameter_dtype=self.variable_dtype if self._follows_policy else None,
        )
        self._check_paths(variables)
        self._set_by_pattern(variables)
        # Everything exists now. If what follows fails, the transaction undoes it.
        self._given.values = None
        self._recorded.given, self._recorded.input_dtypes = given, call.input_dtypes
        if not self._follows_policy and not given:
            # Under a policy, `init` does not get the params that calls get, cast. Outputs may
            # depend on the shapes of given variables.
            self._known_outputs.add((spec, call.mask_spec), call.form, traced.result[0])
        self._held.template, self._held.paths = template, tuple(variables)
        self._held.setting = _setting.Setting.now()
        self._held.inputs = spec
        # As a tuple attribute, they are parts of the layer for NNX, too: its transformations
        # exchange the variables of Keras layers.
        self._ordered_variables = tuple(variables.values())
        # Only after Keras has tracked them as trainable.
        self.by_path.update_trainable()
        self.by_path.explain_missing_values()
        layouts.warn_of_whole(self.name, arrays)

    def _trace_build(
        self, input_shape: PyTree, call: Call
    ) -> tuple[PyTree, tuple[_build_values.Init, Trace, bool]]:
        """The spec of the inputs that the module takes, and what `_trace_init` returns for it."""
        spec = _specs(input_shape, call.input_dtypes)
        try:
            with self._blaming_sizes(spec, call.mask_spec, form=call.form):
                return spec, self._trace_init(spec, call.mask_spec, call.form)
        except Exception:
            # `TimeDistributed` passes a shape and no dtype. The input may be tokens.
            integers = jax.tree.map(lambda each: dataclasses.replace(each, dtype="int32"), spec)
            if call.input_dtypes is None:
                with contextlib.suppress(Exception):
                    traced = self._trace_init(integers, call.mask_spec, call.form)
                    call.input_dtypes = jax.tree.map(lambda each: each.dtype, integers)
                    return integers, traced
            raise

    def _trace_init(
        self, spec: PyTree, mask_spec: PyTree, form: Form | None
    ) -> tuple[_build_values.Init, Trace, bool]:
        """Trace `init`: the traced function, the trace, and whether it used given variables."""
        given = None
        if self._given.has_some_of_the_user and self._given.values is not None:
            given = self.by_path.stored(self._given.values)
        elif self._recorded.given:
            given = _build_values.stand_ins(self._recorded.given)
        return _build_values.traced_init(self._adapter, spec, mask_spec, form, given)

    def _first_values(
        self,
        template: _variables.Template,
        traced: Trace,
        inputs: PyTree,
        layouts: _build_values.Layouts,
        used_given: bool,
    ) -> tuple[_variables.Template, dict[str, jax.Array], Mapping[str, Spec]]:
        """The template, the arrays by path, and the specs that differ from those of `init`."""
        specs = self._recorded.given
        first_values = functools.partial(
            _build_values.initial_values,
            traced,
            inputs,
            self._drawn_seed,
            self._adapter.name,
            layouts,
        )
        if self._given.values is None:
            known = specs if used_given else {}
            arrays = first_values(wanted=lambda path: path not in known)
            return *_build_values.with_specs(template, arrays, specs), specs
        return _build_values.given_values(
            self._adapter,
            self.by_path.stored(self._given.values),
            template,
            traced.result[1],
            first_values,
            is_trainable=self.by_path.is_trainable,
            layouts=layouts,
            used_given=used_given,
        )

    def _check_paths(self, variables: Mapping[str, keras.Variable]) -> None:
        if SEED_PATH in variables:
            raise StateError(
                f"{self._adapter.name} has a variable {SEED_PATH}, a path that the layer uses for "
                "its seed.",
                advice="Rename the variable.",
            )
        weights = {path for path in variables if self.by_path.is_trainable(path)}
        unknown = sorted(set(self._held.frozen) - weights)
        if unknown:
            names = ", ".join(f"{path:.200}" for path in unknown[:5])
            raise ConfigError(
                f"The config freezes weights that {self._adapter.name} does not have: {names}.",
                advice="Load the model with the module that it was saved with.",
            )

    def _set_by_pattern(self, variables: Mapping[str, keras.Variable]) -> None:
        weights = [path for path in variables if self.by_path.is_trainable(path)]
        for attribute, by_pattern in (
            ("regularizer", self.regularizers),
            ("constraint", self.constraints),
        ):
            for pattern, value in by_pattern.items():
                for path in _paths.matched(pattern, weights):
                    setattr(variables[path], attribute, value)

    def _dtype_in_call(self, x: Any) -> str | None:
        """The dtype in which Keras passes an input to `call`."""
        if not hasattr(x, "dtype"):
            return None
        dtype = keras.backend.standardize_dtype(jax.dtypes.canonicalize_dtype(x.dtype))
        is_cast = self.autocast and keras.backend.is_float_dtype(dtype)
        return self.input_dtype if is_cast else dtype

    # Call

    def call(
        self,
        inputs: PyTree,
        training: bool | None = None,
        mask: PyTree = None,
        form: Form | None = None,
    ) -> PyTree:
        """Call the module; see `keras.layers.Layer.call`.

        Args:
            inputs: Keras's tree of arrays.
            training: Whether the model is training.
            mask: Keras's mask of the inputs, or None.
            form: The form of the tree that the module gets, if it differs from Keras's.
        """
        with _keras.raised_as_is():
            _check_mode(training)
        self._held.has_been_trained |= bool(training) and _keras.in_stateless_scope()
        training = bool(training) and self.trainable
        mask = self._mask_to_pass(mask)
        call = call_of(self)
        if _keras.in_stateless_scope():
            # Variables that were built in such a scope have lost their initializers only now.
            self.by_path.explain_missing_values()
        with _keras.raised_as_is(), self.by_path.alone(), self.by_path.blaming_missing_values():
            arrays = _variables.values(self._ordered_variables, cast=self._follows_policy)
            seed_state = self.seed_generator.state
            compiled = functools.partial(self._compiled, training=training, form=form)
            apply = jax.checkpoint(compiled) if call.is_rematerialized else compiled
            with self._blaming_sizes(inputs, mask, form=form):
                formed, state, sown, next_seed_state = until_learned(
                    lambda: apply(arrays, inputs, mask, seed_state.value)
                )
            self._take_sown(sown)
            if state or next_seed_state is not None:
                variables = self.by_path.with_seed
                drawn = {} if next_seed_state is None else {SEED_PATH: next_seed_state}
                _variables.assign(
                    (variables[path], value) for path, value in (state | drawn).items()
                )
        call.output_form = formed.form
        call.output_shapes = [tuple(x.shape) for x in formed.leaves]
        return formed.for_keras()

    def rematerialized_call(
        self, layer_call: Callable[..., PyTree], *args: Any, **kwargs: Any
    ) -> Callable[..., PyTree]:
        """The function with which Keras calls the layer in a `keras.RematScope`.

        Keras would pass the whole call to `jax.checkpoint`, where the mode has no value and new
        state cannot leave. The layer passes its function of arrays instead.
        """
        rematerialized = super().rematerialized_call(layer_call, *args, **kwargs)
        call_of(self).is_rematerialized = rematerialized is not layer_call
        return layer_call

    def quantize(self, *args: Any, **kwargs: Any) -> None:
        """Refuse to quantize; `Model.quantize` warns with this message and goes on.

        Raises:
            UnsupportedError: Always.
        """
        raise UnsupportedError(
            f"{self.name} keeps its weights as they are: Keras cannot quantize the computation of a"
            " Flax module."
        )

    @property
    def go_backwards(self) -> Any:
        """Missing, as `hasattr` says; `keras.layers.Bidirectional` asks for it.

        Raises:
            UnsupportedError: Always.
        """
        raise not_recurrent(UnsupportedError)

    @property
    def enable_lora(self) -> Any:
        """Missing, as `hasattr` says.

        Raises:
            UnsupportedError: Always.
        """
        raise UnsupportedError(
            f"{self.name} has no `enable_lora`: Keras cannot change the computation of a Flax "
            "module.",
            advice="Add the low-rank weights in the module, such as with "
            f"{_host.code('flax.nnx.LoRA')}.",
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
        """Apply the module as a function of arrays.

        This function is compiled once for each mode and input spec, and inlined in Keras's traces.

        Returns:
            The outputs, the new state by path, what was sown, and the new state of the seed if the
            call drew random numbers.
        """
        held = self._held.template.merge(dict(zip(self._held.paths, arrays, strict=True)))
        with self._held.setting.in_force():
            outputs, state, sown = self._adapter.apply(
                held,
                form.merge(inputs) if form else inputs,
                training=training,
                mask=mask,
                seed_state=seed_state,
            )
        # This refuses what is not an array. `jax.tree.map` would return dicts sorted by key.
        for value in jax.tree.leaves((outputs, sown)):
            as_array(value)
        # What the module has only read needs no assignment.
        updates = _variables.changed(held, state)
        (formed, sown), updates = _variables.apart((Formed.of(outputs), sown), updates, arrays)
        updates = _variables.checked_update(self.variables_by_path, updates, self._adapter.name)
        next_seed_state = None
        if self._adapter.draws(training):
            # The second word counts calls: see `_rng`.
            next_seed_state = seed_state + jnp.array([0, 1], seed_state.dtype)
        return formed, updates, sown, next_seed_state

    @contextlib.contextmanager
    def _blaming_sizes(self, inputs: PyTree, mask: PyTree, *, form: Form | None) -> Iterator[None]:
        """If the module cannot handle the size of an input, say so as Keras's layers do."""
        try:
            yield
        except Exception as error:
            got, mask = jax.tree.map(Spec.of, (inputs, mask))

            def works(specs: PyTree) -> bool:
                try:
                    self._output_spec(specs, mask, training=False, form=form)
                except Exception:
                    return False
                return True

            blamed = _sizes.size_error(
                self.name,
                error,
                got,
                works,
                built=self._held.inputs if self.built else None,
                sizes=self._adapter.sizes.union(
                    *map(np.shape, jax.tree.leaves(self._given.values))
                ),
            )
            if blamed is None:
                raise
            raise blamed from error

    def _mask_to_pass(self, mask: PyTree) -> PyTree:
        """The mask that the module gets: None if it takes none, or if no input has one."""
        return mask if self._adapter.takes_mask and jax.tree.leaves(mask) else None

    def _take_sown(self, sown: Mapping[str, PyTree]) -> None:
        for value in jax.tree.leaves(sown.get(_LOSSES)):
            self.add_loss(value.sum())
        if not any(isinstance(value, jax.core.Tracer) for value in jax.tree.leaves(sown)):
            self._last_sown.record(sown)

    def compute_output_spec(
        self,
        inputs: PyTree,
        training: bool | None = None,
        mask: PyTree = None,
        form: Form | None = None,
    ) -> PyTree:
        """The Keras tensors that the layer returns for Keras tensors.

        A size that depends on an unknown size is None.
        """
        specs = jax.tree.map(Spec.of, (inputs, self._mask_to_pass(mask)))
        with _keras.raised_as_is(), self._blaming_sizes(*specs, form=form):
            outputs = self._output_spec(
                *specs, training=bool(training) and self.trainable, form=form
            )
            if not outputs.leaves:
                raise MethodError(
                    f"The module of the layer {self.name!r} returns no array.",
                    advice=_host.word("return"),
                )
        call_of(self).output_shapes = [_comparable_shape(spec) for spec in outputs.leaves]
        return map_leaves(
            lambda spec: keras.KerasTensor(spec.shape, spec.dtype), outputs.for_keras()
        )

    def compute_mask(self, inputs: PyTree, previous_mask: PyTree) -> list[Any] | None:
        """Pass a mask on to the outputs that still have the axes that it masks.

        If several inputs have masks, each output gets the first one that fits.
        """
        masks = list(_in_order(previous_mask))
        if not masks:
            return None
        shapes = call_of(self).output_shapes
        if shapes is None:
            specs = jax.tree.map(Spec.of, (inputs, self._mask_to_pass(previous_mask)))
            outputs = self._output_spec(*specs, training=False, form=None)
            shapes = [_comparable_shape(spec) for spec in outputs.leaves]

        def fits(mask: Any, shape: tuple[Any, ...]) -> bool:
            axes = tuple(mask.shape)
            return len(shape) > len(axes) and shape[: len(axes)] == axes

        return [next((mask for mask in masks if fits(mask, shape)), None) for shape in shapes]

    def compute_output_shape(self, input_shape: PyTree) -> PyTree:
        """The output's shape for an input's shape, or for a nested structure of shapes."""
        spec = _specs(input_shape, self._recorded.input_dtypes)
        outputs = self._output_spec(spec, None, training=False, form=None)
        return map_leaves(lambda spec: spec.shape, outputs.for_keras())

    def _output_spec(
        self, inputs: PyTree, mask: PyTree, *, training: bool, form: Form | None
    ) -> Formed:
        if not self.built:
            return self._trace_init(inputs, mask, form)[1].result[0]

        def find() -> Formed:
            arrays = [Spec(tuple(v.shape), v.dtype) for v in self._ordered_variables]
            # A call with the same spec finds this trace, and needs only to be compiled.
            apply = functools.partial(self._compiled, training=training, form=form)
            return trace(apply, arrays, inputs, mask, Spec((2,), "uint32")).result[0]

        return self._known_outputs.get((inputs, mask), form, find, training=training)

    # Variables

    @property
    def module(self) -> Any:
        """The Flax module. An NNX module is here without the values of its variables."""
        return self._adapter.module

    def to_flax(self) -> Any:
        """Return what Flax's users work with, with copies of the layer's values.

        Returns:
            For NNX, a module. For Linen, the module and its variables. Training does not change
            the arrays.

        Raises:
            NotBuiltError: The layer has no variables yet.
        """
        return self._adapter.to_flax(self.flax_variables)

    @property
    def flax_variables(self) -> dict[str, PyTree]:
        """The module's variables by collection, in the structure that `module.init()` returns.

        The arrays are copies on the devices of the layer's weights; training does not change them.
        Assign a nested dict to set the variables that it names. If anything in it does not fit,
        nothing is set.

        Raises:
            NotBuiltError: The layer has no variables yet.
            VariablesError: On assignment, something does not fit; the error lists every place by
                path.
        """
        return self.by_path.tree(copied)

    @flax_variables.setter
    def flax_variables(self, value: Mapping[str, PyTree]) -> None:
        self.by_path.assign(self.by_path.fitted(value))

    @property
    def by_path(self) -> VariablesByPath:
        """The variables by path, to read, assign and freeze them."""
        return VariablesByPath(self)

    @property
    def variables_by_path(self) -> dict[str, keras.Variable]:
        """The Keras variables of every collection by path; empty before the layer is built."""
        return dict(zip(self._held.paths, self._ordered_variables, strict=True))

    @property
    def frozen(self) -> list[str]:
        """The paths of the weights that are excluded from training one by one."""
        return list(self._held.frozen)

    @property
    def trainable(self) -> bool:
        """Whether the layer is trained, and its module runs in training mode.

        Frozen weights are excluded in any case.
        """
        return bool(super().trainable)

    @trainable.setter
    def trainable(self, value: bool) -> None:
        with self.by_path.alone(), self.by_path.training_kept():
            keras.layers.Layer.trainable.fset(self, value)
            self.by_path.update_trainable()

    @property
    def sown(self) -> dict[str, PyTree]:
        """The values that the module sowed in the last eager call, as nested dicts by collection.

        By default, Flax collects the values of one name in a tuple. A thread that has called the
        layer sees its own last call; any other sees the last call of any thread. Calls inside
        compiled steps, such as those of `fit` and `predict`, are not recorded.
        """
        return self._last_sown.get()

    # Config

    def get_config(self) -> dict[str, Any]:
        """The layer as JSON, without the values of its weights (`kerasflax.saving._to_json`).

        Raises:
            ConfigError: The module or its method cannot be described; the message names the field.
        """
        own = {
            "format_version": FORMAT_VERSION,
            "seed": self.seed,
            "autocast": self.autocast,
            "frozen": self.frozen,
            "given": {
                path: [list(spec.shape), spec.dtype] for path, spec in self._recorded.given.items()
            },
        }
        if _keras.is_cloning():
            return {"name": self.name, "trainable": self.trainable} | own | self._parts_in_memory()
        config: dict[str, Any] = super().get_config()
        if not self._follows_policy:
            # Keras writes a policy even if the user has not set one.
            config.pop("dtype", None)
        method = self._recorded.method or _to_json.method_to_config(self.method, self.module)
        return {
            **config,
            **own,
            "module": _to_json.module_to_config(self.module),
            "method": method,
            "regularizers": _serialized(self.regularizers, keras.regularizers.serialize),
            "constraints": _serialized(self.constraints, keras.constraints.serialize),
        }

    def _parts_in_memory(self) -> dict[str, InMemory]:
        """The parts of a clone's config that a file might be unable to describe."""
        parts = {
            "module": InMemory(self._adapter.module_of_clone(self._values)),
            "method": InMemory(self.method, self._recorded.method),
            "regularizers": InMemory(self.regularizers),
            "constraints": InMemory(self.constraints),
            "activity_regularizer": InMemory(self.activity_regularizer),
        }
        return parts | ({"dtype": InMemory(self.dtype_policy)} if self._follows_policy else {})

    def _values(self) -> Mapping[str, PyTree]:
        given = self._given.values
        return self.flax_variables if given is None else given

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> FlaxLayer:
        """Create a layer with new weights from what `get_config` returned.

        Raises:
            ConfigError: The config is wrong, of a later version, or names an unknown class.
        """
        with blamed_on_the_config():
            plan = LayerPlan.of(config)
            layer = plan.make(cls)
            layer._held.frozen, layer._recorded = plan.frozen, plan.recorded
            return layer

    def get_build_config(self) -> dict[str, Any] | None:
        """The shape and dtype of a single input whose dtype is not a float; otherwise None.

        Keras calls `build_from_config` with it on loading. Without it, a Sequential model would
        declare a float input.
        """
        config: dict[str, Any] | None = super().get_build_config()
        dtype = self._recorded.input_dtypes
        is_not_float = isinstance(dtype, str) and not keras.backend.is_float_dtype(dtype)
        return config | {"input_dtype": dtype} if config and is_not_float else None

    def build_from_config(self, config: Mapping[str, Any]) -> None:
        """Build the layer for the input that `get_build_config` described."""
        config = _from_json.require_type(config, Mapping, "The input")
        spec = spec_from_config(
            config.get("input_shape"), config.get("input_dtype"), "The input", unknown=True
        )
        with running(Call(self, input_dtypes=spec.dtype)):
            self.build(spec.shape)

    def save_own_variables(self, store: MutableMapping[str, Any]) -> None:
        """Write the weights and the seed's state by path; see `kerasflax.bridge._weights_file`."""
        with self.by_path.alone():
            values = {path: variable.value for path, variable in self.by_path.with_seed.items()}
        _weights_file.save(values, store)

    def load_own_variables(self, store: Mapping[str, Any]) -> None:
        """Set the weights and the seed's state from a Keras file.

        With `skip_mismatch=True`, `load_weights()` sets each weight that fits, and warns about the
        rest.

        Raises:
            NotBuiltError: The layer has no variables yet.
            VariablesError: The file does not fit; nothing is set.
        """
        skip_mismatch = self.built and _keras.is_skipping_mismatches()
        try:
            with self.by_path.alone():
                _weights_file.load(
                    self.by_path.with_seed, store, self.name, skip_mismatch=skip_mismatch
                )
        except VariablesError:
            # A layer that is not built can load what another such layer has saved.
            self.by_path.check_built()
            raise


class _Given:
    """The values that await the build of a layer.

    Attributes:
        values: A nested dict of arrays, or None.
        has_some_of_the_user: Whether some are not the module's own.
    """

    def __init__(self, values: Mapping[str, PyTree] | None, *, has_some_of_the_user: bool) -> None:
        self.values, self.has_some_of_the_user = values, has_some_of_the_user


class _KnownOutputs:
    """The specs of outputs that traces have shown, by the specs of the inputs and the mode."""

    def __init__(self) -> None:
        self._known: dict[Any, Formed] = {}

    def add(self, specs: PyTree, form: Form | None, outputs: Formed) -> None:
        """Note the outputs of a call in inference mode, and forget all others."""
        self._known = {self._key(specs, form, training=False): outputs}

    def get(
        self, specs: PyTree, form: Form | None, find: Callable[[], Formed], *, training: bool
    ) -> Formed:
        """The known outputs, or what `find` returns."""
        key = self._key(specs, form, training=training)
        if key not in self._known:
            self._known[key] = find()
        return self._known[key]

    @staticmethod
    def _key(specs: PyTree, form: Form | None, *, training: bool) -> tuple[Any, ...]:
        leaves, treedef = jax.tree.flatten(specs)
        return treedef, tuple(leaves), training, form


def _check_mode(training: Any) -> None:
    """Check that the mode of a call is known while it is traced.

    Raises:
        ArgumentError: It is not.
    """
    if isinstance(training, jax.core.Tracer):
        raise ArgumentError(
            f"`training` must be {_host.word('true or false')}, got a traced value, as "
            f"{_host.code('jax.checkpoint')} and a {_host.code('keras.RematScope')} around a whole "
            "model pass it.",
            advice="Create only the layers in the scope, and the model outside it.",
        )


def _check_one_input(inputs: PyTree, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Check that a layer is called on one tree of inputs.

    Raises:
        ArgumentError: There are further inputs, or none.
    """
    unknown = [f"`{name}`" for name in kwargs if name not in ("training", "mask")]
    if unknown or args or inputs is _NOTHING:
        by_position = f"{1 + len(args)} arguments by position" if args else "none"
        raise ArgumentError(
            "A Flax layer takes one input, and `training` and `mask`; got "
            f"{', '.join(unknown) or by_position}.",
            advice="Call the layer on a list of the inputs, or on "
            f"{_host.word('dict')} with the names of the method's arguments.",
        )


def _serialized(values: Mapping[str, Any], serialize: Callable[[Any], Any]) -> dict[str, Any]:
    return {pattern: serialize(value) for pattern, value in values.items()}


def _in_order(tree: PyTree) -> Iterator[Any]:
    """The leaves of Keras's tree without None, and with dicts in order, unlike JAX's."""
    if isinstance(tree, (Mapping, list, tuple)):
        for child in tree.values() if isinstance(tree, Mapping) else tree:
            yield from _in_order(child)
    elif tree is not None:
        yield tree


def _comparable_shape(spec: Spec) -> tuple[int | None, ...]:
    """The shape, with -1 for an unknown size that differs from the input's in the same axis."""
    return tuple(
        -1 if size is None and axis not in spec.kept else size
        for axis, size in enumerate(spec.shape)
    )


def _specs(shapes: PyTree, dtypes: PyTree) -> PyTree:
    """Replace the shapes in a nested structure by specs.

    A shape is a tuple or list of integers and None. If the dtypes are known, the result is nested
    as they are: Keras makes lists of some tuples of shapes.
    """
    nest = shapes if dtypes is None else dtypes
    if isinstance(nest, Mapping):
        return {name: _specs(shapes[name], dtypes and dtypes[name]) for name in nest}
    if isinstance(nest, str) or all(size is None or isinstance(size, int) for size in nest):
        return Spec(tuple(shapes), dtypes or "float32")
    specs = [_specs(shape, dtypes and dtypes[i]) for i, shape in enumerate(shapes)]
    return type(nest)(*specs) if hasattr(nest, "_fields") else type(nest)(specs)
