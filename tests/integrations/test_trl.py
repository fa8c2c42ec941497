"""PKPOMixin in TRL's own GRPOTrainer, which trains a tiny model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")

import tiny  # noqa: E402
import torch  # noqa: E402
from alone import each_group_alone  # noqa: E402
from readme import example  # noqa: E402

import pkpo_kernels as pk  # noqa: E402
from pkpo_kernels.integrations import Options  # noqa: E402
from pkpo_kernels.integrations.trl import PKPOMixin  # noqa: E402

HERE = Path(__file__).parent
PROMPTS = ("a b c", "d e f", "g h a", "b d f")
LENGTH = 6


def high_digits(completions: list[str], **_: Any) -> list[float]:
    return [float(sum(word in "789" for word in text.split())) for text in completions]


def some_unscorable(completions: list[str], **_: Any) -> list[float | None]:
    rewards = zip(completions, high_digits(completions), strict=True)
    return [None if "a" in text.split() else reward for text, reward in rewards]


def evens(completions: list[str], **_: Any) -> list[float | None]:
    """Another reward, which has nothing to say of the same completions, nor of some others."""
    words = [text.split() for text in completions]
    return [
        None if "a" in found or "b" in found else float(sum(word in "02468" for word in found))
        for found in words
    ]


class Watched(PKPOMixin, trl.GRPOTrainer):
    """Keeps what it scored, (step, training, rewards, advantages), before TRL shuffles it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.scored: list[tuple[int, bool, np.ndarray[Any, Any], np.ndarray[Any, Any]]] = []
        self.used: list[np.ndarray[Any, Any]] = []
        super().__init__(*args, **kwargs)

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        output = super()._generate_and_score_completions(inputs)
        functions = self._pkpo_rewards.double().numpy() * self.reward_weights.numpy()
        unscorable = np.isnan(functions).all(axis=1)
        rewards = np.where(unscorable, np.nan, np.nansum(functions, axis=1))
        assert output["advantages"].dtype == torch.float32
        entry = (self.state.global_step, self.model.training, rewards)
        self.scored.append((*entry, output["advantages"].numpy()))
        return output

    def _compute_loss(self, model: Any, inputs: Any) -> Any:
        self.used.append(inputs["advantages"].numpy())
        return super()._compute_loss(model, inputs)


def trainer(
    folder: Path,
    pkpo: Options | None,
    reward_funcs: Any = some_unscorable,
    of: type = Watched,
    config: type = trl.GRPOConfig,
    **settings: Any,
) -> Any:
    defaults = {
        "per_device_train_batch_size": 32,
        "num_generations": 8,
        "max_completion_length": LENGTH,
        "max_steps": 1,
        "logging_steps": 1,
        "learning_rate": 1e-2,
        "loss_type": "dr_grpo",
        "beta": 0.0,
        "shuffle_dataset": False,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "bf16": False,
    }
    data = datasets.Dataset.from_dict({"prompt": list(PROMPTS) * 8})
    return of(
        model=tiny.model(),
        processing_class=tiny.tokenizer(),
        reward_funcs=reward_funcs,
        args=config(output_dir=str(folder), **(defaults | settings)),
        train_dataset=data,
        eval_dataset=data.select(range(4)),
        pkpo=pkpo,
    )


def expected(rewards: np.ndarray[Any, Any], n: int, k: int) -> np.ndarray[Any, Any]:
    return each_group_alone(rewards.tolist(), [i // n for i in range(len(rewards))], k)


def assert_close(advantages: Any, rewards: Any, n: int, k: int) -> None:
    np.testing.assert_allclose(advantages, expected(rewards, n, k), rtol=5e-6, atol=1e-9)


def test_steps_with_k_annealed(tmp_path: Path) -> None:
    run = trainer(
        tmp_path,
        Options("4@0,2@2"),
        [some_unscorable, evens],
        reward_weights=[1.0, 0.5],
        per_device_train_batch_size=16,
        gradient_accumulation_steps=2,
        max_steps=4,
    )
    before = [weights.detach().clone() for weights in run.model.parameters()]
    run.train()

    assert [step for step, *_ in run.scored] == [0, 1, 2, 3]
    for step, training, rewards, advantages in run.scored:
        assert training and len(rewards) == 32 and np.isnan(rewards).any()
        assert_close(advantages, rewards, 8, 4 if step < 2 else 2)
        assert (advantages[np.isnan(rewards)] == 0).all() and (advantages != 0).any()
        # The losses of that step get those, in two batches.
        used = np.concatenate(run.used[2 * step : 2 * step + 2])
        np.testing.assert_array_equal(np.sort(used), np.sort(advantages))
    assert any((a != b).any() for a, b in zip(before, run.model.parameters(), strict=True))
    np.testing.assert_array_equal(list(run._logs["advantages"]), run.scored[-1][3])

    logs = [log for log in run.state.log_history if "loss" in log]
    assert [log["pkpo/k"] for log in logs] == [4, 4, 2, 2]
    for log, (_, _, rewards, advantages) in zip(logs, run.scored, strict=True):
        groups = [row[~np.isnan(row)] for row in rewards.reshape(-1, 8)]
        assert log["pkpo/max@1"] == pytest.approx(np.mean([group.mean() for group in groups]))
        best_of_4 = [pk.max_at_k(group, 4) for group in groups if len(group) >= 4]
        assert log["pkpo/max@4"] == pytest.approx(np.mean(best_of_4))
        signal = (advantages.reshape(-1, 8) != 0).any(axis=1)
        assert log["pkpo/signal"] == pytest.approx(signal.mean())


def test_evaluation_with_fewer_generations_than_k(tmp_path: Path) -> None:
    run = trainer(
        tmp_path, Options(4), high_digits, num_generations_eval=2, per_device_eval_batch_size=8
    )
    metrics = run.evaluate()
    (_, training, rewards, advantages), *_ = run.scored
    assert not training and len(rewards) == 8 and rewards.any()
    assert (advantages == 0).all()
    assert metrics["eval_pkpo/k"] == 4

    clipped = trainer(
        tmp_path,
        Options(4, undersized="clip"),
        high_digits,
        num_generations_eval=2,
        per_device_eval_batch_size=8,
    )
    clipped.evaluate()
    (_, _, rewards, advantages), *_ = clipped.scored
    assert_close(advantages, rewards, 2, 2)


@pytest.mark.parametrize(
    ("options", "largest"), [(Options("9@0,2@2"), 8), (Options(8, estimator="sloo"), 7)]
)
def test_a_k_that_no_group_admits(tmp_path: Path, options: Options, largest: int) -> None:
    told = f"pkpo's k must be at most {largest} where num_generations is 8.*got k={options.k_at(0)}"
    with pytest.raises(ValueError, match=told):
        trainer(tmp_path, options)
    trainer(tmp_path, replace(options, undersized="clip"))


@pytest.mark.parametrize(("loss_type", "scale"), [("dr_grpo", 1 / LENGTH), ("dapo", None)])
def test_the_gradient_is_the_papers(
    tmp_path: Path, loss_type: str, scale: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gradient of TRL's loss is that of the mean over prompts of Σ_i t_i log p(sample_i), up to
    a constant, also where samples could not be scored: the longest completion's length, or for a
    mean over tokens the mean length."""
    run = trainer(tmp_path, Options(4), some_unscorable, loss_type=loss_type)
    seen = {}
    compute = run._compute_loss

    def compared(model: Any, inputs: Any) -> Any:
        loss = compute(model, inputs)
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
        attended = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
        mask = inputs["completion_mask"]
        log_p = run._get_per_token_logps_and_entropies(model, ids, attended, mask.shape[1])[0]
        weights = list(model.parameters())
        # TRL has shuffled the samples: those of a prompt are of one group.
        prompts = [tuple(row) for row in inputs["prompt_ids"].tolist()]
        texts = run.processing_class.batch_decode(inputs["completion_ids"] * mask)
        rewards = some_unscorable(texts)
        assert None in rewards
        t = each_group_alone(rewards, prompts, 4) * 4 / 32
        paper = -(torch.tensor(t)[:, None] * log_p * mask).sum() / 4
        for name, value in (("trl", loss), ("paper", paper)):
            parts = torch.autograd.grad(value, weights, retain_graph=True)
            seen[name] = torch.cat([part.ravel() for part in parts]).double()
        seen["length"] = mask.sum() / len(mask)
        return loss

    monkeypatch.setattr(run, "_compute_loss", compared)
    run.train()
    assert seen["length"] < LENGTH and seen["paper"].norm() > 1e-3
    factor = scale or 1 / seen["length"].item()
    error = (seen["trl"] - factor * seen["paper"]).norm() / (factor * seen["paper"].norm())
    assert error < 1e-5


def test_groups_across_two_processes(tmp_path: Path) -> None:
    """12 completions a process, in groups of 8: one group lies on both."""
    # An own process for each rank: torch.distributed.run alone would need a free port from us.
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, str(HERE / "two_processes.py"), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    for step in range(2):
        first, second = (rank[step] for rank in ranks)
        assert first["rewards"] == second["rewards"]
        rewards = np.array(first["rewards"])
        advantages = np.array(first["advantages"] + second["advantages"])
        assert len(rewards) == 24 and len(first["advantages"]) == 12
        assert (advantages != 0).any()
        assert_close(advantages, rewards, 8, 4)


@dataclass
class WithFields(trl.GRPOConfig):  # type: ignore[misc]
    pkpo_k: str = "4@0,2@1"
    pkpo_undersized: str = "clip"


def test_options_come_from_the_configuration_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PKPO_SCALE", "mean")
    run = trainer(tmp_path, None, config=WithFields)
    assert run.pkpo == Options("4@0,2@1", scale="mean", undersized="clip")
    with pytest.raises(ValueError, match="k must be set"):
        trainer(tmp_path, None)


def test_what_it_does_not_serve_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="pkpo must be Options or None; got 8"):
        trainer(tmp_path, 8)  # type: ignore[arg-type]
    with pytest.raises(
        ValueError, match="multi_objective_aggregation must be 'sum_then_normalize'"
    ):
        trainer(tmp_path, Options(4), multi_objective_aggregation="normalize_then_sum")
    with pytest.raises(TypeError, match=r"must come before TRL's .* got class After\(GRPOTrainer"):

        class After(trl.GRPOTrainer, PKPOMixin):  # type: ignore[misc]
            pass

    with pytest.raises(TypeError, match="must come before TRL's GRPOTrainer"):

        class Other(PKPOMixin, trl.RLOOTrainer):  # type: ignore[misc]
            pass


def test_the_script_of_the_readme(tmp_path: Path) -> None:
    """As it stands, but for the size of the model and of the run."""
    tiny.model().save_pretrained(tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    script = example("TRL")
    for written, here in (
        ('"Qwen/Qwen3-0.6B"', repr(str(tmp_path / "model"))),
        ("max_steps=600", "max_steps=2"),
        ("logging_steps=10", "logging_steps=1, use_cpu=True, bf16=False"),
        ("max_completion_length=32", "max_completion_length=4"),
        ('"pkpo"', repr(str(tmp_path / "pkpo"))),
        ("8@0,1@400", "8@0,1@1"),
    ):
        assert script.count(written) == 1
        script = script.replace(written, here)
    names: dict[str, Any] = {}
    exec(script, names)
    logs = [log for log in names["trainer"].state.log_history if "loss" in log]
    assert [log["pkpo/k"] for log in logs] == [8, 1]
