"""The variables of one layer by path: reading, assigning and freezing them."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import keras

from .. import _host, _keras
from .._errors import NotBuiltError, StateError
from ..adapters._context import module_is_running
from ..adapters._protocol import Adapter
from . import _variables
from ._setting import Setting

PyTree = Any

# The path that Keras gives the layer's seed.
SEED_PATH = "seed_generator/seed_generator_state"


@dataclasses.dataclass
class Held:
    """The layer's record of its variables.

    It is a separate object because Keras searches and replaces the containers among a layer's
    attributes.

    Attributes:
        paths: The path of each variable, in the order of the layer's variables.
        template: The tree of variables without its arrays.
        frozen: The paths of the weights that are excluded from training one by one.
        inputs: The specs of the inputs on which the layer was built.
        has_been_trained: Whether a compiled training step has called the layer. The optimizer has
            then noted which weights it trains.
        setting: The mesh and the rules of the distribution under which the layer was built.
        lock: Held by a thread while it builds the layer, or reads or sets variables.
    """

    paths: tuple[str, ...] = ()
    template: _variables.Template = dataclasses.field(
        default_factory=lambda: _variables.split({})[0]
    )
    frozen: tuple[str, ...] = ()
    inputs: PyTree = None
    has_been_trained: bool = False
    setting: Setting = dataclasses.field(default_factory=Setting)
    lock: Any = dataclasses.field(default_factory=threading.RLock)


class VariablesByPath:
    """A view of the variables of a layer.

    Create it anew for each use: NNX's transformations copy Keras layers in Keras's NNX mode, and a
    copy has variables of its own.
    """

    def __init__(self, layer: Any) -> None:
        self._layer = layer
        self._adapter: Adapter = layer._adapter
        self._held: Held = layer._held

    @property
    def with_seed(self) -> dict[str, keras.Variable]:
        """The Keras variables and the seed's state, which Keras's files hold."""
        return self._layer.variables_by_path | {SEED_PATH: self._layer.seed_generator.state}

    def alone(self) -> contextlib.AbstractContextManager[Any]:
        """Keep other threads from the variables: calls, assignments and readers take turns."""
        # In a stateless scope the values are the scope's. A module that calls its own layer must
        # not wait for a thread that waits for the module.
        if _keras.in_stateless_scope() or module_is_running():
            return contextlib.nullcontext()
        return self._held.lock

    # Values

    def values(self) -> dict[str, jax.Array]:
        """The layer's own arrays, all from one moment. The next training step deletes them.

        Raises:
            NotBuiltError: The layer has no variables yet.
            StateError: Keras holds the values, or has lost them.
        """
        with self.alone():
            self.check_values()
            return {
                path: variable.value for path, variable in self._layer.variables_by_path.items()
            }

    def tree(self, change: Callable[[jax.Array], Any] = lambda value: value) -> dict[str, PyTree]:
        """The tree of variables with the layer's own arrays, or with `change` of each."""
        values = self.values()
        return self._held.template.merge({path: change(value) for path, value in values.items()})

    def fitted(self, given: Mapping[str, PyTree], *, what: str = "The value") -> dict[str, Any]:
        """The arrays by path that `assign` takes, from a nested dict. Nothing is assigned.

        They are still the given arrays, unless they had to be cast.

        Args:
            given: The nested dict, with all variables or some.
            what: What messages call it.

        Raises:
            NotBuiltError: The layer has no variables yet.
            StateError: Keras holds the values, or has lost them.
            VariablesError: Something does not fit; the error lists every place by path.
        """
        self.check_values()
        return _variables.fitted(
            self._layer.variables_by_path,
            self.stored(given),
            fixed_shape=lambda path: True,
            partial=True,
            what=what,
        )

    def stored(self, given: Any) -> Any:
        """Given variables without what the module sows, which a layer does not store."""
        if not isinstance(given, Mapping):
            # `fitted` refuses it.
            return given
        return self._adapter.state(_variables.plain(given))

    def assign(self, arrays: Mapping[str, Any]) -> None:
        """Set variables to copies of arrays by path, as `fitted` returns them: all, or none.

        Raises:
            VariablesError: An array cannot be moved to where its variable is.
        """
        variables = self._layer.variables_by_path
        with self.alone():
            _variables.replace((path, variables[path], array) for path, array in arrays.items())

    # Training

    def is_trainable(self, path: str) -> bool:
        """Whether a path is one of a weight, which gradients train, and not of state."""
        return self._adapter.trainable(_variables.collection_of(path))

    @property
    def trainable_paths(self) -> list[str]:
        """The paths of all weights, frozen or not."""
        return [path for path in self._layer.variables_by_path if self.is_trainable(path)]

    def freeze(self, paths: Sequence[str]) -> None:
        """Exclude exactly these weights from training."""
        with self.alone(), self.training_kept():
            self._held.frozen = tuple(paths)
            self.update_trainable()

    def update_trainable(self) -> None:
        """Set `trainable` of each weight by the layer's own setting and by what is frozen."""
        variables = self._layer.variables_by_path
        for path in self.trainable_paths:
            variables[path].trainable = self._layer.trainable and path not in self._held.frozen

    @contextlib.contextmanager
    def training_kept(self) -> Iterator[None]:
        """If the block fails, leave everything as trainable or frozen as it was."""
        frozen, trainable = self._held.frozen, self._layer.trainable
        flags = [
            (variable, variable.trainable) for variable in self._layer.variables_by_path.values()
        ]
        try:
            yield
        except BaseException:
            self._held.frozen = frozen
            _keras.set_trainable_flag(self._layer, trainable)
            for variable, flag in flags:
                variable.trainable = flag
            raise

    # Checks

    def check_built(self) -> None:
        """Raise NotBuiltError if the layer has no variables yet."""
        if not self._layer.built:
            raise NotBuiltError(
                f"The layer {self._layer.name!r} has no variables yet.",
                advice="Build it first: call it on an input, or put it in a model.",
            )

    def check_values(self) -> None:
        """Check that the variables have values.

        Raises:
            NotBuiltError: The layer has no variables yet.
            StateError: Keras holds the values, inside an epoch, or has lost them.
        """
        self.check_built()
        if not all(map(_keras.has_value, self._layer._ordered_variables)):
            raise _without_values(self._layer.name)

    def explain_missing_values(self) -> None:
        """Let Keras say what is wrong when it needs the values and has lost them."""
        name = self._layer.name

        def explain() -> None:
            raise _without_values(name)

        _keras.explain_missing_values(self.with_seed.values(), explain)

    @contextlib.contextmanager
    def blaming_missing_values(self) -> Iterator[None]:
        """If the block fails because the variables have no values, raise the error that says so."""
        try:
            yield
        except Exception as error:
            # In a stateless scope, the scope has the values.
            if _keras.in_stateless_scope() or isinstance(error, StateError):
                raise
            if all(map(_keras.has_value, self.with_seed.values())):
                raise
            raise _without_values(self._layer.name) from error


def _without_values(name: str) -> StateError:
    return StateError(
        f"The weights of the layer {name!r} have no values now. Keras holds them during an epoch, "
        "and loses them if `fit()`, `evaluate()` or `predict()` fails.",
        advice=f"After an error, load the weights from a file ({_host.word('load weights')}) or "
        "create the model again, and compile it before you train it. In a callback, get the layer "
        f"from {_host.word('callback model')}, whose weights have values.",
    )
