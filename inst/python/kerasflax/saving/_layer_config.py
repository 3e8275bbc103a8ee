"""A layer's config in JSON, checked completely before anything is created from it."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras

from .. import _host, _keras, _limits, _messages
from .._errors import BackendError, ConfigError, KerasFlaxError
from ..adapters import _lazy
from ..adapters._protocol import is_base, is_module
from ..tracing._trace import Spec
from . import _from_json, _keras_objects, _plan
from ._field_types import mro
from ._from_json import require_list, require_type
from ._in_memory import InMemory
from ._plan import summary

Json = Any

FORMAT_VERSION = 1


def not_recurrent(kind: type[KerasFlaxError]) -> KerasFlaxError:
    """The error about a layer in Keras's wrapper `Bidirectional`, as an error of a class."""
    return kind(
        f"{_host.word('bidirectional')} cannot reverse a Flax module: it takes Keras's recurrent "
        "layers, which have the argument `go_backwards`.",
        advice=f"Use a module that does it, {_host.code('flax.linen.Bidirectional')} or "
        f"{_host.code('flax.nnx.Bidirectional')}.",
    )


# Arguments that the constructor gets from a config unchanged.
_UNCHANGED = {"name", "trainable", "autocast", "seed"}
# Arguments that it gets after a check. Keras would create any object that the config describes.
_CHECKED: Mapping[str, Callable[[Any, str], Callable[[], Any]]] = {
    "dtype": _keras_objects.policy_from_config,
    "activity_regularizer": _keras_objects.regularizers_from_config,
    "regularizers": functools.partial(
        _keras_objects.by_pattern, check=_keras_objects.regularizers_from_config
    ),
    "constraints": functools.partial(
        _keras_objects.by_pattern, check=_keras_objects.constraints_from_config
    ),
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
        method: From the module to the method, or to its name.
        keywords: The other arguments of the constructor.
        makers: Functions that create further arguments.
        frozen: The paths of frozen weights.
        recorded: What the layer remembers.
    """

    module: _plan.Plan
    method: Callable[[Any], Any]
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
        config = dict(require_type(config, Mapping, "The layer"))
        _check_version(config.pop("format_version", None))
        module_config = config.pop("module", None)
        module = _from_json.plan_description(module_config, "The module")
        if module.tag not in (_plan.MODULE, _plan.TRUSTED):
            raise _no_module(module)
        method_config = config.pop("method", None)
        method = method_from_config(method_config, module_config)
        for name, kind in (("autocast", bool), ("trainable", bool), ("name", str | None)):
            if name in config and not isinstance(config[name], kind):
                raise _from_json.invalid_description(f"`{name}`", config[name])
        frozen = tuple(require_texts(config.pop("frozen", []), "frozen"))
        given = specs_from_config(config.pop("given", {}), "given")
        checks = {name: check for name, check in _CHECKED.items() if name in config}
        makers = {name: _maker(check, config.pop(name), name) for name, check in checks.items()}
        seed = config.get("seed")
        if type(seed) is int and -(2**31) <= seed < 0:
            # The config has been through R, whose integers have 31 bits and a sign.
            config["seed"] = seed + 2**32
        if "go_backwards" in config:
            # `keras.layers.Bidirectional` adds it to the config of the layer that it copies.
            raise not_recurrent(ConfigError)
        unknown = config.keys() - _UNCHANGED
        if unknown:
            names = ", ".join(map(_plan.summary, list(unknown)[:5]))
            raise ConfigError(f"The layer is described with {names}, which no layer has.")
        if type(method_config) is InMemory:
            method_config = method_config.description
        return cls(module, method, config, makers, frozen, Recorded(method_config, given))

    def make(self, layer_class: Callable[..., Any]) -> Any:
        """Create the layer that the config describes, without what it remembers."""
        module = self.module.make()
        if not is_module(module):
            raise _no_module(self.module)
        method = self.method(module)
        made = {name: make() for name, make in self.makers.items()}
        return layer_class(module, method, **self.keywords, **made)


def _maker(
    check: Callable[[Any, str], Callable[[], Any]], node: Json, name: str
) -> Callable[[], Any]:
    """Check a description. The returned function creates what it describes."""
    return (lambda: node.value) if type(node) is InMemory else check(node, name)


# The other parts of a layer -----------------------------------------------------------------------


def method_from_config(node: Json, module: Json) -> Callable[[Any], Any]:
    """Check the description of a method.

    Args:
        node: What `method_to_config` returned.
        module: The description of the layer's module.

    Returns:
        A function from the module to the method, or to its name.
    """
    if type(node) is InMemory:
        return lambda module: node.value
    if node is None:
        return lambda module: None
    if isinstance(node, str):
        return lambda module: checked_method_name(node, module)
    node = require_type(node, Mapping, "`method`")
    name = node.get("partial")
    if not isinstance(name, str):
        plan = _from_json.plan_function(node, "`method`", module=module)
        return lambda module: plan.make()
    if not node.keys() <= {"partial", "arguments", "keywords"}:
        raise _from_json.invalid_description("`method`", node)
    keywords = require_type(node.get("keywords", {}), Mapping, "`method`")
    values = [
        _from_json.plan_description(each, "`method`", module=module)
        for each in ({"tuple": node.get("arguments", [])}, {"dict": keywords})
    ]

    def make(module: Any) -> Any:
        function = getattr(_class_of(module), checked_method_name(name, module))
        arguments, named = (plan.make() for plan in values)
        return functools.partial(function, *arguments, **named)

    return make


def _class_of(module: Any) -> type:
    return _lazy.class_of(module) if _lazy.is_nnx_module(module) else type(module)


def checked_method_name(method: str, module: Any) -> str:
    """Return the name of a method that the module's own class defines for callers.

    Flax's base classes, and Python's special methods other than `__call__`, do not count.

    Raises:
        ConfigError: The module has no such method.
    """
    if method == "__call__":
        return method
    kind = _class_of(module)
    bases = [base for base in mro(kind) if is_base(base)]
    owner = next((base for base in mro(kind) if method in vars(base)), None)
    if method.startswith("__") or owner is None or any(owner in mro(base) for base in bases):
        raise ConfigError(
            "`method` has an invalid description: "
            f"{kind.__name__:.80} has no method {summary(method)} of its own."
        )
    return method


def require_texts(names: Any, path: str) -> list[str]:
    """Return a list of text, or raise ConfigError."""
    return [require_type(name, str, path) for name in require_list(names, path)]


def specs_from_config(specs: Any, path: str) -> dict[str, Spec]:
    """Return specs by path, from pairs of a shape and a dtype.

    Raises:
        ConfigError: A pair is invalid, Keras has no variables of its dtype, or there are too many
            paths, or too long ones.
    """
    result = {}
    for name, pair in require_type(specs, Mapping, path).items():
        if len(require_type(pair, list, path)) != 2:
            raise ConfigError(
                f"{path} has an invalid description: "
                f"{summary(pair)} is not a pair of a shape and a dtype."
            )
        shape, dtype = pair
        spec = result[require_type(name, str, path)] = spec_from_config(
            shape, dtype, f"{path}: {summary(name)}"
        )
        try:
            keras.backend.standardize_dtype(spec.dtype)
        except ValueError:
            raise ConfigError(
                f"{path}: {summary(name)} has the dtype {summary(dtype)}, "
                "which no Keras variable can have."
            ) from None
    problem = _limits.problem_of_paths(result)
    if problem:
        raise ConfigError(f"{path} has an invalid description: {problem}.")
    return result


def spec_from_config(shape: Any, dtype: Any, path: str, *, unknown: bool = False) -> Spec:
    """Return a spec of a shape and a dtype. With `unknown`, sizes may be None."""
    return Spec(
        _from_json.require_shape(shape, path, unknown=unknown),
        str(_from_json.require_dtype(dtype, path)),
    )


# Errors -------------------------------------------------------------------------------------------


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
