"""Every kernel that ships, as `triton.compile` takes it on a machine that has no GPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from pkpo_triton import kernel as kernels
from pkpo_triton import long_rows, packed, packed_long
from pkpo_triton.coefficients import HostWeights
from pkpo_triton.plan import packed_plan, plan

_DTYPES = {
    "float32": ("fp32", 4),
    "bfloat16": ("bf16", 2),
    "float16": ("fp16", 2),
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
    max_registers: int | None = None  # that the compiler may use; None for as many as it likes


def usual_variant(
    n: int, dtype: str = "float32", *, masked: bool = False, warp: int = 32
) -> Variant:
    """What the library launches for rows of n samples, one after the other, and one k. The
    arguments are those of `transform_variant`."""
    backend = "cuda" if warp == 32 else "hip"
    itemsize = _DTYPES[dtype][1]
    chosen = packed_plan(n, usual=True, backend=backend, itemsize=itemsize, masked=masked)
    if chosen is None:
        return transform_variant(n, dtype, masked=masked, index_shift=int(masked), warp=warp)
    constants: dict[str, Any] = {"N_SAMPLES": n, "N": chosen.samples}
    constants |= {"BLOCK_ROWS": chosen.block_rows}
    constants |= {"THREADS_PER_ROW": chosen.threads_per_row, "LEVELS": chosen.levels}
    if not masked:
        constants["where_ptr"] = None
    types = dict.fromkeys(("rewards_ptr", "out_ptr"), f"*{_DTYPES[dtype][0]}")
    types |= {"where_ptr": "*u8", "weights_ptr": "*fp32"}
    types |= {"n_rows": "i32", "has_offset": "i32", "max_coefficient": "fp32"}
    signature = {
        argument: "constexpr" if argument in constants else types[argument]
        for argument in packed.packed_kernel.arg_names
    }
    return Variant(
        name=f"n={n} {dtype}{', where' if masked else ''}",
        kernel=packed_long.packed_long_kernel if chosen.is_long else packed.packed_kernel,
        signature=signature,
        constants=constants,
        divisible=tuple(name for name, kind in signature.items() if kind[0] == "*"),
        num_warps=chosen.num_warps,
        n=n,
        elements=chosen.block_rows * n,
        max_registers=chosen.max_registers,
    )


def transform_variant(
    n: int,
    dtype: str = "float32",
    *,
    masked: bool = False,
    k: str = "int",
    index_shift: int = 0,
    normalized: bool = False,
    warp: int = 32,
) -> Variant:
    """The general transform of contiguous rows of n samples.

    Args:
        n: samples in a row, a length that fits on chip.
        dtype: of the rewards; of the result too, but float32 for bool.
        masked: with `where`.
        k: "int", "scalar" (in memory), "row" (one for each).
        index_shift, normalized: the estimator's.
        warp: threads that run in step on the target.
    """
    traits = [dtype, *(["where"] if masked else []), *([f"k {k}"] if k != "int" else [])]
    traits += [*(["index shift 1"] if index_shift else []), *(["normalized"] if normalized else [])]
    constants: dict[str, Any] = {"K": k, "INDEX_SHIFT": index_shift, "NORMALIZED": normalized}
    constants["RANGE_SCALED"] = index_shift == 1
    # What Triton makes of a stride of 1.
    constants["out_stride_sample"] = 1
    if k == "int":
        constants["k_ptr"] = None
    return _variant(
        kernels.transform_kernel,
        f"n={n} {', '.join(traits)}",
        n,
        dtype,
        constants,
        masked=masked,
        uniform=k == "int" and not masked and not normalized,
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
    chosen = plan(
        n,
        max(itemsize, result_size),
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
        "coefficients_ptr": "*fp32",
        "factorials_ptr": "*fp32",
        "samples_ptr": "*fp32",
    }
    constants = {
        **constants,
        "MASKED": masked,
        **({"WEIGHTS": chosen.weights} if "WEIGHTS" in kernel.arg_names else {}),
        "IS_BOOL": dtype == "bool",
        "CONTIGUOUS": chosen.threads_per_row == 1,
        "PADDED": chosen.samples > n,
        "SAMPLES_PER_THREAD": chosen.samples_per_thread,
        "THREADS_PER_ROW": chosen.threads_per_row,
        "BLOCK_ROWS": chosen.block_rows,
        "VECTOR": chosen.vector,
        "WARP": chosen.warp,
        "rewards_stride_sample": 1,
        **({"where_stride_sample": 1} if masked else {"where_ptr": None}),
    }
    signature = {}
    for argument in kernel.arg_names:
        if argument in constants:
            signature[argument] = "constexpr"
        elif argument in pointers:
            signature[argument] = pointers[argument]
        else:
            signature[argument] = "fp64" if argument in HostWeights._fields else "i32"
    numbers = ["n_samples"] if n % 16 == 0 else []
    if not masked:  # then 0, a multiple too
        numbers.append("where_stride_sample")
    told = {it.name for it in kernel.params if not it.do_not_specialize_on_alignment}
    return Variant(
        name=name,
        kernel=kernel,
        signature=signature,
        constants=constants,
        divisible=tuple(
            argument
            for argument, kind in signature.items()
            if (kind.startswith("*") or argument in numbers) and argument in told
        ),
        num_warps=chosen.num_warps,
        n=n,
        elements=chosen.block_rows * n,
    )


def shipped(warp: int = 32) -> Iterator[Variant]:
    """Every regime, with and without a mask; every dtype in a thread of its own and in several;
    every kind of k."""
    for n in (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192):
        yield usual_variant(n, warp=warp)
    # No powers of two, and no multiples of four.
    for n in (12, 24, 100, 300, 1000, 5, 10, 26, 102, 1002):
        yield usual_variant(n, warp=warp)
    for dtype in ("bfloat16", "float16"):
        for n in (32, 128):
            yield usual_variant(n, dtype, warp=warp)
        yield usual_variant(64, dtype, masked=True, warp=warp)
        yield transform_variant(26, dtype, masked=True, warp=warp)
        yield transform_variant(102, dtype, warp=warp)
    yield transform_variant(32, "bool", masked=True, warp=warp)
    yield transform_variant(128, "bool", warp=warp)
    for n in (8, 16, 32, 64, 100, 128, 256, 4096):
        yield usual_variant(n, masked=True, warp=warp)
    for n in (32, 128):
        yield transform_variant(n, k="scalar", warp=warp)
        yield transform_variant(n, masked=True, k="row", index_shift=1, normalized=True, warp=warp)
        yield max_at_k_variant(n, masked=True, warp=warp)


def long_row_variants() -> Iterator[Variant]:
    """What finishes rows that the library has sorted, with and without a mask, of floats and of
    bools."""
    for element, name in (("*fp32", "float32"), ("*u8", "bool")):
        for masked, max_at_k in ((False, False), (True, False), (True, True)):
            yield _long_row_variant(element, name, masked=masked, max_at_k=max_at_k)


def _long_row_variant(element: str, name: str, *, masked: bool, max_at_k: bool) -> Variant:
    pointers = {
        "ordered_ptr": element,
        "offsets_ptr": "*i64",
        "n_ptr": "*i64",
        "where_ptr": "*u8",
        "k_ptr": "*i64",
        "out_ptr": "*fp32",
        "coefficients_ptr": "*fp32",
        "factorials_ptr": "*fp32",
    }
    constants: dict[str, Any] = {
        "K": "row",
        "MASKED": masked,
        "MAX_AT_K": max_at_k,
        "INDEX_SHIFT": 1,
        "NORMALIZED": not max_at_k,
        "BLOCK": long_rows.BLOCK,
        **({} if masked else {"where_ptr": None, "n_ptr": None}),
        **({"coefficients_ptr": None} if max_at_k else {}),
    }
    kernel = long_rows.row_kernel
    signature = {
        argument: "constexpr" if argument in constants else pointers.get(argument, "i32")
        for argument in kernel.arg_names
    }
    traits = f"{', where' if masked else ''}{', max@k' if max_at_k else ''}"
    return Variant(
        name=f"long rows, sorted {name}{traits}",
        kernel=kernel,
        signature=signature,
        constants=constants,
        divisible=tuple(pointer for pointer in pointers if signature[pointer][:1] == "*"),
        num_warps=long_rows.WARPS,
        n=long_rows.BLOCK,
        elements=long_rows.BLOCK,
    )
