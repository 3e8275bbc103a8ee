import jax
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from kerasflax import _rng

STATE = np.array([7, 0], np.uint32)


def data(key):
    return tuple(jax.random.key_data(key).tolist())


def test_streams_differ_between_names_calls_and_seeds():
    keys = {
        data(_rng.streams(np.array([seed, call], np.uint32), [name])[name])
        for seed in (0, 1)
        for call in (0, 1)
        for name in ("dropout", "noise")
    }
    assert len(keys) == 8


@given(st.lists(st.text(min_size=1), unique=True, max_size=4))
def test_a_stream_does_not_depend_on_other_streams(names):
    together = _rng.streams(STATE, names)
    assert [data(together[name]) for name in names] == [
        data(_rng.streams(STATE, [name])[name]) for name in names
    ]


def test_the_initial_key_equals_that_of_plain_flax():
    assert data(_rng.initial_key(3)) == data(jax.random.key(3))


def test_the_keys_of_streams_equal_recorded_ones():
    """The numbers come from another program.

    It computes Threefry-2x32 with the seed's state as the key. The counter is 0 and the first 32
    bits of the name's SHA-256.
    """
    keys = _rng.streams(np.array([7, 2], np.uint32), ["dropout", "params"])
    assert data(keys["dropout"]) == (2335352462, 2678358109)
    assert data(keys["params"]) == (2282695505, 1285534362)
