"""Runs one recipe of the README in a process of its own: `python recipes.py NAME`.

The trainer is the installed one, with what it needs and nobody installed (vLLM, DeepSpeed, …) made
of mocks; NeMo-RL and prime-rl, which no package index has, are made of the few names that their
recipes touch.
"""

from __future__ import annotations

import asyncio
import importlib.abc
import importlib.machinery
import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import numpy as np
from alone import assert_close, each_group_alone
from readme import example


class Mocks(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds a mock for every module below some packages."""

    def __init__(self) -> None:
        self.packages: set[str] = set()

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name.partition(".")[0] in self.packages:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: Any) -> Any:
        module = MagicMock(name=spec.name)
        module.__path__, module.__spec__, module.__name__ = [], spec, spec.name
        return module

    def exec_module(self, module: Any) -> None:
        pass


def with_mocks(name: str) -> ModuleType:
    """Import an installed module, with mocks for the packages that are missing."""
    mocks = Mocks()
    sys.meta_path.append(mocks)
    own = name.partition(".")[0]
    while True:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            missing = (error.name or own).partition(".")[0]
            if missing == own or missing in mocks.packages:
                raise
            mocks.packages.add(missing)
            for loaded in [one for one in sys.modules if one.partition(".")[0] == own]:
                del sys.modules[loaded]


def modules(**contents: dict[str, Any]) -> None:
    """Make modules of names: `a__b={"c": 1}` is a module a.b that has c."""
    for name, names in contents.items():
        dotted = name.replace("__", ".")
        made = ModuleType(dotted)
        made.__dict__.update(names)
        made.__path__ = []  # type: ignore[attr-defined]
        sys.modules[dotted] = made
        parent, _, last = dotted.rpartition(".")
        if parent:
            setattr(sys.modules[parent], last, made)


def recipe(name: str, **space: Any) -> dict[str, Any]:
    space["__name__"] = "recipe"
    exec(compile(example(name), f"README.md, {name}", "exec"), space)
    return space


def openrlhf() -> None:
    import torch

    maker = with_mocks("openrlhf.trainer.ppo_utils.experience_maker")
    recipe("OpenRLHF")["install"]()
    made = maker.RemoteExperienceMaker.__new__(maker.RemoteExperienceMaker)
    made.advantage_estimator, made.kl_ctl = "dr_grpo", SimpleNamespace(value=0.0)
    advantage = SimpleNamespace(estimator="dr_grpo", gamma=1.0, lambd=1.0, no_std_norm=True)
    args = MagicMock(algo=SimpleNamespace(advantage=advantage))
    args.rollout.n_samples_per_prompt, args.reward.clip_range = 4, None
    args.reward.overlong_buffer_len = args.reward.stop_properly_penalty_coef = None
    made.strategy = SimpleNamespace(args=args)
    rewards, order = torch.tensor([0.0, 1, 0, 3, 1, 1, 0, 0]), torch.randperm(8)
    batch = [
        maker.Experience(
            index=part.tolist(),
            rewards=rewards[part].clone(),
            action_mask=torch.ones(len(part), 3),
            kl=torch.zeros(len(part), 3),
            info={},
        )
        for part in order.split([3, 5])
    ]
    out = made.compute_advantages_and_returns(batch)
    got = torch.cat([one.advantages for one in out])[order.argsort()]
    wanted = each_group_alone(rewards, (np.arange(8) // 4).tolist(), 2)
    assert_close(got, wanted[:, None] * np.ones((1, 3)))


def areal() -> None:
    import torch

    with_mocks("areal.trainer.ppo.actor")
    engine = with_mocks("areal.engine.fsdp_engine")
    engine.FSDPEngine.__init__ = lambda self, config: None  # which would want processes and a model
    engine.FSDPEngine.get_version = lambda self: 7
    os.environ["PKPO_K"] = "4@0,2@7"
    recipe("AReaL")
    from areal.engine import FSDPPPOActor

    settings = MagicMock(reward_bias=0.0, reward_scaling=1.0, reward_clip=20.0, kl_ctl=0.0)
    settings.overlong_reward_penalty = settings.mask_no_eos_with_zero = False
    settings.use_decoupled_loss = settings.recompute_logprob = False
    settings.adv_norm = settings.reward_norm = None
    settings.kl_estimator, settings.discount, settings.gae_lambda = "k1", 1.0, 1.0
    tasks = [[0.0, 1.0, 0.0, 3.0], [1.0, 0.0, 1.0]]
    made = FSDPPPOActor(settings)
    out = made.compute_advantages([_areal_task(task) for task in tasks])
    got = torch.cat([one["advantages"][:, 2] for one in out])
    assert_close(got, each_group_alone(np.concatenate(tasks), [0] * 4 + [1] * 3, 2))


def _areal_task(rewards: list[float]) -> dict[str, Any]:
    import torch

    mask = torch.ones(len(rewards), 6, dtype=torch.long)
    answer = mask.clone()
    answer[:, :2] = 0
    return {
        "input_ids": mask.clone(),
        "attention_mask": mask,
        "loss_mask": answer,
        "logprobs": torch.zeros(len(rewards), 6),
        "rewards": torch.tensor(rewards),
    }


def ms_swift() -> None:
    import torch

    advantage = with_mocks("swift.rl_core.advantage")
    trainer = ModuleType("swift.a_trainer_that_imported_it_by_name")
    trainer.compute_advantages = advantage.compute_advantages  # type: ignore[attr-defined]
    sys.modules[trainer.__name__] = trainer
    recipe("ms-swift")
    of_functions = torch.tensor([[0.0, 1], [1, 1], [0, torch.nan], [3, 0]] * 2)
    of_functions[5] = torch.nan
    weights = torch.tensor([1.0, 0.5])
    rewards = np.array([0.5, 1.5, 0.0, 3.0] * 2)
    scored = np.where(np.arange(8) == 5, np.nan, rewards)
    got, raw = trainer.compute_advantages(
        rewards_per_func=of_functions,
        reward_weights=weights,
        num_generations=4,
        advantage_estimator="grpo",
        scale_rewards="group",
        kl_in_reward=False,
        beta=0.0,
        kl_values=None,
    )
    assert_close(got, each_group_alone(scored, (np.arange(8) // 4).tolist(), 2))
    assert torch.equal(raw, torch.tensor(np.where(np.arange(8) == 5, 0, rewards), dtype=raw.dtype))
    requests = ["a", "b", "b", "c", "d", "e", "f", "f"]  # b and f of two rows, with equal rewards
    of_functions = torch.tensor([0.0, 1, 1, 3, 1, 0, 2, 2])[:, None]
    kl = torch.full((8,), 0.25)
    got, _ = advantage.compute_advantages_dynamic(
        rewards_per_func=of_functions,
        reward_weights=torch.ones(1),
        prompt_ids=["p"] * 4 + ["q"] * 4,
        request_ids=requests,
        advantage_estimator="grpo",
        scale_rewards="group",
        kl_in_reward=True,
        beta=2.0,
        kl_values=kl,
    )
    once = [0, 1, 3, 4, 5, 6]
    wanted = each_group_alone(of_functions[once, 0] - 0.5, list("pppqqq"), 2) * 8 / 6
    assert_close(got, wanted[[0, 1, 1, 2, 3, 4, 5, 5]])


def nemo_rl() -> None:
    import runpy

    import torch

    def create(master_config: Any) -> str:
        return master_config.grpo.adv_estimator.name

    modules(
        nemo_rl={},
        nemo_rl__algorithms={},
        nemo_rl__algorithms__grpo={"_create_advantage_estimator": create},
        nemo_rl__algorithms__grpo_sync={"_create_advantage_estimator": create},
        nemo_rl__algorithms__single_controller_utils={},
        nemo_rl__algorithms__single_controller_utils__setup={"_create_advantage_estimator": create},
    )
    ran: list[Any] = []
    runpy.run_path = lambda *given, **named: ran.append(given) or {}  # type: ignore[func-returns-value]
    grpo_sync = sys.modules["nemo_rl.algorithms.grpo_sync"]
    recipe("NeMo-RL")

    def config(**settings: Any) -> Any:
        chosen = SimpleNamespace(**settings, model_dump=lambda: settings)
        return SimpleNamespace(grpo=SimpleNamespace(adv_estimator=chosen))

    assert ran == [("examples/run_grpo.py",)]
    assert grpo_sync._create_advantage_estimator(config(name="gdpo")) == "gdpo"
    estimator = grpo_sync._create_advantage_estimator(config(name="pkpo", pkpo_k=2))
    prompts = torch.tensor([[5, 6, 0], [5, 7, 0], [5, 6, 0], [5, 6, 0], [5, 7, 0], [5, 7, 0]])
    rewards = torch.tensor([0.0, 1, 2, 4, 3, 9])
    mask = torch.tensor([[0, 1, 1]] * 5 + [[0, 0, 0]])
    got = estimator.compute_advantage(
        prompt_ids=prompts,
        rewards=rewards,
        mask=mask,
        repeated_batch={},
        logprobs_policy=None,
        logprobs_reference=None,
    )
    counted = np.where(np.arange(6) == 5, np.nan, rewards.numpy())
    assert_close(got, each_group_alone(counted, list("abaabb"), 2)[:, None] * mask.numpy())


def prime_rl() -> None:
    assigned: list[tuple[Any, float]] = []
    algorithms: dict[str, Any] = {"grpo": object}
    modules(
        prime_rl={},
        prime_rl__entrypoints={},
        prime_rl__entrypoints__orchestrator={"main": lambda: None},
        prime_rl__orchestrator={},
        prime_rl__orchestrator__algo={
            "GRPOAlgorithm": type("GRPOAlgorithm", (), {}),
            "ALGORITHM_CLASSES": algorithms,
            "assign_advantages": lambda trace, values: assigned.append((trace, values)),
        },
        prime_rl__orchestrator__algo__base={
            "iter_trainable_traces": lambda episodes: (
                (episode, trace) for episode in episodes for trace in episode.traces
            )
        },
    )
    recipe("prime-rl")
    rewards = [0.0, 1.0, 0.0, 3.0]
    episodes = [SimpleNamespace(traces=[SimpleNamespace(reward=one)]) for one in rewards]
    asyncio.run(algorithms["grpo"]().score_group(episodes))
    assert [trace.reward for trace, _ in assigned] == rewards
    assert_close([value for _, value in assigned], each_group_alone(rewards, [0] * 4, 2))


if __name__ == "__main__":
    os.environ.update(PKPO_K="2", CUDA_VISIBLE_DEVICES="")
    sys.path.insert(0, str(Path(__file__).parent))
    globals()[sys.argv[1]]()
