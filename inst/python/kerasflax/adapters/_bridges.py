"""Flax's bridges between its module systems: `nnx.bridge.ToLinen` and `nnx.bridge.ToNNX`.

A bridge calls a module of one system as a part of the other. It does not pass on what the systems
handle differently: the mode, which is an attribute in NNX and an argument or a field in Linen; the
random streams, which Linen finds by name in each call and an NNX module holds; and whether a call
may write to the state, which only Linen asks for. Here the bridges pass on all three.

The bridges have the methods of the modules that they wrap. NNX is not imported for this.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax.errors
from flax import linen as nn

from .. import _host
from .._errors import MethodError, ModuleError
from ._context import replaced
from ._lazy import LazyModule, class_of
from ._signature import MODE_ARGUMENTS, mode_values, parameters_of

# Gradients train this collection; a Linen module may write to all others.
_STATE = nn.DenyList(["params"])


@dataclasses.dataclass
class Streams:
    """A record of the random streams that NNX modules in Linen modules use.

    Attributes:
        looked_up: The names that modules looked up and that were not supplied.
        drawn: The tags of the streams from which methods drew. A fallback has the tag "default".
        are_passed_on: Whether a bridge is taking a key from each of Linen's streams.
        sown: The collections into which NNX modules have sown, each with the path of the bridge.
        path: The path of the bridge that runs.
        are_held: Whether a module is taking streams in its constructor, but not yet numbers.
    """

    looked_up: set[str] = dataclasses.field(default_factory=set)
    drawn: set[str] = dataclasses.field(default_factory=set)
    sown: set[tuple[str, ...]] = dataclasses.field(default_factory=set)
    path: tuple[str, ...] = ()
    are_passed_on: bool = False
    are_held: bool = False

    def drawn_of(self, supplied: frozenset[str]) -> set[str]:
        """The names of Linen's streams that the draws need."""
        drawn = self.drawn & supplied
        if self.drawn & {"default"} - supplied:
            drawn |= self.looked_up - supplied - {"params"} or {"default"}
        return drawn


def wrapped_methods(module: Any) -> dict[str, Callable[..., Any]] | None:
    """The methods of the module that a bridge wraps, as functions of the bridge, by name.

    Returns:
        None for a module that is not a bridge.
    """
    nnx = sys.modules.get("flax.nnx")
    if nnx is None:
        return None
    if isinstance(module, nnx.bridge.ToLinen):
        keywords = {} if not module.skip_rng else {"rngs": None}
        lazy = LazyModule(module.nnx_class, *module.args, **{**module.kwargs, **keywords})
        is_class = isinstance(module.nnx_class, type)
        kind, base, argument = (
            module.nnx_class if is_class else class_of(lazy),
            nnx.Module,
            "nnx_method",
        )
    elif isinstance(module, nnx.bridge.ToNNX):
        kind, base, argument = type(module.to_nnx__module), nn.Module, "method"
    else:
        return None
    return {
        name: _through(getattr(kind, name), argument)
        for owner in kind.__mro__
        if issubclass(owner, base) and owner is not base
        for name, value in vars(owner).items()
        if inspect.isfunction(value) and (name == "__call__" or not name.startswith("_"))
        if name != "setup"
    }


def _through(method: Callable[..., Any], argument: str) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(bridge: Any, *args: Any, **kwargs: Any) -> Any:
        return bridge(*args, **{argument: method}, **kwargs)

    return call


@dataclasses.dataclass(frozen=True)
class _Passed:
    """What bridges pass on; see `passing_on`."""

    training: bool
    fills: bool
    streams: Streams
    layer_rngs: Any
    writes: bool


@contextlib.contextmanager
def passing_on(
    *,
    training: bool,
    fills: bool,
    streams: Streams,
    layer_rngs: Any = None,
    writes: bool = True,
) -> Iterator[None]:
    """Let bridges pass on the mode, random streams and state within the block.

    Args:
        training: The mode.
        fills: Whether arguments for the mode are filled if a call leaves them out. A method that
            takes the mode passes it on itself.
        streams: Gets the names of the streams that NNX modules use.
        layer_rngs: The `nnx.Rngs` for Linen modules in NNX modules that hold none.
        writes: Whether Linen modules in NNX modules may write to the state. If a Linen module is
            around them, they may do what it may do.
    """
    nnx = sys.modules.get("flax.nnx")
    if nnx is None:
        yield
        return
    passed = _Passed(training, fills, streams, layer_rngs, writes)
    # An NNX module around a bridge watches `sow` and `perturb` itself.
    watched = () if writes else (("sow", _sow), ("perturb", _perturb))
    # Flax has no hooks for its bridges and for NNX's streams. The methods are documented, but not
    # that they may be replaced. Seen to work with flax 0.12.6 to 0.12.12.
    # https://flax.readthedocs.io/en/latest/guides/bridge_guide.html
    with (
        replaced(
            (nnx.bridge.ToNNX, _named("__call__", _call_linen, passed)),
            (nnx.Rngs, _named("__getitem__", _look_up, streams)),
            (nnx.Rngs, _named("__getattr__", _look_up, streams)),
            (nnx.RngStream, _named("__call__", _draw, streams)),
            *((nnx.Module, _named(name, function, streams)) for name, function in watched),
        ),
        nn.intercept_methods(functools.partial(_call_nnx, passed)),
    ):
        yield


def _named(name: str, function: Callable[..., Any], *args: Any) -> Callable[..., Any]:
    """A function with its first arguments, under the name of the method that it replaces."""
    named = functools.partial(function, *args)
    named.__name__ = name  # type: ignore[attr-defined]
    return named


# Linen modules in NNX modules ---------------------------------------------------------------------


def _call_linen(
    passed: _Passed,
    call: Callable[..., Any],
    bridge: Any,
    *args: Any,
    rngs: Any = None,
    method: Any = None,
    mutable: Any = None,
    **kwargs: Any,
) -> Any:
    """Call a `ToNNX`, which calls the Linen module in it."""
    linen = bridge.to_nnx__module
    mutable = _STATE if mutable is None and passed.writes else mutable
    fields = {each.name: getattr(linen, each.name, None) for each in dataclasses.fields(linen)}
    function = method if callable(method) else getattr(type(linen), method or "__call__")
    arguments, unset = _missing_mode(function, args, kwargs, fields, passed.training)
    if passed.fills and arguments:
        kwargs, unset = kwargs | arguments, {}
    if unset:
        # The bridge belongs to this call alone.
        vars(bridge)["to_nnx__module"] = linen.clone(**unset)
    run = functools.partial(call, bridge, *args, method=method, mutable=mutable, **kwargs)
    try:
        return run(rngs=rngs)
    except flax.errors.InvalidRngError:
        if passed.layer_rngs is None or rngs is not None or bridge.to_nnx__rngs is not None:
            raise
        return run(rngs=passed.layer_rngs)
    except (flax.errors.ScopeParamNotFoundError, flax.errors.ScopeCollectionNotFound) as error:
        nnx = sys.modules["flax.nnx"]
        if nnx.state(bridge, nnx.Not(nnx.RngState)):
            raise
        raise ModuleError(
            f"`ToNNX` has no variables for its {type(linen).__name__}.",
            advice=f"Create them with {_host.code('nnx.bridge.lazy_init(module, inputs)')} before "
            "you pass the module.",
        ) from error
    finally:
        vars(bridge)["to_nnx__module"] = linen


# NNX modules in Linen modules ---------------------------------------------------------------------


def _call_nnx(
    passed: _Passed,
    call: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    context: nn.module.InterceptorContext,
) -> Any:
    """Call a method of a Linen module. A `ToLinen` creates and calls the NNX module in it."""
    bridge: Any = context.module
    if not isinstance(bridge, sys.modules["flax.nnx"].bridge.ToLinen):
        return call(*args, **kwargs)
    if context.method_name != "__call__":
        return call(*args, **kwargs)
    factory, streams = bridge.nnx_class, passed.streams
    method = kwargs.get("nnx_method")
    method = method if callable(method) else getattr(factory, method or "__call__", None)
    if passed.fills and callable(method) and isinstance(factory, type):
        rest = {name: value for name, value in kwargs.items() if name != "nnx_method"}
        kwargs = kwargs | _missing_mode(method, args, rest, {}, passed.training)[0]
    before = dataclasses.replace(streams)
    # Linen has no other way to change a field of a bound copy.
    object.__setattr__(bridge, "nnx_class", functools.partial(_create_nnx, passed, factory))
    streams.path, streams.are_passed_on = bridge.path, True
    try:
        return call(*args, **kwargs)
    finally:
        object.__setattr__(bridge, "nnx_class", factory)
        streams.path = before.path
        streams.are_passed_on, streams.are_held = before.are_passed_on, before.are_held


def _create_nnx(passed: _Passed, factory: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Create the NNX module of a `ToLinen` in the mode."""
    passed.streams.are_passed_on, passed.streams.are_held = False, True
    made = factory(*args, **kwargs)
    set_mode(made, training=passed.training)
    passed.streams.are_held = False
    return made


def _look_up(streams: Streams, call: Callable[..., Any], rngs: Any, name: str) -> Any:
    """Look up a stream in an `nnx.Rngs`."""
    if not name.startswith("_") and name not in rngs:
        streams.looked_up.add(name)
    return call(rngs, name)


def _draw(streams: Streams, call: Callable[..., Any], stream: Any, *args: Any) -> Any:
    """Take a key from an `nnx.RngStream`."""
    if not streams.are_held:
        streams.drawn.add(stream.tag)
    return call(stream, *args)


def _sow(
    streams: Streams,
    call: Callable[..., Any],
    module: Any,
    variable_type: Any,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Sow a value in an NNX module."""
    _note_sown(streams, variable_type)
    with _without_advice_to_capture():
        return call(module, variable_type, *args, **kwargs)


def _perturb(
    streams: Streams,
    call: Callable[..., Any],
    module: Any,
    name: str,
    value: Any,
    variable_type: Any = None,
) -> Any:
    """Perturb a value in an NNX module."""
    kind = sys.modules["flax.nnx"].Perturbation if variable_type is None else variable_type
    _note_sown(streams, kind)
    with _without_advice_to_capture():
        return call(module, name, value, kind)


def _note_sown(streams: Streams, variable_type: Any) -> None:
    kind = variable_type
    if not isinstance(kind, str):
        nnx = sys.modules["flax.nnx"]
        kind = nnx.variable_name_from_type(kind, allow_register=True)
    streams.sown.add((kind, *streams.path))


@contextlib.contextmanager
def _without_advice_to_capture() -> Iterator[None]:
    """Ignore NNX's advice to put `nnx.capture` around the call: the bridge makes the call."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


# The mode -----------------------------------------------------------------------------------------


def set_mode(module: Any, *, training: bool) -> None:
    """Set the mode of all parts of an NNX module. An argument in a call wins over it."""
    type(module).set_attributes(
        module,
        deterministic=not training,
        use_running_average=not training,
        raise_if_not_found=False,
    )
    nnx = sys.modules["flax.nnx"]
    for _, part in nnx.iter_modules(module):
        if isinstance(part, nnx.bridge.ToNNX):
            # `nnx.jit` traces a module again if an attribute differs. Linen does not get attributes
            # with this prefix.
            part.to_nnx__training = training


def _missing_mode(
    method: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    fields: Mapping[str, Any],
    training: bool,
) -> tuple[dict[str, bool], dict[str, bool]]:
    """The mode that a call of a module does not pass.

    Args:
        method: The method, as a function of the module.
        args: The positional arguments of the call.
        kwargs: The keyword arguments of the call.
        fields: The values of the module's fields.
        training: The mode.

    Returns:
        The missing arguments, and the fields that are None.
    """
    try:
        signature = inspect.Signature(list(parameters_of(method, "method")))
        given = signature.bind_partial(None, *args, **kwargs).arguments
    except (MethodError, TypeError, ValueError):
        # Foreign code may have any signature, and the call itself reports a wrong argument.
        return {}, {}
    if any(given.get(name) is not None for name in MODE_ARGUMENTS):
        return {}, {}
    unset = [name for name in fields if fields[name] is None]
    arguments = [name for name in signature.parameters if fields.get(name) is None]
    return mode_values(arguments, training), mode_values(unset, training)
