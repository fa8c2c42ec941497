"""The recipes of the README run, each in a process of its own, and what they stand on is as it was
recorded."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

# Where a recipe reaches into a trainer: package, file, name and arguments.
SIGNATURES = [
    (
        "openrlhf",
        "trainer/ppo_utils/experience_maker.py",
        "RemoteExperienceMaker.compute_advantages_and_returns",
        "self, experiences",
    ),
    ("areal", "engine/fsdp_engine.py", "FSDPPPOActor.__init__", "self, config"),
    ("areal", "engine/fsdp_engine.py", "FSDPPPOActor.compute_advantages", "self, *args, **kwargs"),
    ("areal", "engine/fsdp_engine.py", "FSDPEngine.get_version", "self"),
    ("areal", "trainer/ppo/actor.py", "PPOActor.compute_advantages", "self, data"),
    (
        "swift",
        "rl_core/advantage.py",
        "compute_advantages",
        "rewards_per_func, reward_weights, num_generations, advantage_estimator, scale_rewards,"
        " kl_in_reward, beta, kl_values",
    ),
    (
        "swift",
        "rl_core/advantage.py",
        "compute_advantages_dynamic",
        "rewards_per_func, reward_weights, prompt_ids, request_ids, advantage_estimator,"
        " scale_rewards, kl_in_reward, beta, kl_values",
    ),
    ("nemo_rl", "algorithms/grpo.py", "_create_advantage_estimator", "master_config"),
    (
        "nemo_rl",
        "algorithms/advantage_estimator.py",
        "GRPOAdvantageEstimator.compute_advantage",
        "self, prompt_ids, rewards, mask, **kwargs",
    ),
    ("prime_rl", "orchestrator/algo/grpo.py", "GRPOAlgorithm.score_group", "self, episodes"),
    ("prime_rl", "orchestrator/algo/base.py", "iter_trainable_traces", "episodes"),
    ("prime_rl", "orchestrator/algo/routing.py", "assign_advantages", "trace, values"),
    ("slime", "utils/types.py", "Sample.get_reward_value", "self, args"),
    ("slime", "ray/rollout.py", "RolloutManager._post_process_rewards", "self, samples"),
    ("slime", "rollout/sample_hooks.py", "set_current_rollout_id", "rollout_id"),
    ("rllm", "trainer/algorithms/advantage.py", "register_rllm_adv_estimator", "name"),
    (
        "rllm",
        "trainer/algorithms/advantage.py",
        "calculate_rloo_advantages",
        "rewards, algorithm_config, **kwargs",
    ),
]
INSTALLED = {"openrlhf": "openrlhf", "areal": "areal", "ms_swift": "swift"}


@pytest.mark.parametrize(("package", "file", "name", "arguments"), SIGNATURES, ids=str)
def test_a_signature_is_as_recorded(package: str, file: str, name: str, arguments: str) -> None:
    """Read from the source, since some of it imports on machines with GPUs alone."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"{package} is not installed")
    found: ast.AST = ast.parse((Path(spec.submodule_search_locations[0]) / file).read_text())
    for part in name.split("."):
        (found,) = (
            one
            for one in ast.iter_child_nodes(found)
            if isinstance(one, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            and one.name == part
        )
    assert isinstance(found, ast.FunctionDef | ast.AsyncFunctionDef)
    for one in [*found.args.args, found.args.vararg, found.args.kwarg]:
        if one:
            one.annotation = None
    found.args.defaults = []
    assert ast.unparse(found.args) == arguments


@pytest.mark.parametrize("recipe", ["openrlhf", "areal", "ms_swift", "nemo_rl", "prime_rl"])
def test_a_recipe_gives_each_group_its_own(recipe: str) -> None:
    pytest.importorskip("torch")
    if importlib.util.find_spec(INSTALLED.get(recipe, "torch")) is None:
        pytest.skip(f"{recipe} is not installed")
    script = Path(__file__).with_name("recipes.py")
    done = subprocess.run([sys.executable, script, recipe], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
