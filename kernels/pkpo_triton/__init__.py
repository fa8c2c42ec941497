"""Triton kernels for PKPO reward transforms on GPUs; needs torch and triton alone.

A row is sorted on chip, its gaps are weighed and scanned, and every value goes back to its sample's
own place, in one launch: see `pkpo_triton.kernels`; for rows too long for that, `long_rows`. An
estimator is data to the kernels: see `Weights`. Most people call them through
`pkpo_kernels.transform`.

Of the modules, `kernels`, `networks`, `plan` and `weights` do without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pkpo_triton.op import max_at_k, transform
    from pkpo_triton.weights import Weights

__all__ = ["Weights", "max_at_k", "transform"]


def __getattr__(name: str) -> Any:
    # Not before it is asked for: JAX's glue imports the kernels where there is no torch.
    if name == "Weights":
        from pkpo_triton.weights import Weights

        return Weights
    if name in __all__:
        from pkpo_triton import op

        return getattr(op, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
