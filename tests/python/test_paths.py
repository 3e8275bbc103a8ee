import fnmatch
import re
import time

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

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
def test_a_pattern_selects_paths_in_their_order(pattern, positions):
    assert matched(pattern, PATHS) == [PATHS[i] for i in positions]


@pytest.mark.parametrize("pattern", ["params/dense_0/kernel", "", "params.Dense_0.kernel"])
def test_a_pattern_that_matches_nothing_is_an_error_with_the_nearest_paths(pattern):
    with pytest.raises(ArgumentError) as error:
        matched(pattern, PATHS[:4])
    assert f"No trainable weight has a path that matches {pattern!r}.\n" in str(error.value)
    assert "the nearest of 4 are params/" in str(error.value)


@pytest.mark.parametrize(
    ("pattern", "wider"),
    [
        ("params/Dense_0", "params/Dense_0/**"),
        ("**/Dense_*", "**/Dense_*/**"),
        ("*", "*/**"),
        ("kernel", "**/kernel"),
        ("Dense_0/*", "**/Dense_0/*"),
        ("encoder", "**/encoder/**"),
    ],
)
def test_a_pattern_that_lacks_names_is_an_error_with_one_that_has_them(pattern, wider):
    assert matched(wider, PATHS)
    with pytest.raises(ArgumentError) as error:
        matched(pattern, PATHS)
    assert f"the nearest of {len(PATHS)} are {wider}, " in str(error.value)


def test_many_wildcards_take_no_more_time_than_few():
    paths = [f"params/{'block/' * 30}Dense_{i}/{'a' * 40}" for i in range(200)]
    patterns = [
        "**/" * 24 + "nope",
        "**/*/" * 15 + "**/nope",
        "**/" + "*a" * 60 + "b",
        "*/**/" * 30 + "x",
        "**/[" * 50_000,
    ]
    begin = time.process_time()
    for pattern in patterns:
        with pytest.raises(ArgumentError) as error:
            matched(pattern, paths)
        assert len(str(error.value)) < 3000
    assert time.process_time() - begin < 10
    assert matched("**/" * 24 + "a*", paths) == paths


@pytest.mark.parametrize("part", ["a" * 5_000, "?" * 5_000, "a" * 4_900 + "[!b]" * 64])
def test_a_name_that_repeats_the_beginning_of_a_part_takes_no_more_time(part):
    begin = time.process_time()
    for pattern in (f"params/*{part}b*", f"params/*{part}*b*{part}*"):
        with pytest.raises(ArgumentError):
            matched(pattern, ["params/" + "a" * 20_000])
        fitting = "params/" + "a" * 20_000 + "b" + "a" * 5_000
        assert matched(pattern, [fitting]) == [fitting]
    assert time.process_time() - begin < 5


NAMES = st.text("ab[]!-*?", max_size=6)


@given(NAMES, NAMES)
def test_a_part_of_a_pattern_means_the_same_as_in_a_shell(pattern, name):
    assume(not re.search(r"\[[^]]*-|!-|\[\]|\[!\]", pattern))
    is_match = fnmatch.fnmatchcase(name, pattern)
    if pattern not in ("", "**") and is_match:
        assert matched(pattern, [name]) == [name]
    elif pattern not in ("**", name):
        with pytest.raises(ArgumentError):
            matched(pattern, [name])


def test_a_set_of_characters_may_have_ranges_and_a_negation():
    names = ["a", "b", "c", "d", "-", "]", "!"]
    for pattern, expected in {
        "[b-d]": "bcd",
        "[!b-d]": "a-]!",
        "[]a]": "a]",
        "[!]a]": "bcd-!",
        "[a-]": "a-",
        "[a!]": "a!",
    }.items():
        assert "".join(matched(pattern, names)) == expected


def test_without_paths_the_error_says_that_there_are_no_trainable_weights():
    with pytest.raises(ArgumentError, match=r"matches '\*\*': there are no trainable weights"):
        matched("**", [])
