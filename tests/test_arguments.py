"""Arguments that are refused, with the name, the value and what would be right."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.experimental.sparse import BCOO

import pkpo_kernels as pk

REWARDS = np.arange(12.0).reshape(3, 4)
# JAX's own, of parts: to make one of an array compiles programs.
SPARSE = BCOO((np.ones(1), np.zeros((1, 2), np.int32)), shape=(3, 3))


class Sparse:
    """As SciPy's are."""

    def __repr__(self) -> str:
        return "Sparse()"  # the same in every process: part of a test's id

    def todense(self) -> Any: ...


def check_refusal(
    call: Any, arguments: dict[str, Any], error: type[Exception], words: list[str]
) -> None:
    with pytest.raises(error) as caught:
        call(**{"rewards": REWARDS, "k": 2, **arguments})
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    "arguments, error, words",
    [
        ({"k": 0}, ValueError, ["k must be at least 1", "k=0"]),
        ({"k": -2}, ValueError, ["k=-2"]),
        ({"k": [True, 2, 1]}, TypeError, ["k must be an integer", "True"]),
        ({"k": np.ma.array([1, 2, 3], mask=[0, 1, 0])}, TypeError, ["k must", "masked array"]),
        (
            {"rewards": [[np.nan, 1.0], [2**53 + 1, 2**53]]},
            ValueError,
            ["rewards", "2**53"],
        ),
        ({"k": 5}, ValueError, ["k=5", "n=4", "at most the number of samples"]),
        ({"k": [1, 2, 9]}, ValueError, ["k=9", "n=4"]),
        ({"k": [1, 2]}, ValueError, ["k must broadcast", "(3,)", "(2,)"]),
        ({"k": 4, "estimator": "sloo"}, ValueError, ["k=4", "n=4", "'sloo'"]),
        ({"k": 4, "estimator": "centered"}, ValueError, ["k=4", "'centered'"]),
        ({"k": 2.0}, TypeError, ["k must be an integer", "2.0"]),
        ({"k": True}, TypeError, ["k must be an integer", "True"]),
        ({"k": "2"}, TypeError, ["k must be an integer", "'2'"]),
        ({"k": None}, TypeError, ["k must be an integer", "None"]),
        ({"k": np.array([1.5, 2, 2])}, TypeError, ["k must be an integer"]),
        ({"k": torch.tensor(2)}, TypeError, ["k must", "numpy", "torch"]),
        ({"k": np.uint64(2**63)}, ValueError, ["k=9223372036854775808", "n=4"]),
        ({"k": 2**70}, ValueError, ["k=1180591620717411303424", "n=4"]),
        ({"k": [1, 2, 2**70]}, ValueError, ["k=1180591620717411303424", "n=4"]),
        ({"k": np.array([1, 2, 2**63], np.uint64)}, ValueError, ["k=9223372036854775808"]),
        ({"k": [torch.tensor(1)] * 3}, TypeError, ["k must be one array", "torch.stack(k)"]),
        ({"estimator": "pkpo"}, ValueError, ["estimator", "'pkpo'", "sloo_minus_one"]),
        ({"estimator": "slo"}, ValueError, ["got 'slo'; did you mean 'sloo'?"]),
        ({"estimator": "SLOO-minus-one"}, ValueError, ["did you mean 'sloo_minus_one'?"]),
        ({"estimator": None}, ValueError, ["estimator", "None"]),
        ({"scale": "max"}, ValueError, ["scale", "'max'", "sum, mean"]),
        ({"scale": "means"}, ValueError, ["did you mean 'mean'?"]),
        (
            {"scale": "mean", "estimator": "passk_training"},
            ValueError,
            ["scale must be 'sum'", "'passk_training'", "got 'mean'"],
        ),
        ({"undersized": "zeros"}, ValueError, ["did you mean 'zero'?"]),
        ({"implementation": "trition"}, ValueError, ["None or one of", "did you mean 'triton'?"]),
        ({"undersized": "drop"}, ValueError, ["undersized", "'drop'", "zero, nan, clip"]),
        ({"implementation": "cuda"}, ValueError, ["implementation", "'cuda'", "numpy"]),
        ({"implementation": "xla"}, ValueError, ["'xla'", "jax", "numpy"]),
        ({"implementation": "torch"}, ValueError, ["'torch'", "'numpy', 'reference'"]),
        (
            {"implementation": "triton"},
            ValueError,
            ["'triton' serves torch arrays", "numpy"],
        ),
        ({"implementation": "pallas"}, ValueError, ["'pallas' serves jax arrays", "numpy"]),
        ({"where": np.ones((3, 3), bool)}, ValueError, ["where", "(3, 4)", "(3, 3)"]),
        ({"where": np.ones(4, bool)}, ValueError, ["where", "(3, 4)", "(4,)"]),
        ({"where": np.ones((3, 4))}, TypeError, ["where", "bool", "float64"]),
        ({"where": torch.ones(3, 4, dtype=torch.bool)}, TypeError, ["where", "numpy", "torch"]),
        ({"where": jnp.ones((3, 4), bool)}, TypeError, ["where", "numpy", "jax"]),
        ({"axis": 2}, ValueError, ["axis", "-2..1", "2"]),
        ({"axis": -3}, ValueError, ["axis", "-3"]),
        ({"axis": 0.5}, TypeError, ["axis", "0.5"]),
        ({"rewards": 3.0}, ValueError, ["rewards", "scalar"]),
        ({"rewards": np.zeros((3, 0))}, ValueError, ["k=2", "n=0"]),
        ({"rewards": np.zeros((3, 4), complex)}, TypeError, ["rewards", "complex128"]),
        ({"rewards": [["a", "b"]]}, TypeError, ["rewards", "str"]),
        ({"rewards": np.array([[1, None, 2]])}, TypeError, ["None at rewards[0][1]", "where="]),
        ({"rewards": [[1.0, 2.0], [3, None]]}, TypeError, ["None at rewards[1][1]", "where="]),
        ({"rewards": np.array([[1, "a"]], object)}, TypeError, ["rewards", "object"]),
        ({"rewards": None}, TypeError, ["rewards must be an array", "None"]),
        ({"rewards": {"a": [1, 2]}}, TypeError, ["rewards must be an array", "{'a'"]),
        ({"rewards": [[1.0, 2.0], [3.0]]}, ValueError, ["equally long", "pad, and pass where="]),
        ({"rewards": [torch.zeros(4)] * 3}, TypeError, ["one array", "torch.stack(rewards)"]),
        ({"rewards": [[torch.tensor(1.0)] * 2]}, TypeError, ["torch.stack(rewards)"]),
        ({"rewards": (jnp.zeros(4), jnp.zeros(3))}, TypeError, ["jnp.stack(rewards)", "where="]),
        ({"rewards": [np.ma.masked_array([1.0, 2.0])]}, TypeError, ["rewards[0]", "where=~mask"]),
        ({"where": [[True, None]]}, TypeError, ["None at where[0][1]"]),
        ({"rewards": np.zeros((2, 3), np.longdouble)}, TypeError, ["rewards", "float32"]),
        ({"rewards": np.ma.masked_array([1.0, 2.0])}, TypeError, ["rewards", "where=~mask"]),
        ({"rewards": torch.zeros(3, 4, dtype=torch.complex64)}, TypeError, ["complex64"]),
        ({"rewards": jnp.zeros((3, 4), jnp.complex64)}, TypeError, ["rewards", "complex64"]),
        ({"rewards": torch.zeros(3, 4), "k": jnp.asarray(2)}, TypeError, ["k must", "jax"]),
        ({"rewards": torch.zeros(3, 4), "k": torch.tensor(2.0)}, TypeError, ["k", "float32"]),
        ({"rewards": jnp.zeros((3, 4)), "k": jnp.asarray(True)}, TypeError, ["k", "bool"]),
        ({"rewards": jnp.zeros((3, 4)), "k": 5}, ValueError, ["k=5", "n=4"]),
        ({"rewards": torch.zeros(3, 4), "where": np.ones((3, 4), bool)}, TypeError, ["where"]),
        ({"rewards": torch.eye(3).to_sparse()}, TypeError, ["sparse_coo", "rewards.to_dense()"]),
        (
            {"rewards": torch.zeros(2, 2), "where": torch.ones(2, 2).bool().to_sparse()},
            TypeError,
            ["where.to_dense()"],
        ),
        ({"rewards": SPARSE}, TypeError, ["BCOO", "rewards.todense()"]),
        ({"rewards": Sparse()}, TypeError, ["Sparse", "rewards.todense()"]),
    ],
    ids=str,
)
def test_wrong_arguments_are_named(
    arguments: dict[str, Any], error: type[Exception], words: list[str]
) -> None:
    check_refusal(pk.transform, arguments, error, words)


@pytest.mark.parametrize(
    "arguments, error, words",
    [
        ({"k": []}, ValueError, ["k must name at least one"]),
        ({"k": [[1, 2]]}, ValueError, ["flat sequence", "(1, 2)"]),
        ({"k": [1, 5]}, ValueError, ["k=5", "n=4"]),
        ({"k": [1, 2.5]}, TypeError, ["k must be an integer"]),
        ({"axis": 5}, ValueError, ["axis", "5"]),
        ({"rewards": "abc"}, TypeError, ["rewards", "str"]),
    ],
    ids=str,
)
def test_wrong_arguments_of_max_at_k(
    arguments: dict[str, Any], error: type[Exception], words: list[str]
) -> None:
    check_refusal(pk.max_at_k, arguments, error, words)


@pytest.mark.filterwarnings("ignore::UserWarning")  # they are in beta, or to go
@pytest.mark.parametrize(
    "make, words",
    [
        (lambda x: x.to_sparse_csr(), "layout torch.sparse_csr: pass rewards.to_dense()"),
        (
            lambda x: torch.nested.nested_tensor([x[0], x[0, :2]]),
            "to_padded_tensor(rewards, 0.0), and where=",
        ),
        pytest.param(
            lambda x: torch.nested.nested_tensor([x[0], x[0, :2]], layout=torch.jagged),
            "to_padded_tensor(rewards, 0.0), and where=",
            marks=pytest.mark.slow,  # to import
        ),
        (
            lambda x: torch.masked.masked_tensor(x, x == 0),
            "rewards.get_data(), and where=rewards.get_mask()",
        ),
        (lambda x: torch.quantize_per_tensor(x, 1.0, 0, torch.qint8), "rewards.dequantize()"),
    ],
    ids=["csr", "nested", "jagged", "masked", "quantized"],
)
def test_tensors_that_are_more_than_their_numbers_are_refused(make: Any, words: str) -> None:
    with pytest.raises(TypeError, match="rewards must be a dense, local tensor; got") as caught:
        pk.transform(make(torch.zeros(2, 3)), 2)
    assert words in str(caught.value)


def test_distributed_tensors_are_refused() -> None:
    stand_in = torch.zeros(2, 3).as_subclass(type("DTensor", (torch.Tensor,), {}))
    with pytest.raises(TypeError, match=r"got a DTensor: pass rewards.to_local\(\)"):
        pk.transform(stand_in, 2)


@pytest.mark.slow  # to import
def test_distributed_rewards_that_only_ids_group_are_refused() -> None:
    from torch import distributed
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        rewards = distribute_tensor(torch.zeros(6), init_device_mesh("cpu", (1,)), [Shard(0)])
        with pytest.raises(TypeError, match=r"got a DTensor: pass rewards.to_local\(\)"):
            pk.transform_groups(rewards, [1, 1, 1, 2, 2, 2], 2)
    finally:
        distributed.destroy_process_group()


LIBRARIES: dict[str, Any] = {"numpy": np.asarray, "torch": torch.asarray, "jax": jnp.asarray}


@pytest.mark.parametrize("library", LIBRARIES)
class TestAKThatIsTooLarge:
    """On the host. What each row then gets is in the contract."""

    @pytest.mark.parametrize("undersized", ["zero", "nan", "clip"])
    def test_it_is_an_error_where_no_group_has_a_way_out(
        self, library: str, undersized: Any
    ) -> None:
        rewards = LIBRARIES[library](REWARDS.astype(np.float32))
        for estimator, k, words in (
            ("sloo_minus_one", 5, "at most the number of samples; got k=5 with n=4"),
            ("s", [1, 2, 2**70], "at most the number of samples; got k=1180591620717411303424"),
            ("sloo", 4, "less than the number of samples .*'sloo'.* got k=4 with n=4"),
            ("centered", [4, 1, 1], "less than the number of samples .*'centered'.* got k=4"),
        ):
            options: dict[str, Any] = {"estimator": estimator, "undersized": undersized}
            if undersized != "clip":
                with pytest.raises(ValueError, match=words):
                    pk.transform(rewards, k, **options)
            elif library != "jax":  # where each is a program to compile
                pk.transform(rewards, k, **options)
            if library != "jax":
                pk.transform(rewards, k, where=rewards > 1, **options)

    def test_below_1_is_an_error_whatever_the_policy(self, library: str) -> None:
        rewards = LIBRARIES[library](REWARDS.astype(np.float32))
        for k in (0, -(2**70), [1, 0, 9]):
            with pytest.raises(ValueError, match="k must be at least 1; got k="):
                pk.transform(rewards, k, undersized="clip")
            with pytest.raises(ValueError, match="k must be at least 1; got k="):
                pk.max_at_k(rewards, k, where=rewards > 1)

    def test_max_at_k(self, library: str) -> None:
        rewards = LIBRARIES[library](REWARDS.astype(np.float32))
        for k in (5, [1, 5], 2**70):
            with pytest.raises(ValueError, match="at most the number of samples; got k="):
                pk.max_at_k(rewards, k)
        if library != "jax":
            got = np.asarray(pk.max_at_k(rewards, [2, 5, 2**70], where=rewards > 1))
            np.testing.assert_array_equal(np.isnan(got), [[0, 1, 1]] * 3)

    def test_groups_that_admit_no_k(self, library: str) -> None:
        rewards = LIBRARIES[library](REWARDS.astype(np.float32))
        clip: dict[str, Any] = {"undersized": "clip"}
        none = rewards[:, :0]
        assert pk.transform(none, 3, **clip).shape == (3, 0)
        assert pk.transform(none, 3, where=none > 0).dtype == rewards.dtype
        assert np.isnan(np.asarray(pk.max_at_k(none, [1, 2], where=none > 0))).all()


def test_integers_that_float64_confuses_are_refused() -> None:
    large = 2**53
    for rewards in (
        [1, large + 1],
        [[0.5, 1], [0, large + 1]],
        [0, -large - 1],
        [1, 2**63],
        [1, 2**70],
        [0.5, 2**70],
        np.array([large + 1, 0]),
        np.array([large + 1, 0], np.uint64),
        np.array([-(2**63), 0]),
    ):
        with pytest.raises(
            ValueError, match=r"integers of at most 2\*\*53 in magnitude.* got -?\d+:"
        ):
            pk.transform(rewards, 1)
        with pytest.raises(ValueError, match=r"at most 2\*\*53 .*task 0"):
            pk.evaluate([np.ravel(np.array(rewards, object)).tolist()], 1)
    np.testing.assert_array_equal(pk.max_at_k([large, -large], [1, 2]), [0, large])
    masked = pk.transform([large + 1, 1, 2], 2, where=[False, True, True])
    np.testing.assert_array_equal(masked, [0, 0, 1])
    evaluated = pk.evaluate([[large + 1, 1, 2]], 1, where=[[False, True, True]])
    assert evaluated.rows[0].estimate == 1.5
    # Floats are what they are.
    assert pk.max_at_k([1e300, 0.0], 2) == 1e300
