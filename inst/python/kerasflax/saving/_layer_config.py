"""A layer's config in JSON, checked completely before anything is created from it."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from .. import _keras, _messages
from .._errors import BackendError, ConfigError, KerasFlaxError
from ..adapters._protocol import is_module
from ..tracing._trace import Spec
from . import _from_json, _plan, _to_json

FORMAT_VERSION = 1

# Arguments that the constructor gets from a config unchanged.
_UNCHANGED = {"name", "trainable", "autocast", "seed"}
# Arguments that it gets after a check. Keras would create any object that the config describes.
_CHECKED: Mapping[str, Callable[[Any, str], Callable[[], Any]]] = {
    "dtype": _to_json.policy_from_config,
    "activity_regularizer": _to_json.regularizers_from_config,
    "regularizers": functools.partial(_to_json.by_pattern, check=_to_json.regularizers_from_config),
    "constraints": functools.partial(_to_json.by_pattern, check=_to_json.constraints_from_config),
}


@dataclasses.dataclass
class Recorded:
    """Facts that a layer records for its config, in addition to its constructor's arguments.

    Attributes:
        method: The description of the method, if a config has described it.
        given: The specs, by path, of given variables that `init` does not create, or creates with
            another shape or dtype.
        input_dtypes: The dtypes of the inputs that the layer was built on, as `call` gets them.
    """

    method: Any = None
    given: Mapping[str, Spec] = dataclasses.field(default_factory=dict)
    input_dtypes: Any = None


@dataclasses.dataclass(frozen=True)
class LayerPlan:
    """A config of a layer in which everything has been checked.

    Attributes:
        module: The plan of the module.
        method: The method, or its name.
        keywords: The other arguments of the constructor.
        makers: Functions that create further arguments.
        frozen: The paths of frozen weights.
        recorded: What the layer remembers.
    """

    module: _plan.Plan
    method: Any
    keywords: Mapping[str, Any]
    makers: Mapping[str, Callable[[], Any]]
    frozen: tuple[str, ...]
    recorded: Recorded

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> LayerPlan:
        """Check a config.

        Raises:
            ConfigError: The config is wrong, of another version, or names what a file may not name.
        """
        config = dict(_to_json.require_type(config, Mapping, "The layer"))
        _check_version(config.pop("format_version", None))
        module = _to_json.plan_description(config.pop("module", None), "The module")
        if module.tag not in (_plan.MODULE, _plan.TRUSTED):
            raise _no_module(module)
        method_config = config.pop("method", None)
        method = _to_json.method_from_config(method_config)
        for name, kind in (("autocast", bool), ("trainable", bool), ("name", str | None)):
            if name in config and not isinstance(config[name], kind):
                raise _from_json.invalid_description(f"`{name}`", config[name])
        frozen = tuple(_to_json.require_texts(config.pop("frozen", []), "frozen"))
        given = _to_json.specs_from_config(config.pop("given", {}), "given")
        checks = {name: check for name, check in _CHECKED.items() if name in config}
        makers = {name: check(config.pop(name), name) for name, check in checks.items()}
        seed = config.get("seed")
        if type(seed) is int and -(2**31) <= seed < 0:
            # The config has been through R, whose integers have 31 bits and a sign.
            config["seed"] = seed + 2**32
        unknown = config.keys() - _UNCHANGED
        if unknown:
            names = ", ".join(map(_plan.summary, list(unknown)[:5]))
            raise ConfigError(f"The layer is described with {names}, which no layer has.")
        return cls(module, method, config, makers, frozen, Recorded(method_config, given))

    def make(self, layer_class: Callable[..., Any]) -> Any:
        """Create the layer that the config describes, without what it remembers."""
        module = self.module.make()
        if not is_module(module):
            raise _no_module(self.module)
        _to_json.check_method_name(self.method, module)
        made = {name: make() for name, make in self.makers.items()}
        return layer_class(module, self.method, **self.keywords, **made)


def _check_version(version: Any) -> None:
    if type(version) is not int or version != FORMAT_VERSION:
        raise ConfigError(
            f"The layer is described in version {_plan.summary(version)} of the format; this "
            f"kerasflax reads version {FORMAT_VERSION}.",
            advice="Install the version of kerasflax that saved the model, or a newer one.",
        )


def _no_module(plan: _plan.Plan) -> ConfigError:
    return ConfigError(
        f"The layer's module is described as {_plan.summary(plan.node)}, "
        "which is not a Flax module."
    )


@contextlib.contextmanager
def blamed_on_the_config() -> Iterator[None]:
    """Turn any error of the block into a ConfigError, and keep Keras in its safe mode."""
    try:
        with _keras.safe_mode():
            yield
    except (BackendError, ConfigError):
        raise
    except KerasFlaxError as error:
        raise ConfigError(
            f"The layer cannot be created from its config: {error.what:.1000}",
            problems=error.problems,
            advice=error.advice,
        ) from error
    except Exception as error:
        what = f"The layer cannot be created from its config: {_messages.first_line(error):.1000}"
        raise ConfigError(what) from error
