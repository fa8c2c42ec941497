"""TRL: GRPOTrainer with PKPO's advantages.

class Trainer(PKPOMixin, GRPOTrainer): ...
Trainer(..., args=GRPOConfig(loss_type="dr_grpo", ...), pkpo=Options(k=8)).train()
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from trl import GRPOTrainer

from pkpo_kernels.integrations import Options
from pkpo_kernels.maths.estimators import ESTIMATORS
from pkpo_kernels.validation import shown

if TYPE_CHECKING:
    from trl import GRPOTrainer as _Base
else:
    _Base = object

# TRL has no hook for advantages: these two methods of GRPOTrainer are overridden.
_OVERRIDDEN = ("_calculate_rewards", "_generate_and_score_completions")


class PKPOMixin(_Base):  # type: ignore[misc]
    """Has a GRPOTrainer, named after it among the bases, train for the best of k completions.

    The groups are TRL's: the `num_generations` (in evaluation `num_generations_eval`) completions
    of a prompt, over all processes. Their rewards, weighted and summed over the reward functions,
    become the advantages, in the place of TRL's own; `scale_rewards` changes those alone. A
    completion that no reward function could score (None) gets 0 and is no part of its group. A
    schedule of k gets `state.global_step`. TRL's log gets `Options.metrics`.

    Args:
        pkpo: the options; if None, `Options.of(args)`: attributes of the GRPOConfig (of a subclass
          with fields `pkpo_k`, …), else the environment.
        *args, **kwargs: the trainer's own.

    Raises:
        TypeError: `pkpo` is of another type; the class has no GRPOTrainer after the mixin.
        ValueError: as `Options.of` does; the k of step 0 is more than `num_generations` admit,
          unless it is clipped; the rewards are normalized before they are summed.
    """

    def __init__(self, *args: Any, pkpo: Options | None = None, **kwargs: Any) -> None:
        if not isinstance(pkpo, Options | None):
            raise TypeError(f"pkpo must be Options or None; got {shown(pkpo)}")
        super().__init__(*args, **kwargs)
        self.pkpo = Options.of(self.args) if pkpo is None else pkpo
        if self.multi_objective_aggregation != "sum_then_normalize":
            raise ValueError(
                "multi_objective_aggregation must be 'sum_then_normalize': PKPO transforms the sum"
                f" of the rewards; got {self.multi_objective_aggregation!r}"
            )
        k, n = self.pkpo.k_at(0), self.num_generations
        largest = int(ESTIMATORS[self.pkpo.estimator].largest_k(n))
        if k > largest and self.pkpo.undersized != "clip":
            raise ValueError(
                f"pkpo's k must be at most {largest} where num_generations is {n}, or no group has"
                f" a signal (undersized='clip' cuts it); got k={k}"
            )

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        missing = [name for name in _OVERRIDDEN if not hasattr(super(PKPOMixin, cls), name)]
        if missing or not issubclass(cls, GRPOTrainer):
            raise TypeError(
                "PKPOMixin must come before TRL's GRPOTrainer, which must have"
                f" {' and '.join(_OVERRIDDEN)} as that of TRL 1.16 has;"
                f" got class {cls.__name__}({', '.join(base.__name__ for base in cls.__bases__)})"
            )

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Any:
        # (samples of all processes, reward functions), in the order of the prompts.
        self._pkpo_rewards = super()._calculate_rewards(*args, **kwargs)
        return self._pkpo_rewards

    def _generate_and_score_completions(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        output = super()._generate_and_score_completions(*args, **kwargs)
        train = self.model.training
        n = self.num_generations if train else self.num_generations_eval
        rewards = self._weighted(self._pkpo_rewards)
        step = self.state.global_step
        advantages = self.pkpo.advantages(rewards, n, step=step)

        own = len(output["advantages"])
        first = self.accelerator.process_index * own
        output["advantages"] = advantages[first : first + own].to(output["advantages"])
        # A deque of one generation's length: TRL's own go.
        self._logs["advantages"].extend(advantages.tolist())
        logged = self._metrics["train" if train else "eval"]
        for name, value in self.pkpo.metrics(rewards, n, n, step=step).items():
            logged[name].append(value)
        return output

    def _weighted(self, rewards: torch.Tensor) -> torch.Tensor:
        """Weight and sum the rewards of the functions: (N, functions) → (N,), NaN where all are."""
        weights = self.reward_weights.to(rewards.device)
        summed = (rewards * weights).nansum(dim=1)
        return summed.masked_fill(rewards.isnan().all(dim=1), torch.nan)
