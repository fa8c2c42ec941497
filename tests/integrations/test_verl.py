"""The estimator "pkpo" in verl's own registry, compute_advantage, losses and V1 trainer."""

from __future__ import annotations

import logging
import os
import shlex
import subprocess
import sys
import uuid
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

verl = pytest.importorskip("verl")

import hydra  # noqa: E402
import ray  # noqa: E402
import torch  # noqa: E402
import transfer_queue as tq  # noqa: E402
from alone import each_group_alone  # noqa: E402
from omegaconf import OmegaConf  # noqa: E402
from readme import example  # noqa: E402
from verl.trainer.ppo import core_algos  # noqa: E402
from verl.trainer.ppo.padding_utils import upsample_batch_to_divisible_size  # noqa: E402
from verl.trainer.ppo.ray_trainer import compute_advantage  # noqa: E402
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync  # noqa: E402
from verl.utils.skip import SkipManager  # noqa: E402
from verl.utils.tensordict_utils import list_of_dict_to_tensordict  # noqa: E402

import pkpo_kernels as pk  # noqa: E402
from pkpo_kernels.integrations import Options  # noqa: E402
from pkpo_kernels.integrations import verl as plugin  # noqa: E402


def composed(*overrides: str) -> Any:
    """verl's configuration, as its command line composes it."""
    with hydra.initialize_config_module("verl.trainer.config", version_base=None):
        estimator = "algorithm.adv_estimator=pkpo"
        return hydra.compose("ppo_trainer", overrides=[estimator, *overrides])


def run(*arguments: str, **environment: str) -> SimpleNamespace:
    """Run Python in a process of its own → what it printed, `out`, and logged, `log`."""
    path = os.pathsep.join([environment.pop("PYTHONPATH", ""), *sys.path])
    done = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        env=os.environ | environment | {"PYTHONPATH": path},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return SimpleNamespace(out=done.stdout, log=done.stderr)


class Ragged:
    """A batch as verl has it: uids in any order, groups of many sizes, entries of no token."""

    def __init__(self) -> None:
        rng = np.random.default_rng(20250520)
        sizes = (8, 5, 1, 3, 8, 7)
        uids = np.array([id for n in sizes for id in [str(uuid.UUID(int=n))] * n], object)
        uids[:8] = str(uuid.UUID(int=80))  # not the other group of 8
        self.uids = rng.permutation(uids)
        lengths = rng.integers(1, 13, len(uids))
        lengths[[2, 9]] = 0
        self.valid = lengths > 0
        self.mask = torch.tensor(np.arange(12) < lengths[:, None]).long()
        self.scores = rng.integers(0, 3, len(uids)).astype(float)
        self.rewards = torch.zeros(len(uids), 12)
        self.rewards[range(len(uids)), lengths - 1] = torch.tensor(self.scores).float()

    def advantages(self, config: Any) -> torch.Tensor:
        data = verl.DataProto.from_dict(
            {"token_level_rewards": self.rewards.clone(), "response_mask": self.mask.clone()},
            non_tensors={"uid": self.uids},
        )
        batch = compute_advantage(data, adv_estimator="pkpo", config=config).batch
        assert batch["returns"] is batch["advantages"]
        return batch["advantages"]

    def expected(self, k: int, estimator: str = "sloo_minus_one") -> np.ndarray[Any, Any]:
        return each_group_alone(self.scores, self.uids, k, valid=self.valid, estimator=estimator)


def assert_close(advantages: torch.Tensor, expected: Any, mask: torch.Tensor) -> None:
    assert advantages.dtype == torch.float32
    tokens = np.asarray(expected)[:, None] * mask.numpy()
    np.testing.assert_allclose(advantages.numpy(), tokens, rtol=5e-6, atol=1e-9)


def test_verl_loads_the_plugin_by_itself() -> None:
    (plugged,) = entry_points(group="verl.plugins", name="pkpo")
    assert plugged.value == plugin.__name__
    program = """
import sys, verl
from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY
print("pkpo" in ADV_ESTIMATOR_REGISTRY, "verl.trainer.ppo.v1.trainer_base" in sys.modules)
"""
    assert "True False" in run("-c", program).out


def test_a_plugin_that_fails_to_load_says_why(tmp_path: Path) -> None:
    (tmp_path / "earlier.py").write_text(
        "from verl.trainer.ppo.core_algos import register_adv_est\n"
        "register_adv_est('pkpo')(lambda **_: None)\n"
    )
    path = str(tmp_path)
    said = run("-c", "import verl", PYTHONPATH=path, VERL_USE_EXTERNAL_MODULES="earlier").log
    (line,) = [line for line in said.splitlines() if "pkpo: " in line]
    assert line.startswith("WARNING")
    assert "the estimator is not registered: ValueError: Adv estimator pkpo has already" in line


def test_a_trainer_that_was_imported_earlier_is_wrapped_too() -> None:
    program = f"""
from verl.trainer.ppo.v1.trainer_base import PPOTrainer
print(hasattr(PPOTrainer._compute_advantage, "__wrapped__"))
import {plugin.__name__}
print(hasattr(PPOTrainer._compute_advantage, "__wrapped__"))
"""
    assert "False\nTrue\n" in run("-c", program, VERL_USE_EXTERNAL_PLUGINS="none").out


def test_another_v1_trainer_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        plugin._wrap_trainer_of(SimpleNamespace(PPOTrainer=object))
    assert "this verl's V1 trainer is another than 0.9.1's" in caplog.text


class TestComputeAdvantage:
    @pytest.mark.parametrize("form", ["DictConfig", "dict"])
    def test_ragged_groups_in_any_order(self, form: str) -> None:
        batch, config = Ragged(), composed("+algorithm.pkpo_k=4").algorithm
        advantages = batch.advantages(config if form == "DictConfig" else dict(config))
        assert_close(advantages, batch.expected(4), batch.mask)
        assert (advantages[batch.uids == str(uuid.UUID(int=3))] == 0).all()
        assert (advantages != 0).any()

    def test_every_option(self) -> None:
        batch = Ragged()
        names = ("k=2", "estimator=s", "scale=1", "undersized=nan")
        config = composed(*(f"+algorithm.pkpo_{name}" for name in names)).algorithm
        expected = batch.expected(2, "s") * 6 / 32
        expected[batch.uids == str(uuid.UUID(int=1))] = np.nan
        tokens = np.where(batch.mask.numpy() != 0, expected[:, None], 0)
        advantages = batch.advantages(config).numpy()
        np.testing.assert_allclose(advantages, tokens, rtol=5e-6, atol=1e-6)

    def test_a_mistake_in_the_configuration_is_no_default(self) -> None:
        with pytest.raises(ValueError, match=r"k must be set.*pkpo_k in the configuration"):
            Ragged().advantages(composed().algorithm)
        with pytest.raises(TypeError, match="got pkpo_estimater; did you mean pkpo_estimator"):
            overrides = ("+algorithm.pkpo_k=4", "+algorithm.pkpo_estimater=s")
            Ragged().advantages(composed(*overrides).algorithm)

    def test_a_schedule_gets_the_legacy_trainers_step(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        batch, config = Ragged(), composed('+algorithm.pkpo_k="4@0,2@100"').algorithm
        with pytest.raises(ValueError, match="k must be an integer here, where the trainer tells"):
            batch.advantages(config)
        for step, k in ((99, 4), (100, 2)):
            monkeypatch.setattr(SkipManager, "step", step)
            assert_close(batch.advantages(config), batch.expected(k), batch.mask)

    @pytest.mark.parametrize("sessions", [False, True])
    def test_a_batch_without_a_valid_entry_gets_zeros(self, sessions: bool) -> None:
        batch, config, metrics = Ragged(), composed("+algorithm.pkpo_k=4"), {}
        batch.mask = torch.zeros_like(batch.mask)
        keys = [f"{uid}_{i}_0" for i, uid in enumerate(batch.uids)]
        call = {
            "self": SimpleNamespace(config=config, global_steps=1),
            "batch": SimpleNamespace(keys=keys),
            "metrics": metrics,
        }
        token = plugin._call.set(call if sessions else None)
        try:
            advantages = batch.advantages(config.algorithm)
        finally:
            plugin._call.reset(token)
        assert advantages.shape == (32, 12) and (advantages == 0).all()
        assert metrics.get("pkpo/groups", 0) == 0

    def test_prompts_need_uids(self) -> None:
        with pytest.raises(ValueError, match="index must be the prompts' uids; got None"):
            plugin.advantages(torch.ones(4, 2), torch.ones(4, 2), {"pkpo_k": 2})


@pytest.mark.parametrize(
    ("mode", "factor"), [("seq-mean-token-sum", 1.0), ("seq-mean-token-sum-norm", 1 / 64)]
)
def test_the_gradient_is_the_papers(mode: str, factor: float) -> None:
    """The gradient of verl's loss, divided as its workers divide it by all entries of the batch, is
    that of the mean over prompts of Σ_i t_i log p(sample_i)."""
    batch = Ragged()
    advantages = batch.advantages(composed("+algorithm.pkpo_k=4").algorithm)
    log_p = torch.zeros(advantages.shape, requires_grad=True)
    ratio = torch.exp(log_p - log_p.detach())
    loss = core_algos.agg_loss(
        -advantages * ratio, batch.mask, mode, global_batch_size=32, loss_scale_factor=64
    )
    loss.backward()

    prompts = set(batch.uids[batch.valid])
    paper = np.zeros(32)
    for uid in prompts:
        own = np.flatnonzero((batch.uids == uid) & batch.valid)
        if len(own) >= 4:
            paper[own] = pk.transform(batch.scores[own], 4, implementation="reference")
    assert_close(-log_p.grad, factor * paper / len(prompts), batch.mask)


@pytest.fixture(scope="module")
def transfer_queue() -> Iterator[None]:
    """verl's TransferQueue, on a Ray of this machine."""
    ray.init(
        num_cpus=8, include_dashboard=False, log_to_driver=False, object_store_memory=100 * 2**20
    )
    tq.init(
        composed("transfer_queue.backend.SimpleStorage.num_data_storage_units=1").transfer_queue
    )
    yield
    tq.close()
    ray.shutdown()


class V1Trainer(PPOTrainerSync):  # type: ignore[misc]
    """verl's trainer without its workers: it computes the advantages of what is in the queue."""

    def __init__(self, config: Any, step: int) -> None:
        self.config, self.global_steps = config, step


def test_v1_trainer(transfer_queue: None) -> None:
    """Sessions of several outputs, mixed with others and padded, in the trainer's own method."""
    rng = np.random.default_rng(5)
    keys, scores = [], []
    for uid, sessions in (("a_b", 4), ("c", 4), ("d", 3)):
        for session in range(sessions):
            outputs = 3 if session == 1 else 1
            keys += [f"{uid}_{session}_{output}" for output in range(outputs)]
            # The last output has the session's reward, whatever the earlier ones have.
            scores += [99.0] * (outputs - 1) + [float(session)]
    order = rng.permutation(len(keys))
    keys, scores = [keys[i] for i in order], [scores[i] for i in order]
    last, *earlier = (keys.index(f"a_b_1_{output}") for output in (2, 1, 0))
    assert last < min(earlier)
    lengths = rng.integers(1, 6, len(keys)).tolist()
    tags = [{"seq_len": 3 + length} for length in lengths]
    entries = []
    for key, score, length in zip(keys, scores, lengths, strict=True):
        rewards, tokens = torch.zeros(length), torch.ones(length).long()
        rewards[-1] = score
        entries.append(
            {
                "uid": key.rsplit("_", 2)[0],
                "rm_scores": rewards,
                "response_mask": tokens,
                "loss_mask": tokens,
                "responses": tokens,
                "prompts": torch.ones(3).long(),
                "input_ids": torch.ones(3 + length).long(),
                "position_ids": torch.arange(3 + length),
            }
        )
    fields = list_of_dict_to_tensordict(entries)
    tq.kv_batch_put(keys=keys, partition_id="train", fields=fields, tags=tags)
    batch = tq.KVBatchMeta(keys=keys, tags=tags, partition_id="train", fields=None, extra_info={})
    batch = upsample_batch_to_divisible_size(batch, 10, eos_token_id=1)
    pads = len(batch.keys) - len(keys)
    assert pads == 3

    config = composed('+algorithm.pkpo_k="4@0,2@100"', "actor_rollout_ref.rollout.n=4")
    names = [key.rsplit("_", 2) for key in batch.keys]
    in_order = sorted(range(20), key=lambda i: int(names[i][2]))
    for step, k in ((99, 4), (100, 2)):
        metrics: dict[str, float] = {}
        V1Trainer(config, step)._compute_advantage(batch, metrics)
        written = tq.kv_batch_get(
            keys=batch.keys, partition_id="train", select_fields=["advantages"]
        )
        advantages = [row.numpy() for row in written["advantages"].unbind()]
        assert [len(row) for row in advantages] == [*lengths, *[1] * pads]
        assert all(len(set(row.tolist())) == 1 for row in advantages)
        expected = np.zeros(20)
        expected[in_order] = each_group_alone(
            [[*scores, *[0.0] * pads][i] for i in in_order],
            [names[i][0] for i in in_order],
            k,
            samples=[names[i][1] for i in in_order],
            valid=[i < len(keys) for i in in_order],
        )
        np.testing.assert_allclose([row[0] for row in advantages], expected, rtol=5e-6, atol=1e-9)
        assert (expected[[name[0] == "d" for name in names]] != 0).any() == (k == 2)
        assert metrics["pkpo/k"] == k and metrics["pkpo/groups"] == 3
        assert metrics["pkpo/max@1"] == pytest.approx((1.5 + 1.5 + 1.0) / 3)
        assert metrics["pkpo/undersized"] == pytest.approx(1 / 3 if k == 4 else 0)
    assert plugin._call.get() is None


@pytest.mark.parametrize("language", ["sh", "yaml"])
def test_the_launch_of_the_readme(tmp_path: Path, language: str) -> None:
    """verl's own command composes it, and the estimator takes its options from it."""
    launch = example("verl", language)
    if language == "yaml":
        (tmp_path / "pkpo.yaml").write_text(launch)
        launch = f"python -m verl.trainer.main_ppo --config-dir {tmp_path} --config-name pkpo"
    python, *arguments = shlex.split(launch.replace("\\\n", " "))
    assert python == "python" and arguments[:2] == ["-m", "verl.trainer.main_ppo"]
    config = OmegaConf.create(run(*arguments, "--cfg", "job").out)
    k = {"sh": 8, "yaml": "8@0,1@400"}[language]
    assert Options.of(config.algorithm) == Options(k)
    assert config.algorithm.adv_estimator == "pkpo"
    assert config.actor_rollout_ref.rollout.n == 16
    assert config.actor_rollout_ref.actor.loss_agg_mode == "seq-mean-token-sum-norm"
    assert config.actor_rollout_ref.actor.loss_scale_factor == config.data.max_response_length
    assert config.trainer.use_v1
