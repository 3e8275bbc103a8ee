"""The allowlist: every class and function that a saved model may name, except the user's own.

Nothing else from Flax, JAX, NumPy, Keras or Python is created or called on behalf of a file. An
entry is a name in a namespace listed here, and stands for the object in that namespace. No prefix,
attribute or import leads further. Names that the installed version does not have are ignored.

The list may hold functions that compute arrays. It must not hold a function that calls a function
passed to it, reads or writes a file, looks up an attribute by name, or holds code.
`tests/python/saving/test_allowed.py` walks the lists and tries each entry.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

# Functions: activations, initializers, pooling, attention, and array operations -------------------

FUNCTIONS = {
    "flax.linen": """
        avg_pool celu combine_masks dot_product_attention dot_product_attention_weights elu gelu glu
        hard_sigmoid hard_silu hard_swish hard_tanh leaky_relu log_sigmoid log_softmax logsumexp
        make_causal_mask max_pool normalize one_hot ones ones_init relu relu6
        selu sigmoid silu soft_sign softmax softplus standardize swish tanh zeros zeros_init
    """,
    "jax.nn": """
        celu dot_product_attention elu gelu get_scaled_dot_general_config glu hard_sigmoid hard_silu
        hard_swish hard_tanh identity leaky_relu log1mexp log_sigmoid log_softmax logmeanexp
        logsumexp mish one_hot relu relu6 scaled_dot_general scaled_matmul selu sigmoid silu
        soft_sign softmax softplus sparse_plus sparse_sigmoid squareplus standardize swish tanh
    """,
    "jax.nn.initializers": """
        constant delta_orthogonal glorot_normal glorot_uniform he_normal he_uniform kaiming_normal
        kaiming_uniform lecun_normal lecun_uniform normal ones orthogonal truncated_normal uniform
        variance_scaling xavier_normal xavier_uniform zeros
    """,
    "jax.numpy": """
        abs absolute acos acosh add all allclose amax amin angle any append arange arccos arccosh
        arcsin arcsinh arctan arctan2 arctanh argmax argmin argpartition argsort argwhere around
        array array_equal array_equiv array_split asarray asin asinh astype atan atan2 atanh
        atleast_1d atleast_2d atleast_3d average bartlett bfloat16 bincount bitwise_and
        bitwise_count bitwise_invert bitwise_left_shift bitwise_not bitwise_or bitwise_right_shift
        bitwise_xor blackman block bool bool_ broadcast_arrays broadcast_shapes broadcast_to cbrt
        cdouble ceil choose clip column_stack complex128 complex64 complex_ compress concat
        concatenate conj conjugate convolve copy copysign corrcoef correlate cos cosh count_nonzero
        cov cross csingle cumprod cumsum cumulative_prod cumulative_sum deg2rad degrees delete diag
        diag_indices diag_indices_from diagflat diagonal diff digitize divide divmod dot double
        dsplit dstack ediff1d einsum einsum_path empty empty_like equal exp exp2 expand_dims expm1
        extract eye fabs fill_diagonal flatnonzero flip fliplr flipud float16 float32 float4_e2m1fn
        float64 float6_e2m3fn float6_e3m2fn float8_e3m4 float8_e4m3 float8_e4m3b11fnuz float8_e4m3fn
        float8_e4m3fnuz float8_e5m2 float8_e5m2fnuz float8_e8m0fnu float_ float_power floor
        floor_divide fmax fmin fmod frexp fromiter full full_like gcd geomspace gradient greater
        greater_equal hamming hanning heaviside histogram histogram2d histogram_bin_edges
        histogramdd hsplit hstack hypot i0 identity imag indices inner insert int1 int16 int2 int32
        int4 int64 int8 int_ interp intersect1d invert isclose iscomplex iscomplexobj isdtype
        isfinite isin isinf isnan isneginf isposinf isreal isrealobj isscalar issubdtype ix_ kaiser
        kron lcm ldexp left_shift less less_equal lexsort linspace log log10 log1p log2 logaddexp
        logaddexp2 logical_and logical_not logical_or logical_xor logspace matmul matrix_transpose
        matvec max maximum mean median meshgrid min minimum mod modf moveaxis multiply nan_to_num
        nanargmax nanargmin nancumprod nancumsum nanmax nanmean nanmedian nanmin nanpercentile
        nanprod nanquantile nanstd nansum nanvar ndim negative nextafter nonzero not_equal ones
        ones_like outer packbits pad partition percentile permute_dims place poly polyadd polyder
        polydiv polyfit polyint polymul polysub polyval positive pow power prod promote_types ptp
        put put_along_axis quantile rad2deg radians ravel ravel_multi_index real reciprocal
        remainder repeat reshape resize result_type right_shift rint roll rollaxis roots rot90 round
        searchsorted select setdiff1d setxor1d shape sign signbit sin sinc single sinh size sort
        sort_complex spacing split sqrt square squeeze stack std subtract sum swapaxes take
        take_along_axis tan tanh tensordot tile trace transpose trapezoid tri tril tril_indices
        tril_indices_from trim_zeros triu triu_indices triu_indices_from true_divide trunc uint
        uint1 uint16 uint2 uint32 uint4 uint64 uint8 union1d unique unique_all unique_counts
        unique_inverse unique_values unpackbits unravel_index unstack unwrap vander var vdot vecdot
        vecmat vsplit vstack where zeros zeros_like
    """,
    "jax.lax": """
        abs acos acosh add after_all all_gather all_to_all approx_max_k approx_min_k argmax argmin
        asin asinh atan atan2 atanh axis_index axis_size batch_matmul bessel_i0e bessel_i1e betainc
        bitcast_convert_type bitwise_and bitwise_not bitwise_or bitwise_xor broadcast
        broadcast_in_dim broadcast_like broadcast_shapes broadcast_to_rank broadcasted_iota cbrt
        ceil clamp clz collapse complex concatenate conj conv conv_dimension_numbers
        conv_general_dilated conv_general_dilated_local conv_general_dilated_patches
        conv_general_permutations conv_general_shape_tuple conv_shape_tuple conv_transpose
        conv_transpose_shape_tuple conv_with_general_padding convert_element_type cos cosh
        create_token cumlogsumexp cummax cummin cumprod cumsum dce_sink digamma div dot dot_general
        dtype dynamic_index_in_dim dynamic_slice dynamic_slice_in_dim dynamic_update_index_in_dim
        dynamic_update_slice dynamic_update_slice_in_dim empty eq erf erf_inv erfc exp exp2
        expand_dims expm1 fft floor full full_like gather ge gt igamma igamma_grad_a igammac imag
        index_in_dim index_take integer_pow iota is_finite le lgamma log log1p logistic lt max min
        mul mulhi ne neg nextafter optimization_barrier pad padtype_to_pads pbroadcast pcast pmax
        pmean pmin polygamma population_count pow ppermute pshuffle psum psum_scatter pswapaxes
        ragged_all_to_all ragged_dot ragged_dot_general random_gamma_grad real reciprocal reduce_and
        reduce_max reduce_min reduce_or reduce_precision reduce_prod reduce_sum
        reduce_window_shape_tuple reduce_xor rem reshape rev rng_bit_generator rng_uniform round
        rsqrt scaled_dot scatter scatter_add scatter_max scatter_min scatter_mul scatter_sub select
        select_n shape_as_value shift_left shift_right_arithmetic shift_right_logical sign sin sinh
        slice slice_in_dim sort sort_key_val split sqrt square squeeze stack stop_gradient sub tan
        tanh tile top_k transpose unstack with_sharding_constraint zeta
    """,
    "flax.nnx": """
        avg_pool celu combine_masks dot_product_attention elu gelu glu hard_sigmoid hard_silu
        hard_swish hard_tanh identity leaky_relu log_sigmoid log_softmax logsumexp
        make_causal_mask max_pool min_pool one_hot relu relu6 selu sigmoid silu
        soft_sign softmax softplus standardize swish tanh
    """,
}

# Factories of initializers. They are called with arguments from a file.
FACTORIES = {
    "jax.nn.initializers": """
        constant delta_orthogonal normal orthogonal truncated_normal uniform variance_scaling
    """,
    "flax.linen": "with_logical_partitioning with_partitioning",
}

# Classes ------------------------------------------------------------------------------------------

# Modules that wrap a module of the other API (Linen or NNX). The wrapped module is checked too.
WRAPPERS = {"flax.nnx.bridge.wrappers": "ToLinen ToNNX"}
MODULES = {
    "flax.linen": """
        BatchNorm Bidirectional Conv ConvLSTMCell ConvLocal ConvTranspose Dense DenseGeneral Dropout
        Einsum Embed Fp8DirectDotGeneralOp Fp8DotGeneralOp Fp8Einsum GRUCell GroupNorm InstanceNorm
        LSTMCell LayerNorm MGUCell MultiHeadAttention MultiHeadDotProductAttention
        NANOOFp8DotGeneralOp OptimizedLSTMCell PReLU RMSNorm RNN SelfAttention Sequential SimpleCell
        SpectralNorm WeightNorm
    """,
    "flax.nnx": """
        BatchNorm Bidirectional Conv ConvTranspose Dropout Einsum Embed GRUCell GroupNorm
        InstanceNorm LSTMCell LayerNorm Linear LinearGeneral List LoRA LoRALinear MultiHeadAttention
        OptimizedLSTMCell PReLU RMSNorm RNN Sequential SimpleCell SpectralNorm WeightNorm
    """,
    **WRAPPERS,
}
# Dataclasses and named tuples that hold settings.
HOLDERS = {
    "flax.linen": "DenyList LogicallyPartitioned Partitioned",
    "flax.typing": "In Out",
    "jax.lax": "ConvDimensionNumbers DotAlgorithm GatherDimensionNumbers ScatterDimensionNumbers",
}
ENUMS = {
    "jax.lax": """
        DotAlgorithmPreset FftType GatherScatterMode Precision RandomAlgorithm RoundingMethod
    """,
}
NUMBER_TYPES = {
    "builtins": "bool int float complex",
    "numpy": """
        bool bool_ int8 int16 int32 int64 uint8 uint16 uint32 uint64 intc uintc longlong ulonglong
        float16 float32 float64 longdouble complex64 complex128 clongdouble
    """,
}
KERAS = {
    "regularizers": "L1 L1L2 L2 OrthogonalRegularizer",
    "constraints": "MaxNorm MinMaxNorm NonNeg UnitNorm",
    "dtype_policies": "DTypePolicy FloatDTypePolicy",
}

# Fields -------------------------------------------------------------------------------------------

# The roles of fields of Flax's modules. A field that is not listed holds data: numbers, text,
# arrays, dtypes, enums, settings, and lists, tuples and dicts of them. Every field is checked
# against its declared type too.
FUNCTION = "a function"  # from the list, created by a factory, or the user's
CLASS = "a class"  # of modules, or a function that returns a callable
MODULE_CLASS = "a class of modules"
MODULE = "a module"
PART = "a module or a function"
PARTS = "a list of modules and functions"
ITEMS = "a list of modules, functions and data"
# Anything that a file may hold. It is checked as the arguments of the wrapped module class.
CONTENTS = "anything"

_ROLES = {
    FUNCTION: """
        a_initializer activation_bias_init activation_fn attention_fn b_initializer bias_init
        carry_init conv_general_dilated dot_general einsum_op embedding_init forget_bias_init
        gate_fn kernel_init ln_promote_dtype lora_promote_dtype merge_fn negative_slope_init
        out_bias_init out_dot_general out_kernel_init out_promote_dtype promote_dtype
        qkv_dot_general qkv_promote_dtype recurrent_kernel_init scale_init
    """,
    CLASS: """
        attn_weights_value_einsum_cls conv_general_dilated_cls dot_general_cls out_dot_general_cls
        qk_attn_weights_einsum_cls qkv_dot_general_cls
    """,
    MODULE_CLASS: "nnx_class",
    MODULE: "backward_rnn base_module cell forward_rnn layer_instance module",
    PART: "fns",
    PARTS: "layers",
    ITEMS: "it",
    CONTENTS: "args kwargs",
}
ROLES: Mapping[str, str] = MappingProxyType(
    {name: role for role, names in _ROLES.items() for name in names.split()}
)
DATA = "data"

# Lookup -------------------------------------------------------------------------------------------


@functools.cache
def _objects(names: str, namespace: str) -> Mapping[str, Any]:
    """Return the named objects that a namespace has. Reading its dict imports nothing else."""
    try:
        held = vars(importlib.import_module(namespace))
    except ImportError:
        # Other versions define it elsewhere.
        held = {}
    return MappingProxyType({name: held[name] for name in names.split() if name in held})


def find(table: Mapping[str, str], reference: str) -> Any:
    """Return the object that a reference `namespace:name` stands for in a table, or None."""
    namespace, _, name = reference.partition(":")
    return _objects(table[namespace], namespace).get(name) if namespace in table else None


def entries(table: Mapping[str, str]) -> Iterator[tuple[str, Any]]:
    """Yield the references and objects of a table."""
    for namespace, names in table.items():
        for name, value in _objects(names, namespace).items():
            yield f"{namespace}:{name}", value


def reference_to(table: Mapping[str, str], value: Any) -> str | None:
    """Return the first reference of an object in a table, or None if the table does not hold it.

    Skips namespaces that have not been imported: no existing object can be in one of them.
    """
    return _references(tuple(item for item in table.items() if item[0] in sys.modules)).get(
        id(value)
    )


@functools.cache
def _references(table: tuple[tuple[str, str], ...]) -> Mapping[int, str]:
    """Map the identity of objects to references. `_objects` keeps the objects alive."""
    return MappingProxyType({id(value): name for name, value in reversed([*entries(dict(table))])})


def keras_class(table: str, name: str) -> Any:
    """Return one of Keras's own regularizers, constraints or dtype policies, or None."""
    return find({f"keras.{table}": KERAS[table]}, f"keras.{table}:{name}")


def keras_class_name(table: str, text: str) -> str:
    """Return the Keras class name that text such as "l2" or "max_norm" stands for, or the text."""
    return next(
        (name for name in KERAS[table].split() if name.lower() == text.lower().replace("_", "")),
        text,
    )
