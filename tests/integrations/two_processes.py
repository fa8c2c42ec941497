"""One of two ranks: train two steps, and write down what was scored. Run by test_trl.py."""

import json
import sys
from pathlib import Path

from test_trl import high_digits, trainer

from pkpo_kernels.integrations import Options


def main(folder: Path) -> None:
    settings = {"per_device_train_batch_size": 12, "max_steps": 2, "ddp_backend": "gloo"}
    run = trainer(folder, Options(4), high_digits, **settings)
    run.train()
    scored = [
        {"rewards": rewards.tolist(), "advantages": advantages.tolist()}
        for _, _, rewards, advantages in run.scored
    ]
    (folder / f"{run.accelerator.process_index}.json").write_text(json.dumps(scored))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
