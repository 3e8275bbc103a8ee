"""The adapter for `flax.linen` modules. Only `_bridges` knows Linen as well.

A Linen module does not declare which random streams it uses or which collections it sows into. The
adapter learns both while it traces the module. A trace that reveals something new starts again with
that knowledge.
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
import flax.errors
import jax
from flax import linen as nn
from flax.core.scope import Scope

from .. import _host, _rng
from .._errors import StateError
from ..tracing._trace import TraceAgainError
from ._batch_norms import noting_fixed_batch_norms, warn_of_fixed_batch_norms
from ._bridges import Streams, passing_on, wrapped_methods
from ._context import along_axes, axes_on, in_turn, naming_the_path, replaced, running_module
from ._lazy import RNGS
from ._signature import Signature, as_attention_mask, signature_of, unbound
from ._whole_numbers import integer_names, whole_floats_to_integers

PyTree = Any

# Gradients train this collection; a method may write to all others.
_PARAMS = "params"
_MUTABLE = nn.DenyList([_PARAMS])
# A call asks for a weight that does not exist, among others or none.
_NO_SUCH_WEIGHT = (flax.errors.ScopeParamNotFoundError, flax.errors.ScopeCollectionNotFound)
# Nearly every stochastic module uses this stream in training. Supplying it saves a second trace.
_USUAL_STREAM = "dropout"


@dataclasses.dataclass(frozen=True)
class _Learned:
    """The knowledge about a module that its runs have accumulated.

    Attributes:
        first: The random streams to supply to `init`, where Linen replaces a missing one by
            "params", but NNX modules in it do not.
        streams: The random streams to supply, by mode. The key is True for training.
        drawing: The modes in which the module has drawn random numbers.
        sown: The places where the module has sown or perturbed: collection, module path, and name.
        axes: The mapped axes that the module names.
        mode_by_position: Whether the mode is passed by position instead of by name.
        by_batch: The parts that change their statistics at inference.
    """

    first: frozenset[str] = frozenset()
    streams: Mapping[bool, frozenset[str]] = dataclasses.field(
        default_factory=lambda: {True: frozenset({_USUAL_STREAM}), False: frozenset()}
    )
    drawing: frozenset[bool] = frozenset()
    sown: frozenset[tuple[str, ...]] = frozenset()
    axes: frozenset[str] = frozenset()
    mode_by_position: bool = False
    by_batch: frozenset[tuple[tuple[Any, ...], str]] = frozenset()


@dataclasses.dataclass
class _Seen:
    """A record of one run of a module.

    Attributes:
        drawn: Streams from which the module took a key.
        queried: Streams whose presence the module checked.
        sown: The places where the module sowed or perturbed: collection, module path, and name.
        in_nnx: The streams that NNX modules in it used.
    """

    drawn: set[str] = dataclasses.field(default_factory=set)
    queried: set[str] = dataclasses.field(default_factory=set)
    sown: set[tuple[str, ...]] = dataclasses.field(default_factory=set)
    in_nnx: Streams = dataclasses.field(default_factory=Streams)


class LinenAdapter:
    """A `flax.linen.Module` and one of its methods. `Adapter` documents the methods."""

    base: ClassVar[type] = nn.Module

    @classmethod
    def accepts(cls, module: object) -> bool:
        """Whether an object is a Linen module instance."""
        return isinstance(module, nn.Module)

    def __init__(self, module: nn.Module, method: str | Callable[..., Any] | None) -> None:
        self.name = type(module).__name__
        self.module = module
        self.method = unbound(type(module), method, nn.Module, _methods_of(module))
        self._signature = _signature(module, self.method)
        self.takes_mask = self._signature.takes_mask
        self.allows_unused = method is not None
        self.allows_extra_collections = True
        self.is_abstract = False
        self.sizes: frozenset[int] = frozenset()
        # Replaced as a whole and never changed in place, so that restoring this attribute undoes
        # everything that a failed build has learned.
        self._learned = _Learned()

    @in_turn
    def init(
        self,
        key: jax.Array,
        inputs: PyTree,
        *,
        mask: PyTree = None,
        overlay: Callable[[Mapping[str, PyTree]], Mapping[str, PyTree]] | None = None,
    ) -> tuple[PyTree, dict[str, PyTree]]:
        """See `Adapter.init`. The values are those of `module.init(key, inputs)`."""
        given = overlay({}) if overlay else None
        outputs, variables, self._learned = self._init_by_name_or_position(key, inputs, mask, given)
        return outputs, self.state(flax.core.unfreeze(variables))

    def _init_by_name_or_position(
        self, key: jax.Array, inputs: PyTree, mask: PyTree, given: PyTree
    ) -> tuple[PyTree, PyTree, _Learned]:
        """Run `_init` with the mode as learned, and by position if that fails.

        A module lifted with `static_argnums` fails if it gets the mode by name, with an error that
        does not say so. Flax maps `static_argnums` to positional arguments only:
        https://github.com/google/flax/pull/2457, https://github.com/google/flax/issues/3946
        """
        known = self._learned.mode_by_position
        try:
            return self._init(key, inputs, mask, given, mode_by_position=known)
        except TraceAgainError:
            raise
        except Exception:
            if known or not self._signature.takes_mode_by_position:
                raise
            result = self._try_init_by_position(key, inputs, mask, given)
            if result is None:
                # The error of the usual way is the one that helps the user.
                raise
            return result

    def _try_init_by_position(
        self, key: jax.Array, inputs: PyTree, mask: PyTree, given: PyTree
    ) -> tuple[PyTree, PyTree, _Learned] | None:
        """Run `_init` with the mode by position. Returns None if the module fails that way, too."""
        try:
            return self._init(key, inputs, mask, given, mode_by_position=True)
        except Exception:
            return None

    def _init(
        self, key: jax.Array, inputs: PyTree, mask: PyTree, given: PyTree, *, mode_by_position: bool
    ) -> tuple[PyTree, PyTree, _Learned]:
        """Run `module.init_with_output()`, or `module.apply()` with given variables.

        Returns:
            The outputs, the variables, and the new knowledge.
        """
        arguments, keywords = self._arguments(
            inputs, training=False, mask=mask, mode_by_position=mode_by_position
        )
        rngs = dict.fromkeys({_PARAMS, *self._learned.first}, key)
        with self._running(training=False) as seen:
            module = self._in_mode(False)
            if given is None:
                run = functools.partial(module.init_with_output, rngs, *arguments)
            else:
                run = functools.partial(module.apply, given, *arguments, rngs=rngs, mutable=True)
            run = functools.partial(run, method=self.method, **keywords)
            try:
                (outputs, variables), axes = along_axes(self._learned.axes, run)
            except Exception as error:
                if seen.in_nnx.looked_up <= self._learned.first:
                    raise
                first = self._learned.first | seen.in_nnx.looked_up
                self._learned = dataclasses.replace(self._learned, first=first)
                raise TraceAgainError from error
        # `init` always draws initial values from "params"; a call may not use that stream at all.
        drawn, sown = seen.drawn - {_PARAMS}, seen.sown | seen.in_nnx.sown
        learned = dataclasses.replace(
            self._learned,
            streams={mode: known | drawn for mode, known in self._learned.streams.items()},
            sown=self._learned.sown | sown,
            axes=axes,
            mode_by_position=mode_by_position,
        )
        return outputs, variables, learned

    def _arguments(
        self, inputs: PyTree, *, training: bool, mask: PyTree, mode_by_position: bool
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if isinstance(self.module, nn.MultiHeadDotProductAttention):
            mask = as_attention_mask(mask)
        return self._signature.fill(
            inputs, training=training, mask=mask, mode_by_position=mode_by_position
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
        learned = self._learned
        arguments, keywords = self._arguments(
            inputs, training=training, mask=mask, mode_by_position=learned.mode_by_position
        )
        with self._running(training=training) as seen:
            try:
                apply = functools.partial(
                    self._in_mode(training).apply,
                    self.state(variables),
                    *arguments,
                    rngs=_rng.streams(seed_state, sorted(learned.streams[training])),
                    method=self.method,
                    mutable=_MUTABLE,
                    **keywords,
                )
                (outputs, written), axes = along_axes(learned.axes, apply)
                self._learned = dataclasses.replace(self._learned, axes=axes)
            except Exception as error:
                if self._learn(seen, variables, training):
                    raise TraceAgainError from error
                if isinstance(error, _NO_SUCH_WEIGHT):
                    raise self._without_weight().with_traceback(error.__traceback__) from error
                raise
        if self._learn(seen, variables, training):
            raise TraceAgainError
        if not training and _USUAL_STREAM in seen.drawn | seen.in_nnx.drawn:
            warnings.warn(
                f"{self.name} draws from the stream {_USUAL_STREAM!r} at inference. If dropout "
                "should be off then, pass the mode on: give the module's method an argument "
                f"`training`, or give `method` {_host.word('method')}.",
                stacklevel=2,
            )
        written = flax.core.unfreeze(written)
        return outputs, self.state(written), self._select(written, sown=True)

    def _without_weight(self) -> StateError:
        return StateError(
            f"A call of {self.name} needs a weight that did not exist when the layer was built.",
            advice="Build the layer on an input from which the module creates all of its weights: "
            f"parts that may be {_host.word('none')} must be arrays then, or "
            f"{_host.word('optional input')}.",
        )

    @staticmethod
    def values_of(module: nn.Module) -> None:
        """See `Adapter.values_of`. A Linen module holds no values."""

    @staticmethod
    def holders_of(module: nn.Module) -> list[Any]:
        """See `Adapter.holders_of`. A Linen module holds no weights."""
        return []

    def to_flax(self, variables: Mapping[str, PyTree]) -> tuple[nn.Module, Mapping[str, PyTree]]:
        """See `Adapter.to_flax`."""
        return self.module, variables

    def module_of_clone(self, values: Callable[[], Mapping[str, PyTree]]) -> nn.Module:
        """See `Adapter.module_of_clone`."""
        return self.module

    def draws(self, training: bool) -> bool:
        """See `Adapter.draws`."""
        return training in self._learned.drawing

    def restarts(self, collection: str) -> bool:
        """See `Adapter.restarts`."""
        return False

    def trainable(self, collection: str) -> bool:
        """See `Adapter.trainable`."""
        return collection == _PARAMS

    def partition_specs(self, variables: Mapping[str, PyTree]) -> PyTree:
        """See `Adapter.partition_specs`."""

        def spec_of(leaf: Any) -> Any:
            if isinstance(leaf, nn.LogicallyPartitioned):
                # mypy does not see that `nn` exports this function.
                specs = leaf.get_partition_spec()
                return nn.logical_to_mesh(specs, leaf.rules)  # type: ignore[attr-defined]
            return nn.get_partition_spec(leaf)

        return jax.tree.map(spec_of, variables, is_leaf=_is_box)

    def state(self, variables: Mapping[str, PyTree]) -> dict[str, PyTree]:
        """See `Adapter.state`."""
        return self._select(variables, sown=False)

    def _select(
        self, tree: Mapping[str, PyTree], *, sown: bool, path: tuple[str, ...] = ()
    ) -> dict[str, PyTree]:
        """The sown part of a tree of variables, or the rest of it."""
        result = {}
        for name, child in tree.items():
            here = (*path, name)
            if here in self._learned.sown:
                if sown:
                    result[name] = child
            elif isinstance(child, Mapping) and child:
                if part := self._select(child, sown=sown, path=here):
                    result[name] = part
            elif not sown:
                result[name] = child
        return result

    @contextlib.contextmanager
    def _running(self, *, training: bool) -> Iterator[_Seen]:
        """Set up a run of the module's code: record what it does and place its errors."""
        naming = naming_the_path(
            self.name, nn.Module, lambda module: None if module.scope is None else module.path
        )

        def path_of(module: Any) -> tuple[Any, ...]:
            if isinstance(module, nn.Module):
                return module.path
            return *seen.in_nnx.path, type(module).__name__

        with (
            _watch() as seen,
            naming,
            noting_fixed_batch_norms(path_of) as by_batch,
            running_module(),
            _boxes_on_any_mesh(),
            nn.intercept_methods(with_whole_numbers),
            passing_on(
                training=training,
                fills=not self._signature.takes_mode,
                streams=seen.in_nnx,
                writes=False,
            ),
        ):
            yield seen
        if not training:
            warned = warn_of_fixed_batch_norms(
                self.name,
                by_batch,
                self._learned.by_batch,
                "Give the module's method an argument `training`, and pass {} on.",
            )
            self._learned = dataclasses.replace(self._learned, by_batch=warned)

    def _in_mode(self, training: bool) -> nn.Module:
        fields = self._signature.fields(training=training)
        return self.module.clone(**fields) if fields else self.module  # type: ignore[arg-type]

    def _learn(self, seen: _Seen, variables: Mapping[str, PyTree], training: bool) -> bool:
        """Take in what a call revealed.

        Returns:
            Whether the call must run again, with other streams or without values that are sown.
        """
        learned = self._learned
        known = learned.streams[training]
        drawn = seen.drawn | seen.in_nnx.drawn_of(known)
        sown = seen.sown | seen.in_nnx.sown
        # A module that checks for a stream in training wants to be random; at inference, it does
        # not, so that only streams that it draws from are supplied.
        streams = drawn | seen.queried if training else drawn
        again = bool(streams - known) or any(path[0] in variables for path in sown - learned.sown)
        self._learned = dataclasses.replace(
            learned,
            streams={**learned.streams, training: known | streams},
            drawing=learned.drawing | {training} if drawn else learned.drawing,
            sown=learned.sown | sown,
        )
        return again

    @staticmethod
    def module_class(
        name: str,
        place: str,
        required: Mapping[str, type],
        optional: Mapping[str, tuple[type, Any]],
        methods: Mapping[str, Callable[..., Any]],
    ) -> type[nn.Module]:
        """See `Adapter.module_class`."""
        own = (method for method in methods if method not in ("setup", "__call__"))
        _host.refuse_taken_names(name, (*required, *optional, *own), nn.Module)
        namespace: dict[str, Any] = {"__module__": place, "__qualname__": name}
        namespace["__annotations__"] = {
            **required,
            **{field: kind for field, (kind, _) in optional.items()},
        }
        for field, (_, default) in optional.items():
            # A mutable default is copied for each instance.
            is_mutable = type(default).__hash__ is None
            namespace[field] = (
                dataclasses.field(default_factory=functools.partial(copy.copy, default))
                if is_mutable
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


def _is_box(value: Any) -> bool:
    return isinstance(value, flax.core.meta.AxisMetadata)


def _methods_of(module: nn.Module) -> dict[str, Callable[..., Any]]:
    """The methods that a module has beyond those of `nn.Module`, by name."""
    wrapped = wrapped_methods(module)
    if wrapped is not None:
        return wrapped
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
    signature = signature_of(method, f"`{name}`", fields)
    # The `rngs` of an NNX method are NNX's, which Linen cannot pass.
    rngs = signature.parameters.get(RNGS)
    is_optional = rngs is not None and rngs.default is not rngs.empty
    return (
        dataclasses.replace(signature, held=signature.held | {RNGS}) if is_optional else signature
    )


def with_whole_numbers(
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    context: nn.module.InterceptorContext,
) -> Any:
    """Convert whole floats in integer fields before a method of a module runs.

    R users write `features = 32`, which arrives as 32.0. `context.module` is bound, and therefore a
    copy of the user's module.
    """
    # `flax.linen` documents the context that interceptors get, but does not export its class, which
    # only the annotation above uses. Seen to work with flax 0.12.6 to 0.12.12.
    # https://flax-linen.readthedocs.io/en/latest/api_reference/flax.linen/module.html
    for field in _integer_fields(type(context.module)):  # type: ignore[arg-type]
        value = getattr(context.module, field, None)
        integers = whole_floats_to_integers(value, f"{type(context.module).__name__}.{field}")
        if integers is not value:
            # A Linen module refuses assignments outside `setup`, and has no other way to change a
            # field of a bound copy. Not documented; seen to work with flax 0.12.6 to 0.12.12.
            object.__setattr__(context.module, field, integers)
    return function(*args, **kwargs)


@functools.cache
def _integer_fields(cls: type[nn.Module]) -> tuple[str, ...]:
    fields = {field.name for field in dataclasses.fields(cls) if field.init}
    return tuple(name for name in integer_names(cls) if name in fields)


@contextlib.contextmanager
def _boxes_on_any_mesh() -> Iterator[None]:
    """Let boxes with axes that the mesh in force does not have be unboxed within the block.

    If a mesh is in force, unboxing constrains the array to the axes that the box names, and JAX
    refuses an axis that the mesh does not have. Logical axes go through rules instead.
    """

    def get_partition_spec(method: Callable[..., Any], box: Any) -> Any:
        spec, mesh = method(box), jax.sharding.get_abstract_mesh()
        if mesh.empty or isinstance(box, nn.LogicallyPartitioned):
            return spec
        return axes_on(spec, mesh.axis_names)

    # `get_partition_spec` is documented, but not that it may be replaced. Seen to work with flax
    # 0.12.6 to 0.12.12.
    with replaced((nn.Partitioned, get_partition_spec)):
        yield


def _reserve(scope: Scope | None, name: str, collection: str) -> None:
    """Reserve a sown name as a call does in which the collection is mutable.

    `intermediates` are not mutable in a build. Flax would therefore refuse the name of a submodule
    only when the layer is first called.

    Raises:
        ValueError: A submodule has the name.
    """
    # Reservations are not documented. Flax 0.12.6 and 0.12.12 have the same code for them.
    if (
        scope is not None
        and not scope.is_mutable_collection(collection)
        and not scope.has_variable(collection, name)
        and collection not in scope.reservations[name]
    ):
        scope.reserve(name, collection)


@contextlib.contextmanager
def _watch() -> Iterator[_Seen]:
    """Record the streams that modules use and what they sow, in this thread, within the block."""
    seen = _Seen()

    def make_rng(method: Callable[..., Any], scope: Scope, name: str = _PARAMS) -> Any:
        if not seen.in_nnx.are_passed_on:
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
        _reserve(module.scope, name, col)
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

    # Linen has no hook for random streams and sown values: `nn.intercept_methods` sees only methods
    # that subclasses of `nn.Module` define. `Module.make_rng` and `Module.param` take their keys
    # from `Scope.make_rng`, which is not documented. Its default stream is "params":
    # https://github.com/google/flax/pull/3699
    # `has_rng`, `sow` and `perturb` are documented, but not that they may be replaced. All four
    # were seen to work with flax 0.12.6 to 0.12.12.
    with replaced(
        (Scope, make_rng), *((nn.Module, function) for function in (has_rng, sow, perturb))
    ):
        yield seen
