"""The distribution that Keras gets: from paths, Flax's metadata and sizes to mesh axes.

Keras and JAX distribute the computation. kerasflax only names the layouts and hands them over.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import keras
import numpy as np

from .. import _host, _keras, _paths, _processes
from .._errors import ArgumentError, ShapeError
from .._messages import shape_text, value_text
from ..adapters._context import axis_names
from ._mesh_arguments import (
    Axes,
    Axis,
    checked_devices,
    checked_layout,
    checked_mesh,
    checked_rules,
)

# The mesh axis that splits the batch, and the one that `auto` splits weights along.
_BATCH, _MODEL = "batch", "model"
# `auto` leaves smaller weights whole: to gather one costs more than its memory.
SMALLEST_SPLIT = 2**12
METADATA, _AUTO = "the module's metadata", "`auto`"


class Decision(NamedTuple):
    """Where a variable lives, and why.

    Attributes:
        axes: The axes that split it.
        source: What decides them, for messages.
        is_chosen: Whether the user has decided it for this path.
        reason: Why no axis splits it, if this is not plain.
    """

    axes: Axes
    source: str
    is_chosen: bool = False
    reason: str | None = None


class FlaxParallel(keras.distribution.ModelParallel):
    """The distribution that `distribute` sets. It decides where each variable lives.

    Attributes:
        layout: Axes by pattern of paths. The last pattern that matches a path counts.
        rules: Pairs of a logical axis and a mesh axis, as Flax's `logical_axis_rules` takes them;
            or None.
        auto: Whether large weights that nothing else places are split along the model axis.
    """

    def __init__(
        self,
        mesh: keras.distribution.DeviceMesh,
        *,
        layout: Mapping[str, Axes],
        rules: tuple[tuple[str, Axis], ...] | None,
        auto: bool,
    ) -> None:
        names = mesh.axis_names
        super().__init__(
            layout_map=keras.distribution.LayoutMap(mesh),
            batch_dim_name=_BATCH if _BATCH in names else names[0],
            # Keras can divide a `tf.data.Dataset` among processes, and refuses all other data
            # unless each process brings its own.
            auto_shard_dataset=False,
        )
        self.layout, self.rules, self.auto = dict(layout), rules, auto
        self._matches = {pattern: _paths.matcher(pattern) for pattern in layout}
        self._unused = set(layout)
        # Each path once and in order: models may have layers of the same names.
        self._seen: dict[str, None] = {}

    def axes_of(
        self, path: str, shape: Sequence[int], *, is_weight: bool, named: Axes = ()
    ) -> Decision:
        """Decide which axes split a variable.

        Args:
            path: The variable's path.
            shape: Its shape.
            is_weight: Whether gradients train it.
            named: The axes of this mesh that Flax's metadata names.
        """
        if is_weight:
            self._seen[path] = None
        found = [pattern for pattern, is_match in self._matches.items() if is_match(path)]
        self._unused.difference_update(found)
        if found:
            return Decision(self.layout[found[-1]], f"`layout` for {found[-1]!r}", is_chosen=True)
        if named or not (self.auto and is_weight):
            return Decision(named, METADATA)
        return self._largest_axis(shape)

    def _largest_axis(self, shape: Sequence[int]) -> Decision:
        """Split the largest dimension that the model axis divides; of equal ones, the last."""
        axis = model_axis(self.device_mesh.axis_names, self.batch_dim_name)
        size = sizes_of(self.device_mesh)[axis]
        if len(shape) < 2 or math.prod(shape) < SMALLEST_SPLIT:
            return Decision((), _AUTO)
        divided = [(length, i) for i, length in enumerate(shape) if length % size == 0]
        if not divided:
            return Decision((), _AUTO, reason=f"{axis!r} of size {size} divides no dimension")
        _, chosen = max(divided)
        return Decision(tuple(axis if i == chosen else None for i in range(len(shape))), _AUTO)

    def get_variable_layout(self, variable: Any) -> Any:
        """The layout of a variable: the one that it was created with, or one by its path."""
        # A variable of a Flax layer or of an optimizer brings its layout. Keras's own distributions
        # read the same attribute.
        given = _keras.layout_of(variable)
        if given is not None:
            return given
        is_weight = bool(getattr(variable, "trainable", False))
        shape = tuple(variable.shape)
        decision = self.axes_of(variable.path, shape, is_weight=is_weight)
        return shardings_of({variable.path: (decision, shape)}, self.device_mesh)[variable.path]

    def get_data_layout(self, data_shape: Sequence[int]) -> keras.distribution.TensorLayout:
        """The layout of a batch, split along the batch axis if this divides the batch.

        Keras asks once for all batches of an epoch, of which the last may be smaller, and JAX does
        not split what the axis does not divide.

        Raises:
            ArgumentError: A pattern of `layout` has matched no variable so far.
        """
        # A model without an input shape is built only after its first batch.
        for pattern in self.layout if self._seen else ():
            if pattern in self._unused:
                _paths.matched(pattern, list(self._seen))
        parts = sizes_of(self.device_mesh)[self.batch_dim_name]
        lengths = [data_shape[0], _keras.last_batch_size() or data_shape[0]]
        undivided = [length for length in lengths if length % parts]
        # A process among several has a part of the batch, and others have the rest.
        if _processes.are_several() or not undivided:
            return super().get_data_layout(data_shape)
        warnings.warn(
            f"The axis {self.batch_dim_name!r} of size {parts} does not divide a batch of "
            f"{undivided[0]}, and Keras splits all batches of an epoch alike: each device computes "
            "all of them. Make the size of each batch, also of the last one, a multiple of "
            f"{parts}.",
            stacklevel=2,
        )
        whole = [None] * len(data_shape)
        return keras.distribution.TensorLayout(whole, self.device_mesh)


def distribute(
    mesh: Mapping[str, int] | None,
    layout: Mapping[str, Any] | None = None,
    *,
    rules: Mapping[str, Any] | Sequence[tuple[str, Any]] | None = None,
    auto: bool = False,
    devices: Sequence[Any] | None = None,
) -> FlaxParallel | None:
    """Distribute the models that are created from now on over several devices.

    This sets Keras's global distribution. Create layers, models and optimizers after it. The batch
    is split along the mesh's axis `batch`, or its first axis if it has none. With a batch axis
    alone and nothing else, every device holds all weights (data parallelism).

    The first of these rules that places a variable counts:

    1. `layout`, by pattern of the path. Begin patterns with `**/`: these paths start with the names
       of the models that contain the layer, `sequential/mlp/params/...`.
    2. The axis names in Flax's metadata: `nn.with_partitioning`, `nn.with_logical_partitioning`
       with `rules`, `nnx.with_partitioning` and `out_sharding`. Axes that the mesh does not have
       split nothing. A `keras.distribution.ModelParallel` of your own gets these names, too.
    3. With `auto=True`, a weight of two or more dimensions and at least 4096 elements is split
       along the mesh's axis `model`, or else its last axis: the weight's largest dimension that
       this axis divides; of equal ones, the last.
    4. The variable is on every device.

    Optimizer slots and moving averages follow their weight. State, such as `batch_stats` and
    caches, follows rules 1, 2 and 4.

    Make the size of each batch, also of the last one, a multiple of the size of the batch axis:
    Keras splits all batches of an epoch alike. Otherwise each device computes all batches whole,
    and a warning says so. Of a generator, only the first batch is known; JAX raises an error for a
    later one that the axis does not divide.

    `kerasflax.parameters` shows where each weight is. If the mesh has more than a batch axis, a
    layer warns when it is built: it names its variables that every device holds whole, if they have
    at least 4096 elements and are larger than 1 % of the layer. A pattern in `layout` without axes
    leaves a variable whole without the warning.

    Several processes run the same script. Each begins with `keras.distribution.initialize()`, or,
    to set JAX's time-outs, `jax.distributed.initialize()`. Each passes its own rows of each batch
    to Keras, with its share as the batch size; processes whose devices compute the same rows pass
    the same ones. All of them must call `write_variables`, `save_model` and whatever else reads
    weights that are split over processes. An Orbax checkpoint is written by all, every other file
    by the first. `predict()` of Keras works only if every process holds the whole output: predict
    in one process, from a file.

    Args:
        mesh: The size of each mesh axis by name, such as `{"batch": 2, "model": 4}`. The sizes
            multiply to the number of devices to use. None ends the distribution.
        layout: The mesh axes of each dimension by pattern of paths (see `kerasflax._paths`):
            `{"**/Dense_0/kernel": (None, "model")}`. Dimensions that are not named are not split. A
            tuple of axes splits one dimension along all of them.
        rules: The mesh axis for each logical axis in Flax's metadata, as a dict or as pairs in
            order of precedence. None uses the rules of `flax.linen.logical_axis_rules`.
        auto: Whether to split large weights that neither `layout` nor metadata places.
        devices: JAX devices or Keras's names for them, such as `"gpu:0"`. None uses the first ones
            of `keras.distribution.list_devices()`.

    Returns:
        The distribution, or None.

    Raises:
        ArgumentError: The mesh needs more devices than there are, or an argument names an axis that
            the mesh does not have. Later, when a batch is distributed: a pattern of `layout` has
            matched nothing.
        ShapeError: Later, when a variable is created: an axis does not divide its dimension.
    """
    if mesh is None:
        if layout is not None or rules is not None or auto or devices is not None:
            raise ArgumentError(
                f"`mesh` is {_host.word('none')}, which ends the distribution, but other arguments "
                "were given.",
                advice="Pass the mesh, or no other argument.",
            )
        keras.distribution.set_distribution(None)
        return None
    sizes = checked_mesh(mesh)
    if not isinstance(auto, (bool, np.bool_)):
        raise ArgumentError(
            f"`auto` must be {_host.word('true')} or {_host.word('false')}, got {value_text(auto)}."
        )
    layout, rules = checked_layout(layout, sizes), checked_rules(rules, sizes)
    if auto and len(sizes) == 1:
        (name,) = sizes
        raise ArgumentError(
            f"`auto` splits weights along a second axis of the mesh, but the mesh has {name!r} "
            "alone.",
            advice=f"Add an axis: {_host.word('mesh')}.",
        )
    device_mesh = keras.distribution.DeviceMesh(
        tuple(sizes.values()), list(sizes), checked_devices(devices, math.prod(sizes.values()))
    )
    distribution = FlaxParallel(device_mesh, layout=layout, rules=rules, auto=bool(auto))
    keras.distribution.set_distribution(distribution)
    return distribution


def model_axis(names: Sequence[str], batch: str) -> str:
    """The mesh axis along which `auto` splits weights."""
    if _MODEL in names:
        return _MODEL
    return [name for name in names if name != batch][-1]


def shardings_of(
    decided: Mapping[str, tuple[Decision, tuple[int, ...]]], mesh: keras.distribution.DeviceMesh
) -> dict[str, Any]:
    sizes = sizes_of(mesh)
    problems = {
        path: f"{problem}, by {decision.source}"
        for path, (decision, shape) in decided.items()
        if (problem := _problem(decision.axes, shape, sizes))
    }
    if problems:
        raise ShapeError(
            "These variables cannot be split over the devices of the mesh:",
            problems=problems,
            advice="Change the mesh, or give these paths other axes in `layout`.",
        )
    return {
        path: jax.sharding.NamedSharding(
            mesh.backend_mesh,
            jax.sharding.PartitionSpec(*decision.axes),  # type: ignore[no-untyped-call]
        )
        for path, (decision, _) in decided.items()
    }


def _problem(axes: Axes, shape: tuple[int, ...], sizes: Mapping[str, int]) -> str | None:
    """Say why axes cannot split a shape, or None if they can."""
    if len(axes) > len(shape):
        return f"{len(axes)} axes for the shape {shape_text(shape)}"
    for axis, length in zip(axes, shape, strict=False):
        parts = math.prod(sizes[name] for name in axis_names(axis))
        if length % parts:
            names = " and ".join(map(repr, axis_names(axis)))
            return f"{names} of size {parts} does not divide {length} in {shape_text(shape)}"
    return None


def sizes_of(mesh: keras.distribution.DeviceMesh) -> dict[str, int]:
    return dict(zip(mesh.axis_names, mesh.shape, strict=True))
