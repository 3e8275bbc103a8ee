"""The Flax part of a layer or a model: its variables, its frozen weights, its table of parameters.

Each function takes a `FlaxLayer`, or a Keras model that holds some. The weights of a layer have
their paths, `params/Dense_0/kernel`. In a model, the layer's name comes first:
`mlp/params/Dense_0/kernel`.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np

from . import _host, _keras, _paths, _processes
from ._errors import ArgumentError, VariablesError
from ._layer import FlaxLayer
from ._messages import value_text
from .bridge import _layouts, _variables

PyTree = Any

# Layers and their variables ----------------------------------------------------------------------


def flax_layers(model: keras.Model) -> dict[str, FlaxLayer]:
    """The Flax layers of a model, and of the models in it, by name.

    Raises:
        ArgumentError: It is not a model, has no Flax layer, or two of them have the same name.
    """
    if not isinstance(model, keras.layers.Layer):
        raise ArgumentError(
            f"The object must be a Flax layer, or a model that holds one, got {value_text(model)}."
        )
    inside = [layer for layer in _keras.layers_in(model) if layer is not model]
    found = [layer for layer in inside if isinstance(layer, FlaxLayer)]
    if not found:
        what = f"{model.name!r} holds no Flax layer"
        kinds = sorted({type(layer).__name__ for layer in inside})
        if kinds:
            what += f"; it holds {', '.join(kinds)}"
        elif not isinstance(model, keras.Model):
            what = (
                f"{model.name!r} is not a Flax layer, but a layer of class {type(model).__name__}"
            )
        raise ArgumentError(f"{what}.")
    layers = {layer.name: layer for layer in found}
    if len(layers) < len(found):
        twice = sorted({layer.name for layer in found if layers[layer.name] is not layer})
        raise ArgumentError(
            f"Two Flax layers of {model.name!r} have the name {twice[0]!r}.",
            advice="Give each layer a `name` of its own.",
        )
    return layers


def variables(target: FlaxLayer | keras.Model) -> dict[str, PyTree]:
    """Copies of the variables of a layer by collection, or of a model by layer and collection."""
    if isinstance(target, FlaxLayer):
        return target.flax_variables
    return {name: layer.flax_variables for name, layer in flax_layers(target).items()}


def own_variables(target: FlaxLayer | keras.Model) -> dict[str, PyTree]:
    """The variables in the layers' own memory. Read them at once: the next step deletes them."""
    if isinstance(target, FlaxLayer):
        return target.by_path.tree()
    return {name: layer.by_path.tree() for name, layer in flax_layers(target).items()}


def numpy_variables(target: FlaxLayer | keras.Model) -> dict[str, PyTree]:
    """The variables as nested dicts that R can represent, each value exactly.

    Arrays are NumPy arrays of float32, float64, complex numbers, integers or booleans. Scalars are
    Python's. Random keys are their data, metadata boxes their contents. Every name is a string.
    """
    if not isinstance(target, FlaxLayer):
        return {name: numpy_variables(layer) for name, layer in flax_layers(target).items()}
    values = target.by_path.values()
    return _variables.nested(
        {path: _for_r(_processes.gathered(value)) for path, value in values.items()}
    )


def _for_r(array: np.ndarray[Any, Any]) -> Any:
    if jnp.issubdtype(array.dtype, jnp.floating) and array.dtype != np.float64:
        array = array.astype(np.float32)
    elif jnp.issubdtype(array.dtype, jnp.integer) and not np.can_cast(array.dtype, np.int32):
        array = array.astype(np.float64)
    elif array.dtype == np.int32 and array.size and array.min() == np.iinfo(np.int32).min:
        # R uses the least integer for NA.
        array = array.astype(np.float64)
    return array if array.ndim else array.item()


def set_variables(target: FlaxLayer | keras.Model, value: Mapping[str, PyTree]) -> None:
    """Set the variables that a nested dict names: all of them or, on an error, none.

    Raises:
        VariablesError: Something does not fit; the error lists every place by path.
    """
    fitted = fitted_variables(target, value)
    with contextlib.ExitStack() as stack:
        # All threads lock the layers in the same order, so that no two wait for each other.
        for layer in sorted((layer for layer, _ in fitted), key=id):
            stack.enter_context(layer.by_path.alone())
        known = [(layer.variables_by_path, arrays) for layer, arrays in fitted]
        _variables.replace(
            (path, variables[path], array)
            for variables, arrays in known
            for path, array in arrays.items()
        )


def fitted_variables(
    target: FlaxLayer | keras.Model, value: Mapping[str, PyTree]
) -> list[tuple[FlaxLayer, dict[str, Any]]]:
    """The arrays by path that a nested dict would set in each layer. Nothing is set.

    Raises:
        VariablesError: Something does not fit; the error lists every place by path.
    """
    if isinstance(target, FlaxLayer):
        return [(target, target.by_path.fitted(value))]
    layers = flax_layers(target)
    known = ", ".join(map(repr, layers))
    if not isinstance(value, Mapping):
        raise VariablesError(
            f"The variables of a model must be {_host.word('dict')} by layer ({known}), got "
            f"{value_text(value)}."
        )
    if not value.keys() & layers.keys():
        expected = (f"{name}/{path}" for name in layers for path in layers[name].variables_by_path)
        given = _variables.named_leaves(_variables.plain(value))
        _variables.refuse_other_level(expected, given, what="The value", owner="the model")
    fitted = []
    problems: dict[str, str] = {}
    advice = [f"The model's Flax layers: {known}."]
    for name, tree in value.items():
        if name not in layers:
            problems[str(name)] = "the model has no Flax layer of this name"
            continue
        try:
            fitted.append((layers[name], layers[name].by_path.fitted(tree, what="it")))
        except VariablesError as error:
            below = {f"{name}/{path}": problem for path, problem in error.problems.items()}
            problems |= below or {name: error.what}
            advice += [f"{name!r}: {error.advice}"] if error.advice else []
    if problems:
        places = f"{len(problems)} place{'s' * (len(problems) > 1)}"
        what = f"The value does not fit the model in {places}:"
        raise VariablesError(what, problems=problems, advice="\n".join(advice))
    return fitted


def check_savable(model: keras.layers.Layer) -> None:
    """Raise the error that saving a model would raise, before Keras opens the file.

    Raises:
        ConfigError: A module or its arguments cannot be described; the message names the field.
        StateError: Keras has lost the weights. Its own layers do not say so.
    """
    for layer in _keras.layers_in(model):
        if isinstance(layer, FlaxLayer) and layer.built:
            layer.by_path.check_values()
    with warnings.catch_warnings():
        # Saving warns.
        warnings.simplefilter("ignore")
        keras.saving.serialize_keras_object(model)


# Freezing ----------------------------------------------------------------------------------------

_COMPILE_AGAIN = (
    "The model has been compiled and trained. Compile it again before you train it further: "
    "otherwise Keras stops with an error and loses the weights."
)


def freeze(target: FlaxLayer | keras.Model, path: str | list[str] | None = None) -> list[str]:
    """Exclude weights from training: they get no gradients and no optimizer state.

    Args:
        target: A built layer, or a model of built layers.
        path: One or more patterns of paths (see `kerasflax._paths`), or None for every weight of
            the Flax layers.

    Returns:
        The paths of the weights that were not frozen before.

    Raises:
        ArgumentError: A pattern matches no weight.
        NotBuiltError: A layer has no variables yet.
    """
    return _warned(*set_frozen(target, path, True))


def unfreeze(target: FlaxLayer | keras.Model, path: str | list[str] | None = None) -> list[str]:
    """Include frozen weights in training again; see `freeze`.

    Returns:
        The paths of the weights that were frozen before.
    """
    return _warned(*set_frozen(target, path, False))


def set_frozen(
    target: FlaxLayer | keras.Model, path: str | list[str] | None, value: bool
) -> tuple[list[str], str | None]:
    """Freeze or unfreeze weights. Return the changed paths, and a warning if one is due."""
    named = _named_layers(target)
    changed = _matched(named, path, frozen=not value)
    with contextlib.ExitStack() as stack:
        for layer in named.values():
            stack.enter_context(layer.by_path.training_kept())
        for prefix, layer in named.items():
            paths = {p.removeprefix(prefix) for p, owner in changed.items() if owner is layer}
            before = set(layer.frozen)
            layer.by_path.freeze(sorted(before | paths if value else before - paths))
    warning = _COMPILE_AGAIN if changed and _is_trained(target, named) else None
    return list(changed), warning


def _matched(
    named: Mapping[str, FlaxLayer], path: str | list[str] | None, *, frozen: bool
) -> dict[str, FlaxLayer]:
    """The layers of the matching weights that are frozen, or not, by path."""
    for layer in named.values():
        layer.by_path.check_built()
    owners = {
        prefix + path: layer
        for prefix, layer in named.items()
        for path in layer.by_path.trainable_paths
    }
    already = {prefix + path for prefix, layer in named.items() for path in layer.frozen}
    patterns = ["**"] if path is None else [path] if isinstance(path, str) else list(path)
    found = (path for pattern in patterns for path in _paths.matched(pattern, list(owners)))
    return {path: owners[path] for path in found if (path in already) is frozen}


def _is_trained(target: FlaxLayer | keras.Model, named: Mapping[str, FlaxLayer]) -> bool:
    optimizer = getattr(target, "optimizer", None)
    if optimizer is not None:
        return bool(optimizer.built)
    # A layer does not know which model trains it.
    return any(layer._held.has_been_trained for layer in named.values())


def _warned(changed: list[str], warning: str | None) -> list[str]:
    if warning:
        warnings.warn(warning, stacklevel=3)
    return changed


def _named_layers(target: FlaxLayer | keras.Model) -> dict[str, FlaxLayer]:
    """Layers by the prefix of their paths."""
    if isinstance(target, FlaxLayer):
        return {"": target}
    return {f"{name}/": layer for name, layer in flax_layers(target).items()}


# The table of parameters -------------------------------------------------------------------------

_Row = tuple[str, str | None, str, keras.Variable]
_COLUMNS = ["layer", "collection", "path", "shape", "dtype", "size", "bytes", "trainable"]
_PLACES = ["sharding", "devices", "bytes_per_device"]
_STATISTICS: Mapping[str, Callable[[jax.Array], jax.Array]] = {
    "mean": jnp.mean,
    "sd": jnp.std,
    "min": jnp.min,
    "max": jnp.max,
    "n_nonfinite": lambda x: jnp.sum(~jnp.isfinite(x)),
}


def parameters(target: keras.layers.Layer, *, stats: bool = False) -> dict[str, list[Any]]:
    """A table of the weights of a layer or model, as a dict of columns with one row per weight.

    Args:
        target: A built Flax layer, or a model. The weights of a model's other layers are rows, too.
        stats: Whether to compute statistics of each weight on the device, in float32.

    Returns:
        `layer`, the layer's name; `collection`, None in layers that are not Flax layers; `path`,
        which patterns match, so that it begins with the layer's name in a model; `shape`, a list of
        sizes; `dtype`; `size` in elements; `bytes`; `trainable`. With a distribution also
        `sharding`, the mesh axes that split each dimension, as in `layout` of `distribute`, and
        empty if nothing splits the weight; `devices`, the number of devices that hold a part of it;
        and `bytes_per_device`. With `stats` also `mean`, `sd` (of the population), `min`, `max` and
        `n_nonfinite`, the number of values that are not finite. A statistic that an empty or
        complex weight does not have is nan.

    Raises:
        NotBuiltError: A layer has no variables yet.
        StateError: Keras holds the values, inside an epoch, or has lost them.
    """
    for layer in _keras.layers_in(target):
        if isinstance(layer, FlaxLayer):
            layer.by_path.check_values()
    trainable = {id(weight) for weight in target.trainable_weights}
    # A weight that several layers share is one row.
    weights = {id(weight): (place, weight) for *place, weight in _rows(target)}
    values = [weight.value for _, weight in weights.values()]
    is_distributed = _layouts.is_over_devices(values)
    rows = []
    for ((layer, collection, path), weight), value in zip(weights.values(), values, strict=True):
        shape = [int(size) for size in weight.shape]
        size = math.prod(shape)
        number = size * value.dtype.itemsize
        path = path if isinstance(target, FlaxLayer) else f"{layer}/{path}"
        row = [layer, collection, path, shape, weight.dtype, size, number, id(weight) in trainable]
        row += _layouts.Placement.of(value) if is_distributed else []
        rows.append(row + _statistics(value) if stats else row)
    names = [*_COLUMNS, *(_PLACES if is_distributed else []), *(_STATISTICS if stats else [])]
    return {name: [row[i] for row in rows] for i, name in enumerate(names)}


def _rows(layer: keras.layers.Layer, outer: keras.layers.Layer | None = None) -> Iterator[_Row]:
    """The layer's name, the collection, the path in the layer and the variable of each weight.

    A layer that consists of others counts as one layer, unless it is a model. Flax layers always
    count themselves.

    Args:
        layer: Where to look.
        outer: The layer that counts, if `layer` is a part of it.
    """
    if isinstance(layer, FlaxLayer):
        for path, weight in layer.variables_by_path.items():
            yield layer.name, _variables.collection_of(path), path, weight
        return
    outer = layer if outer is None or isinstance(outer, keras.Model) else outer
    for weight in _keras.own_weights(layer):
        yield outer.name, None, weight.path.removeprefix(f"{outer.path}/"), weight
    for part in _keras.parts_of(layer):
        yield from _rows(part, outer)


@jax.jit
def _statistics_of(x: jax.Array) -> list[jax.Array]:
    x = x.astype(jnp.float32)
    return [statistic(x) for statistic in _STATISTICS.values()]


def _statistics(x: jax.Array) -> list[Any]:
    if x.size == 0 or jnp.iscomplexobj(x):
        return [math.nan] * 4 + [int(jnp.sum(~jnp.isfinite(x)))]
    return [value.item() for value in _statistics_of(x)]
