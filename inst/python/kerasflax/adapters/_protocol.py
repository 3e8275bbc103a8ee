"""The protocol between the layer and Flax's two module systems.

An adapter turns a module and one of its methods into functions of arrays: `init` and `apply`. JAX
can trace both. They know neither Keras nor where the values are stored. `adapt` finds the adapter
for a module.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Protocol

import jax

from .. import _host
from .._errors import ModuleError

PyTree = Any
Variables = Mapping[str, PyTree]
Method = str | Callable[..., Any] | None


class Adapter(Protocol):
    """A module and one of its methods.

    Runs of the module add to the adapter's knowledge about it. That knowledge is one attribute,
    which is replaced and never changed in place, so that it can be restored. Only one thread at a
    time runs a module.

    Attributes:
        base: The base class of the modules that the adapter accepts.
        name: The name of the module's class, for messages.
        module: The module, for configs.
        method: The method as a function that takes a module first. It is not bound to a module.
        takes_mask: Whether the method takes Keras's mask.
        allows_unused: Whether the user may give variables that the method does not use.
        allows_extra_collections: Whether the user may give collections that the module reads but
            does not create.
        is_abstract: Whether variables of the module have no values, and `init` cannot make them.
        sizes: The sizes of the axes of the variables that the module has before any call.
    """

    base: ClassVar[type]
    name: str
    module: Any
    method: Callable[..., Any]
    takes_mask: bool
    allows_unused: bool
    allows_extra_collections: bool
    is_abstract: bool
    sizes: frozenset[int]

    @classmethod
    def accepts(cls, module: object) -> bool:
        """Whether this adapter can handle a module."""

    def __init__(self, module: Any, method: Method) -> None:
        """Store a module and the method to call.

        Raises:
            MethodError: The module has no such method, or its arguments cannot be filled.
        """

    def init(
        self,
        key: jax.Array,
        inputs: PyTree,
        *,
        mask: PyTree = None,
        overlay: Callable[[Variables], Variables] | None = None,
    ) -> tuple[PyTree, Variables]:
        """Call the method in inference mode and return the variables as they are before any call.

        With `overlay`, the method is called with given variables. A module that creates its
        variables in its first call then creates only those that are not given.

        Args:
            key: A typed random key for the initial values. Unused if the module holds values.
            inputs: A pytree of arrays.
            mask: Keras's mask of the inputs, or None.
            overlay: From the variables known before the call to those with the given ones.

        Returns:
            The outputs, and the variables by collection without sown values.
        """

    @staticmethod
    def values_of(module: Any) -> Variables | None:
        """The values that a module holds, with which its layer starts. None if it holds none."""

    @staticmethod
    def holders_of(module: Any) -> list[Any]:
        """The parts of a module that hold its weights. Two modules may share a part."""

    def to_flax(self, variables: Variables) -> Any:
        """The module with these values as Flax users handle it: alone, or with its variables."""

    def module_of_clone(self, values: Callable[[], Variables]) -> Any:
        """The module of a layer that is a clone of this adapter's.

        Args:
            values: Returns the layer's values, with which the clone starts if only they can make
                up the module.
        """

    def apply(
        self,
        variables: Variables,
        inputs: PyTree,
        *,
        training: bool,
        mask: PyTree,
        seed_state: jax.Array,
    ) -> tuple[PyTree, Variables, Variables]:
        """Call the method.

        Args:
            variables: Every collection that the layer keeps.
            inputs: A pytree of arrays.
            training: The mode.
            mask: Keras's mask of the inputs, or None.
            seed_state: The state of the layer's seed, uint32 of shape (2,). Random streams derive
                from it.

        Returns:
            The outputs; the collections that the method may have written, after the call; and the
            sown values by collection. Sown values are recorded and never read back.

        Raises:
            TraceAgainError: The call taught the adapter something. It must be made again.
        """

    def draws(self, training: bool) -> bool:
        """Whether any call in a mode has asked for random numbers so far."""

    def restarts(self, collection: str) -> bool:
        """Whether `init` makes a collection that need not be among given variables."""

    def trainable(self, collection: str) -> bool:
        """Whether a collection holds weights that gradients train."""

    def partition_specs(self, variables: Variables) -> PyTree:
        """The `jax.sharding.PartitionSpec` of each array, from the module's metadata.

        Logical axes are replaced by the rules in force. A box gives way to the spec of its array.
        """

    def state(self, variables: Variables) -> Variables:
        """The variables without those that the module is known to sow, which are not state."""

    @staticmethod
    def module_class(
        name: str,
        place: str,
        required: Mapping[str, type],
        optional: Mapping[str, tuple[type, Any]],
        methods: Mapping[str, Callable[..., Any]],
    ) -> type:
        """Create a module class from parts that another language defines.

        Args:
            name: The name of the class.
            place: The value of the class's `__module__`.
            required: Types of the fields without a default, by field.
            optional: Types and defaults of the other fields, by field.
            methods: Functions by name. In Linen, `__call__` may create submodules if there is no
                `setup`. In NNX, `setup(self, rngs)` creates the submodules after the fields are
                set. Each `LazyModule` that is a field, or an attribute after `setup`, is made with
                the same `rngs`.

        Raises:
            FieldError: Python or Flax already uses a name.
        """


# Flax's module systems. A system that nobody has imported has no modules, and importing it is slow.
APIS = ("linen", "nnx")


def adapter_of(api: str) -> type[Adapter]:
    """The adapter class of a module system. Imports the system."""
    if api == "linen":
        from ._linen import LinenAdapter

        return LinenAdapter
    from ._nnx import NnxAdapter

    return NnxAdapter


def module_class(api: str, name: str, place: str, **parts: Any) -> type:
    """Create a module class of one module system. See `Adapter.module_class`."""
    return adapter_of(api).module_class(name, place, **parts)


def _adapters() -> Iterator[type[Adapter]]:
    return (adapter_of(api) for api in APIS if f"flax.{api}" in sys.modules)


def adapt(module: object, method: Method) -> Adapter:
    """Find the adapter for a module.

    Raises:
        ModuleError: The object is not a Flax module instance.
        MethodError: The module has no such method, or its arguments cannot be filled.
    """
    for adapter in _adapters():
        if adapter.accepts(module):
            return adapter(module, method)
    kinds = " or ".join(f"`flax.{api}.Module`" for api in APIS)
    got, advice = _got_instead(module)
    raise ModuleError(f"`module` must be an instance of {kinds}, got {got}.", advice=advice)


def is_module(value: object) -> bool:
    """Whether a value is a Flax module instance."""
    return any(adapter.accepts(value) for adapter in _adapters())


def is_base(kind: type) -> bool:
    """Whether a class is the base class of one of Flax's module systems."""
    return any(adapter.base is kind for adapter in _adapters())


def module_classes() -> Iterator[type]:
    """The Flax module classes that this process has defined.

    Of several classes with the same name and base, the newest comes last.
    """
    _host.define_modules()
    found, waiting = set(), [adapter.base for adapter in _adapters()]
    while waiting:
        kind = waiting.pop(0)
        if kind not in found:
            found.add(kind)
            yield kind
            waiting += kind.__subclasses__()


def _got_instead(module: object) -> tuple[str, str | None]:
    """Describe an object that is not a module instance, and say what to pass instead."""
    if module is None:
        example = "Pass a module instance, such as `flax.linen.Dense(features=10)`."
        return _host.word("none"), example
    if isinstance(module, type):
        return (
            f"the class {module.__name__}, not an instance",
            f"Create an instance: `{module.__name__}(...)`",
        )
    if callable(module) and hasattr(module, "__code__"):
        return (
            f"the function {getattr(module, '__name__', '?')}",
            "Pass the module as `module`, and a function that takes the module as `method`.",
        )
    return f"{type(module).__module__}.{type(module).__qualname__}: {module!r:.80}", None
