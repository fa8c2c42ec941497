"""The Pallas kernels in Pallas's interpreter of TPUs, on any device: slow, to see what they do."""

from __future__ import annotations

from functools import partial

from jax.experimental.pallas import tpu as pltpu

from pkpo_kernels.backends import pallas as pallas_backend

# Memory that nobody has written reads as NaN.
PARAMETERS = pltpu.InterpretParams(uninitialized_memory="nan")

transform_rows = partial(pallas_backend.transform_rows, interpret=PARAMETERS)
max_at_k_rows = partial(pallas_backend.max_at_k_rows, interpret=PARAMETERS)
