"""Pallas kernels for PKPO reward transforms on TPUs; needs jax alone.

A row is sorted in VMEM by a network, its gaps are weighed and scanned, and every sample finds its
value, in one launch: see `pkpo_pallas.kernels`. An estimator is data to the
kernels: see `Weights`. Most people call them through `pkpo_kernels.transform`.
"""

from __future__ import annotations

from pkpo_pallas.long_rows import prefix_sums
from pkpo_pallas.op import fits, max_at_k, transform
from pkpo_pallas.weights import Table, Weights

__all__ = ["Table", "Weights", "fits", "max_at_k", "prefix_sums", "transform"]
