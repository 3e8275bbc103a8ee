"""Where the variables of a layer live."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import keras

from .. import _host, _keras
from .._messages import shape_text
from ..adapters._context import axes_on, axis_names
from ._distribution import METADATA, SMALLEST_SPLIT, Decision, FlaxParallel, shardings_of
from ._mesh_arguments import Axes

# A build names variables that it leaves whole if they have this size and are more than this part of
# the layer, and this number of them.
_SMALLEST_NAMED, _LARGE_PART, _MOST_NAMED = SMALLEST_SPLIT, 0.01, 10


class Layouts:
    """Decides where the variables of a layer live, while the layer is built under its name scope.

    Without a distribution, it decides nothing.

    Args:
        named: The `PartitionSpec` from Flax's metadata by path, if there is one.
        is_weight: Whether a path is one of a weight.
    """

    def __init__(self, named: Mapping[str, Any], *, is_weight: Callable[[str], bool]) -> None:
        self._named, self._is_weight = named, is_weight
        self._distribution = keras.distribution.distribution()
        self._scope = _keras.current_path()
        # State may be given in another shape than the module's. Each shape is decided once.
        self._known: dict[tuple[str, tuple[int, ...]], Any] = {}
        self._decisions: dict[str, Decision] = {}

    def __call__(self, shapes: Mapping[str, Sequence[int]]) -> dict[str, Any]:
        """Decide where variables live.

        Args:
            shapes: The shape of each variable by path.

        Returns:
            A `jax.sharding.NamedSharding` by path, or None for Keras's default device. Keras takes
            it for a layout, and `keras.distribution.TensorLayout` takes one axis for each
            dimension.

        Raises:
            ShapeError: An axis does not divide its dimension, or there are more axes than
                dimensions.
        """
        asked = {path: tuple(shape) for path, shape in shapes.items()}
        if self._distribution is None:
            return dict.fromkeys(asked)
        new = {path: shape for path, shape in asked.items() if (path, shape) not in self._known}
        if new:
            found = self._shardings(new)
            self._known |= {(path, shape): found[path] for path, shape in new.items()}
        return {path: self._known[path, shape] for path, shape in asked.items()}

    def _shardings(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        mesh = self._distribution.device_mesh
        for path, shape in shapes.items():
            named = self._named.get(path) or ()
            axes = tuple(axes_on(named, mesh.axis_names))
            whole = f"{self._scope}/{path}" if self._scope else path
            decision = _decided(
                self._distribution,
                whole,
                shape,
                axes if any(axes) else (),
                self._is_weight(path),
            )
            if named and not any(decision.axes) and not decision.is_chosen:
                reason = "the module's metadata names no axis of the mesh"
                decision = decision._replace(reason=decision.reason or reason)
            self._decisions[path] = decision
        found = shardings_of(
            {path: (self._decisions[path], shape) for path, shape in shapes.items()}, mesh
        )
        with jax.ensure_compile_time_eval():
            is_default = set(mesh.backend_mesh.devices.flat) == jax.device_put(0).devices()
        # Keras leaves an array on the default device as it is, and each of its calls would warn of
        # a mix if others had a sharding over a mesh.
        return dict.fromkeys(shapes) if is_default else found

    def warn_of_whole(self, name: str, arrays: Mapping[str, Any]) -> None:
        """Warn of large variables that every device holds, unless the user wants it so.

        Only the layer is known while it is built, not the model.

        Args:
            name: The layer's name.
            arrays: The layer's arrays by path.
        """
        distribution = self._distribution
        if not _splits_weights(distribution):
            return
        total = sum(array.nbytes for array in arrays.values())
        large = {
            path: array
            for path, array in arrays.items()
            if array.nbytes > _LARGE_PART * total
            and array.size >= _SMALLEST_NAMED
            and not self._decisions[path].is_chosen
            and _is_whole(self._known[path, tuple(array.shape)])
        }
        if not large:
            return
        paths = sorted(large, key=lambda path: -large[path].nbytes)
        lines = [
            f"  {path}: {shape_text(large[path].shape)}, {_bytes_text(large[path].nbytes)}"
            + (f"; {reason}" if (reason := self._decisions[path].reason) else "")
            for path in paths[:_MOST_NAMED]
        ]
        more = [f"  and {len(paths) - _MOST_NAMED} more"] if len(paths) > _MOST_NAMED else []
        if isinstance(distribution, FlaxParallel):
            auto = "" if distribution.auto else f"{_host.word('auto')} or "
            advice = (
                f"To split them, pass {auto}{_host.word('layout')}. To leave one whole without "
                f"this warning, pass {_host.word('whole', paths[0])}."
            )
        else:
            advice = "Add their paths to the layout map of the distribution."
        devices = distribution.device_mesh.devices.size
        what = (
            f"Each of the {devices} devices holds these variables of the layer {name!r} whole, "
            f"and each variable is more than {_LARGE_PART:.0%} of the layer:"
        )
        warnings.warn("\n".join([what, *lines, *more, advice]), stacklevel=2)


def _splits_weights(distribution: Any) -> bool:
    """Whether a distribution is meant to split weights, and not only the batch."""
    if not isinstance(distribution, keras.distribution.ModelParallel):
        return False
    split = [size for size in distribution.device_mesh.shape if size > 1]
    return len(split) > 1 or bool(split and getattr(distribution, "layout", None))


def _is_whole(sharding: Any) -> bool:
    return sharding is not None and sharding.is_fully_replicated


def _bytes_text(count: int) -> str:
    """A number of bytes, as Keras's `summary()` has it."""
    power = min((max(count, 1).bit_length() - 1) // 10, 5)
    return f"{count / 1024**power:.2f} {['B', 'KB', 'MB', 'GB', 'TB', 'PB'][power]}"


def _decided(
    distribution: Any, path: str, shape: tuple[int, ...], named: Axes, is_weight: bool
) -> Decision:
    if isinstance(distribution, FlaxParallel):
        return distribution.axes_of(path, shape, is_weight=is_weight, named=named)
    axes = tuple(distribution.get_variable_layout(SimpleNamespace(path=path, shape=shape)).axes)
    if not isinstance(distribution, keras.distribution.ModelParallel):
        return Decision(axes, "the distribution")
    is_chosen = distribution.get_tensor_layout(path) is not None
    if is_chosen or any(axes):
        return Decision(axes, "the layout map", is_chosen=is_chosen)
    return Decision(named, METADATA)


class Placement(NamedTuple):
    """Where an array lives.

    Attributes:
        axes: The mesh axes that split each dimension, as in `layout`; empty if nothing splits it.
        devices: The number of devices that hold it, or a part of it.
        nbytes: The bytes that each of them holds.
    """

    axes: Axes
    devices: int
    nbytes: int

    @classmethod
    def of(cls, array: jax.Array) -> Placement:
        """The placement of an array that has a value."""
        sharding, shape = array.sharding, tuple(array.shape)
        part = sharding.shard_shape(shape)
        # Keras's variables keep the names of their axes through compiled steps.
        named = [*getattr(sharding, "spec", ())]
        named += [None] * (len(shape) - len(named))
        sizes = dict(sharding.mesh.shape) if hasattr(sharding, "mesh") else {}
        split = [tuple(name for name in axis_names(entry) if sizes[name] > 1) for entry in named]
        axes = tuple(names[0] if len(names) == 1 else names or None for names in split)
        return cls(
            axes if any(axes) else (),
            sharding.num_devices,
            math.prod(part) * array.dtype.itemsize,
        )


def is_over_devices(arrays: Sequence[jax.Array]) -> bool:
    """Whether there is a distribution: one that is set now, or one that has placed an array."""
    if any(isinstance(array, jax.core.Tracer) for array in arrays):
        return False
    return keras.distribution.distribution() is not None or any(
        array.sharding.num_devices > 1 for array in arrays
    )
