"""What ships, as `triton.compile` takes it on a machine that has no GPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from pkpo_triton import kernels
from pkpo_triton.plan import plan

# Which functions run on which path only. Common code is everything else.
PATHS: dict[str, tuple[Any, ...]] = {
    "general": (kernels._by_sorting,),
    "two_levels": (kernels._has_two_levels, kernels._by_counting),
    "not_finite": (kernels._bring_in, kernels._limits, kernels._at_the_limit),
    "constant": (kernels._constant,),
    "last_block": (kernels._load_inside, kernels._store_inside),
}

_DTYPES = {
    "float32": ("fp32", 4),
    "bfloat16": ("bf16", 2),
    "float16": ("fp16", 2),
    "float64": ("fp64", 8),
    "bool": ("u8", 1),
}


class Variant(NamedTuple):
    name: str
    kernel: Any
    signature: dict[str, str]  # argument → Triton's type for it
    constants: dict[str, Any]
    divisible: tuple[str, ...]  # arguments known to be multiples of 16
    num_warps: int
    n: int  # samples in a row
    elements: int  # rewards that one program handles


def transform_variant(
    n: int,
    dtype: str = "float32",
    *,
    masked: bool = False,
    k: str = "int",
    lag: int = 0,
    standardised: bool = False,
    warp: int = 32,
) -> Variant:
    """The transform of contiguous rows of n samples.

    Args:
        n: samples in a row, a length that fits on chip.
        dtype: of the rewards; of the result too, but float32 for bool.
        masked: with `where`.
        k: "int", "scalar" (in memory), "row" (one for each).
        lag, standardised: the estimator's.
        warp: threads that run in step on the target.
    """
    element, itemsize = _DTYPES[dtype]
    compute = "fp64" if dtype == "float64" else "fp32"
    chosen = plan(n, 4 if dtype == "bool" else itemsize, dtype == "float64", warp)
    if chosen is None:
        raise ValueError(f"n must be a length that fits on chip; got {n}")
    pointers = {
        "rewards_ptr": f"*{element}",
        "out_ptr": "*fp32" if dtype == "bool" else f"*{element}",
        "form_ptr": f"*{compute}",
        "table_ptr": f"*{compute}",
        "inverse_ptr": f"*{compute}",
    }
    constants: dict[str, Any] = {
        "K": k,
        "MASKED": masked,
        "LAG": lag,
        "STANDARDISED": standardised,
        "COUNT_ONLY": dtype == "bool",
        "CONTIGUOUS": chosen.lanes == 1,
        "PADDED": chosen.chunk * chosen.lanes > n,
        "CHUNK": chosen.chunk,
        "LANES": chosen.lanes,
        "BLOCK_ROWS": chosen.block_rows,
        "VECTOR": chosen.vector,
        # What Triton makes of a stride of 1.
        "rewards_sample": 1,
        "out_sample": 1,
    }
    if masked:
        pointers["where_ptr"] = "*u8"
        constants["where_sample"] = 1
    else:
        constants["where_ptr"] = None
    if k == "int":
        constants["k_ptr"] = None
    else:
        pointers["k_ptr"] = "*i64"
    signature = {}
    for argument in kernels.transform_kernel.arg_names:
        if argument in constants:
            signature[argument] = "constexpr"
        elif argument in pointers:
            signature[argument] = pointers[argument]
        else:
            scalar = argument in ("first", "anchor", "gap", "below", "slope")
            signature[argument] = "fp64" if scalar else "i32"
    strides = ("n_samples", "rewards_row", "where_row", "out_row") if n % 16 == 0 else ()
    traits = [dtype, *(["where"] if masked else []), *([f"k {k}"] if k != "int" else [])]
    traits += [*(["lag 1"] if lag else []), *(["standardised"] if standardised else [])]
    return Variant(
        name=f"n={n} {', '.join(traits)}",
        kernel=kernels.transform_kernel,
        signature=signature,
        constants=constants,
        divisible=(*pointers, *strides),
        num_warps=chosen.num_warps,
        n=n,
        elements=chosen.block_rows * n,
    )


def shipped() -> Iterator[Variant]:
    """Every regime and dtype, with and without a mask, with every kind of k."""
    for n in (8, 16, 32, 64, 128, 256):
        yield transform_variant(n)
    for dtype in ("bfloat16", "float16", "float64", "bool"):
        yield transform_variant(32, dtype)
    for n in (32, 128):
        yield transform_variant(n, masked=True, lag=1)
    yield transform_variant(32, k="scalar")
    yield transform_variant(32, k="row", lag=1)
    yield transform_variant(32, lag=1, standardised=True)
    # No powers of two.
    for n in (5, 24):
        yield transform_variant(n)
