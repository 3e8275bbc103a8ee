"""`flax.nnx` modules behind the adapter protocol. No other files but `_lazy` and `_constructor` know NNX.

An NNX module is a graph of objects that hold their variables' values. Taken apart, it is a `_Structure` and values; put
together again inside a trace, with other values, it is a module of that trace alone. The user's module is never touched.

Into which types of variables a module sows is not declared. It is found out while it is traced, as with Linen.
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
from flax import nnx

from .. import _host, _rng
from .._errors import FieldError, MethodError, ModuleError, StateError
from .._paths import SEPARATOR
from ..tracing._trace import TraceAgainError
from ._context import along_axes, in_turn, naming_the_path, replaced, running_module
from ._lazy import RNGS, LazyModule, whole_numbers_do
from ._signature import MODE_ARGUMENTS, Signature, as_attention_mask, signature_of, unbound

PyTree = Any
Path = tuple[Any, ...]

# Where arrays are kept that are attributes by themselves, and no variables.
_ARRAYS = "arrays"


@dataclasses.dataclass(frozen=True)
class _Structure:
    """A module without the values of its variables.

    Attributes:
        kind: The module's class.
        graphdef: What `nnx.split` calls so.
        treedef: The state's nesting, a variable being a leaf.
        variables: Of each variable, in the state's order, its collection and path, and its own nesting, which has its metadata.
        types: Of each collection the type of its variables.
    """

    kind: type[nnx.Module]
    graphdef: Any
    treedef: Any
    variables: Mapping[Path, Any]
    types: Mapping[str, type]

    def merge(self, values: Mapping[str, PyTree]) -> nnx.Module:
        """The module that has these values, by collection and path."""
        leaves = [
            jax.tree.unflatten(treedef, jax.tree.leaves(_get(values, place)))
            for place, treedef in self.variables.items()
        ]
        return nnx.merge(self.graphdef, jax.tree.unflatten(self.treedef, leaves))


def _split(module: nnx.Module) -> tuple[_Structure, dict[str, PyTree]]:
    """Split a module into its structure and its values by collection and path.

    Raises:
        ModuleError: Two types of variables have one name.
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
                f"{type(module).__name__} has variables of two types of the name {collection!r}.\n"
                "Register one under another name with `nnx.register_variable_name`."
            )
        place = (collection, *(key.key for key in keys))
        variables[place] = jax.tree.structure(variable)
        _put(values, place, variable.get_raw_value() if _is_variable(variable) else variable)
    return _Structure(type(module), graphdef, treedef, variables, types), values


def _split_copy(module: nnx.Module) -> tuple[_Structure, dict[str, PyTree]]:
    """Split a copy that shares its arrays with the user's module, and nothing else."""
    return _split(_parted(nnx.merge(*nnx.split(module)))[0])


def _is_variable(value: Any) -> bool:
    return isinstance(value, nnx.Variable)


def _collection(kind: type) -> str:
    """A type's collection, as Flax's own bridge to Linen names it."""
    if not issubclass(kind, nnx.Variable):
        return _ARRAYS
    try:
        return nnx.variable_name_from_type(kind)
    except ValueError:
        # Nobody has registered it, and a layer should not.
        return kind.__name__


def _put(tree: dict[Any, PyTree], path: Path, value: PyTree) -> None:
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = value


def _get(tree: Mapping[Any, PyTree], path: Path) -> PyTree:
    for name in path:
        tree = tree[name]
    return tree


class NnxAdapter:
    """A `flax.nnx.Module`, or how to make one, and a method of it. See `Adapter` for what each method does."""

    base: ClassVar[type] = nnx.Module

    @classmethod
    def accepts(cls, module: object) -> bool:
        """Whether it is an instance of an NNX module, or how to make one."""
        return isinstance(module, (nnx.Module, LazyModule))

    def __init__(
        self, module: nnx.Module | LazyModule, method: str | Callable[..., Any] | None
    ) -> None:
        self.module: nnx.Module | LazyModule = module
        # What runs have taught; the values are replaced, and never changed.
        self._sown: frozenset[type] = frozenset()
        self._drawing: frozenset[bool] = frozenset()
        self._axes: frozenset[str] = frozenset()
        if isinstance(module, LazyModule):
            with self._running(None):
                self._structure = module.abstractly(lambda made: _split(_parted(made)[0])[0])
        else:
            self._structure, values = _split_copy(module)
            self._specs = jax.tree.map(_spec_of, values)
            self.module = self._structure.merge(self._specs)
        self.allows_unused = self.allows_extra_collections = False
        kind = self._structure.kind
        self.name = kind.__name__
        owner = getattr(method, "__self__", module)
        if type(owner) is kind and owner is not module:
            raise MethodError(
                f"`method` is bound to another {self.name} than `module`, with values of its own.\n"
                "Pass that one as `module`, or the method's name."
            )
        methods = _methods_of(kind)
        self.method = unbound(kind, method, nnx.Module, methods)
        self._signature = _signature(self.method, self.name, methods)
        self.takes_mask = self._signature.takes_mask
        self._takes_rngs = _takes_rngs(self._signature, self._structure)

    @staticmethod
    def values_of(module: nnx.Module | LazyModule) -> dict[str, PyTree] | None:
        """See `Adapter.values_of`."""
        return None if isinstance(module, LazyModule) else _split_copy(module)[1]

    def to_flax(self, variables: Mapping[str, PyTree]) -> nnx.Module:
        """See `Adapter.to_flax`: a module."""
        return self._structure.merge(variables)

    @in_turn
    def init(
        self, key: jax.Array, inputs: PyTree, *, mask: PyTree = None
    ) -> tuple[PyTree, dict[str, PyTree]]:
        """See `Adapter.init`. The values of a `LazyModule` are those that it makes with `rngs=nnx.Rngs(key)`."""
        if isinstance(self.module, LazyModule):
            with self._running(None):
                _, variables = _split(_parted(self.module.make(nnx.Rngs(key)))[0])
        else:
            # A module holds its values, so that these will not be asked for.
            variables = jax.tree.map(_zeros, self._specs)
        outputs, _, _ = self._call(variables, inputs, training=False, mask=mask, key=key)
        return outputs, variables

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
        """See `Adapter.draws`. What a module draws from streams of its own is its state, and none of the layer's."""
        return training in self._drawing

    def trainable(self, collection: str) -> bool:
        """See `Adapter.trainable`."""
        return issubclass(self._structure.types.get(collection, object), nnx.Param)

    def state(self, variables: Mapping[str, PyTree]) -> dict[str, PyTree]:
        """See `Adapter.state`."""
        sown = {_collection(kind) for kind in (nnx.Intermediate, nnx.Perturbation, *self._sown)}
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
        """Call the method on a module made for this call: its outputs, the state it leaves, and what it sowed."""
        results, self._axes = along_axes(
            self._axes, lambda: self._run(variables, inputs, training, mask, key)
        )
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
        undrawn = rngs.default.count.get_value()
        if self._takes_rngs:
            keywords[RNGS] = rngs
        if not MODE_ARGUMENTS.keys() & self._signature.parameters.keys():
            nnx.Module.set_attributes(
                module,
                deterministic=not training,
                use_running_average=not training,
                raise_if_not_found=False,
            )
        types = sorted(self._sown, key=_collection)
        with self._running(module) as seen:
            call = functools.partial(_called, self.method, arguments, keywords)
            outputs, *captured = nnx.capture(call, *types)(module) if types else (call(module),)
        if seen - self._sown:
            self._sown |= seen
            raise TraceAgainError
        self._drawing |= {training} if rngs.default.count.get_value() is not undrawn else set()
        module, left = _parted(module)
        structure, state = _split(module)
        self._check_unchanged(structure)
        sown: dict[str, PyTree] = {}
        for each in (*captured, left):
            for path, variable in nnx.to_flat_state(each):
                _put(sown, (_collection(type(variable)), *path), variable.get_raw_value())
        return outputs, state, sown

    def _check_unchanged(self, structure: _Structure) -> None:
        """Raise StateError where a call has made or removed variables."""
        before, after = self._structure.variables, structure.variables
        for verb, places in (
            ("made", after.keys() - before.keys()),
            ("removed", before.keys() - after.keys()),
        ):
            if places:
                paths = sorted(SEPARATOR.join(map(str, place)) for place in places)
                raise StateError(
                    f"{self.name} {verb} the variable {', '.join(paths)} in a call.\n"
                    "Make all variables with the module, and set their values in calls; what is only to be looked at is sown."
                )

    @contextlib.contextmanager
    def _running(self, module: nnx.Module | None) -> Iterator[set[type]]:
        """All that surrounds a run of the module's code; gives the types of variables that it sows into."""
        seen: set[type] = set()

        def note(kind: type | str) -> bool:
            kind = (
                nnx.variable_type_from_name(kind, allow_register=True)
                if isinstance(kind, str)
                else kind
            )
            seen.add(kind)
            # While a module is made, nothing captures.
            return module is not None and kind in self._sown

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

        def path_of(part: nnx.Module) -> Path | None:
            parts = () if module is None else nnx.iter_modules(module)
            return next((path for path, each in parts if each is part), None)

        name = type(module).__name__
        watching = replaced((nnx.Module, sow), (nnx.Module, perturb))
        with watching, naming_the_path(name, nnx.Module, path_of), running_module():
            yield seen

    @staticmethod
    def module_class(
        name: str,
        place: str,
        required: Mapping[str, type],
        optional: Mapping[str, tuple[type, Any]],
        methods: Mapping[str, Callable[..., Any]],
    ) -> type[nnx.Module]:
        """Make a class of NNX modules, whose constructor takes its fields and `rngs` by name."""
        own = (method for method in methods if method != "__call__")
        _host.refuse_taken_names(name, (*required, *optional, *own), nnx.Module)
        kinds = {**required, **{field: kind for field, (kind, _) in optional.items()}}

        def make_parts(self: nnx.Module, rngs: Any) -> None:
            # What has been left to be made is made here, where there are random numbers for it.
            for attribute, value in list(vars(self).items()):
                if isinstance(value, LazyModule):
                    setattr(self, attribute, nnx.data(value.make(rngs)))

        def initialise(self: nnx.Module, *, rngs: nnx.Rngs | None = None, **fields: Any) -> None:
            given = signature.bind(self, rngs=rngs, **fields).arguments
            if not isinstance(rngs, (nnx.Rngs, nnx.RngStream, type(None))):
                raise FieldError(
                    f"`rngs` must be an `nnx.Rngs`, got {type(rngs).__name__} {rngs!r:.60}."
                )
            for field in kinds:
                # A default that could be changed is copied for each instance.
                setattr(
                    self, field, given[field] if field in given else copy.copy(optional[field][1])
                )
            make_parts(self, rngs)
            if "setup" in methods:
                with whole_numbers_do():
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


def _called(
    method: Callable[..., Any],
    arguments: tuple[Any, ...],
    keywords: dict[str, Any],
    module: nnx.Module,
) -> Any:
    return method(module, *arguments, **keywords)


def _parted(module: nnx.Module) -> tuple[nnx.Module, Any]:
    """A module, from which what was sown has been taken, and that."""
    return module, nnx.pop(module, nnx.Intermediate)


def _spec_of(value: Any) -> Any:
    return jax.ShapeDtypeStruct(value.shape, value.dtype) if hasattr(value, "shape") else value  # type: ignore[no-untyped-call]


def _zeros(spec: Any) -> Any:
    return (
        jax.lax.full(spec.shape, 0, spec.dtype) if isinstance(spec, jax.ShapeDtypeStruct) else spec
    )


def _methods_of(kind: type[nnx.Module]) -> dict[str, Callable[..., Any]]:
    """The methods that classes of users and of Flax add to the base class, by name."""
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
    """Whether a call is given random streams: where the method takes them, unless the module has its own to fall back on."""
    parameter = signature.parameters.get(RNGS)
    if parameter is None:
        return False
    has_own = any(issubclass(kind, nnx.RngState) for kind in structure.types.values())
    return parameter.default is parameter.empty or not has_own
