"""The adapter for `flax.nnx` modules. `_lazy`, `_constructor` and `_bridges` know NNX as well.

An NNX module is a graph of objects that hold the values of their variables. The adapter splits it
into a `_Structure` and values. Inside a trace, it merges the structure with other values into a
module that belongs to that trace alone. The user's module never changes.

A module does not declare into which types of variables it sows. The adapter learns them while it
traces the module, as with Linen.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import inspect
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx

from .. import _host, _rng
from .._errors import FieldError, MethodError, ModuleError, StateError
from .._messages import value_text
from .._paths import SEPARATOR
from ..tracing._trace import TraceAgainError
from ._batch_norms import (
    has_statistics,
    noting_fixed_batch_norms,
    warn_of_fixed_batch_norms,
)
from ._bridges import Streams, passing_on, set_mode, wrapped_methods
from ._constructor import find_constructor_call
from ._context import along_axes, in_turn, naming_the_path, replaced, running_module
from ._lazy import RNGS, LazyModule, converting_whole_floats
from ._linen import with_whole_numbers
from ._signature import Signature, as_attention_mask, signature_of, unbound

PyTree = Any
Path = tuple[Any, ...]

# The collection of arrays that are plain attributes instead of variables.
_ARRAYS = "arrays"
# Variables that a call must not create: they would be lost after it.
_LASTING = (nnx.Param, nnx.RngState)


@dataclasses.dataclass(frozen=True)
class _Structure:
    """A module without the values of its variables.

    Attributes:
        kind: The module's class.
        graphdef: The `graphdef` that `nnx.split` returns.
        treedef: The nesting of the state, with variables as leaves.
        variables: A mapping from collection and path to the nesting inside the variable, which
            includes its metadata. In the order of the state.
        types: A mapping from collection to the type of its variables.
    """

    kind: type[nnx.Module]
    graphdef: Any
    treedef: Any
    variables: Mapping[Path, Any]
    types: Mapping[str, type]

    def merge(self, values: Mapping[str, PyTree]) -> nnx.Module:
        """Create the module with these values, which are given by collection and path."""
        leaves = [
            jax.tree.unflatten(treedef, jax.tree.leaves(_get(values, place)))
            for place, treedef in self.variables.items()
        ]
        return nnx.merge(self.graphdef, jax.tree.unflatten(self.treedef, leaves))


def _split(module: nnx.Module) -> tuple[_Structure, dict[str, PyTree]]:
    """Split a module into its structure and its values by collection and path.

    Raises:
        ModuleError: Two types of variables have the same name.
    """
    graphdef, state = nnx.split(module)
    flat, treedef = jax.tree_util.tree_flatten_with_path(state, is_leaf=_is_variable)
    variables: dict[Path, Any] = {}
    types: dict[str, type] = {}
    values: dict[str, PyTree] = {}
    for keys, variable in flat:
        kind = type(variable) if _is_variable(variable) else jax.Array
        collection = _collection(kind)
        if types.setdefault(collection, kind) is not kind:
            raise ModuleError(
                f"{type(module).__name__} has variables of two types named {collection!r}.",
                advice="Register one type under another name with "
                f"{_host.code('nnx.register_variable_name')}.",
            )
        place = (collection, *(key.key for key in keys))
        variables[place] = jax.tree.structure(variable)
        _put(values, place, variable.get_raw_value() if _is_variable(variable) else variable)
    return _Structure(type(module), graphdef, treedef, variables, types), values


def _split_copy(module: nnx.Module) -> tuple[_Structure, dict[str, PyTree]]:
    """Split a copy of the user's module that shares only the arrays with it."""
    return _split(_pop_intermediates(nnx.merge(*nnx.split(module)))[0])


def _is_variable(value: Any) -> bool:
    return isinstance(value, nnx.Variable)


def _collection(kind: type) -> str:
    """The collection of a type of variables, as Flax's bridge to Linen names it."""
    if not issubclass(kind, nnx.Variable):
        return _ARRAYS
    # The function is documented, but not its ValueError for an unregistered type. Seen to work with
    # flax 0.12.6 to 0.12.12.
    # https://flax.readthedocs.io/en/stable/api_reference/flax.nnx/variables.html
    # https://github.com/google/flax/pull/4542
    try:
        return nnx.variable_name_from_type(kind)
    except ValueError:
        # Registering a type would affect the whole process, which a layer must not do.
        return kind.__name__


def _put(tree: dict[Any, PyTree], path: Path, value: PyTree) -> None:
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = value


def _pop(tree: dict[Any, PyTree], path: Path) -> PyTree:
    """Take a value out of nested dicts, with the dicts that it leaves empty."""
    name, *below = path
    if not below:
        return tree.pop(name)
    value = _pop(tree[name], tuple(below))
    if not tree[name]:
        del tree[name]
    return value


def _get(tree: Mapping[Any, PyTree], path: Path) -> PyTree:
    for name in path:
        tree = tree[name]
    return tree


@dataclasses.dataclass(frozen=True)
class _Learned:
    """The knowledge about a module that its runs have accumulated.

    Attributes:
        sown: The types of variables into which the module sows.
        sown_in_linen: The types of variables into which Linen modules in it sow.
        drawing: The modes in which the module has drawn numbers from the layer's random streams.
            True stands for training.
        axes: The mapped axes that the module names.
        by_batch: The parts that change their statistics at inference.
    """

    sown: frozenset[type] = frozenset()
    sown_in_linen: frozenset[type] = frozenset()
    drawing: frozenset[bool] = frozenset()
    axes: frozenset[str] = frozenset()
    by_batch: frozenset[tuple[Path, str]] = frozenset()


class NnxAdapter:
    """A `flax.nnx.Module` or `LazyModule`, and a method. `Adapter` documents the methods."""

    base: ClassVar[type] = nnx.Module

    @classmethod
    def accepts(cls, module: object) -> bool:
        """Whether an object is an NNX module instance or a `LazyModule`."""
        return isinstance(module, (nnx.Module, LazyModule))

    def __init__(
        self, module: nnx.Module | LazyModule, method: str | Callable[..., Any] | None
    ) -> None:
        self.module: nnx.Module | LazyModule = module
        # Replaced as a whole and never changed in place, so that restoring this attribute undoes
        # everything that a failed build has learned.
        self._learned = _Learned()
        self.is_abstract = False
        if isinstance(module, LazyModule):

            def split(made: nnx.Module) -> tuple[Any, _Structure, PyTree]:
                structure, values = _split(_pop_intermediates(made)[0])
                return wrapped_methods(made), structure, jax.tree.map(_spec_of, values)

            with self._running(None):
                wrapped, self._structure, specs = module.abstractly(split)
        else:
            wrapped = wrapped_methods(module)
            self._structure, values = _split_copy(module)
            self.is_abstract = any(map(_is_abstract, jax.tree.leaves(values)))
            self._specs = specs = jax.tree.map(_spec_of, values)
            self.module = self._structure.merge(self._specs)
        shapes = (getattr(spec, "shape", ()) for spec in jax.tree.leaves(specs))
        self.sizes = frozenset(size for shape in shapes for size in shape)
        self.allows_unused = self.allows_extra_collections = False
        kind = self._structure.kind
        self.name = kind.__name__
        if issubclass(kind, nnx.bridge.Module):
            raise ModuleError(
                f"{self.name} is an `nnx.bridge.Module`, which has no variables outside of its own "
                "`init` and `apply`.",
                advice="Derive its class from `nnx.Module` or `linen.Module`.",
            )
        owner = getattr(method, "__self__", module)
        if type(owner) is kind and owner is not module:
            raise MethodError(
                f"`method` is bound to another {self.name} than `module`, with its own values.",
                advice="Pass that instance as `module`, or pass the method's name.",
            )
        methods = _methods_of(kind) if wrapped is None else wrapped
        self.method = unbound(kind, method, nnx.Module, methods)
        self._signature = _signature(self.method, self.name, methods)
        self.takes_mask = self._signature.takes_mask
        self._takes_rngs = _takes_rngs(self._signature, self._structure)

    @staticmethod
    def values_of(module: nnx.Module | LazyModule) -> dict[str, PyTree] | None:
        """See `Adapter.values_of`. The variables of an abstract module have no values."""
        return None if isinstance(module, LazyModule) else _concrete(_split_copy(module)[1])

    @staticmethod
    def holders_of(module: nnx.Module | LazyModule) -> list[Any]:
        """See `Adapter.holders_of`. No weak reference to an `nnx.Variable` is possible."""
        if isinstance(module, LazyModule):
            return []
        modules = (node for _, node in nnx.iter_modules(module))
        return [node for node in modules if any(map(_is_weight, vars(node).values()))]

    def to_flax(self, variables: Mapping[str, PyTree]) -> nnx.Module:
        """See `Adapter.to_flax`: a module."""
        return self._structure.merge(variables)

    def module_of_clone(
        self, values: Callable[[], Mapping[str, PyTree]]
    ) -> nnx.Module | LazyModule:
        """See `Adapter.module_of_clone`. Values are needed if the constructor call is unknown."""
        return find_constructor_call(self.module) or self.to_flax(values())

    @in_turn
    def init(
        self,
        key: jax.Array,
        inputs: PyTree,
        *,
        mask: PyTree = None,
        overlay: Callable[[Mapping[str, PyTree]], Mapping[str, PyTree]] | None = None,
    ) -> tuple[PyTree, dict[str, PyTree]]:
        """See `Adapter.init`. A `LazyModule` makes its values with `rngs=nnx.Rngs(key)`."""
        if isinstance(self.module, LazyModule):
            with self._running(None):
                made = self.module.make(nnx.Rngs(key))
            _, variables = _split(self._pop_sown(made)[0])
        else:
            # The module holds its values, so that nobody uses these. An abstract one may get its
            # random streams from here.
            variables = self._zeros_and_keys(key)
        variables = dict(overlay(variables)) if overlay else variables
        outputs, _, _ = self._call(variables, inputs, training=False, mask=mask, key=key)
        return outputs, variables

    def _zeros_and_keys(self, key: jax.Array) -> dict[str, PyTree]:
        """Zeros for the module's variables, and random keys for its streams."""
        values = jax.tree.map(_zeros, self._specs)
        for place in self._structure.variables:
            if issubclass(self._structure.types[place[0]], nnx.RngKey):
                own = _rng.named(key, SEPARATOR.join(map(str, place[1:])))
                _put(
                    values, place, jax.tree.map(functools.partial(_keys, own), _get(values, place))
                )
        return values

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
        (key,) = _rng.streams(seed_state, [RNGS]).values()
        return self._call(self.state(variables), inputs, training=training, mask=mask, key=key)

    def draws(self, training: bool) -> bool:
        """See `Adapter.draws`. Streams that the module itself holds are state and do not count."""
        return training in self._learned.drawing

    def restarts(self, collection: str) -> bool:
        """See `Adapter.restarts`. Random streams may start anew."""
        return issubclass(self._structure.types.get(collection, object), nnx.RngState)

    def trainable(self, collection: str) -> bool:
        """See `Adapter.trainable`."""
        return issubclass(self._structure.types.get(collection, object), nnx.Param)

    def partition_specs(self, variables: Mapping[str, PyTree]) -> PyTree:
        """See `Adapter.partition_specs`."""
        specs: dict[str, PyTree] = {}
        for place, treedef in self._structure.variables.items():
            value = _get(variables, place)
            variable = jax.tree.unflatten(treedef, jax.tree.leaves(value))
            spec = nnx.get_partition_spec(variable)
            _put(specs, place, spec.get_raw_value() if _is_variable(spec) else None)
        return specs

    def state(self, variables: Mapping[str, PyTree]) -> dict[str, PyTree]:
        """See `Adapter.state`."""
        learned = self._learned
        types = (nnx.Intermediate, nnx.Perturbation, *learned.sown, *learned.sown_in_linen)
        sown = {_collection(kind) for kind in types}
        return {
            name: tree
            for name, tree in variables.items()
            if name in self._structure.types or name not in sown
        }

    def _call(
        self,
        variables: Mapping[str, PyTree],
        inputs: PyTree,
        *,
        training: bool,
        mask: PyTree,
        key: jax.Array,
    ) -> tuple[PyTree, dict[str, PyTree], dict[str, PyTree]]:
        """Call the method on a module created for this call.

        Returns:
            The outputs, the state after the call, and the sown values.
        """
        results, axes = along_axes(
            self._learned.axes, lambda: self._run(variables, inputs, training, mask, key)
        )
        self._learned = dataclasses.replace(self._learned, axes=axes)
        return results

    def _run(
        self,
        variables: Mapping[str, PyTree],
        inputs: PyTree,
        training: bool,
        mask: PyTree,
        key: jax.Array,
    ) -> tuple[PyTree, dict[str, PyTree], dict[str, PyTree]]:
        module = self._structure.merge(variables)
        if isinstance(module, nnx.MultiHeadAttention):
            mask = as_attention_mask(mask)
        arguments, keywords = self._signature.fill(inputs, training=training, mask=mask)
        rngs = nnx.Rngs(key)
        # A stream counts the keys that it has given out, in a new array each time. The attribute is
        # not documented; seen to work with flax 0.12.6 to 0.12.12.
        undrawn = rngs.default.count.get_value()
        if self._takes_rngs:
            keywords[RNGS] = rngs
        # If the method takes the mode and passes it on, that argument wins over the attribute.
        set_mode(module, training=training)
        types = sorted(self._learned.sown, key=_collection)
        with self._running(module, training=training, rngs=rngs) as (seen, in_linen):
            call = functools.partial(_call_method, self.method, arguments, keywords)
            outputs, *captured = nnx.capture(call, *types)(module) if types else (call(module),)
        learned = self._learned
        if seen - learned.sown or in_linen - learned.sown_in_linen:
            self._learned = dataclasses.replace(
                learned, sown=learned.sown | seen, sown_in_linen=learned.sown_in_linen | in_linen
            )
            self._drop_sown()
            raise TraceAgainError
        if rngs.default.count.get_value() is not undrawn:
            self._learned = dataclasses.replace(learned, drawing=learned.drawing | {training})
        module, left = self._pop_sown(module)
        structure, state = _split(module)
        sown: dict[str, PyTree] = {}
        for place in self._created(structure):
            _put(sown, place, _pop(state, place))
        for each in (*captured, left):
            for path, variable in nnx.to_flat_state(each):
                _put(sown, (_collection(type(variable)), *path), variable.get_raw_value())
        return outputs, state, sown

    def _pop_sown(self, module: nnx.Module) -> tuple[nnx.Module, Any]:
        """Remove all known sown values from a module. Returns the module and those values."""
        return _pop_types(module, nnx.Intermediate, *self._learned.sown_in_linen)

    def _drop_sown(self) -> None:
        """Drop what Linen modules have sown in `lazy_init` from the module's variables."""
        if isinstance(self.module, LazyModule):
            with self._running(None):
                self._structure = self.module.abstractly(
                    lambda made: _split(self._pop_sown(made)[0])[0]
                )
        else:
            module, _ = self._pop_sown(nnx.merge(*nnx.split(self.module)))
            self._structure, values = _split(module)
            self._specs = jax.tree.map(_spec_of, values)
            self.module = self._structure.merge(self._specs)

    def _created(self, structure: _Structure) -> list[Path]:
        """The places of the variables that a call has created. They are not state, but sown.

        Raises:
            StateError: The call has created weights or random streams, or removed variables.
        """
        before, after = self._structure.variables, structure.variables
        created = sorted(after.keys() - before.keys(), key=lambda place: [*map(str, place)])
        lasting = [place for place in created if issubclass(structure.types[place[0]], _LASTING)]
        removed = sorted(before.keys() - after.keys(), key=lambda place: [*map(str, place)])
        problems = {
            SEPARATOR.join(map(str, place)): problem
            for places, problem in (
                (lasting, "created in the call"),
                (removed, "removed in the call"),
            )
            for place in places
        }
        if problems:
            raise StateError(
                f"A call of {self.name} created or removed variables.",
                problems=problems,
                advice="Create all weights and random streams in the constructor, and only set "
                "values in calls.",
            )
        return created

    @contextlib.contextmanager
    def _running(
        self, module: nnx.Module | None, *, training: bool = False, rngs: nnx.Rngs | None = None
    ) -> Iterator[tuple[set[type], set[type]]]:
        """Set up a run of the module's code.

        Yields:
            The types of variables that it sows into, and those that Linen modules in it sow into.
        """
        seen: set[type] = set()
        in_linen: set[type] = set()

        def note(kind: type | str) -> bool:
            # `sow` and `perturb` themselves register a type for an unknown name.
            kind = (
                nnx.variable_type_from_name(kind, allow_register=True)
                if isinstance(kind, str)
                else kind
            )
            seen.add(kind)
            # Nothing captures sown values while a module is being made.
            return module is not None and kind in self._learned.sown

        def sow(
            method: Callable[..., Any],
            module: nnx.Module,
            variable_type: Any,
            *args: Any,
            **kwargs: Any,
        ) -> Any:
            return method(module, variable_type, *args, **kwargs) if note(variable_type) else False

        def perturb(
            method: Callable[..., Any],
            module: nnx.Module,
            name: str,
            value: Any,
            variable_type: Any = nnx.Perturbation,
        ) -> Any:
            return method(module, name, value, variable_type) if note(variable_type) else value

        def sow_in_linen(
            method: Callable[..., Any], module: nn.Module, col: str, *args: Any, **kwargs: Any
        ) -> Any:
            in_linen.add(nnx.variable_type_from_name(col, allow_register=True))
            return method(module, col, *args, **kwargs)

        def perturb_in_linen(
            method: Callable[..., Any],
            module: nn.Module,
            name: str,
            value: Any,
            collection: str = "perturbations",
        ) -> Any:
            in_linen.add(nnx.variable_type_from_name(collection, allow_register=True))
            return method(module, name, value, collection)

        sow_in_linen.__name__, perturb_in_linen.__name__ = "sow", "perturb"

        parts = [] if module is None else list(nnx.iter_modules(module))

        def path_of(part: Any) -> Path | None:
            return next((path for path, each in parts if each is part), None)

        name = type(module).__name__
        # NNX has no hook for sown values, and outside `nnx.capture` it deprecates them. The methods
        # are documented, but not that they may be replaced. Seen to work with flax 0.12.6 to
        # 0.12.12. https://flax.readthedocs.io/en/latest/guides/extracting_intermediates.html,
        # https://github.com/google/flax/pull/5584
        watching = replaced(
            *((nnx.Module, function) for function in (sow, perturb)),
            *((nn.Module, function) for function in (sow_in_linen, perturb_in_linen)),
        )
        with (
            watching,
            # Keras places the variables. By itself, NNX places those with sharding metadata when
            # they are created, and refuses axes that the mesh does not have.
            nnx.use_eager_sharding(False),  # type: ignore[no-untyped-call]
            naming_the_path(name, nnx.Module, path_of),
            noting_fixed_batch_norms(
                path_of, [type(part) for _, part in parts if has_statistics(part)]
            ) as by_batch,
            running_module(keeps_keras=True),
            nn.intercept_methods(with_whole_numbers),
            passing_on(
                training=training,
                fills=module is None or not self._signature.takes_mode,
                streams=Streams(),
                layer_rngs=rngs,
            ),
        ):
            yield seen, in_linen
        if not training:
            warned = warn_of_fixed_batch_norms(
                name,
                by_batch,
                self._learned.by_batch,
                "Do not pass it to an NNX module, and the layer sets it to the mode; pass {} to a "
                "Linen module.",
            )
            self._learned = dataclasses.replace(self._learned, by_batch=warned)

    @staticmethod
    def module_class(
        name: str,
        place: str,
        required: Mapping[str, type],
        optional: Mapping[str, tuple[type, Any]],
        methods: Mapping[str, Callable[..., Any]],
    ) -> type[nnx.Module]:
        """See `Adapter.module_class`. The constructor takes the fields and `rngs` by name."""
        own = (method for method in methods if method != "__call__")
        _host.refuse_taken_names(name, (*required, *optional, *own), nnx.Module)
        kinds = {**required, **{field: kind for field, (kind, _) in optional.items()}}

        def make_parts(self: nnx.Module, rngs: Any) -> None:
            # Lazy modules among the attributes are made now, since `rngs` is known.
            for attribute, value in list(vars(self).items()):
                if isinstance(value, LazyModule):
                    setattr(self, attribute, nnx.data(value.make(rngs)))

        def initialise(self: nnx.Module, *, rngs: nnx.Rngs | None = None, **fields: Any) -> None:
            given = signature.bind(self, rngs=rngs, **fields).arguments
            if not isinstance(rngs, (nnx.Rngs, nnx.RngStream, type(None))):
                raise FieldError(
                    f"`rngs` must be an {_host.code('nnx.Rngs')}, got {value_text(rngs)}."
                )
            for field in kinds:
                # A mutable default is copied for each instance.
                setattr(
                    self, field, given[field] if field in given else copy.copy(optional[field][1])
                )
            make_parts(self, rngs)
            if "setup" in methods:
                with converting_whole_floats():
                    methods["setup"](self, rngs)
                make_parts(self, rngs)

        def parameter(field: str) -> inspect.Parameter:
            default = optional[field][1] if field in optional else inspect.Parameter.empty
            return inspect.Parameter(
                field, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kinds[field]
            )

        itself = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
        rngs = inspect.Parameter(RNGS, inspect.Parameter.KEYWORD_ONLY, default=None)
        signature = inspect.Signature([itself, *map(parameter, kinds), rngs])
        initialise.__signature__ = signature  # type: ignore[attr-defined]
        initialise.__annotations__ = kinds
        for method, function in methods.items():
            function.__name__, function.__qualname__ = method, f"{name}.{method}"
        namespace = {"__module__": place, "__qualname__": name, "__init__": initialise, **methods}
        return types.new_class(name, (nnx.Module,), {}, lambda body: body.update(namespace))


def _call_method(
    method: Callable[..., Any],
    arguments: tuple[Any, ...],
    keywords: dict[str, Any],
    module: nnx.Module,
) -> Any:
    return method(module, *arguments, **keywords)


def _pop_intermediates(module: nnx.Module) -> tuple[nnx.Module, Any]:
    """Remove the sown values from a module. Returns the module and those values."""
    return _pop_types(module, nnx.Intermediate)


def _pop_types(module: nnx.Module, *types: type) -> tuple[nnx.Module, Any]:
    return module, nnx.pop(module, nnx.Any(*types))


def _is_weight(value: Any) -> bool:
    """Whether a value is a parameter, and not one of a module without values."""
    return isinstance(value, nnx.Param) and isinstance(value.get_raw_value(), jax.Array)


def _spec_of(value: Any) -> Any:
    return jax.ShapeDtypeStruct(value.shape, value.dtype) if hasattr(value, "shape") else value  # type: ignore[no-untyped-call]


def _zeros(spec: Any) -> Any:
    return (
        jax.lax.full(spec.shape, 0, spec.dtype) if isinstance(spec, jax.ShapeDtypeStruct) else spec
    )


def _keys(key: jax.Array, zeros: jax.Array) -> jax.Array:
    """Random keys like an array of keys, which may be in NumPy's dtype, too."""
    if not jnp.issubdtype(zeros.dtype, jax.dtypes.prng_key):
        return jax.random.bits(key, zeros.shape, zeros.dtype)
    data = jax.random.key_data(zeros)
    bits = jax.random.bits(key, data.shape, data.dtype)
    return jax.random.wrap_key_data(bits, impl=jax.random.key_impl(zeros))


def _is_abstract(value: Any) -> bool:
    return isinstance(value, jax.ShapeDtypeStruct)


def _concrete(tree: dict[Any, PyTree]) -> dict[Any, PyTree]:
    """Nested dicts without the variables that have no value."""
    result = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            if below := _concrete(value):
                result[name] = below
        elif not any(map(_is_abstract, jax.tree.leaves(value))):
            result[name] = value
    return result


def _methods_of(kind: type[nnx.Module]) -> dict[str, Callable[..., Any]]:
    """The methods that a class has beyond those of `nnx.Module`, by name."""
    return {
        name: getattr(kind, name)
        for cls in kind.__mro__
        if issubclass(cls, nnx.Module) and cls is not nnx.Module
        for name, value in vars(cls).items()
        if callable(value)
        and not isinstance(value, (type, staticmethod))
        and (name == "__call__" or name[0] != "_")
    }


def _signature(
    method: Callable[..., Any], module_name: str, methods: Mapping[str, Callable[..., Any]]
) -> Signature:
    name = getattr(method, "__name__", "method")
    if any(method is known for known in methods.values()):
        name = f"{module_name}.{name}"
    signature = signature_of(method, f"`{name}`")
    return dataclasses.replace(signature, held=signature.held | {RNGS})


def _takes_rngs(signature: Signature, structure: _Structure) -> bool:
    """Whether calls pass `rngs`.

    They do if the method has such an argument, unless the argument has a default and the module
    holds streams of its own.
    """
    parameter = signature.parameters.get(RNGS)
    if parameter is None:
        return False
    has_own = any(issubclass(kind, nnx.RngState) for kind in structure.types.values())
    return parameter.default is parameter.empty or not has_own
