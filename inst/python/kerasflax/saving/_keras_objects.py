"""Keras's own objects in a layer's config: regularizers, constraints and dtype policies.

Keras's deserializer is not used: it creates whatever is described, such as a layer or a function.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import keras

from .. import _dtypes, _host, _paths
from .._errors import ConfigError
from . import _allowed
from ._field_types import mro
from ._from_json import invalid_description, require_type
from ._plan import summary

Json = Any

_SCALARS = (bool, int, float, str)
_KERAS_KEYS = {"module", "class_name", "config", "registered_name", "shared_object_id"}


def regularizers_from_config(node: Json, path: str) -> Callable[[], Any]:
    """Check the description of a regularizer. The returned function creates it."""
    return _keras_object(node, "regularizers", keras.regularizers.Regularizer, path)


def constraints_from_config(node: Json, path: str) -> Callable[[], Any]:
    """Check the description of a constraint. The returned function creates it."""
    return _keras_object(node, "constraints", keras.constraints.Constraint, path)


def policy_from_config(node: Json, path: str) -> Callable[[], Any]:
    """Check the description of a dtype policy. The returned function creates it.

    The policy sets `variable_dtype` and `compute_dtype`.
    """
    if isinstance(node, str):
        try:
            _dtypes.named(node.removeprefix("mixed_"))
        except ValueError:
            raise ConfigError(
                f"{path} is described as {summary(node)}, "
                "which is not a dtype policy of a Flax layer."
            ) from None
        return lambda: node
    return _keras_object(
        node,
        "dtype_policies",
        keras.dtype_policies.DTypePolicy,
        f"{path} (compute_dtype, variable_dtype)",
    )


def by_pattern(
    nodes: Json, path: str, check: Callable[[Json, str], Callable[[], Any]]
) -> Callable[[], Any]:
    """Check descriptions by pattern. The returned function creates a dict of what they describe."""
    if nodes is None or nodes == []:
        # R has only one kind of empty list.
        return lambda: None
    nodes = require_type(nodes, Mapping, path)
    patterns = [require_type(pattern, str, path) for pattern in nodes]
    lengths, sets = map(len, patterns), (pattern.count("[") for pattern in patterns)
    are_many = sum(map(_paths.is_pattern, patterns)) > _paths.MOST_PATTERNS
    if (
        are_many
        or max(lengths, default=0) > _paths.LONGEST
        or max(sets, default=0) > _paths.MOST_SETS
    ):
        raise ConfigError(
            f"{path} has an invalid description: it has too many patterns, or too long ones."
        )
    makers = {
        pattern: check(node, f"{path}: {summary(pattern)}") for pattern, node in nodes.items()
    }
    return lambda: {pattern: make() for pattern, make in makers.items()}


def _keras_object(node: Json, table: str, base: type, path: str) -> Callable[[], Any]:
    """Check one of Keras's own objects, in the format of `keras.saving`, or a registered object."""
    if node is None:
        return lambda: None
    if isinstance(node, str):
        node = {"class_name": _allowed.keras_class_name(table, node), "config": {}}
    name = require_type(require_type(node, Mapping, path).get("class_name"), str, path)
    config, registered_name = node.get("config"), node.get("registered_name")
    if not node.keys() <= _KERAS_KEYS:
        raise invalid_description(path, node)
    if name == "function":
        return _keras_function(registered_name, config, path)
    config = {} if config == [] else require_type({} if config is None else config, Mapping, path)
    keys = [key for key in (registered_name, name) if isinstance(key, str)]
    found = next(filter(None, map(keras.saving.get_registered_object, keys)), None)
    if found is not None:
        is_right = isinstance(found, type) and (
            base in mro(found) or any("__call__" in vars(each) for each in mro(found))
        )
        if (
            not is_right
            or keras.layers.Layer in mro(found)
            or found.__module__.partition(".")[0] == "kerasflax"
        ):
            raise invalid_description(path, node, f" is not a {base.__name__}")
        return lambda: found.from_config(dict(config))
    kind = _allowed.keras_class(table, name)
    if kind is None or not isinstance(node.get("module", "keras"), str | None):
        given = name[:80] if name.isidentifier() else "Name"
        raise ConfigError(
            f"{path} is of the class {summary(name)}, which is neither Keras's own nor registered.",
            advice=f"Register it, or pass it: {_host.word('own custom object', given)}.",
        )
    if not all(isinstance(key, str) and _is_plain(value) for key, value in config.items()):
        raise invalid_description(path, node, " has a config that is not only numbers and text")
    return lambda: kind(**config)


def _keras_function(registered_name: Json, name: Json, path: str) -> Callable[[], Any]:
    keys = [key for key in (registered_name, name) if isinstance(key, str)]
    found = next(filter(None, map(keras.saving.get_registered_object, keys)), None)
    if found is None or isinstance(found, type) or not callable(found):
        raise ConfigError(
            f"{path} is the function {summary(name)}, which is not registered.",
            advice="Register it before you load the model.",
        )
    return lambda: found


def _is_plain(value: Json) -> bool:
    """Whether a value is a number, text or None, or a short list of them."""
    if isinstance(value, list):
        return len(value) <= 32 and all(
            item is None or isinstance(item, _SCALARS) for item in value
        )
    return value is None or isinstance(value, _SCALARS)
