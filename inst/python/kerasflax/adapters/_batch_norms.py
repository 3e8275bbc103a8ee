"""Parts whose statistics do not follow the mode.

If `use_running_average` is fixed to False, a part normalizes by the batch at inference, too, and
changes its statistics; if `update_stats` is fixed to True, it changes them. Flax allows this, and a
user seldom wants it. The adapters warn about it.
"""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Set
from typing import Any

import numpy as np
from flax import linen as nn

from .. import _host
from ._context import replaced
from ._signature import call_arguments

_AVERAGE = "use_running_average"
# The arguments, and the values with which statistics change.
_CHANGING = {_AVERAGE: False, "update_stats": True}

# A part of a module: its path, and the argument that is fixed.
Place = tuple[tuple[Any, ...], str]


@contextlib.contextmanager
def noting_fixed_batch_norms(
    path_of: Callable[[Any], tuple[Any, ...] | None], nnx_classes: Iterable[type] = ()
) -> Iterator[set[Place]]:
    """Note the parts that change their statistics within the block.

    Args:
        path_of: From a module to its path in the whole, or None if it has none.
        nnx_classes: The classes of NNX modules to watch, beside `nnx.BatchNorm`.

    Yields:
        The places. A part without a path has the name of its class.
    """
    found: set[Place] = set()

    def note(module: Any, method: Callable[..., Any], args: Any, kwargs: Any) -> None:
        arguments = call_arguments(method, args, kwargs)
        for name, changing in _CHANGING.items():
            value = arguments.get(name)
            value = getattr(module, name, None) if value is None else value
            if isinstance(value, (bool, np.bool_)) and bool(value) is changing:
                path = path_of(module)
                found.add(((type(module).__name__,) if path is None else tuple(path), name))

    def in_linen(
        call: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        context: nn.module.InterceptorContext,
    ) -> Any:
        # Other methods may be how a module looks up attributes.
        if context.method_name == "__call__" and (
            has_statistics(context.module) or isinstance(context.module, nn.SpectralNorm)
        ):
            note(context.module, type(context.module).__call__, args, kwargs)
        return call(*args, **kwargs)

    def in_nnx(call: Callable[..., Any], module: Any, *args: Any, **kwargs: Any) -> Any:
        note(module, call, args, kwargs)
        return call(module, *args, **kwargs)

    in_nnx.__name__ = "__call__"
    nnx = sys.modules.get("flax.nnx")
    watched = [] if nnx is None else dict.fromkeys((nnx.BatchNorm, *nnx_classes))
    # NNX has no hook for calls. `__call__` is documented, but not that it may be replaced. Seen to
    # work with flax 0.12.6 to 0.12.12.
    with replaced(*((kind, in_nnx) for kind in watched)), nn.intercept_methods(in_linen):
        yield found


def has_statistics(part: Any) -> bool:
    """Whether a module has the attribute that says which statistics it uses."""
    return hasattr(part, _AVERAGE)


def warn_of_fixed_batch_norms(
    name: str, found: Set[Place], known: frozenset[Place], advice: str
) -> frozenset[Place]:
    """Warn that parts of a module change their statistics at inference.

    Args:
        name: The module's name.
        found: The parts.
        known: Those that an earlier warning has named.
        advice: What to do about them, with "{}" for the arguments to pass.

    Returns:
        All parts that warnings have named.
    """
    new = found - known
    if not new:
        return known
    places = {
        argument: sorted(
            "/".join([name, *map(str, path)]) for path, each in new if each == argument
        )
        for argument in sorted({each for _, each in new}, reverse=True)
    }
    effect = "changes its statistics at inference"
    if _AVERAGE in places:
        effect = "normalizes by the batch at inference, and changes its statistics"
    causes = "; ".join(
        f"`{argument}` is {'on' if _CHANGING[argument] else 'off'} in {', '.join(paths)}"
        for argument, paths in places.items()
    )
    if places == {_AVERAGE: [name]}:
        advice = f"Leave it {_host.word('none')}, and the layer sets it to the mode."
    advice = advice.format(" and ".join(map(_host.word, places)))
    warnings.warn(f"{name} {effect}: {causes}. {advice}", stacklevel=2)
    return known | found
