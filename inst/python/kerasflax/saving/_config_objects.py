"""Objects in which other libraries keep a model's settings.

Each class of the table is written in its own public form, a dict, and created again by its own
public constructor. A file may name a class of the table, and a subclass that this process has
defined if its objects are written in the same way. Nothing is imported: a class whose package has
not been imported does not exist here.
"""

from __future__ import annotations

import copy
import dataclasses
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
        is_locked: Whether an object is locked against new fields, if its class can lock objects.
        make_locked: Like `make`, but the object is locked.
    """

    values: Callable[[Any], dict[Any, Any]]
    make: Callable[[Any, dict[Any, Any]], Any]
    has_subclasses: bool = False
    is_locked: Callable[[Any], bool] = lambda _: False
    make_locked: Callable[[Any, dict[Any, Any]], Any] | None = None


def _pretrained_values(config: Any) -> dict[str, Any]:
    # A config of several models finds the classes of its parts by their `model_type`. Others keep
    # an argument that they do not know as one more setting.
    made: Any = None
    for keeps_types in (False, True):
        values = _dict_form(config, keeps_types=keeps_types)
        try:
            made = _make_pretrained(type(config), values)
        except KeyError:
            if keeps_types:
                raise
        if made == config:
            break
    return values


def _dict_form(config: Any, *, keeps_types: bool) -> dict[str, Any]:
    values = dict(config.to_dict())
    for name, value in vars(config).items():
        if _base(_PRETRAINED) in mro(type(value)):
            part = _dict_form(value, keeps_types=keeps_types)
            values[name] = part | ({"model_type": value.model_type} if keeps_types else {})
        elif isinstance(value, tuple) and name in values:
            # The newest versions write a list.
            values[name] = value
    if isinstance(values.get("id2label"), dict):
        # There can be more labels than a file may have keys that are not text.
        values["id2label"] = {str(key): label for key, label in values["id2label"].items()}
    # Attributes of the class or of the installed version, which are not the object's own.
    for name in ("model_type", "transformers_version"):
        if vars(config).get(name) is None:
            values.pop(name, None)
    return values


def _make_pretrained(kind: Any, values: dict[str, Any]) -> Any:
    _check_dtypes(values)
    # A constructor may take its argument apart.
    return kind.from_dict(copy.deepcopy(values))


def _check_dtypes(values: Any) -> None:
    """Refuse dtypes of other names: transformers looks them up as attributes of PyTorch."""
    if isinstance(values, Mapping):
        for key in ("dtype", "torch_dtype"):
            if isinstance(values.get(key), str):
                _dtypes.named(values[key])
        values = list(values.values())
    if isinstance(values, list | tuple):
        for value in values:
            _check_dtypes(value)


def _frozen_values(config: Any) -> dict[str, Any]:
    # A frozen one shows lists as tuples, but is not equal to one that was made of tuples.
    return dict(config.as_configdict().to_dict())


def _make_frozen_locked(kind: Any, values: dict[Any, Any]) -> Any:
    # It has the lock of the object that it is made of.
    base: Any = _base(_CONFIG_DICT)
    return kind(base(values).lock())


_PRETRAINED = "transformers.configuration_utils:PretrainedConfig"
_CONFIG_DICT = "ml_collections.config_dict.config_dict:ConfigDict"
_DICT = Way(dict, lambda kind, values: kind(values))
_NAMESPACE = Way(lambda value: dict(vars(value)), lambda kind, values: kind(**values))
_WAYS: Mapping[str, Way] = MappingProxyType(
    {
        # https://huggingface.co/docs/transformers/main_classes/configuration
        _PRETRAINED: Way(_pretrained_values, _make_pretrained, has_subclasses=True),
        # https://ml-collections.readthedocs.io/en/latest/config_dict.html
        _CONFIG_DICT: Way(
            lambda config: dict(config.to_dict()),
            lambda kind, values: kind(values),
            is_locked=lambda config: config.is_locked,
            make_locked=lambda kind, values: kind(values).lock(),
        ),
        "ml_collections.config_dict.config_dict:FrozenConfigDict": Way(
            _frozen_values,
            lambda kind, values: kind(values),
            is_locked=lambda config: config.is_locked,
            make_locked=_make_frozen_locked,
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


def find_class(reference: str) -> type | None:
    """Return the class with a name that is in the table, or inherits from one that is."""
    if reference in _WAYS:
        # A later version of a package may have given the class another name, and kept this one.
        return _base(reference)
    names = {f"{kind.__module__}:{kind.__qualname__}": kind for kind in _classes()}
    return names.get(reference)


def _classes() -> Iterator[type]:
    """Yield the classes of the table that exist, and their subclasses."""
    for reference, way in _WAYS.items():
        base = _base(reference)
        waiting = [] if base is None else [base]
        while waiting:
            kind = waiting.pop()
            yield kind
            waiting += type.__subclasses__(kind) if way.has_subclasses else []
