"""What ships, as `triton.compile` takes it on a machine that has no GPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import triton.language as tl

from pkpo_triton import kernels, long_rows
from pkpo_triton.plan import plan

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
    traits = [dtype, *(["where"] if masked else []), *([f"k {k}"] if k != "int" else [])]
    traits += [*(["lag 1"] if lag else []), *(["standardised"] if standardised else [])]
    constants: dict[str, Any] = {"K": k, "LAG": lag, "STANDARDISED": standardised}
    constants["SCALED"] = lag == 1
    # What Triton makes of a stride of 1.
    constants["out_sample"] = 1
    if k == "int":
        constants["k_ptr"] = None
    return _variant(
        kernels.transform_kernel,
        f"n={n} {', '.join(traits)}",
        n,
        dtype,
        constants,
        masked=masked,
        uniform=k == "int" and not masked and not standardised,
        warp=warp,
    )


def max_at_k_variant(
    n: int, dtype: str = "float32", *, masked: bool = False, warp: int = 32
) -> Variant:
    """max@k of contiguous rows of n samples, for any number of ks. The arguments are those of
    `transform_variant`."""
    name = f"max@k n={n} {dtype}{', where' if masked else ''}"
    return _variant(
        kernels.max_at_k_kernel, name, n, dtype, {}, masked=masked, uniform=False, warp=warp
    )


def _variant(
    kernel: Any,
    name: str,
    n: int,
    dtype: str,
    constants: dict[str, Any],
    *,
    masked: bool,
    uniform: bool,
    warp: int,
) -> Variant:
    element, itemsize = _DTYPES[dtype]
    result, result_size = ("fp32", 4) if dtype == "bool" else (element, itemsize)
    compute = "fp64" if dtype == "float64" else "fp32"
    chosen = plan(
        n,
        max(itemsize, result_size),
        wide=dtype == "float64",
        masked=masked,
        uniform=uniform,
        warp=warp,
    )
    if chosen is None:
        raise ValueError(f"n must be a length that fits on chip; got {n}")
    pointers = {
        "rewards_ptr": f"*{element}",
        "where_ptr": "*u8",
        "k_ptr": "*i64",
        "ks_ptr": "*i64",
        "out_ptr": f"*{result}",
        "form_ptr": f"*{compute}",
        "table_ptr": f"*{compute}",
        "sample_ptr": f"*{compute}",
    }
    constants = {
        **constants,
        "MASKED": masked,
        **({"WEIGHTS": chosen.weights} if "WEIGHTS" in kernel.arg_names else {}),
        "COUNT_ONLY": dtype == "bool",
        "CONTIGUOUS": chosen.lanes == 1,
        "PADDED": chosen.chunk * chosen.lanes > n,
        "CHUNK": chosen.chunk,
        "LANES": chosen.lanes,
        "BLOCK_ROWS": chosen.block_rows,
        "VECTOR": chosen.vector,
        "WARP": chosen.warp,
        "rewards_sample": 1,
        **({"where_sample": 1} if masked else {"where_ptr": None}),
    }
    signature = {}
    for argument in kernel.arg_names:
        if argument in constants:
            signature[argument] = "constexpr"
        elif argument in pointers:
            signature[argument] = pointers[argument]
        else:
            scalar = argument in ("first", "anchor", "gap", "below", "slope")
            signature[argument] = "fp64" if scalar else "i32"
    strides = ["n_samples", "rewards_row", "where_row", "out_row"] if n % 16 == 0 else []
    if not masked:  # then 0, a multiple too
        strides += ["where_row", "where_sample"]
    return Variant(
        name=name,
        kernel=kernel,
        signature=signature,
        constants=constants,
        divisible=tuple(
            argument
            for argument, kind in signature.items()
            if kind.startswith("*") or argument in strides
        ),
        num_warps=chosen.num_warps,
        n=n,
        elements=chosen.block_rows * n,
    )


def shipped(warp: int = 32) -> Iterator[Variant]:
    """Every regime, with and without a mask; every dtype in a thread of its own and in several;
    every kind of k."""
    for n in (8, 16, 32, 64, 128, 256, 1024, 4096, 8192):
        yield transform_variant(n, warp=warp)
    # No powers of two.
    for n in (5, 24, 100, 1000):
        yield transform_variant(n, warp=warp)
    for dtype in ("bfloat16", "float16", "float64", "bool"):
        yield transform_variant(8 if dtype == "float64" else 32, dtype, masked=True, warp=warp)
        yield transform_variant(128, dtype, warp=warp)
    for n in (8, 16, 32, 100, 128, 4096):
        yield transform_variant(n, masked=True, lag=1, warp=warp)
    for n in (32, 128):
        yield transform_variant(n, k="scalar", warp=warp)
        yield transform_variant(n, masked=True, k="row", lag=1, standardised=True, warp=warp)
        yield max_at_k_variant(n, masked=True, warp=warp)


def long_row_variants() -> Iterator[Variant]:
    """What finishes rows that the library has sorted, and what counts those of bool rewards."""
    kernels_of_rows = (
        (long_rows._row_kernel, "sorted float32", "*fp32"),
        (long_rows._counted_row_kernel, "bool", "*u8"),
    )
    for kernel, name, element in kernels_of_rows:
        for masked, max_at_k in ((False, False), (True, False), (True, True)):
            pointers = {
                "rewards_ptr": element,
                "ordered_ptr": element,
                "places_ptr": "*i64",
                "group_ptr": "*i64",
                "where_ptr": "*u8",
                "k_ptr": "*i64",
                "out_ptr": "*fp32",
                "form_ptr": "*fp32",
                "table_ptr": "*fp32",
            }
            constants: dict[str, Any] = {
                "K": "row",
                "MASKED": masked,
                "MAX_AT_K": max_at_k,
                "LAG": 1,
                "STANDARDISED": not max_at_k,
                "DTYPE": tl.float32,
                "BLOCK": long_rows.BLOCK,
                **({} if masked else {"where_ptr": None, "group_ptr": None}),
                **({"form_ptr": None} if max_at_k else {}),
            }
            signature = {
                argument: "constexpr" if argument in constants else pointers.get(argument, "i32")
                for argument in kernel.arg_names
            }
            traits = f"{', where' if masked else ''}{', max@k' if max_at_k else ''}"
            yield Variant(
                name=f"long rows, {name}{traits}",
                kernel=kernel,
                signature=signature,
                constants={key: constants[key] for key in constants if key in signature},
                divisible=tuple(
                    pointer for pointer in pointers if signature.get(pointer, "")[:1] == "*"
                ),
                num_warps=long_rows.WARPS,
                n=long_rows.BLOCK,
                elements=long_rows.BLOCK,
            )
