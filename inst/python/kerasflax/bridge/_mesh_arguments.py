"""Checks of the arguments of `distribute`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import keras
import numpy as np

from .. import _host
from .._errors import ArgumentError
from .._messages import value_text
from ..adapters._context import axis_names

# The name of an axis, several axes that split one dimension together, or None.
Axis = str | tuple[str, ...] | None
Axes = tuple[Axis, ...]


def checked_mesh(mesh: Any) -> dict[str, int]:
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


def checked_devices(devices: Any, count: int) -> np.ndarray:
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


def checked_layout(layout: Any, sizes: Mapping[str, int]) -> dict[str, Axes]:
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


def checked_rules(rules: Any, sizes: Mapping[str, int]) -> tuple[tuple[str, Axis], ...] | None:
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
