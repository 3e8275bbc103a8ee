import pytest

from kerasflax import ArgumentError
from kerasflax._paths import matched

PATHS = [
    "params/Dense_0/bias",
    "params/Dense_0/kernel",
    "params/encoder/Dense_0/kernel",
    "params/encoder/a.b/scale",
    "params/kernel",
    "batch_stats/BatchNorm_0/mean",
]


@pytest.mark.parametrize(
    ("pattern", "positions"),
    [
        ("params/Dense_0/kernel", [1]),
        ("params/*/kernel", [1]),
        ("params/**/kernel", [1, 2, 4]),
        ("params/encoder/**", [2, 3]),
        ("**", [0, 1, 2, 3, 4, 5]),
        ("**/Dense_?/[bk]*", [0, 1, 2]),
        ("*/**/mean", [5]),
        ("params/encoder/a.b/scale", [3]),
    ],
)
def test_a_pattern_chooses_paths_in_their_order(pattern, positions):
    assert matched(pattern, PATHS) == [PATHS[i] for i in positions]


@pytest.mark.parametrize("pattern", ["params/Dense_0", "params/dense_0/kernel", "", "*", "params.Dense_0.kernel"])
def test_a_pattern_that_chooses_nothing_is_an_error_with_the_nearest(pattern):
    with pytest.raises(ArgumentError) as error:
        matched(pattern, PATHS[:4])
    assert f"No trainable weight has a path that fits {pattern!r}" in str(error.value)
    assert "The nearest of 4 are params/" in str(error.value)


def test_without_paths_there_is_none_to_choose_from():
    with pytest.raises(ArgumentError, match="none to choose from"):
        matched("**", [])
