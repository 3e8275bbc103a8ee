"""Answers of the language that runs Python about its functions, errors and words.

R runs Python inside its own process. Python sees every R function with the signature
`(*args, **kwargs)`, an R error does not mention tensors, and Python cannot find an R function by
its name. R therefore registers functions here that answer such questions. In a plain Python
process, nothing is registered, and each function below gives the answer for Python.
"""

from __future__ import annotations

import dataclasses
import keyword
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

from ._errors import FieldError

# The parts of messages that differ between languages. `core_words` (R/core.R) has the same names.
WORDS: Mapping[str, str] = MappingProxyType(
    {
        "none": "None",
        "dict": "a dict",
        "list": "a list",
        "true": "True",
        "false": "False",
        "callback model": "`self.model`",
        "variables": "`layer.flax_variables`",
        "params": '`{{"params": {{...}}}}`',
        "method": "a function of `(module, inputs, training)`",
        "use_running_average": "`use_running_average=not training`",
        "update_stats": "`update_stats=training`",
        "batch shape": "`keras.Input(batch_shape=...)`",
        "install": "Install it: `pip install {0}`",
        "import": "`import {0}`",
        "custom object": "`custom_objects={{{0!r}: {1}}}`",
        "own custom object": "`custom_objects={{{0!r}: {0}}}`",
        "entry": "`{{{0!r}: ...}}`",
        "rename": '`rename={{"{0}": "{1}"}}`',
        "transpose": '`transpose={{"**/kernel": (2, 3, 1, 0)}}`',
        "axes": "0, 1, ...",
        "mesh": '`mesh={{"batch": 2, "model": 4}}`',
        "layout": '`layout={{"**/kernel": (None, "model")}}`',
        "rules": '`rules={{"mlp": "model"}}`',
        "devices": '`devices=["gpu:0", "gpu:1"]`',
        "no axis": "None",
        "auto": "`auto=True`",
        "whole": '`layout={{"**/{0}": ()}}`',
        "unchecked": "`checked=False`",
        "functional model": "`keras.Model(inputs, outputs)`",
        "to write": "`variables`",
        "checkpoint": '`kerasflax.write_variables(model, "checkpoint")`',
        "register": "`keras.saving.register_keras_serializable()`",
        "lazy module": "`kerasflax.LazyModule`",
        "rename away": '`rename={{"{0}": None}}`',
        "skip mismatch": "`skip_mismatch=True`",
        "instead of Layer": "Use a Flax module such as `nn.Dense`, or `keras.ops`, or use the "
        "Keras layer before or after the Flax layer.",
        "instead of Variable": "Create it with `self.param()`, or as an `nnx.Param`.",
        "instead of SeedGenerator": "Draw random numbers with `jax.random`, and a key from "
        "`self.make_rng()` or `rngs`.",
        "load weights": "`model.load_weights()`",
        "attribute": ".",
        "true or false": "True or False",
        "return": "Return the output from the method.",
        "containers": "tuples, lists or dicts",
        "bidirectional": "`keras.layers.Bidirectional`",
        "optional input": "`keras.Input(optional=True)`",
    }
)


def _nothing(*_: Any) -> None:
    return None


@dataclasses.dataclass(frozen=True)
class Host:
    """The language that runs Python.

    Attributes:
        formals: From a Python function to its arguments in order, with whether each has a default.
            Returns None if the function is not written in the host language.
        shown: From any value to a few words about it, or None.
        advice: From an exception to a sentence that helps with it, or None.
        function_of_name: From a name to the function that the user has defined under it, or None.
        name_of_function: From a Python function to the name under which it is found, or None.
        define_modules: Creates the classes of all modules that the host language has defined. It
            creates a class when it first needs it, and Python may need it earlier.
        built: Called during a build with the number of elements of initial values that have been
            computed, and their total.
        words: The host's version of each entry of `WORDS`.
    """

    formals: Callable[[Callable[..., Any]], Mapping[str, bool] | None] = _nothing
    shown: Callable[[Any], str | None] = _nothing
    advice: Callable[[BaseException], str | None] = _nothing
    function_of_name: Callable[[str], Callable[..., Any] | None] = _nothing
    name_of_function: Callable[[Callable[..., Any]], str | None] = _nothing
    define_modules: Callable[[], None] = lambda: None
    built: Callable[[int, int], object] = _nothing
    words: Mapping[str, str] = dataclasses.field(default_factory=lambda: WORDS)


_host = Host()


def register(**parts: Any) -> None:
    """Register the answers of another language. See `Host`. Missing ones are Python's."""
    global _host
    _host = Host(**parts)


def formals(function: Callable[..., Any]) -> Mapping[str, bool] | None:
    """The arguments of a function of the host language; None if it is a Python function."""
    return _host.formals(function)


def shown(value: Any) -> str | None:
    """A few words about a value, or None."""
    return _host.shown(value)


def advice(error: BaseException) -> str | None:
    """A sentence to add to the message of an exception, or None."""
    return _host.advice(error)


def function_of_name(name: str) -> Callable[..., Any] | None:
    """The function that the user has defined under a name in the host language, or None."""
    return _host.function_of_name(name)


def name_of_function(function: Callable[..., Any]) -> str | None:
    """The name under which `function_of_name` finds a function, or None."""
    return _host.name_of_function(function)


def define_modules() -> None:
    """Create the classes of all modules that the host language has defined."""
    _host.define_modules()


def built(done: int, total: int) -> None:
    """Tell the host how much of a layer's initial values has been computed, in elements."""
    _host.built(done, total)


def word(name: str, *args: str) -> str:
    """The user's language's version of an entry of `WORDS`."""
    return _host.words[name].format(*args)


def code(text: str) -> str:
    """Python code that looks up attributes and calls them, as the user's language writes it."""
    return f"`{text.replace('.', word('attribute'))}`"


def refuse_taken_names(class_name: str, names: Iterable[str], base: type) -> None:
    """Check the names of the fields and methods of a module class defined in the host language.

    Raises:
        FieldError: Python or Flax already uses a name.
    """
    for name in names:
        if keyword.iskeyword(name):
            reason = f"{name!r} is a reserved word in Python."
        elif hasattr(base, name):
            reason = f"every Flax module already has {name!r}."
        else:
            continue
        raise FieldError(
            f"{class_name} cannot have a field or method {name!r}: {reason}",
            advice="Choose another name.",
        )
