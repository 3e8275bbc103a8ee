"""Keras's internals, as far as kerasflax needs them. No other file uses them.

Everything here was seen to work with Keras 3.13.2 and 3.15.1; tests/versions.csv has the versions
of the last run. Each entry says why it is needed. If no address of an upstream issue is given, none
was found.
"""

from __future__ import annotations

import contextlib
import inspect
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import keras
from keras.src.backend.common.global_state import get_global_attribute, set_global_attribute
from keras.src.backend.common.name_scope import current_path
from keras.src.backend.common.stateless_scope import get_stateless_scope, in_stateless_scope
from keras.src.saving.saving_lib import load_weights_only
from keras.src.saving.serialization_lib import SafeModeScope

__all__ = ["current_path", "in_stateless_scope"]
# `in_stateless_scope`: whether Keras traces a compiled step. The scope then holds the variables'
# values, and they must not be read from the variables. `keras.StatelessScope` is public; a function
# that tells whether a scope is open is not.
# `current_path`: the path that the open name scopes give to a new variable. A distribution looks up
# the variable's layout by this path, and kerasflax needs the layout before the variable exists.

# Calls and scopes --------------------------------------------------------------------------------

# State that Keras keeps per thread while it calls or builds a layer. After an interrupt it leaves
# some of it set, and the next call would run in a scope that has ended.
_SCOPES = ("current_call_ctx", "autocast_scope")
_NAMES = "name_scope_stack"
# Variables that Keras creates in a stateless scope get their values when the scope ends.
_WITHOUT_VALUES = "uninitialized_variables"


def is_called_by_keras() -> bool:
    """Whether Keras is calling layers: in a compiled step, or in another layer's call."""
    return in_stateless_scope() or get_global_attribute("current_call_ctx") is not None


@contextlib.contextmanager
def scopes_kept() -> Iterator[None]:
    """If the block fails, leave Keras only in the scopes that were open before it."""
    scopes = {name: get_global_attribute(name) for name in _SCOPES}
    depth = _depth(_NAMES)
    try:
        yield
    except BaseException:
        for name, scope in scopes.items():
            set_global_attribute(name, scope)
        _cut(_NAMES, depth)
        raise


def _depth(stack: str) -> int:
    return len(get_global_attribute(stack) or ())


def _cut(stack: str, depth: int) -> None:
    del (get_global_attribute(stack) or [])[depth:]


@contextlib.contextmanager
def raised_as_is() -> Iterator[None]:
    """Keep Keras from replacing an exception with one of its own, which loses its attributes.

    Keras wraps every exception from a layer's `call` in a new one of the same class with a longer
    message, unless the exception has this mark (https://github.com/keras-team/keras/issues/19675).
    """
    try:
        yield
    except Exception as error:
        error._keras_call_info_injected = True  # type: ignore[attr-defined]
        raise


def mask_of(tensor: Any) -> Any:
    """The mask that Keras attaches to a tensor, or None. `keras.layers.Layer` has no public way."""
    return getattr(tensor, "_keras_mask", None)


# Layers and their variables ----------------------------------------------------------------------

# What holds values that Keras keeps, as messages name it.
STATEFUL: Mapping[type, str] = {
    keras.layers.Layer: "a Keras layer",
    keras.Variable: "a Keras variable",
    keras.random.SeedGenerator: "a Keras seed generator",
}


def is_nnx_mode() -> bool:
    """Whether Keras's layers are NNX modules, and its variables NNX variables."""
    return bool(keras.config.is_nnx_enabled())


def stateful(note: Callable[[object], None]) -> list[tuple[type, Callable[..., Any]]]:
    """The methods that create or use what holds values in Keras, each with a replacement.

    Keras has no hook for the layers and variables that code uses. That `Variable.value` reads all
    values is not documented. A replacement calls `note` with the object first.
    """

    def noting(name: str) -> Callable[..., Any]:
        def noted(method: Callable[..., Any], used: object, *args: Any, **kwargs: Any) -> Any:
            note(used)
            return method(used, *args, **kwargs)

        noted.__name__ = name
        return noted

    layer, variable, generator = STATEFUL
    return [
        *((kind, noting("__init__")) for kind in STATEFUL),
        (layer, noting("__call__")),
        (generator, noting("next")),
        (variable, noting("value")),
    ]


def layers_in(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    """A layer and all layers in it. `Model.layers` has only the outermost."""
    return layer._flatten_layers()


def parts_of(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    """The layers that are direct parts of a layer."""
    return layer._flatten_layers(include_self=False, recursive=False)


def own_weights(layer: keras.layers.Layer) -> list[keras.Variable]:
    """The weights of a layer without those of its parts; `Layer.weights` has both."""
    return layer._trainable_variables + layer._non_trainable_variables


def set_trainable_flag(layer: keras.layers.Layer, value: bool) -> None:
    """Set a layer's own flag. The `trainable` setter would also set the flag of every weight."""
    layer._trainable = value


def functional(model: keras.Model) -> keras.Model | None:
    """The functional model that knows the inputs of a model, or None if nothing does."""
    if isinstance(model, keras.Sequential):
        model = model._functional
    return model if isinstance(model, keras.src.models.Functional) else None


def layout_of(variable: Any) -> Any:
    """The layout with which a variable was created, or None.

    A distribution that decides layouts must leave these alone, as Keras's own do. The constructor
    documents `layout`; there is no public way to read it.
    """
    return getattr(variable, "_layout", None)


def has_value(variable: keras.Variable) -> bool:
    """Whether a variable holds a value.

    During an epoch, Keras's trainer holds the values itself, and it loses them if the epoch fails
    (https://github.com/keras-team/keras/pull/21019 restores them after an interrupt only). If a
    compiled step fails while it runs, JAX has already deleted the arrays that it was given.
    """
    value = variable._value
    return value is not None and not (hasattr(value, "is_deleted") and value.is_deleted())


def explain_missing_values(variables: Iterable[keras.Variable], explain: Callable[[], Any]) -> None:
    """Let `variable.value` call `explain`, which raises an error, once Keras has lost the value.

    If a variable has no value, Keras calls its initializer. A variable that has had a value has no
    initializer: `fit()`, `predict()` and the others would stop with "'NoneType' object is not
    callable". In Keras's NNX mode, variables must not be changed in a trace.
    """
    if keras.config.is_nnx_enabled():
        return
    for variable in variables:
        if variable._initializer is None:
            variable._initializer = lambda shape, dtype: explain()


def value_of(variable: keras.Variable) -> Any:
    """A variable's value outside of stateless scopes, without the checks of `variable.value`.

    In an eager call of a layer with many weights, `variable.value` takes most of the time.
    """
    return variable.value if variable._value is None else variable._value


def values_now(variables: Iterable[keras.Variable]) -> list[Any]:
    """The values that `put_back` restores: the variables' own, or those of the stateless scope."""
    scope = get_stateless_scope()
    if scope is None:
        return [variable._value for variable in variables]
    return [scope.state_mapping.get(id(variable)) for variable in variables]


def put_back(variables: Iterable[keras.Variable], values: Iterable[Any]) -> None:
    """Give variables the values that `values_now` returned. `assign` would copy and check them."""
    scope = get_stateless_scope()
    for variable, value in zip(variables, values, strict=True):
        if scope is None:
            variable._value = value
        elif value is None:
            scope.state_mapping.pop(id(variable), None)
        else:
            scope.state_mapping[id(variable)] = value


class Tracked:
    """A snapshot of what Keras tracks of a layer, to restore if a change to the layer fails.

    Keras's tracker adds each variable and layer that becomes an attribute to lists, and never takes
    one out again.
    """

    def __init__(self, layer: keras.layers.Layer) -> None:
        self.attributes_of = (layer, layer._tracker)
        self._lists = [(each, list(each)) for _, each in layer._tracker.config.values()]
        self._ids = [(ids, set(ids)) for ids in layer._tracker.stored_ids.values()]
        self._depth = _depth(_WITHOUT_VALUES)

    def put_back(self) -> None:
        """Make Keras forget what has been added since."""
        _cut(_WITHOUT_VALUES, self._depth)
        for each, elements in self._lists:
            each[:] = elements
        for ids, known in self._ids:
            ids.clear()
            ids.update(known)


# Batches -----------------------------------------------------------------------------------------


def last_batch_size() -> int | None:
    """The size of the last batch of the epoch that Keras begins, if it is smaller and known.

    Keras asks a distribution for the layout of the first batch only, and uses it for all. Its
    iterator, which knows the data, must be found on the stack.
    """
    for frame, _ in traceback.walk_stack(inspect.currentframe()):
        if frame.f_code.co_name == "_get_distributed_iterator":
            adapter = getattr(frame.f_locals.get("self"), "data_adapter", None)
            # Adapters of generators do not define it.
            with contextlib.suppress(NotImplementedError):
                return getattr(adapter, "partial_batch_size", None)
    return None


# Sequential models -------------------------------------------------------------------------------


def refuse_misdeclared_input(built_on: Any, inputs: Any) -> None:
    """Refuse an input whose kind of dtype a Sequential model has guessed wrongly.

    A Sequential model without an input declares one in its first layer's compute dtype, when it is
    called or loaded: floats, even for tokens. NotImplementedError makes it call its layers on what
    it was called with instead. The model is not an argument, so that it must be found on the stack.

    Args:
        built_on: The dtype of the input that the layer was built on, if it has one input.
        inputs: The inputs of the call.
    """
    if not isinstance(inputs, keras.KerasTensor):
        return
    for frame, _ in traceback.walk_stack(inspect.currentframe()):
        if frame.f_globals.get("__name__", "").partition(".")[0] != "keras":
            # Reading a frame's variables keeps alive what its function has already released.
            continue
        model = frame.f_locals.get("self")
        if not isinstance(model, keras.Sequential):
            continue
        declared = model._layers[0]
        if not isinstance(declared, keras.layers.InputLayer):
            continue
        meant = built_on if isinstance(built_on, str) else None
        if frame.f_code.co_name == "_maybe_build":
            meant = getattr(frame.f_locals["call_spec"].first_arg, "dtype", "float32")
        if meant is not None and _is_float(meant) != _is_float(declared.dtype):
            raise NotImplementedError("The model's input has been declared in another dtype.")


def _is_float(dtype: Any) -> bool:
    return bool(keras.backend.is_float_dtype(keras.backend.standardize_dtype(dtype)))


# Saving ------------------------------------------------------------------------------------------


def is_cloning() -> bool:
    """Whether this thread runs `keras.models.clone_model`.

    It copies layers by way of their configs, and nothing else tells these configs from those that
    are saved.
    """
    code = inspect.unwrap(keras.models.clone_model).__code__
    frames = (frame for frame, _ in traceback.walk_stack(inspect.currentframe()))
    return any(frame.f_code is code for frame in frames)


def is_hdf5_store(store: Any) -> bool:
    """Whether the mapping that Keras gives a layer is a part of an HDF5 file, not a dict."""
    return getattr(store, "_h5_entry_group", None) is not None


def hdf5_groups(store: Any) -> Iterator[Any]:
    """Yield a layer's HDF5 groups, one for each of Keras's files, each while its file is open.

    The mapping itself would read all of each dataset before its shape can be checked.
    """
    files = getattr(store, "current_shard_filenames", None)
    if files is None:
        yield store._h5_entry_group
        return
    try:
        for file in files:
            store._switch_h5_file(file, mode="r")
            yield store._h5_entry_group
    finally:
        store._restore_h5_file()


def is_skipping_mismatches() -> bool:
    """Whether `load_weights(skip_mismatch=True)` is running.

    Keras does not pass the argument to layers. It catches a layer's error and skips the whole
    layer, so the argument must be found on the stack. Keras passes `skip_mismatch=True` to some of
    its own functions in any case; only this one has the user's argument.
    """
    return any(
        frame.f_locals["skip_mismatch"]
        for frame, _ in traceback.walk_stack(inspect.currentframe())
        if frame.f_code is load_weights_only.__code__
    )


def safe_mode() -> contextlib.AbstractContextManager[Any]:
    """Refuse lambdas in configs. `keras.config.enable_unsafe_deserialization()` has no scope."""
    return SafeModeScope(True)


def custom_objects_in_scope() -> Mapping[str, Any]:
    """The objects that `custom_objects=` or `keras.saving.CustomObjectScope` offers to this thread.

    `keras.saving.get_custom_objects()` returns only the global ones.
    """
    return get_global_attribute("custom_objects_scope_dict", {})
