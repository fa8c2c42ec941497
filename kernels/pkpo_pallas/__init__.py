"""Pallas kernels for PKPO reward transforms on TPUs; needs jax alone.

A row is sorted in VMEM by a network, its gaps are weighed and scanned, and every sample finds its
value, in one launch: see `pkpo_pallas.kernel`, and `pkpo_pallas.plan` for which rows go which way.
An estimator is data to the kernels: see `pkpo_pallas.launch.transform`. Most people call them
through `pkpo_kernels.transform`.
"""

from __future__ import annotations

from pkpo_pallas.launch import fits, max_at_k, transform
from pkpo_pallas.long_rows import prefix_sums

__all__ = ["fits", "max_at_k", "prefix_sums", "transform"]
