"""The paper's experiments: each writes CSVs and figures to a folder and checks what must hold.

    python -m bench.paper toy|policies|strings|arc [--seeds 3] [--quick] [--out FOLDER]

Files are written in the end, each whole. The exit code is 1 where a claim does not hold. With
--quick an experiment is smaller than what its claims are made of: they are shown, and decide
nothing.
"""

from __future__ import annotations

import os
import time
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from bench import records
from bench.paper import figures
from bench.paper.claims import Outcome
from bench.paper.tables import claims_table

# module → what it is
EXPERIMENTS = {
    "toy": "One parameter, a reward that is known: the variance of gradient estimates (5.1).",
    "policies": "Softmax policies whose pass@k is known exactly (5.2).",
    "strings": "A transformer writes programs for strings (5.2).",
    "arc": "It writes programs for tasks of ARC-AGI-1 (5.2.3).",
}
# arc has 48 tasks, and one of them is half of what its solve rate must rise by.
SEEDS = dict.fromkeys(EXPERIMENTS, 3) | {"arc": 4}
DEFAULT_OUT = Path("build/paper")

SeedsOption = Annotated[
    int,
    typer.Option(min=1, help="Runs of everything random; fewer, and claims may fail by chance."),
]
QuickOption = Annotated[bool, typer.Option("--quick", help="Smaller; its claims decide nothing.")]
OutOption = Annotated[
    Path, typer.Option(file_okay=False, writable=True, help="The folder of the CSVs and figures.")
]


def perform(name: str, seeds: int, quick: bool, out: Path) -> Outcome:
    """Run an experiment and then write NAME.csv, NAME-claims.csv and its figures."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise typer.BadParameter(f"--out must be a folder, or can become one: {error}") from None
    # What is recorded is a CPU, so a CPU it is: JAX asks for this when it is imported.
    os.environ["JAX_PLATFORMS"] = "cpu"
    where = records.origin("cpu")
    wall, cpu = time.perf_counter(), time.process_time()
    found: Outcome = import_module(f"bench.paper.{name}").run(seeds, quick)
    spent = {
        "wall_s": round(time.perf_counter() - wall),
        "cpu_s": round(time.process_time() - cpu),
        "form": "quick" if quick else "full",
    }
    rows = [{name: _rounded(value) for name, value in row.items()} for row in found.rows]
    records.write_table(out / f"{name}.csv", rows, where)
    claims = [claim.row for claim in found.claims]
    records.write_table(out / f"{name}-claims.csv", claims, spent | where)
    for title, canvas in found.figures.items():
        figures.write(canvas, out / f"{title}.png")
    records.report(out / f"{name}-claims.csv", name, {name: claims_table(claims)}, [])
    return found


def _rounded(value: Any) -> Any:
    """Keep six digits of a float: more would be noise, and make files large."""
    return float(f"{value:.6g}") if isinstance(value, float) else value


app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    help="The paper's experiments. The exit code is 1 where a claim does not hold.",
)


def _command(name: str) -> None:
    def command(
        seeds: SeedsOption = SEEDS[name], quick: QuickOption = False, out: OutOption = DEFAULT_OUT
    ) -> None:
        found = perform(name, seeds, quick, out)
        broken = [claim.what for claim in found.claims if not claim.holds]
        if broken and not quick:
            Console(stderr=True).print(f"{name}: does not hold: {'; '.join(broken)}")
            raise typer.Exit(1)

    app.command(name, help=EXPERIMENTS[name])(command)


for _name in EXPERIMENTS:
    _command(_name)

if __name__ == "__main__":
    app()
