"""Objects in which other libraries keep a model's settings.

Each class of the table is written in its own public form, a dict, and created again by its own
public constructor. A file may name a class of the table, and a subclass that this process has
defined if its objects are written in the same way. Nothing is imported: a class whose package has
not been imported does not exist here.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

from .. import _dtypes
from ._field_types import mro


@dataclasses.dataclass(frozen=True)
class Way:
    """How to write an object, and to create it again.

    Attributes:
        values: From an object to a dict.
        make: From the class and a dict to an object.
        has_subclasses: Whether the objects of all subclasses can be written in the same way.
    """

    values: Callable[[Any], dict[Any, Any]]
    make: Callable[[Any, dict[Any, Any]], Any]
    has_subclasses: bool = False


def _pretrained_values(config: Any) -> dict[str, Any]:
    # JSON has text as keys, also for the labels.
    values = json.loads(config.to_json_string(use_diff=False))
    for name, value in vars(config).items():
        if hasattr(value, "to_json_string"):
            values[name] = _pretrained_values(value)
    # Attributes of the class or of the installed version, which are not the object's own.
    for name in ("model_type", "transformers_version"):
        if vars(config).get(name) is None:
            values.pop(name, None)
    return values


def _make_pretrained(kind: Any, values: dict[str, Any]) -> Any:
    _check_dtypes(values)
    return kind.from_dict(values)


def _check_dtypes(values: Any) -> None:
    """Refuse dtypes of other names: transformers looks them up as attributes of PyTorch."""
    if isinstance(values, Mapping):
        for key in ("dtype", "torch_dtype"):
            if values.get(key) is not None:
                _dtypes.named(values[key])
        values = values.values()
    if not isinstance(values, str | int | float | None):
        for value in values:
            _check_dtypes(value)


def _frozen_values(config: Any) -> dict[str, Any]:
    # A frozen one shows lists as tuples, but is not equal to one that was made of tuples.
    return dict(config.as_configdict().to_dict())


_DICT = Way(dict, lambda kind, values: kind(values))
_NAMESPACE = Way(lambda value: dict(vars(value)), lambda kind, values: kind(**values))
_WAYS: Mapping[str, Way] = MappingProxyType(
    {
        # https://huggingface.co/docs/transformers/main_classes/configuration
        "transformers.configuration_utils:PretrainedConfig": Way(
            _pretrained_values, _make_pretrained, has_subclasses=True
        ),
        # https://ml-collections.readthedocs.io/en/latest/config_dict.html
        "ml_collections.config_dict.config_dict:ConfigDict": Way(
            lambda config: dict(config.to_dict()), lambda kind, values: kind(values)
        ),
        "ml_collections.config_dict.config_dict:FrozenConfigDict": Way(
            _frozen_values, lambda kind, values: kind(values)
        ),
        "diffusers.configuration_utils:FrozenDict": _DICT,
        "collections:OrderedDict": _DICT,
        "types:SimpleNamespace": _NAMESPACE,
        "argparse:Namespace": _NAMESPACE,
    }
)


def _base(reference: str) -> type | None:
    namespace, _, name = reference.partition(":")
    found = vars(sys.modules[namespace]).get(name) if namespace in sys.modules else None
    return found if isinstance(found, type) else None


def way_of(kind: type) -> Way | None:
    """Return how to write the objects of a class, or None if the table does not have it."""
    for reference, way in _WAYS.items():
        base = _base(reference)
        if base is not None and (kind is base or (way.has_subclasses and base in mro(kind))):
            return way
    return None


def is_config_class(kind: Any) -> bool:
    """Whether the table has a class."""
    return isinstance(kind, type) and way_of(kind) is not None


def classes() -> Iterator[type]:
    """Yield the classes of the table that exist, and their subclasses."""
    for reference, way in _WAYS.items():
        base = _base(reference)
        waiting = [] if base is None else [base]
        while waiting:
            kind = waiting.pop()
            yield kind
            waiting += type.__subclasses__(kind) if way.has_subclasses else []
