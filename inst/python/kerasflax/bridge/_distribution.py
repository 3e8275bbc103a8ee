"""Where weights live: a layout for each variable, from patterns, Flax's metadata, or its size.

Keras and JAX distribute the computation. This file only names the layouts and hands them over, and
puts Keras's mesh in force while a module runs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import keras
import numpy as np

from .. import _host, _keras, _paths, _processes
from .._errors import ArgumentError, ShapeError, StateError
from .._messages import shape_text, value_text
from ..adapters._context import axes_on, axis_names, current_logical_rules, logical_rules

# The name of an axis, several axes that split one dimension together, or None.
Axis = str | tuple[str, ...] | None
Axes = tuple[Axis, ...]

# The mesh axis that splits the batch, and the one that `auto` splits weights along.
_BATCH, _MODEL = "batch", "model"
# `auto` leaves smaller weights whole: to gather one costs more than its memory.
_SMALLEST_SPLIT = 2**12
_METADATA, _AUTO = "the module's metadata", "`auto`"
# A build names variables that it leaves whole if they have this size and are more than this part of
# the layer, and this number of them.
_SMALLEST_NAMED, _LARGE_PART, _MOST_NAMED = _SMALLEST_SPLIT, 0.01, 10


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
            return Decision(named, _METADATA)
        return self._largest_axis(shape)

    def _largest_axis(self, shape: Sequence[int]) -> Decision:
        """Split the largest dimension that the model axis divides; of equal ones, the last."""
        axis = model_axis(self.device_mesh.axis_names, self.batch_dim_name)
        size = _sizes(self.device_mesh)[axis]
        if len(shape) < 2 or math.prod(shape) < _SMALLEST_SPLIT:
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
        return _layouts({variable.path: (decision, shape)}, self.device_mesh)[variable.path]

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
        parts = _sizes(self.device_mesh)[self.batch_dim_name]
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

    1. `layout`, by pattern of the path.
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
    sizes = _checked_mesh(mesh)
    if not isinstance(auto, (bool, np.bool_)):
        raise ArgumentError(
            f"`auto` must be {_host.word('true')} or {_host.word('false')}, got {value_text(auto)}."
        )
    checked_layout = _checked_layout(layout, sizes)
    checked_rules = _checked_rules(rules, sizes)
    if auto and len(sizes) == 1:
        (name,) = sizes
        raise ArgumentError(
            f"`auto` splits weights along a second axis of the mesh, but the mesh has {name!r} "
            "alone.",
            advice=f"Add an axis: {_host.word('mesh')}.",
        )
    device_mesh = keras.distribution.DeviceMesh(
        tuple(sizes.values()), list(sizes), _checked_devices(devices, math.prod(sizes.values()))
    )
    distribution = FlaxParallel(
        device_mesh, layout=checked_layout, rules=checked_rules, auto=bool(auto)
    )
    keras.distribution.set_distribution(distribution)
    return distribution


def model_axis(names: Sequence[str], batch: str) -> str:
    """The mesh axis along which `auto` splits weights."""
    if _MODEL in names:
        return _MODEL
    return [name for name in names if name != batch][-1]


# Checks of arguments -----------------------------------------------------------------------------


def _checked_mesh(mesh: Any) -> dict[str, int]:
    is_mapping = isinstance(mesh, Mapping) and mesh
    if not is_mapping or not all(isinstance(name, str) and name for name in mesh):
        raise ArgumentError(
            f"`mesh` must be the sizes of the mesh's axes by name, got {value_text(mesh)}.",
            advice=f"Pass, for example, {_host.word('mesh')}.",
        )
    sizes = {}
    for name, size in mesh.items():
        is_whole = isinstance(size, (int, np.integer)) or (
            isinstance(size, float) and size.is_integer()
        )
        if isinstance(size, bool) or not is_whole or size < 1:
            raise ArgumentError(
                f"The size of the mesh's axis {name!r} must be a whole number of at least 1, got "
                f"{value_text(size)}.",
                advice=f"Pass, for example, {_host.word('mesh')}.",
            )
        sizes[name] = int(size)
    return sizes


def _checked_devices(devices: Any, count: int) -> np.ndarray:
    if devices is None:
        known = keras.distribution.list_devices()
        if len(known) < count:
            raise ArgumentError(
                f"The mesh has {count} devices, but there are {len(known)}: {_some(known)}.",
                advice="Change the sizes of `mesh`, whose product is the number of devices. On a "
                'CPU, XLA_FLAGS="--xla_force_host_platform_device_count=8", set before JAX is '
                "imported, simulates 8.",
            )
        return np.array(known[:count])
    if isinstance(devices, (str, jax.Device)) or not isinstance(devices, (Sequence, np.ndarray)):
        raise ArgumentError(
            f"`devices` must be {_host.word('list')} of devices, got {value_text(devices)}.",
            advice=f"Pass, for example, {_host.word('devices')}.",
        )
    names = [_device_name(device) for device in np.ravel(devices).tolist()]
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if twice:
        raise ArgumentError(
            f"`devices` has {_some(twice)} twice.", advice="Name each device of the mesh once."
        )
    if len(names) != count:
        raise ArgumentError(
            f"The mesh has {count} devices, but `devices` has {len(names)}"
            f"{f': {_some(names)}' if names else ''}.",
            advice="Change the sizes of `mesh`, whose product is the number of devices, or pass as "
            "many devices.",
        )
    return np.array(names)


def _device_name(device: Any) -> str:
    """Keras's name of a device that exists."""
    if isinstance(device, jax.Device):
        return f"{device.platform}:{device.id}"
    if not isinstance(device, str):
        raise ArgumentError(
            f"`devices` must contain names of devices, got {value_text(device)}.",
            advice=f"Pass, for example, {_host.word('devices')}.",
        )
    name, known = device.lower(), keras.distribution.list_devices()
    with contextlib.suppress(RuntimeError):
        # JAX has no such platform otherwise. A GPU's process has CPU devices, too.
        known = known + keras.distribution.list_devices(name.partition(":")[0])
    if name not in known:
        raise ArgumentError(
            f"There is no device {device!r}. The devices are: {_some(dict.fromkeys(known))}.",
            advice="Name these, or leave `devices` out.",
        )
    return name


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")


def _checked_layout(layout: Any, sizes: Mapping[str, int]) -> dict[str, Axes]:
    if layout is None:
        return {}
    if not isinstance(layout, Mapping) or not all(isinstance(key, str) and key for key in layout):
        raise ArgumentError(
            f"`layout` must be {_host.word('dict')} of mesh axes by pattern of paths, got "
            f"{value_text(layout)}.",
            advice=f"Pass, for example, {_host.word('layout')}.",
        )
    return {
        pattern: _checked_axes(axes, f"`layout` for {pattern!r}", sizes)
        for pattern, axes in layout.items()
    }


def _checked_axes(axes: Any, where: str, sizes: Mapping[str, int]) -> Axes:
    """The axes of each dimension. A single name is the axis of the first one."""
    entries = tuple(axes) if isinstance(axes, (list, tuple)) else () if axes is None else (axes,)
    checked = [_checked_axis(entry, where, sizes, " for each dimension") for entry in entries]
    flat = [name for entry in checked for name in axis_names(entry)]
    twice = [name for name in dict.fromkeys(flat) if flat.count(name) > 1]
    if twice:
        raise ArgumentError(
            f"{where} uses the mesh's axis {twice[0]!r} twice.",
            advice="An axis can split one dimension of a variable.",
        )
    while checked and checked[-1] is None:
        # Variables of fewer dimensions may match the pattern, too.
        checked.pop()
    return tuple(checked)


def _checked_axis(axis: Any, where: str, sizes: Mapping[str, int], each: str = "") -> Axis:
    if isinstance(axis, (list, tuple)):
        axis = tuple(axis)
    is_axis = axis is None or isinstance(axis, str)
    if not is_axis and not (
        isinstance(axis, tuple) and axis and all(isinstance(name, str) for name in axis)
    ):
        raise ArgumentError(
            f"{where} must name a mesh axis or {_host.word('no axis')}{each}, got "
            f"{value_text(axis)}.",
            advice=f"Pass, for example, {_host.word('layout' if each else 'rules')}.",
        )
    unknown = [name for name in axis_names(axis) if name not in sizes]
    if unknown:
        raise ArgumentError(
            f"{where} names the axis {unknown[0]!r}, but the mesh has {', '.join(sizes)}.",
            advice="Name an axis of the mesh, or add the axis to it.",
        )
    return axis


def _checked_rules(rules: Any, sizes: Mapping[str, int]) -> tuple[tuple[str, Axis], ...] | None:
    if rules is None:
        return None
    pairs: list[Any] = [None]
    if isinstance(rules, Mapping):
        pairs = list(rules.items())
    elif isinstance(rules, Sequence) and not isinstance(rules, str):
        pairs = list(rules)
    if not all(
        isinstance(pair, (tuple, list)) and len(pair) == 2 and pair[0] and isinstance(pair[0], str)
        for pair in pairs
    ):
        raise ArgumentError(
            f"`rules` must give a mesh axis for each logical axis, got {value_text(rules)}.",
            advice=f"Pass, for example, {_host.word('rules')}.",
        )
    return tuple(
        (name, _checked_axis(axis, f"`rules` for {name!r}", sizes)) for name, axis in pairs
    )


# Layouts -----------------------------------------------------------------------------------------


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
        found = _layouts(
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
    return Decision(named, _METADATA)


def _layouts(
    decided: Mapping[str, tuple[Decision, tuple[int, ...]]], mesh: keras.distribution.DeviceMesh
) -> dict[str, Any]:
    sizes = _sizes(mesh)
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


def _sizes(mesh: keras.distribution.DeviceMesh) -> dict[str, int]:
    return dict(zip(mesh.axis_names, mesh.shape, strict=True))


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


# Running -----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is in force while a module runs: that of the distribution when its layer was built.

    Attributes:
        mesh: JAX's mesh, or None without a distribution.
        rules: Pairs of a logical axis and a mesh axis, or None for those that Flax has when the
            module runs.
    """

    mesh: Any = None
    rules: tuple[tuple[str, Axis], ...] | None = None

    @classmethod
    def now(cls) -> Setting:
        """The setting of Keras's distribution, with the rules that place weights under it."""
        distribution = keras.distribution.distribution()
        if distribution is None:
            return cls()
        rules = getattr(distribution, "rules", None)
        if rules is None:
            rules = current_logical_rules() or None
        return cls(distribution.device_mesh.backend_mesh, rules)

    @contextlib.contextmanager
    def in_force(self) -> Iterator[None]:
        """Let constraints on activations inside a module take effect.

        They need the names of the axes only: inside a trace, JAX takes the devices from the
        arguments.
        """
        with contextlib.ExitStack() as stack:
            if self.mesh is not None:
                stack.enter_context(jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh))
            if self.rules is not None:
                stack.enter_context(logical_rules(self.rules))
            yield

    def check(self, name: str) -> None:
        """Check that a layer was built under the distribution that is set now, or that none is.

        Raises:
            StateError: The meshes differ.
        """
        distribution = keras.distribution.distribution()
        now = None if distribution is None else distribution.device_mesh.backend_mesh
        if now is not None and now != self.mesh:
            built = (
                "without a distribution"
                if self.mesh is None
                else f"on the mesh {_mesh_text(self.mesh)}"
            )
            raise StateError(
                f"The layer {name!r} was built {built}, but the distribution now has the mesh "
                f"{_mesh_text(now)}.",
                advice="Set the distribution first, then create the model, and load its weights.",
            )


def _mesh_text(mesh: Any) -> str:
    return " x ".join(f"{name}={size}" for name, size in mesh.shape.items())
