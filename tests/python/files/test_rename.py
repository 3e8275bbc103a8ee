import numpy as np
import pytest
import safetensors.flax
import safetensors.numpy
from checkpoints import ARRAY, assert_same

from kerasflax import ArgumentError, VariablesError, read_variables

HUGGING_FACE = {
    "encoder.layer.0.weight": ARRAY,
    "encoder.layer.0.bias": ARRAY[0],
    "encoder.layer.1.weight": ARRAY + 1,
    "encoder.layer.1.bias": ARRAY[1],
    "position_ids": np.arange(3),
}
PATTERNS = {
    r"encoder\.layer\.(\d+)\.weight": r"params/layers_\1/kernel",
    r"encoder\.layer\.(\d+)\.(\w+)": r"params/layers_\1/\2",
    "position.*": None,
}
MAPPED = {"params": {f"layers_{i}": {"kernel": ARRAY + i, "bias": ARRAY[i]} for i in range(2)}}


def by_hand(path):
    if path == "position_ids":
        return None
    _, _, number, name = path.split(".")
    return f"params/layers_{number}/{'kernel' if name == 'weight' else name}"


@pytest.mark.parametrize("rename", [PATTERNS, by_hand], ids=["patterns", "function"])
@pytest.mark.parametrize("like", [None, MAPPED])
def test_foreign_names_are_mapped_and_reported(rename, like, tmp_path):
    safetensors.numpy.save_file(HUGGING_FACE, tmp_path / "w.safetensors")
    reports = []
    assert_same(
        MAPPED,
        read_variables(tmp_path / "w.safetensors", rename=rename, like=like, report=reports.append),
    )
    (report,) = reports
    assert report.mapped["encoder.layer.1.weight"] == "params/layers_1/kernel"
    assert (list(report.left_over), list(report.missing)) == (["position_ids"], [])


def test_a_report_of_mismatches_precedes_the_error_that_lists_them(tmp_path):
    safetensors.numpy.save_file(HUGGING_FACE, tmp_path / "w.safetensors")
    like = {"params": {"layers_0": {"kernel": ARRAY, "bias": ARRAY[0]}, "head": ARRAY}}
    reports = []
    with pytest.raises(VariablesError) as error:
        read_variables(
            tmp_path / "w.safetensors", rename=PATTERNS, like=like, report=reports.append
        )
    assert str(reports[0]) == (
        "Mapped (and 0 unchanged):\n"
        "  encoder.layer.0.bias -> params/layers_0/bias\n"
        "  encoder.layer.0.weight -> params/layers_0/kernel\n"
        "Left over:\n"
        "  encoder.layer.1.bias\n"
        "  encoder.layer.1.weight\n"
        "  position_ids\n"
        "Missing:\n"
        "  params/head"
    )
    assert "params/layers_1/bias: not in the module" in str(error.value)
    assert "encoder.layer.1.bias -> params/layers_1/bias" in str(error.value)


@pytest.mark.parametrize(
    ("rename", "message"),
    [
        (
            {".*bias": "params/b"},
            r"sends two weights to 'params/b': 'encoder.layer.0.bias' and 'encoder.layer.1.bias'",
        ),
        ({"(": "x"}, "must have regular expressions as names"),
        ({3: "x"}, "must have regular expressions as names"),
        ({"(.*)": r"\2"}, r"cannot replace .* by '\\\\2'"),
        ({"(.*)": 4}, "cannot replace"),
        (lambda path: 3, "must return a path, or None"),
        (3, "must be a dict from patterns to replacements, or a function, got int 3"),
    ],
)
def test_the_error_for_an_invalid_rename_says_why(rename, message, tmp_path):
    safetensors.numpy.save_file(HUGGING_FACE, tmp_path / "w.safetensors")
    with pytest.raises(ArgumentError, match=message):
        read_variables(tmp_path / "w.safetensors", rename=rename)


def test_a_weight_below_another_keeps_the_rest_of_its_path_as_its_name_and_can_be_renamed(tmp_path):
    safetensors.numpy.save_file(
        {"a": ARRAY, "a/b": ARRAY, "c/d": ARRAY, "c/d/e/f": ARRAY}, tmp_path / "w.safetensors"
    )
    expected = {"a": ARRAY, "a/b": ARRAY, "c": {"d": ARRAY, "d/e/f": ARRAY}}
    assert_same(expected, read_variables(tmp_path / "w.safetensors"))
    safetensors.numpy.save_file({"a": ARRAY, "a/b": ARRAY}, tmp_path / "w.safetensors")
    assert_same(
        {"w": ARRAY, "a": {"b": ARRAY}},
        read_variables(tmp_path / "w.safetensors", rename={"a": "w"}),
    )
