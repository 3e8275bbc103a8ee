"""`flax.linen` modules behind the adapter protocol. No other file knows Linen.

Which random streams a module asks for, and into which collections it sows, is not declared anywhere in Linen. Both are found
out while it is traced: what a trace shows for the first time makes it start again, knowing better.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import inspect
import types
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import flax.core
import jax
from flax import linen as nn
from flax.core.scope import Scope

from .. import _host, _rng
from ..tracing._trace import TraceAgainError
from ._context import along_axes, in_turn, naming_the_path, replaced, running_module
from ._signature import Signature, as_attention_mask, signature_of, unbound
from ._whole_numbers import integer_names, whole

PyTree = Any

# Linen's words: gradients train this collection, and a method may write every other one.
_PARAMS = "params"
_MUTABLE = nn.DenyList([_PARAMS])
# Nearly every stochastic module asks for this stream in training; expecting it saves a second trace.
_USUAL_STREAM = "dropout"


@dataclasses.dataclass
class _Seen:
    """What a module was seen to do.

    Attributes:
        drawn: Streams that it took a key from.
        queried: Streams whose presence it asked for.
        sown: Where it sowed or perturbed: the collection, the module's path and the name.
    """

    drawn: set[str] = dataclasses.field(default_factory=set)
    queried: set[str] = dataclasses.field(default_factory=set)
    sown: set[tuple[str, ...]] = dataclasses.field(default_factory=set)


class LinenAdapter:
    """A `flax.linen.Module` and a method of it. See `Adapter` for what each method does."""

    base: ClassVar[type] = nn.Module

    @classmethod
    def accepts(cls, module: object) -> bool:
        """Whether it is an instance of a Linen module."""
        return isinstance(module, nn.Module)

    def __init__(self, module: nn.Module, method: str | Callable[..., Any] | None) -> None:
        self.name = type(module).__name__
        self.module = module
        self.method = unbound(type(module), method, nn.Module, _methods_of(module))
        self._signature = _signature(module, self.method)
        self.takes_mask = self._signature.takes_mask
        self.allows_unused = method is not None
        self.allows_extra_collections = True
        # What runs have taught; the values are replaced, and never changed.
        self._streams: Mapping[bool, frozenset[str]] = {
            True: frozenset({_USUAL_STREAM}),
            False: frozenset(),
        }
        self._drawing: frozenset[bool] = frozenset()
        self._sown: frozenset[tuple[str, ...]] = frozenset()
        self._axes: frozenset[str] = frozenset()
        self._mode_by_position = False

    @in_turn
    def init(
        self, key: jax.Array, inputs: PyTree, *, mask: PyTree = None
    ) -> tuple[PyTree, dict[str, PyTree]]:
        """See `Adapter.init`. The values are those of `module.init(key, inputs)`."""
        try:
            outputs, variables, seen = self._init(key, inputs, mask)
        except TraceAgainError:
            raise
        except Exception as error:
            # A module lifted with `static_argnums` fails where the mode is given by name, and does not tell.
            if self._mode_by_position or not self._signature.takes_mode_by_position:
                raise
            try:
                outputs, variables, seen = self._init(key, inputs, mask, mode_by_position=True)
            except Exception:
                raise error from error.__cause__
            self._mode_by_position = True
        self._sown |= seen.sown
        # Drawn here, the stream of the initial values says nothing of later calls.
        self._streams = {
            mode: known | (seen.drawn - {_PARAMS}) for mode, known in self._streams.items()
        }
        return outputs, self.state(flax.core.unfreeze(variables))

    def _init(
        self, key: jax.Array, inputs: PyTree, mask: PyTree, *, mode_by_position: bool | None = None
    ) -> tuple[PyTree, PyTree, _Seen]:
        arguments, keywords = self._arguments(
            inputs, training=False, mask=mask, mode_by_position=mode_by_position
        )
        with self._running() as seen:
            init = self._in_mode(False).init_with_output
            run = functools.partial(init, key, *arguments, method=self.method, **keywords)
            (outputs, variables), self._axes = along_axes(self._axes, run)
            return outputs, variables, seen

    def _arguments(
        self, inputs: PyTree, *, training: bool, mask: PyTree, mode_by_position: bool | None = None
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if isinstance(self.module, nn.MultiHeadDotProductAttention):
            mask = as_attention_mask(mask)
        by_position = self._mode_by_position if mode_by_position is None else mode_by_position
        return self._signature.fill(
            inputs, training=training, mask=mask, mode_by_position=by_position
        )

    @in_turn
    def apply(
        self,
        variables: Mapping[str, PyTree],
        inputs: PyTree,
        *,
        training: bool,
        mask: PyTree,
        seed_state: jax.Array,
    ) -> tuple[PyTree, dict[str, PyTree], dict[str, PyTree]]:
        """See `Adapter.apply`."""
        arguments, keywords = self._arguments(inputs, training=training, mask=mask)
        with self._running() as seen:
            try:
                apply = functools.partial(
                    self._in_mode(training).apply,
                    self.state(variables),
                    *arguments,
                    rngs=_rng.streams(seed_state, sorted(self._streams[training])),
                    method=self.method,
                    mutable=_MUTABLE,
                    **keywords,
                )
                (outputs, written), self._axes = along_axes(self._axes, apply)
            except Exception as error:
                if self._learns(seen, variables, training):
                    raise TraceAgainError from error
                raise
        if self._learns(seen, variables, training):
            raise TraceAgainError
        if not training and _USUAL_STREAM in seen.drawn:
            warnings.warn(
                f"{self.name} draws from the stream {_USUAL_STREAM!r} at inference. If dropout should be off then, it has "
                "not been told of the mode: give its method an argument `training`, or a `method` that takes it.",
                stacklevel=2,
            )
        written = flax.core.unfreeze(written)
        return outputs, self.state(written), self._part(written, sown=True)

    @staticmethod
    def values_of(module: nn.Module) -> None:
        """See `Adapter.values_of`. A Linen module holds none."""

    def to_flax(self, variables: Mapping[str, PyTree]) -> tuple[nn.Module, Mapping[str, PyTree]]:
        """See `Adapter.to_flax`."""
        return self.module, variables

    def draws(self, training: bool) -> bool:
        """See `Adapter.draws`."""
        return training in self._drawing

    def trainable(self, collection: str) -> bool:
        """See `Adapter.trainable`."""
        return collection == _PARAMS

    def state(self, variables: Mapping[str, PyTree]) -> dict[str, PyTree]:
        """See `Adapter.state`."""
        return self._part(variables, sown=False)

    def _part(
        self, tree: Mapping[str, PyTree], *, sown: bool, path: tuple[str, ...] = ()
    ) -> dict[str, PyTree]:
        """What was sown of a tree of variables, or what was not."""
        result = {}
        for name, child in tree.items():
            here = (*path, name)
            if here in self._sown:
                if sown:
                    result[name] = child
            elif isinstance(child, Mapping) and child:
                if part := self._part(child, sown=sown, path=here):
                    result[name] = part
            elif not sown:
                result[name] = child
        return result

    @contextlib.contextmanager
    def _running(self) -> Iterator[_Seen]:
        """All that surrounds a run of the module's code."""
        naming = naming_the_path(
            self.name, nn.Module, lambda module: None if module.scope is None else module.path
        )
        with _watch() as seen, naming, running_module(), nn.intercept_methods(_with_whole_numbers):
            yield seen

    def _in_mode(self, training: bool) -> nn.Module:
        fields = self._signature.fields(training=training)
        return self.module.clone(**fields) if fields else self.module  # type: ignore[arg-type]

    def _learns(self, seen: _Seen, variables: Mapping[str, PyTree], training: bool) -> bool:
        """Take in what a call showed, and say whether it has to be made again."""
        self._drawing |= {training} if seen.drawn else set()
        # At inference a module that asks whether a stream is there wants to know whether to be random.
        streams = seen.drawn | seen.queried if training else seen.drawn
        again = bool(streams - self._streams[training]) or any(
            path[0] in variables for path in seen.sown - self._sown
        )
        self._streams = {**self._streams, training: self._streams[training] | streams}
        self._sown |= seen.sown
        return again

    @staticmethod
    def module_class(
        name: str,
        place: str,
        required: Mapping[str, type],
        optional: Mapping[str, tuple[type, Any]],
        methods: Mapping[str, Callable[..., Any]],
    ) -> type[nn.Module]:
        """Make a class of Linen modules."""
        own = (method for method in methods if method not in ("setup", "__call__"))
        _host.refuse_taken_names(name, (*required, *optional, *own), nn.Module)
        namespace: dict[str, Any] = {"__module__": place, "__qualname__": name}
        namespace["__annotations__"] = {
            **required,
            **{field: kind for field, (kind, _) in optional.items()},
        }
        for field, (_, default) in optional.items():
            # A default that could be changed is copied for each instance.
            can_change = type(default).__hash__ is None
            namespace[field] = (
                dataclasses.field(default_factory=functools.partial(copy.copy, default))
                if can_change
                else default
            )
        for method, function in methods.items():
            function.__name__, function.__qualname__ = method, f"{name}.{method}"
            namespace[method] = (
                nn.compact(function)
                if method == "__call__" and "setup" not in methods
                else function
            )
        return types.new_class(name, (nn.Module,), {}, lambda body: body.update(namespace))


def _methods_of(module: nn.Module) -> dict[str, Callable[..., Any]]:
    """The methods that classes of users and of Flax add to the base class, by name."""
    not_methods = {field.name for field in dataclasses.fields(module)} | {"setup"}
    return {
        name: getattr(type(module), name)
        for cls in type(module).__mro__
        if issubclass(cls, nn.Module) and cls is not nn.Module
        for name, value in vars(cls).items()
        if inspect.isfunction(value)
        and name not in not_methods
        and (not name.startswith("_") or name == "__call__")
    }


def _signature(module: nn.Module, method: Callable[..., Any]) -> Signature:
    name = getattr(method, "__name__", "method")
    if method in _methods_of(module).values():
        name = f"{type(module).__name__}.{name}"
    fields = {field.name: getattr(module, field.name, None) for field in dataclasses.fields(module)}
    return signature_of(method, f"`{name}`", fields)


def _with_whole_numbers(
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    context: nn.module.InterceptorContext,
) -> Any:
    """Make integers of whole floats in integer fields, before a module's method runs: R writes 32 for 32.

    `context.module` is bound, a copy of what the user made.
    """
    for field in _integer_fields(type(context.module)):  # type: ignore[arg-type]
        value = getattr(context.module, field, None)
        integers = whole(value, f"{type(context.module).__name__}.{field}")
        if integers is not value:
            object.__setattr__(context.module, field, integers)
    return function(*args, **kwargs)


@functools.cache
def _integer_fields(cls: type[nn.Module]) -> tuple[str, ...]:
    fields = {field.name for field in dataclasses.fields(cls) if field.init}
    return tuple(name for name in integer_names(cls) if name in fields)


@contextlib.contextmanager
def _watch() -> Iterator[_Seen]:
    """Record which streams are asked for and what is sown, in this thread, until the block ends."""
    seen = _Seen()

    def make_rng(method: Callable[..., Any], scope: Scope, name: str = _PARAMS) -> Any:
        seen.drawn.add(name)
        return method(scope, name)

    def has_rng(method: Callable[..., Any], module: nn.Module, name: str) -> Any:
        seen.queried.add(name)
        return method(module, name)

    def sow(
        method: Callable[..., Any],
        module: nn.Module,
        col: str,
        name: str,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        seen.sown.add((col, *module.path, name))
        return method(module, col, name, *args, **kwargs)

    def perturb(
        method: Callable[..., Any],
        module: nn.Module,
        name: str,
        value: Any,
        collection: str = "perturbations",
    ) -> Any:
        seen.sown.add((collection, *module.path, name))
        return method(module, name, value, collection)

    with replaced(
        (Scope, make_rng), *((nn.Module, function) for function in (has_rng, sow, perturb))
    ):
        yield seen
