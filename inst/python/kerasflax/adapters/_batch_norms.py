"""Batch normalization that does not follow the mode.

If `use_running_average` is fixed to False, a part normalizes by the batch at inference, too, and
changes its statistics. Flax allows this, and a user seldom wants it. The adapters warn about it.
"""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from flax import linen as nn

from .. import _host
from ._context import replaced
from ._signature import call_arguments

_FIELD = "use_running_average"


@contextlib.contextmanager
def noting_fixed_batch_norms(
    path_of: Callable[[Any], tuple[Any, ...] | None], nnx_classes: Iterable[type] = ()
) -> Iterator[set[tuple[Any, ...]]]:
    """Note the parts that normalize by the batch within the block.

    Args:
        path_of: From a module to its path in the whole, or None if it has none.
        nnx_classes: The classes of NNX modules to watch, beside `nnx.BatchNorm`.

    Yields:
        The paths of the parts. A part without a path has the name of its class.
    """
    found: set[tuple[Any, ...]] = set()

    def note(module: Any, method: Callable[..., Any], args: Any, kwargs: Any) -> None:
        arguments = call_arguments(method, args, kwargs)
        value = arguments.get(_FIELD)
        value = getattr(module, _FIELD, None) if value is None else value
        if isinstance(value, (bool, np.bool_)) and not value:
            path = path_of(module)
            found.add((type(module).__name__,) if path is None else tuple(path))

    def in_linen(
        call: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        context: nn.module.InterceptorContext,
    ) -> Any:
        if context.method_name == "__call__" and hasattr(context.module, _FIELD):
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
    return hasattr(part, _FIELD)


def warn_of_fixed_batch_norms(name: str, paths: Iterable[tuple[Any, ...]], advice: str) -> None:
    """Warn that parts of a module normalize by the batch at inference.

    Args:
        name: The module's name.
        paths: The paths of the parts, without the module's name. If there are none, nothing is
            wrong.
        advice: What to do about parts of the module.
    """
    places = sorted("/".join([name, *map(str, path)]) for path in paths)
    if not places:
        return
    if places == [name]:
        advice = f"Leave it {_host.word('none')}, and the layer sets it to the mode."
    warnings.warn(
        f"{name} normalizes by the batch at inference, and changes its statistics: `{_FIELD}` is "
        f"off in {', '.join(places)}. {advice}",
        stacklevel=2,
    )
