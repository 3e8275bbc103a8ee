"""Converts a file of PyTorch (.pth, .pt, .bin) to a safetensors file, which `flax_read()` reads.

    python torch_file.py model.pth model.safetensors

If PyTorch is installed, `torch.load()` and `safetensors.torch.save_file()` do the same. This script
does not need PyTorch, and it does not run code from the file: it accepts only tensors in dicts.
"""

import collections
import math
import pickle
import struct
import sys
import zipfile

import ml_dtypes
import numpy as np
import safetensors.numpy

DTYPES = {
    "FloatStorage": np.dtype("<f4"),
    "DoubleStorage": np.dtype("<f8"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}
# The first number in a file that PyTorch wrote before version 1.6, which is not a zip file.
MAGIC = 0x1950A86A20F9469CFC6C

# A tensor before its memory is read: a storage, and the part of it, counted in elements.
Tensor = collections.namedtuple("Tensor", "storage offset shape strides")
Storage = collections.namedtuple("Storage", "dtype key")


class Unpickler(pickle.Unpickler):
    """Reads dicts of tensors, and refuses everything else that a pickle can name."""

    def find_class(self, module, name):
        """Return what a name of the pickle stands for."""
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, shape, strides, *_: Tensor(
                storage, offset, shape, strides
            )
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda tensor, *_: tensor
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        raise pickle.UnpicklingError(f"the file holds {module}.{name}, which is not a tensor")

    def persistent_load(self, identifier):
        """Return the description of a storage, which is outside the pickle."""
        _, dtype, key, *_ = identifier
        return Storage(dtype, key)


def read(path):
    """Read the tensors of a file as NumPy arrays by name."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            folder = archive.namelist()[0].split("/")[0]
            with archive.open(f"{folder}/data.pkl") as file:
                tree = Unpickler(file).load()
            tensors = dict(named(tree))
            keys = {tensor.storage.key for tensor in tensors.values()}
            memory = {key: archive.read(f"{folder}/data/{key}") for key in keys}
    else:
        with open(path, "rb") as file:
            if Unpickler(file).load() != MAGIC:
                raise ValueError(f"{path} is not a file of PyTorch")
            # The version of the format, and the machine's sizes of integers.
            Unpickler(file).load()
            Unpickler(file).load()
            tensors = dict(named(Unpickler(file).load()))
            sizes = {t.storage.key: t.storage.dtype.itemsize for t in tensors.values()}
            memory = {}
            for key in Unpickler(file).load():
                (count,) = struct.unpack("<q", file.read(8))
                memory[key] = file.read(count * sizes[key])
    return {
        name: array_of(name, tensor, memory[tensor.storage.key]) for name, tensor in tensors.items()
    }


def named(tree, above=""):
    """Yield the tensors of nested dicts, with their names joined by dots."""
    for name, value in tree.items():
        if isinstance(value, Tensor):
            yield f"{above}{name}", value
        elif isinstance(value, dict):
            yield from named(value, f"{above}{name}.")


def array_of(name, tensor, memory):
    """Copy a tensor from the memory of its storage."""
    dtype = tensor.storage.dtype
    flat = np.frombuffer(memory, dtype)
    # The largest place. PyTorch has no negative strides, which would reach places before the first.
    last = tensor.offset + sum(
        (size - 1) * stride for size, stride in zip(tensor.shape, tensor.strides, strict=True)
    )
    lowest = min(0, tensor.offset, *tensor.strides)
    if 0 not in tensor.shape and (lowest < 0 or last >= len(flat)):
        raise ValueError("a tensor goes beyond its memory")
    # Strides of 0 repeat numbers, so a small file could fill the memory of the machine.
    count = math.prod(tensor.shape)
    if count > len(flat):
        raise ValueError(
            f"{name!r} would have {count} numbers, but the file holds {len(flat)} for it. "
            "If this is intended, save a copy of it, `tensor.contiguous()`, with PyTorch"
        )
    flat = flat[tensor.offset :]
    strides = [stride * dtype.itemsize for stride in tensor.strides]
    return np.lib.stride_tricks.as_strided(flat, tensor.shape, strides).copy()


def convert(source, target):
    """Write the tensors of a file of PyTorch to a safetensors file."""
    arrays = read(source)
    safetensors.numpy.save_file(arrays, target, {"format": "pt"})
    return sorted(arrays)


if __name__ == "__main__":
    print(f"{len(convert(*sys.argv[1:3]))} tensors")
