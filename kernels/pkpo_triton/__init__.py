"""Triton kernels for PKPO reward transforms on GPUs; needs torch and triton alone.

A row is sorted on chip, its gaps are weighed and scanned, and every value goes back to its sample's
own offset, in one launch: see `pkpo_triton.kernel`; for rows too long for that, `long_rows`. An
estimator is data to the kernels: see `coefficients.Estimator`. Most people call them through
`pkpo_kernels.transform`.

    launch        the kernels as torch operators        plan        the table of regimes
    kernel        the entry kernels                     layout      rows in threads
    memory        tiles, loaded and stored              sort        networks, put to use
    lookup        what is found by a reward's value     binomial    the ratios r_j
    estimator     weights, sums, values                 few_levels  rows that are counted
    long_rows     rows that the library sorts           tables      numbers that kernels read

Of the modules, `launch`, `long_rows` and `table_cache` alone need torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pkpo_triton.launch import max_at_k, transform

__all__ = ["max_at_k", "transform"]


def __getattr__(name: str) -> Any:
    # Not before it is asked for: JAX's glue imports the kernels where there is no torch.
    if name in __all__:
        from pkpo_triton import launch

        return getattr(launch, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
