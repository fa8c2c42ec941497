"""The types of the public functions' arguments: names as literals, arrays by what they can do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

EstimatorName = Literal["sloo_minus_one", "sloo", "s", "centered", "passk_training"]
Scale = Literal["sum", "mean"]
Undersized = Literal["zero", "nan", "clip"]
Metric = Literal["pass@k", "max@k", "pass^k"]
ImplementationName = Literal[
    "triton",
    "pallas",
    "triton_jax",
    "numpy",
    "reference",
    "torch",
    "xla",
    "pallas_interpret",
]

# Tensors and JAX arrays by their structure: the classes themselves would be Any to a type checker
# that does not find their library, and take every argument, wrong ones included.


class TorchTensor(Protocol):
    """What `torch.Tensor` has and no other array."""

    @property
    def requires_grad(self) -> bool: ...
    @property
    def grad_fn(self) -> Any: ...
    @property
    def ndim(self) -> int: ...


class JaxArray(Protocol):
    """What `jax.Array` has and no other array."""

    @property
    def weak_type(self) -> bool: ...
    @property
    def sharding(self) -> Any: ...
    @property
    def ndim(self) -> int: ...


DeviceArray = TypeVar("DeviceArray", bound=TorchTensor | JaxArray)
Floating = TypeVar("Floating", bound=np.floating[Any])

# Nested to a depth that people write by hand. A type without an end would take strings too, which
# are sequences of strings.
Nested1: TypeAlias = Sequence[float]
Nested2: TypeAlias = Sequence[Nested1]
Nested3: TypeAlias = Sequence[Nested2]
NestedNumbers: TypeAlias = Nested1 | Nested2 | Nested3 | Sequence[Nested3]
NumpyMask: TypeAlias = (
    NDArray[np.bool_]
    | Sequence[bool]
    | Sequence[Sequence[bool]]
    | Sequence[Sequence[Sequence[bool]]]
)

IntegerArray: TypeAlias = NDArray[np.integer[Any]]
FlatHostIntegers: TypeAlias = int | np.integer[Any] | IntegerArray | Sequence[int]
HostIntegers: TypeAlias = FlatHostIntegers | Sequence[Sequence[int]]
FlatIntegers: TypeAlias = FlatHostIntegers | TorchTensor | JaxArray
Integers: TypeAlias = HostIntegers | TorchTensor | JaxArray
