"""Triton kernels for PKPO reward transforms on GPUs; needs torch and triton alone.

A row is sorted on chip, its gaps are weighed and scanned, and every value goes back to its sample's
own offset, in one launch: see `pkpo_triton.kernel`; for rows too long for that, `long_rows`. An
estimator is data to the kernels: see `coefficients.Estimator`. Most people call them through
`pkpo_kernels.transform`.

    operators     the launches as torch operators       plan           the table of regimes
    launch        a kernel, its grid, its arguments     layout         rows in threads
    kernel        the entry kernels                     sort           networks, put to use
    memory        tiles, loaded and stored              binomial       the ratios r_j
    lookup        what is found by a reward's value     few_levels     rows that are counted
    estimator     weights, sums, values                 tables         numbers that kernels read
    long_rows     rows that the library sorts           table_cache    where they are kept
    matrices      as kernels read them                  coefficients   an estimator as data
    packed        the entry kernel for the usual rows   packed_tile    how these lie
    packed_sort   the PTX that sorts them               packed_padded  rows with padding
    packed_long   the entry kernel for longer ones      packed_merges  the PTX that sorts these
    packed_masked samples that are left out             packed_weights what gaps weigh in them
    assembly      more PTX: memory, arithmetic          networks       sorting, as data

Of the modules, `operators`, `launch`, `matrices`, `long_rows` and `table_cache` alone need torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pkpo_triton.operators import max_at_k, transform

__all__ = ["max_at_k", "transform"]


def __getattr__(name: str) -> Any:
    # Not before it is asked for: JAX's glue imports the kernels where there is no torch.
    if name in __all__:
        from pkpo_triton import operators

        return getattr(operators, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
