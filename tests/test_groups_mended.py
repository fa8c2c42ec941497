"""Groups by id: a case of each kind that somebody found broken."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.sharding import NamedSharding
from test_groups_by_id import IDS, REWARDS, WANT, WHERE, N, close
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing._internal.logging_tensor import LoggingTensor
from torch.utils.flop_counter import FlopCounterMode

import pkpo_kernels as pk


def test_a_k_for_each_entry_that_the_host_knows() -> None:
    ks = [2 + int(one) % 2 for one in IDS]
    want = pk.transform_groups(REWARDS, IDS, ks)
    tensor, array = torch.from_numpy(REWARDS), jnp.asarray(REWARDS)
    close(pk.transform_groups(tensor, IDS, ks, implementation="torch"), want)
    close(pk.transform_groups(array, IDS, np.array(ks), implementation="xla"), want)
    close(jax.jit(lambda x: pk.transform_groups(x, IDS, ks))(array), want)
    blocks = pk.transform_groups(REWARDS, 6, 2)
    close(pk.transform_groups(tensor, 6, [2] * N, implementation="torch"), blocks)
    close(jax.jit(lambda x: pk.transform_groups(x, 6, [2] * N))(array), blocks)
    short = torch.full((N,), 3, dtype=torch.uint16)
    close(pk.transform_groups(tensor, IDS, short, implementation="torch"))


def test_constants_inside_a_program() -> None:
    rewards, ids = jnp.asarray(REWARDS), [int(one) for one in IDS]
    close(jax.jit(lambda x: x * pk.transform_groups(rewards, ids, 3))(1.0))
    blocks = pk.transform_groups(REWARDS, 6, 3)
    close(jax.jit(lambda x: x * pk.transform_groups(rewards, 6, 3))(1.0), blocks)


def test_integers_are_as_exact_as_their_result() -> None:
    rewards = torch.tensor([2**24 + 1, 2**24])
    torch.set_default_dtype(torch.float64)
    try:
        got = pk.transform_groups(rewards, [0, 0], 1, scale="sum")
    finally:
        torch.set_default_dtype(torch.float32)
    assert got.dtype == torch.float64 and got.tolist() == [0.5, -0.5]


def test_a_k_below_1_is_undersized_whatever_undersized_says() -> None:
    for array in (torch.tensor, jnp.asarray):
        for k in (0, [0] * N):
            got = pk.transform_groups(array(REWARDS), IDS, array(k), undersized="clip")
            assert not np.asarray(got).any()
    huge = torch.full((N,), 2**64 - 1, dtype=torch.uint64)
    assert not pk.transform_groups(torch.from_numpy(REWARDS), IDS, huge).any()


def test_arrays_that_may_go_anywhere_still_may() -> None:
    elsewhere = jax.device_put(jnp.ones(N), jax.devices()[1])
    close(pk.transform_groups(jnp.asarray(REWARDS), IDS, 3) * elsewhere)


@pytest.mark.filterwarnings("error")
def test_results_that_overflow_are_no_warnings() -> None:
    with np.errstate(all="raise"):
        got = pk.transform_groups(np.float32([0, 3e38]), [0, 0], 1, scale=100.0)
        pk.transform_groups(np.float16([0, 1e-7, 2]), [0, 0, 0], 2, scale=0.3)
    assert got.tolist() == [-np.inf, np.inf]


def test_a_list_of_integers_under_compile() -> None:
    ids = IDS.tolist()
    call = torch.compile(lambda x: pk.transform_groups(x, ids, 3), backend="eager", fullgraph=True)
    close(call(torch.from_numpy(REWARDS)))


def test_text_of_numpys_newer_kind() -> None:
    close(pk.transform_groups(REWARDS, IDS.astype(str).astype(np.dtypes.StringDType()), 3))


def test_ids_without_memory_to_share() -> None:
    got = pk.transform_groups(
        torch.ones(1), np.array([7])[::-1], 1, estimator="s", implementation="torch"
    )
    assert got == 1


def test_integers_that_torch_can_hardly_index() -> None:
    rewards = torch.tensor([1, 0, 2, 0], dtype=torch.uint32)
    options: dict[str, Any] = {"scale": "sum", "implementation": "torch"}
    got = pk.transform_groups(rewards, torch.tensor([0, 1, 0, 1]), 2, **options)
    assert got.tolist() == [0, 0, 1, 0]


def test_rewards_without_values() -> None:
    rewards, ids = torch.empty(N, device="meta"), torch.zeros(N, device="meta").long()
    assert pk.transform_groups(rewards, ids, 3).shape == (N,)


def test_names_are_checked_before_any_work() -> None:
    bogus: Any = "bogus"
    with pytest.raises(ValueError, match="'bogus'"):
        pk.transform_groups([], [], 1, implementation=bogus)
    assert pk.transform_groups([], [], []).shape == (0,)


def test_ids_that_run_backwards() -> None:
    rewards = torch.from_numpy(REWARDS[::-1].copy())
    got = pk.transform_groups(rewards, IDS[::-1], 3, implementation="torch")
    close(got, WANT[::-1])


def test_torch_is_told_where_to_work() -> None:
    torch.set_default_device("meta")
    try:
        got = pk.transform_groups(torch.from_numpy(REWARDS), IDS, 3, implementation="torch")
    finally:
        torch.set_default_device(None)
    close(got)


def test_what_could_not_be_scored_makes_no_nan_on_the_way() -> None:
    rewards = jnp.asarray([np.nan, 1, 2, 3], jnp.bfloat16)
    with jax.debug_nans(True):
        got = pk.transform_groups(rewards, 2, 2, implementation="xla")
        jax.jit(lambda x: pk.transform_groups(x, jnp.asarray([0, 1, 1, 0]), 2))(rewards)
    assert np.asarray(got, float).tolist() == [0, 0, 0, 2]


def test_a_call_that_goes_the_long_way_is_not_remembered_as_a_short_one() -> None:
    ids = torch.tensor([0, 1, 0, 0, 1])
    for dtype in (torch.uint16, torch.uint32):
        rewards = torch.tensor([0, 1, 0, 3, 2], dtype=dtype)
        first, second = (
            pk.transform_groups(rewards, ids, 2, implementation="torch") for _ in range(2)
        )
        assert torch.equal(first, second)
    for _ in range(2):
        nowhere = pk.transform_groups(torch.zeros(5, device="meta"), ids.to("meta"), 2)
        assert nowhere.is_meta and nowhere.shape == (5,)


class Logged(torch.Tensor):
    """A tensor of a class of its own, whose values are there."""


def test_what_only_watches_hides_no_values() -> None:
    tensor = torch.from_numpy(REWARDS)
    text = [f"task {one}" for one in IDS]
    got = pk.transform_groups(tensor.as_subclass(Logged), text, 3)
    close(got)
    assert type(got) is type(pk.transform(tensor.as_subclass(Logged), 3)) is Logged
    matrix = LoggingTensor(tensor.reshape(-1, 6))  # whose values are elsewhere
    close(pk.transform(matrix, 3).elem, pk.transform(tensor.reshape(-1, 6), 3))
    with FlopCounterMode(display=False):
        close(pk.transform_groups(tensor, text, 3))
        assert pk.group_metrics(tensor, [1], groups=text)["groups"] == len(set(text))
        for rewards in (tensor, tensor.as_subclass(Logged)):
            with pytest.raises(ValueError, match="k must not vary within a group"):
                pk.transform_groups(rewards, IDS, list(range(1, N + 1)))
    with FakeTensorMode() as mode:
        fake = mode.from_tensor(tensor)
        with pytest.raises(TypeError, match="groups must be integers inside"):
            pk.transform_groups(fake, text, 3)
    with pytest.raises(TypeError, match="groups must be integers inside"):
        make_fx(lambda x: pk.transform_groups(x, text, 3))(tensor)
    ids = torch.from_numpy(IDS)
    traced = make_fx(lambda x: pk.transform_groups(x, ids, 3), pre_dispatch=True)(0 * tensor)
    close(traced(tensor))


def test_whatever_is_spread_over_a_mesh() -> None:
    mesh = jax.make_mesh((4,), ("x",), axis_types=(jax.sharding.AxisType.Explicit,))

    def spread(values: Any, *axes: Any) -> jax.Array:
        return jax.device_put(values, NamedSharding(mesh, jax.P(*axes)))

    rewards, ks = jnp.asarray(REWARDS), np.full(N, 3)
    close(jax.jit(lambda x, i: pk.transform_groups(x, i, 3))(rewards, spread(IDS, "x")))
    close(pk.transform_groups(rewards, IDS, spread(ks, "x")))
    columns = np.repeat(IDS[:, None], 4, 1)
    got = pk.transform_groups(spread(REWARDS, "x"), spread(columns, None, "x"), 3)
    close(got)
    assert got.sharding.spec == jax.P("x")
    got = pk.transform_groups(rewards, IDS, 3, where=spread(np.ones((N, 4)), None, "x"))
    close(got)
    want = pk.group_metrics(REWARDS, [1, 2], groups=6, k=2)
    got = pk.group_metrics(spread(REWARDS, "x"), [1, 2], groups=6, k=2)
    assert {name: float(x) for name, x in got.items()} == pytest.approx(want, rel=1e-5)
    samples = np.arange(N) % 5
    want = pk.group_metrics(REWARDS, [1, 2], groups=IDS, samples=samples, k=2)
    for how in ((spread(REWARDS, "x"), IDS), (rewards, spread(IDS, "x"))):
        got = pk.group_metrics(how[0], [1, 2], groups=how[1], samples=samples, k=2)
        assert {name: float(x) for name, x in got.items()} == pytest.approx(want, rel=1e-5)
    # Blocks of which only the mask, or the ks, are spread: across devices, and whole on them.
    for n in (2, 5, 30):
        want = pk.transform_groups(REWARDS, n, 2, where=WHERE)
        close(
            jax.jit(lambda x, w, n=n: pk.transform_groups(x, n, 2, where=w))(
                rewards, spread(WHERE, "x")
            ),
            want,
        )
        want = pk.transform_groups(REWARDS, n, 2)
        close(pk.transform_groups(rewards, n, spread(np.full(N, 2), "x")), want)


def test_a_mesh_of_one_device_is_kept() -> None:
    for kind in (jax.sharding.AxisType.Explicit, jax.sharding.AxisType.Auto):
        sharding = NamedSharding(jax.make_mesh((1,), ("x",), axis_types=(kind,)), jax.P("x"))
        rewards = jax.device_put(REWARDS, sharding)
        assert pk.transform_groups(rewards, IDS, 3).sharding == sharding
    matrix = jax.device_put(REWARDS.reshape(-1, 6), sharding)
    assert pk.transform(matrix, 3).sharding == sharding


def test_ks_of_any_integer_dtype() -> None:
    blocks = pk.transform_groups(REWARDS, 6, 2)
    array = jnp.asarray(REWARDS)
    for dtype in ("uint8", "int8", "uint16", "uint32"):
        ks = jnp.full(N, 2, dtype)
        close(jax.jit(lambda x, k: pk.transform_groups(x, 6, k))(array, ks), blocks)
        with jax.numpy_dtype_promotion("strict"):
            got = jax.jit(lambda x, k: pk.group_metrics(x, [1], groups=6, k=k))(array, ks[0])
        assert got["undersized"] == 0
    most = jnp.asarray(2**32 - 1, jnp.uint32)
    assert pk.group_metrics(array, [1], groups=6, k=most)["undersized"] == 1


def test_ids_inside_a_program_that_int64_lacks() -> None:
    ids = [2**64 - 1 - int(one) for one in IDS]
    close(jax.jit(lambda x: pk.transform_groups(x, ids, 3))(jnp.asarray(REWARDS)))


def test_integers_that_a_list_with_floats_would_round() -> None:
    large, ids = 2**53, [0, 0, 0]
    for call in (
        lambda rewards, where=None: pk.transform_groups(rewards, ids, 2, where=where),
        lambda rewards, where=None: pk.group_metrics(rewards, [2], groups=ids, where=where),
    ):
        for rewards in ([large + 1, large, np.nan], [-large - 3, np.nan, 1.5], [2**70, 1, np.nan]):
            written = f"2\\*\\*53 in magnitude.* got {rewards[0]}:"
            with pytest.raises(ValueError, match=written):
                call(rewards)
            with pytest.raises(ValueError, match=written):
                call(rewards, [True, True, False])
    # What does not count may be anything.
    kept = pk.transform_groups([large, large + 1, large - 1.0], ids, 2, where=[True, False, True])
    np.testing.assert_array_equal(kept, [3, 0, 0])


def test_a_length_that_is_a_symbol() -> None:
    (n,) = jax.export.symbolic_shape("N")
    of_any = jax.export.export(jax.jit(lambda x: pk.transform_groups(x, 6, 2)))
    with pytest.raises(ValueError, match=r"rewards must have a known length; got shape \(N,\)"):
        of_any(jax.ShapeDtypeStruct((n,), jnp.float32))


def test_what_is_odd_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match="n must be an integer"):
        pk.warm_up(4.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="what must be one of"):
        pk.warm_up(8, what=5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"k\[1\] must be"):
        pk.warm_up(8, k=[4, 0])
    with pytest.raises(ValueError, match="scale must be one of"):
        pk.group_metrics(np.eye(3), [1], scale="x")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="where must be bool or numbers"):
        pk.group_metrics(np.eye(3), [1], where=[["a", "", "False"]] * 3)
    assert pk.group_metrics(np.eye(3), np.array(2))["pass@2"] == pytest.approx(2 / 3)
    with pytest.raises(TypeError, match=r"k must be one array.*jnp.stack\(k\)(?!,)"):
        jax.jit(lambda k: pk.max_at_k(jnp.ones((2, 4)), [k, k + 1]))(1)
    with pytest.raises(ValueError, match="text must be k@step"):
        pk.schedules.parse("9" * 5000)
    step = torch.tensor([2**63 + 5, 3], dtype=torch.uint64)
    assert pk.schedules.parse("8@0,1@5")(step).tolist() == [1, 8]
    with torch.device("meta"):
        assert pk.schedules.parse("8@0,1@5")(torch.tensor(6, device="cpu")).item() == 1
