"""The protocol that both module systems of Flax meet.

An adapter is a module with one of its methods, made into functions of arrays: `init` and `apply` can be traced by JAX, and
know neither Keras nor where the values are kept. `adapt` picks the adapter that knows the module.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Protocol

import jax

from .._errors import ModuleError

PyTree = Any
Variables = Mapping[str, PyTree]
Method = str | Callable[..., Any] | None


class Adapter(Protocol):
    """A module and a method of it.

    What runs of the module teach is kept in attributes whose values are replaced and never changed in place, so that it can be
    put back. One thread at a time runs a module.

    Attributes:
        base: The class of all its modules.
        name: The module's class, as messages name it.
        module: The module, as configs describe it.
        method: The function that is called with a module first. It holds no module.
        takes_mask: Whether the method takes Keras's mask.
        allows_unused: Whether the user may give variables that the method does not use.
        allows_extra_collections: Whether the user may give collections that the module reads but
            does not create.
    """

    base: ClassVar[type]
    name: str
    module: Any
    method: Callable[..., Any]
    takes_mask: bool
    allows_unused: bool
    allows_extra_collections: bool

    @classmethod
    def accepts(cls, module: object) -> bool:
        """Whether this adapter knows modules like that one."""

    def __init__(self, module: Any, method: Method) -> None:
        """Take a module and the method to call.

        Raises:
            MethodError: The module has no such method, or its arguments cannot be filled.
        """

    def init(
        self, key: jax.Array, inputs: PyTree, *, mask: PyTree = None
    ) -> tuple[PyTree, Variables]:
        """Call the method in inference mode, and say which variables there are before any call.

        Args:
            key: A typed random key, from which the initial values come, unless the module holds values.
            inputs: A pytree of arrays.
            mask: Keras's mask of the inputs, or None.

        Returns:
            The outputs, and the variables by collection, without what the module sows.
        """

    @staticmethod
    def values_of(module: Any) -> Variables | None:
        """The values that a module holds, with which its layer begins; None if it holds none."""

    def to_flax(self, variables: Variables) -> Any:
        """What Flax's users work with, holding these values: a module, or a module and its variables."""

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
            seed_state: uint32 of shape (2,), from which the random streams come.

        Returns:
            The outputs; the collections that the method may have written, as they are afterwards; and by collection what it
            sowed, that is, recorded without reading it back.

        Raises:
            TraceAgainError: The call showed that it needs to be made differently; make it again.
        """

    def draws(self, training: bool) -> bool:
        """Whether any call in that mode has asked for random numbers so far."""

    def trainable(self, collection: str) -> bool:
        """Whether the collection holds weights that gradients train."""

    def state(self, variables: Variables) -> Variables:
        """The variables without those that the module has been seen to sow, which are no state."""

    @staticmethod
    def module_class(
        name: str,
        place: str,
        required: Mapping[str, type],
        optional: Mapping[str, tuple[type, Any]],
        methods: Mapping[str, Callable[..., Any]],
    ) -> type:
        """Make a class of modules from another language.

        Args:
            name: Its name.
            place: The module that it says it is of.
            required: Types by field, of fields that have no default.
            optional: Types and defaults by field.
            methods: Functions by name. In Linen, without `setup` among them, `__call__` may make submodules. In NNX
                `setup(self, rngs)` makes the parts, when the fields are there; a `LazyModule` that is a field, or that it
                leaves as an attribute, is made with the same `rngs`.

        Raises:
            FieldError: A name that Python or Flax has taken.
        """


# Flax's module systems. One that nobody has imported has no modules, and takes its time to be imported.
APIS = ("linen", "nnx")


def adapter_of(api: str) -> type[Adapter]:
    """The adapter of a module system, which is imported with it."""
    if api == "linen":
        from ._linen import LinenAdapter

        return LinenAdapter
    from ._nnx import NnxAdapter

    return NnxAdapter


def module_class(api: str, name: str, place: str, **parts: Any) -> type:
    """Make a class of modules of one module system; see `Adapter.module_class`."""
    return adapter_of(api).module_class(name, place, **parts)


def _adapters() -> Iterator[type[Adapter]]:
    return (adapter_of(api) for api in APIS if f"flax.{api}" in sys.modules)


def adapt(module: object, method: Method) -> Adapter:
    """Find the adapter for a module.

    Raises:
        ModuleError: No adapter knows it.
        MethodError: The module has no such method, or its arguments cannot be filled.
    """
    for adapter in _adapters():
        if adapter.accepts(module):
            return adapter(module, method)
    kinds = " or ".join(f"`flax.{api}.Module`" for api in APIS)
    raise ModuleError(f"`module` must be an instance of {kinds}, got {_described(module)}")


def is_module(value: object) -> bool:
    """Whether it is an instance of a Flax module."""
    return any(adapter.accepts(value) for adapter in _adapters())


def is_base(kind: type) -> bool:
    """Whether it is the class of all modules of one of Flax's module systems."""
    return any(adapter.base is kind for adapter in _adapters())


def module_classes() -> Iterator[type]:
    """The classes of Flax modules that this process has defined; of those with one name and one base the newest comes last."""
    found, waiting = set(), [adapter.base for adapter in _adapters()]
    while waiting:
        kind = waiting.pop(0)
        if kind not in found:
            found.add(kind)
            yield kind
            waiting += kind.__subclasses__()


def _described(module: object) -> str:
    if module is None:
        return "None.\nPass a module instance, such as `flax.linen.Dense(features=10)`."
    if isinstance(module, type):
        return f"the class {module.__name__}, not an instance.\nMake one: `{module.__name__}(...)`."
    if callable(module) and hasattr(module, "__code__"):
        name = getattr(module, "__name__", "?")
        return (
            f"the function {name}.\nPass the module as `module`, and a function of it as `method`."
        )
    return f"{type(module).__module__}.{type(module).__qualname__}: {module!r:.80}"
