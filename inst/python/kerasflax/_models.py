"""What is Flax's in a layer or a model: its variables, its parameters as a table, and which of them are frozen.

Each function takes a `FlaxLayer` or a Keras model that holds some. A layer's weights have their paths,
`params/Dense_0/kernel`; a model's have the layer's name before it, `flax_layer/params/Dense_0/kernel`.
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

from . import _paths
from ._errors import ArgumentError, VariablesError
from ._layer import FlaxLayer
from .bridge import _variables

PyTree = Any
_Row = tuple[str, str | None, str, keras.Variable]


def flax_layers(model: keras.Model) -> dict[str, FlaxLayer]:
    """The Flax layers of a model and of the models in it, by name.

    Raises:
        ArgumentError: There is none, two have one name, or it is no model.
    """
    if not isinstance(model, keras.layers.Layer):
        raise ArgumentError(
            f"A Flax layer, or a model that holds one, is needed, got {type(model).__name__}."
        )
    found = [layer for layer in model._flatten_layers() if isinstance(layer, FlaxLayer)]
    if not found:
        classes = sorted(
            {type(layer).__name__ for layer in model._flatten_layers(include_self=False)}
        )
        raise ArgumentError(
            f"{model.name!r} holds no Flax layer; it holds {', '.join(classes) or 'no layer'}."
        )
    layers = {layer.name: layer for layer in found}
    if len(layers) < len(found):
        twice = sorted({layer.name for layer in found if layers[layer.name] is not layer})
        raise ArgumentError(
            f"Two Flax layers of {model.name!r} have the name {twice[0]!r}.\nGive each a `name` of its own."
        )
    return layers


def variables(target: FlaxLayer | keras.Model) -> dict[str, PyTree]:
    """The variables of a layer by collection, or of a model by layer and collection; see `FlaxLayer.flax_variables`."""
    if isinstance(target, FlaxLayer):
        return target.flax_variables
    return {name: layer.flax_variables for name, layer in flax_layers(target).items()}


def own_variables(target: FlaxLayer | keras.Model) -> dict[str, PyTree]:
    """The variables in the layers' own memory, to be read at once; see `FlaxLayer._own_variables`."""
    if isinstance(target, FlaxLayer):
        return target._own_variables
    return {name: layer._own_variables for name, layer in flax_layers(target).items()}


def numpy_variables(target: FlaxLayer | keras.Model) -> dict[str, PyTree]:
    """The variables as nested dicts of what other languages know, each value exactly: R asks for them.

    Arrays are NumPy's, of float32, float64, complex numbers, integers or booleans; scalars are Python's; of random keys there
    are the data; boxes of metadata are opened. Every name is a string.
    """
    if not isinstance(target, FlaxLayer):
        return {name: numpy_variables(layer) for name, layer in flax_layers(target).items()}
    return _variables.nested(
        {
            path: _known_elsewhere(np.asarray(value))
            for path, value in target.values_by_path().items()
        }
    )


def _known_elsewhere(array: np.ndarray[Any, Any]) -> Any:
    if jnp.issubdtype(array.dtype, jnp.floating) and array.dtype != np.float64:
        array = array.astype(np.float32)
    elif jnp.issubdtype(array.dtype, jnp.integer) and not np.can_cast(array.dtype, np.int32):
        array = array.astype(np.float64)
    elif array.dtype == np.int32 and array.size and array.min() == np.iinfo(np.int32).min:
        # R has NA in the place of the least integer.
        array = array.astype(np.float64)
    return array if array.ndim else array.item()


def set_variables(target: FlaxLayer | keras.Model, value: Mapping[str, PyTree]) -> None:
    """Set what a nested dict names, and leave the rest: all of it, or nothing.

    Raises:
        VariablesError: Something does not fit; every place is listed by path.
    """
    fitted = fitted_variables(target, value)
    with contextlib.ExitStack() as stack:
        # In one order, lest two threads wait for each other.
        for layer in sorted((layer for layer, _ in fitted), key=id):
            stack.enter_context(layer.alone())
        known = [(layer.variables_by_path, arrays) for layer, arrays in fitted]
        _variables.assign(
            (variables[path], array)
            for variables, arrays in known
            for path, array in arrays.items()
        )


def fitted_variables(
    target: FlaxLayer | keras.Model, value: Mapping[str, PyTree]
) -> list[tuple[FlaxLayer, dict[str, jax.Array]]]:
    """Of each layer that a nested dict names, what it would set there; nothing is set.

    Raises:
        VariablesError: Something does not fit; every place is listed by path.
    """
    if isinstance(target, FlaxLayer):
        return [(target, target.fitted_variables(value))]
    layers = flax_layers(target)
    known = ", ".join(map(repr, layers))
    if not isinstance(value, Mapping):
        raise VariablesError(
            f"The variables of a model are a dict by layer, of {known}; got {type(value).__name__}."
        )
    fitted, problems = [], []
    for name, tree in value.items():
        if name not in layers:
            problems.append(
                f"Layer {name!r} is not there:\n  {name}: the model's Flax layers are {known}"
            )
            continue
        try:
            fitted.append((layers[name], layers[name].fitted_variables(tree)))
        except VariablesError as error:
            # Of a model a weight's path begins with the layer's name.
            problems.append(f"Layer {name!r}: {error}".replace("\n  ", f"\n  {name}/"))
    if problems:
        raise VariablesError("\n".join(problems))
    return fitted


def check_savable(model: keras.layers.Layer) -> None:
    """Raise what saving would raise about a model, before Keras opens the file.

    Raises:
        ConfigError: A module, or what it is called with, cannot be described; the message names the field.
    """
    keras.saving.serialize_keras_object(model)


def freeze(target: FlaxLayer | keras.Model, path: str | list[str] | None = None) -> list[str]:
    """Exclude weights from training: they get no gradients, and the optimizer keeps nothing for them.

    Args:
        target: A layer that has been built, or a model.
        path: A pattern of paths (see `kerasflax._paths`), several, or None for every trainable weight of the Flax layers.

    Returns:
        The paths of the weights that are frozen now and were not before.

    Raises:
        ArgumentError: A pattern that no trainable weight fits.
        NotBuiltError: A layer has no variables yet.
    """
    return _warned(*set_frozen(target, path, True))


def unfreeze(target: FlaxLayer | keras.Model, path: str | list[str] | None = None) -> list[str]:
    """Include frozen weights in training again; see `freeze`. Returns the paths of those that are not frozen any more."""
    return _warned(*set_frozen(target, path, False))


def set_frozen(
    target: FlaxLayer | keras.Model, path: str | list[str] | None, value: bool
) -> tuple[list[str], str | None]:
    """Do what `freeze` and `unfreeze` do; return the changed paths, and a warning where there is something to be done."""
    named = _named_layers(target)
    for layer in named.values():
        layer.check_built()
    places = {
        prefix + path: (layer, path)
        for prefix, layer in named.items()
        for path in layer.trainable_paths
    }
    patterns = ["**"] if path is None else [path] if isinstance(path, str) else list(path)
    chosen = dict.fromkeys(
        found for pattern in patterns for found in _paths.matched(pattern, list(places))
    )
    frozen = {id(layer): set(layer.frozen) for layer in named.values()}
    changed = []
    for found in chosen:
        layer, path = places[found]
        if (path in frozen[id(layer)]) is not value:
            changed.append(found)
            (frozen[id(layer)].add if value else frozen[id(layer)].remove)(path)
    with contextlib.ExitStack() as stack:
        for layer in named.values():
            stack.enter_context(layer.training_kept())
        for layer in named.values():
            layer.frozen = sorted(frozen[id(layer)])
    optimizer = getattr(target, "optimizer", None)
    # A layer, or a model in another one, is not told what trains it.
    is_trained = (
        any(layer.has_been_trained for layer in named.values())
        if optimizer is None
        else optimizer.built
    )
    return changed, _COMPILE_AGAIN if changed and is_trained else None


def _warned(changed: list[str], warning: str | None) -> list[str]:
    if warning:
        warnings.warn(warning, stacklevel=3)
    return changed


def _named_layers(target: FlaxLayer | keras.Model) -> dict[str, FlaxLayer]:
    """Layers by what stands before their paths."""
    if isinstance(target, FlaxLayer):
        return {"": target}
    return {f"{name}/": layer for name, layer in flax_layers(target).items()}


_COMPILE_AGAIN = (
    "The model has been compiled and trained: compile it again before it is trained on. "
    "Keras would stop with an error, and its weights be lost."
)
_COLUMNS = ["layer", "collection", "path", "shape", "dtype", "size", "bytes", "trainable"]
_STATISTICS: Mapping[str, Callable[[jax.Array], jax.Array]] = {
    "mean": jnp.mean,
    "sd": jnp.std,
    "min": jnp.min,
    "max": jnp.max,
    "n_nonfinite": lambda x: jnp.sum(~jnp.isfinite(x)),
}


def parameters(target: keras.layers.Layer, *, stats: bool = False) -> dict[str, list[Any]]:
    """A table of the weights of a layer or model, one row per weight, as a dict of columns.

    Args:
        target: A built Flax layer, or a model; of a model, the weights of other layers are rows too.
        stats: Whether to compute, on the device, of each weight the mean, the standard deviation (of the population), the
            least and the largest value, in float32, and the number of values that are not finite.

    Returns:
        `layer`, the layer's name; `collection`, None for layers that are not Flax's; `path`, within the layer; `shape`, a
        list of sizes; `dtype`; `size`, in elements; `bytes`; `trainable`; and with `stats` the columns `mean`, `sd`, `min`,
        `max`, `n_nonfinite`, where what an empty weight, or one of complex numbers, has not is nan.
    """
    for layer in target._flatten_layers():
        if isinstance(layer, FlaxLayer):
            layer.check_values()
    trainable = {id(weight) for weight in target.trainable_weights}
    weights = {id(weight): (place, weight) for *place, weight in _rows(target)}
    rows = []
    for (layer, collection, path), weight in weights.values():
        shape = [int(size) for size in weight.shape]
        size = math.prod(shape)
        number = size * weight.value.dtype.itemsize
        row = [layer, collection, path, shape, weight.dtype, size, number, id(weight) in trainable]
        rows.append(row + _statistics(weight.value) if stats else row)
    names = [*_COLUMNS, *_STATISTICS] if stats else _COLUMNS
    return {name: [row[i] for row in rows] for i, name in enumerate(names)}


def _rows(layer: keras.layers.Layer, outer: keras.layers.Layer | None = None) -> Iterator[_Row]:
    """Of each weight the layer's name, the collection, the path and the weight.

    A layer made of others is one layer, unless it is a model; only Flax layers are layers wherever they are.

    Args:
        layer: Where to look.
        outer: What it is a part of, where that is one layer.
    """
    if isinstance(layer, FlaxLayer):
        for path, weight in layer.variables_by_path.items():
            yield layer.name, _variables.collection_of(path), path, weight
        return
    outer = layer if outer is None or isinstance(outer, keras.Model) else outer
    for weight in layer._trainable_variables + layer._non_trainable_variables:
        yield outer.name, None, weight.path.removeprefix(f"{outer.path}/"), weight
    for part in layer._flatten_layers(include_self=False, recursive=False):
        yield from _rows(part, outer)


@jax.jit
def _statistics_of(x: jax.Array) -> list[jax.Array]:
    x = x.astype(jnp.float32)
    return [statistic(x) for statistic in _STATISTICS.values()]


def _statistics(x: jax.Array) -> list[Any]:
    if x.size == 0 or jnp.iscomplexobj(x):
        return [math.nan] * 4 + [int(jnp.sum(~jnp.isfinite(x)))]
    return [value.item() for value in _statistics_of(x)]
