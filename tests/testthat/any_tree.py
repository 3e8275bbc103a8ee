"""A hypothesis property for R tests: any tree of arrays survives a round trip through R."""

import tempfile

import jax
import numpy as np
from flax import linen as nn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.configuration import set_hypothesis_home_dir
from hypothesis.extra import numpy as st_numpy

from kerasflax import FlaxLayer
from kerasflax.bridge._variables import named_leaves

FLOATS = ["float32", "float16", "bfloat16"]
INTEGERS = ["int8", "int16", "int32", "uint8", "uint16", "uint32"]
NAMES = st.text("abé_. 0", min_size=1, max_size=4)


class Identity(nn.Module):
    def __call__(self, inputs):
        return inputs


@st.composite
def arrays(draw):
    dtype = np.dtype(draw(st.sampled_from([*FLOATS, *INTEGERS, "bool"])))
    shape = draw(st_numpy.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=3))
    if dtype.name == "bool":
        elements = st.booleans()
    elif dtype.name in FLOATS:
        elements = st.floats(width=32)
    else:
        limits = np.iinfo(dtype)
        elements = st.integers(int(limits.min), int(limits.max))
    size = int(np.prod(shape, dtype=int))
    values = draw(st.lists(elements, min_size=size, max_size=size))
    with np.errstate(over="ignore"):
        return (
            np.array(values, np.float32 if dtype.name in FLOATS else dtype)
            .astype(dtype)
            .reshape(shape)
        )


inner = st.recursive(
    arrays(), lambda trees: st.dictionaries(NAMES, trees, min_size=1, max_size=3), max_leaves=6
)
trees = st.dictionaries(NAMES, inner, min_size=1, max_size=3)


def layer_of(tree):
    layer = FlaxLayer(Identity(), variables={"state": tree})
    layer(np.zeros((1, 1), np.float32))
    return layer


def check(through, examples=60):
    """Check that `through(layer, other)` copies all values of one layer to another, bit for bit.

    Args:
        through: Called with two layers whose variables have the same structure.
        examples: How many trees to try.

    Raises:
        AssertionError: If a dtype, a shape or a value differs.
    """

    @settings(
        deadline=None, max_examples=examples, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(trees)
    def survives_round_trip(tree):
        layer, other = layer_of(tree), layer_of(jax.tree.map(np.zeros_like, tree))
        through(layer, other)
        received = named_leaves(other.flax_variables["state"])
        for path, expected in named_leaves(tree).items():
            got = np.asarray(received[path])
            assert (got.dtype, got.shape) == (expected.dtype, expected.shape), path
            assert got.tobytes() == expected.tobytes(), (path, expected, got)

    # Hypothesis would otherwise leave a folder among the tests.
    with tempfile.TemporaryDirectory() as folder:
        set_hypothesis_home_dir(folder)
        survives_round_trip()
