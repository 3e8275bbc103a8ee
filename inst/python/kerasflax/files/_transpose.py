"""Moving the axes of the weights of a file, which other programs order differently.

PyTorch stores the kernel of a convolution as (out, in, height, width), and that of a linear layer
as (out, in). Flax stores them as (height, width, in, out) and (in, out).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .. import _host, _paths
from .._errors import ArgumentError
from .._messages import value_text

Transpose = Mapping[str, Sequence[int]]


class Transposition:
    """The order of the axes of each weight, by patterns of paths, of which the first is used.

    Args:
        transpose: From patterns to the axes of the file in their new order, or None.

    Raises:
        ArgumentError: It is not such a dict.
    """

    def __init__(self, transpose: Transpose | None) -> None:
        is_dict = isinstance(transpose, Mapping) and all(isinstance(key, str) for key in transpose)
        if transpose is not None and not (is_dict and transpose):
            raise ArgumentError(
                f"`transpose` must be {_host.word('dict')} from patterns of paths to the order of"
                f" the axes, got {value_text(transpose)}.",
                advice=f"Pass, for example, {_host.word('transpose')}.",
            )
        self._axes = {
            pattern: _permutation(axes, pattern) for pattern, axes in (transpose or {}).items()
        }

    def __bool__(self) -> bool:
        return bool(self._axes)

    def axes_of(self, arrays: Mapping[str, tuple[str, Any]]) -> dict[str, tuple[int, ...]]:
        """Find the order of the axes of each array that a pattern matches.

        Args:
            arrays: By any name, the path of each array, and the array.

        Returns:
            The axes by the same name, for `array.transpose()`.

        Raises:
            ArgumentError: A pattern matches nothing, or an array has another number of axes.
        """
        matchers = [(_paths.matcher(pattern), axes) for pattern, axes in self._axes.items()]
        for pattern in self._axes:
            _paths.matched(pattern, [path for path, _ in arrays.values()], "weight")
        found, problems = {}, {}
        for name, (path, array) in arrays.items():
            axes = next((axes for matches, axes in matchers if matches(path)), None)
            if axes is not None:
                found[name] = axes
                if len(axes) != len(array.shape):
                    problems[path] = (
                        f"has the shape {tuple(array.shape)}, but {len(axes)} axes are given"
                    )
        if problems:
            raise ArgumentError(
                "`transpose` does not fit these weights.",
                problems=problems,
                advice="Give the order of all axes, or patterns that match fewer weights.",
            )
        return found


def _permutation(axes: Any, pattern: str) -> tuple[int, ...]:
    is_list = isinstance(axes, Sequence) and all(type(axis) is int for axis in axes)
    if not is_list or sorted(axes) != list(range(len(axes))):
        raise ArgumentError(
            f"The axes of {pattern!r} in `transpose` must be a permutation of"
            f" {_host.word('axes')}, got {value_text(axes)}."
        )
    return tuple(axes)
