"""Triton kernels for PKPO reward transforms on GPUs; needs torch and triton alone.

A row is sorted on chip, its gaps are weighed and scanned, and every value goes back to its sample's
own offset, in one launch: see `pkpo_triton.kernel`; for rows too long for that, `long_rows`, for
groups of a flat array, `group_kernels`. An estimator is data to the kernels: see
`coefficients.Estimator`. Most people call them through `pkpo_kernels.transform`.

What is in which module: README.md beside this package. Of the modules, `operators`, `launch`,
`groups`, `prepared`, `matrices`, `long_rows` and `table_cache` alone need torch.
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
