"""The arguments of a method, and how a call fills them.

The rules:

    argument                                            gets
    `inputs`, or the first argument if there is none    the layer's whole input
    training, train, is_training, enable_dropout,
    update_stats                                        True in training, False otherwise
    deterministic, use_running_average                  the opposite
    mask                                                the input's Keras mask, if it has one
    any other with a default                            its default
    any other without a default                         an error: nothing can fill it

A dict is spread over the arguments if all of its names are arguments, unless that leaves an
argument `inputs` empty, which then gets the whole dict. A list or tuple is spread over several
arguments without a default.

A mode argument with a default is left alone if the module has a field of the same name that is set.
A method that takes the mode passes it on itself. If it has no mode argument, each call sets the
module's mode fields that are None.

A method with `**kwargs` gets the parts of a dict by name if these include all arguments without a
default.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import keyword
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax

from .. import _host
from .._errors import MethodError
from .._messages import value_text

# The mode arguments, and whether each is true in training.
MODE_ARGUMENTS: Mapping[str, bool] = {
    "training": True,
    "train": True,
    "is_training": True,
    "enable_dropout": True,
    "update_stats": True,
    "deterministic": False,
    "use_running_average": False,
}

_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


@dataclasses.dataclass(frozen=True)
class Signature:
    """The arguments of a method.

    Attributes:
        name: The name of the method, for messages.
        parameters: The parameters after the module, by name and in order, without variadic ones.
        variadic: Whether the method has variadic parameters.
        collects: Whether the method has a parameter like `*args`. The input then goes there instead
            of to a keyword-only argument.
        held: The arguments that fields of the module or a `functools.partial` have already set.
        mode_fields: The fields of the module that each call sets to the mode.
    """

    name: str
    parameters: Mapping[str, inspect.Parameter]
    variadic: bool
    collects: bool = False
    takes_names: bool = False
    held: frozenset[str] = frozenset()
    mode_fields: frozenset[str] = frozenset()

    @property
    def takes_mask(self) -> bool:
        """Whether the method takes Keras's mask."""
        return "mask" in self.parameters

    @property
    def takes_mode(self) -> bool:
        """Whether the method takes the mode, and passes it on itself."""
        return not self.parameters.keys().isdisjoint(MODE_ARGUMENTS)

    @property
    def takes_mode_by_position(self) -> bool:
        """Whether a mode argument can be passed by position as well as by name."""
        return any(
            name in MODE_ARGUMENTS and p.kind is p.POSITIONAL_OR_KEYWORD
            for name, p in self.parameters.items()
        )

    def fields(self, *, training: bool) -> dict[str, bool]:
        """The values of the mode fields in a mode."""
        return mode_values(self.mode_fields, training)

    def fill(
        self, inputs: Any, *, training: bool, mask: Any = None, mode_by_position: bool = False
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Fill the arguments for one call.

        Args:
            inputs: The layer's input, a pytree of arrays.
            training: The mode.
            mask: The input's mask, a pytree of boolean arrays and None.
            mode_by_position: Whether to pass the mode by position if possible. A lifted transform
                with `static_argnums` requires it by position, others by name.

        Returns:
            The positional arguments and the keyword arguments.

        Raises:
            MethodError: The method takes no input, or an argument without a default is left empty.
        """
        modes = mode_values(self.parameters.keys() - self.held, training)
        free = {
            name: p
            for name, p in self.parameters.items()
            if name not in modes and name not in self.held
        }
        values = self._spread(inputs, free)
        collected: tuple[Any, ...] = ()
        if values is None:
            target = (
                "inputs"
                if "inputs" in free
                else next((name for name in free if self._can_take_input(name)), None)
            )
            if target is None and not self.variadic:
                others = f"; it has only {self._arguments_text()}" if self.parameters else ""
                raise MethodError(
                    f"{self.name} has no argument for the layer's input{others}.",
                    advice="Give it an argument `inputs`, after the module, for the layer's input.",
                )
            if target is None and not self.collects:
                return (), modes | self._by_name(inputs)
            if target is None:
                collected, values = (inputs,), {}
            else:
                values = {target: inputs}
        if self.takes_mask and (mask is not None or _required(self.parameters["mask"])):
            values.setdefault("mask", mask)
        missing = [
            name for name, parameter in free.items() if _required(parameter) and name not in values
        ]
        if missing:
            raise MethodError(
                f"Nothing fills {', '.join(f'`{name}`' for name in missing)} of {self.name}, "
                f"whose arguments are {self._arguments_text()}; the input is "
                f"{_inputs_text(inputs)}.",
                advice=f"Call the layer on {_host.word('dict')} with the arguments' names, or give "
                f"`method` {_host.word('method')} that takes the input apart.",
            )
        if collected:
            return collected, modes | values
        return self._bind(values, modes, mode_by_position)

    def _by_name(self, inputs: Any) -> dict[str, Any]:
        """The parts of a dict, for a method that takes arguments by name only."""
        if isinstance(inputs, Mapping) and all(isinstance(name, str) for name in inputs):
            return dict(inputs)
        raise MethodError(
            f"{self.name} takes its input by name only; the input is {_inputs_text(inputs)}.",
            advice=f"Call the layer on {_host.word('dict')} of inputs.",
        )

    def _can_take_input(self, name: str) -> bool:
        return name != "mask" and not (
            self.collects and self.parameters[name].kind is inspect.Parameter.KEYWORD_ONLY
        )

    def _spread(self, inputs: Any, free: Mapping[str, inspect.Parameter]) -> dict[str, Any] | None:
        """Spread the input over several arguments. Returns None if one argument gets it all."""
        if (
            isinstance(inputs, Mapping)
            and "inputs" not in free
            and set(inputs) <= set(self.parameters)
        ):
            modes = [name for name in inputs if name not in free]
            if modes:
                raise MethodError(
                    f"The input has a part named `{modes[0]}`, but that is the name of the mode in "
                    f"the arguments {self._arguments_text()} of {self.name}.",
                    advice="Give the part another name, or give `method` "
                    f"{_host.word('method')} that takes the input apart.",
                )
        required = [name for name, parameter in free.items() if _required(parameter)]
        if (
            isinstance(inputs, Mapping)
            and inputs
            and "inputs" not in free.keys() - inputs.keys()
            and (set(inputs) <= set(free) or self._takes_by_name(inputs, required))
        ):
            return dict(inputs)
        if type(inputs) in (list, tuple) and "inputs" not in free:
            # The mask may be one of the parts. With one part fewer, it comes from Keras.
            for names in (required, [name for name in required if name != "mask"]):
                if len(inputs) == len(names) > 1:
                    return dict(zip(names, inputs, strict=True))
        return None

    def _takes_by_name(self, inputs: Mapping[Any, Any], required: list[str]) -> bool:
        """Whether `**kwargs` takes the parts of a dict that are not arguments."""
        is_named = all(isinstance(name, str) for name in inputs)
        return self.takes_names and is_named and bool(required) and set(required) <= set(inputs)

    def _bind(
        self, values: dict[str, Any], modes: dict[str, Any], mode_by_position: bool
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Divide the values into positional and keyword arguments.

        Lifted transforms require arrays by position. The mode goes by name if possible.
        """
        positional = []
        for name, parameter in self.parameters.items():
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
                break
            if name in values:
                positional.append(values.pop(name))
            elif name in modes and (
                mode_by_position or parameter.kind is inspect.Parameter.POSITIONAL_ONLY
            ):
                positional.append(modes.pop(name))
            elif mode_by_position and not _required(parameter):
                positional.append(parameter.default)
            else:
                break
        return tuple(positional), modes | values

    def _arguments_text(self) -> str:
        return ", ".join(f"`{name}`" for name in self.parameters)


def signature_of(
    method: Callable[..., Any], name: str, fields: Mapping[str, Any] | None = None
) -> Signature:
    """Read the signature of an unbound method.

    Args:
        method: A function that takes the module first.
        name: The name of the method, for messages.
        fields: The fields of the module and their values.

    Raises:
        MethodError: The function takes no arguments, or its signature cannot be read.
    """
    parameters = list(parameters_of(method, name))
    if not parameters:
        raise MethodError(
            f"{name} takes no arguments.",
            advice="Give it arguments for the module and for `inputs`, and optionally `training`.",
        )
    if parameters[0].kind not in _VARIADIC:
        del parameters[0]
    named = {p.name: p for p in parameters if p.kind not in _VARIADIC}
    fixed = frozenset(method.keywords if isinstance(method, functools.partial) else ())
    mode_fields = {
        field: value for field, value in (fields or {}).items() if field in MODE_ARGUMENTS
    }
    takes_mode = not named.keys().isdisjoint(MODE_ARGUMENTS)
    return Signature(
        name=name,
        parameters=named,
        variadic=len(named) < len(parameters),
        collects=any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in parameters),
        takes_names=any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters),
        held=frozenset(
            field
            for field, value in mode_fields.items()
            if value is not None and field in named and not _required(named[field])
        )
        | fixed,
        mode_fields=frozenset(
            field for field, value in mode_fields.items() if value is None and not takes_mode
        ),
    )


def unbound(
    kind: type, method: Any, base: type, methods: Mapping[str, Callable[..., Any]]
) -> Callable[..., Any]:
    """The function behind a layer's `method`. It takes the module first.

    Args:
        kind: The module's class.
        method: None for `__call__`, a name, a method of the module, or a function that takes the
            module first.
        base: The base class of modules.
        methods: The module's methods by name.

    Raises:
        MethodError: The module has no such method, or the method belongs to another module.
    """
    if method is None:
        method = "__call__"
    if isinstance(method, str):
        if method not in methods:
            others = ", ".join(f"`{name}`" for name in sorted(methods))
            raise MethodError(
                f"{kind.__name__} has no method `{method}`.",
                advice=f"Use a method that it has: {others}."
                if others
                else f"Give `method` {_host.word('method')}.",
            )
        return methods[method]
    if not callable(method) or isinstance(method, (type, base)):
        raise MethodError(
            "`method` must be a method's name or a function of (module, inputs), "
            f"got {value_text(method)}."
        )
    if isinstance(method, functools.partial) and not method.args:
        return functools.partial(unbound(kind, method.func, base, methods), **method.keywords)
    owner = getattr(method, "__self__", None)
    if not isinstance(owner, base):
        return method
    if type(owner) is not kind:
        raise MethodError(
            f"`method` is bound to another module, of class {type(owner).__name__}; "
            f"`module` is of class {kind.__name__}.",
            advice="Pass that module as `module`, or pass a method of this one.",
        )
    return method.__func__


def as_attention_mask(mask: Any) -> Any:
    """Give Keras masks of shape (batch, time) the shape (batch, head, query, key) of Flax's."""
    return jax.tree.map(lambda each: each[:, None, None, :] if each.ndim == 2 else each, mask)


def _required(parameter: inspect.Parameter) -> bool:
    return parameter.default is inspect.Parameter.empty


def mode_values(names: Iterable[str], training: bool) -> dict[str, bool]:
    """The values of those names that are mode arguments."""
    return {name: training is MODE_ARGUMENTS[name] for name in names if name in MODE_ARGUMENTS}


def call_arguments(
    method: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """The arguments that a method gets in a call, by name, with the defaults of the others.

    Args:
        method: A function that takes the module first.
        args: The arguments by position, without the module.
        kwargs: The arguments by name.

    Returns:
        No arguments if the call is wrong: the call itself reports that.
    """
    try:
        signature = inspect.Signature(list(parameters_of(method, "method")))
        bound = signature.bind_partial(None, *args, **kwargs)
    except (MethodError, TypeError, ValueError):
        # Foreign code may have any signature.
        return {}
    bound.apply_defaults()
    return bound.arguments


def parameters_of(method: Callable[..., Any], name: str) -> Iterable[inspect.Parameter]:
    """The parameters of a function, which may be written in the host language."""
    formals = _host.formals(inspect.unwrap(method))
    if formals is not None:
        return _foreign_parameters(formals)
    try:
        return inspect.signature(method).parameters.values()
    except (TypeError, ValueError) as error:
        raise MethodError(f"The arguments of {name} cannot be read: {error}") from error


def _foreign_parameters(formals: Mapping[str, bool]) -> list[inspect.Parameter]:
    """The arguments of a function of R, as Python would declare them."""
    parameters: list[inspect.Parameter] = []
    last: list[inspect.Parameter] = []
    for argument, has_default in formals.items():
        default = None if has_default else inspect.Parameter.empty
        if argument == "...":
            # R's `...` takes arguments by position and by name; those after it need their names.
            parameters.append(inspect.Parameter("dots", inspect.Parameter.VAR_POSITIONAL))
            last = [inspect.Parameter("named_dots", inspect.Parameter.VAR_KEYWORD)]
        elif argument.isidentifier() and not keyword.iskeyword(argument):
            kind = (
                inspect.Parameter.KEYWORD_ONLY if last else inspect.Parameter.POSITIONAL_OR_KEYWORD
            )
            parameters.append(inspect.Parameter(argument, kind, default=default))
        elif not has_default:
            # Python cannot pass an argument of this name by name, only by position.
            name = re.sub(r"\W", "_", f"_{argument}")
            parameters.append(inspect.Parameter(name, inspect.Parameter.POSITIONAL_ONLY))
    return parameters + last


def _inputs_text(inputs: Any) -> str:
    if isinstance(inputs, Mapping):
        return f"{_host.word('dict')} with {', '.join(map(repr, inputs))}"
    return (
        f"a {type(inputs).__name__} of {len(inputs)}"
        if isinstance(inputs, (list, tuple))
        else "one array"
    )
