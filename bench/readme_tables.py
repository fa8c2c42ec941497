"""Fill README's tables and plots from bench/results/.

    python -m bench.readme_tables [--check]

Between `<!-- results: NAME -->` and `<!-- end -->` README holds what the functions below make of
the newest result files, one a device; nothing there is written by hand. Every one of them begins
with what it is: measured, and on what; executed on the CPU for a GPU; or a static count of code
that was not run. With --check nothing is written, and the exit code is 1 where README and the files
disagree.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from bench.accuracy import Accuracy, summary
from bench.records import RESULTS, figure, write
from bench.scaling import Annealing, Point, annealing_lines, growth

README = RESULTS.parents[1] / "README.md"
_BLOCK = re.compile(r"(<!-- results: (.*?) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
_DATED = re.compile(r"(.+)-(\d{4}-\d{2}-\d{2})\.json")

Found = tuple[Path, dict[str, Any]]


def newest(kind: str, results: Path = RESULTS) -> list[Found]:
    """The newest file of this kind of every device, by device; ValueError where there is none."""
    files: dict[str, Path] = {}
    for path in sorted(results.glob(f"{kind}-*.json")):
        dated = _DATED.fullmatch(path.name)
        if dated is not None:
            files[dated[1]] = path  # dates sort as text
    if not files:
        raise ValueError(f"{results} has no {kind}-DEVICE-DATE.json; run python -m bench.{kind}")
    return [(path, json.loads(path.read_text())) for path in files.values()]


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """The first line is the heading.

    >>> print(markdown([["a", "b"], ["1", "2"]]))
    | a | b |
    |---|---|
    | 1 | 2 |
    """
    rows = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([rows[0], "|" + "---|" * len(lines[0]), *rows[1:]])


def measured_on(found: Found) -> str:
    """Where and when a file's figures were measured."""
    path, record = found
    device = record["device"]
    cpus = ""
    if device["kind"] == "cpu":
        told = "".join(f", {name}={value}" for name, value in device.get("environment", {}).items())
        load = f"{device['load_before']:.1f}"
        cpus = f", {device['cpus']} processors at a load of {load} before the run{told}"
    return (
        f"Measured on {device['name']}{cpus}, {record['date']}, commit {record['commit']}"
        f" (`bench/results/{path.name}`)"
    )


def plots_of(path: Path) -> str:
    """All the plots beside a result file."""
    names = sorted(plot.name for plot in path.parent.glob(f"{path.stem}*.png"))
    return "\n".join(f"![{name}](bench/results/{name})" for name in names)


def throughput(results: Path) -> str:
    """A table a device: arms down, lengths across, gaussian rewards."""
    return "\n\n".join(map(_throughput, newest("throughput", results)))


def _throughput(found: Found) -> str:
    path, record = found
    rows = [r for r in record["results"] if r["input"] == "gaussian"]
    ns = sorted({r["n"] for r in rows})
    lines = [["gaussian rewards, k=" + str(record["k"]), *(f"n={n}" for n in ns)]]
    for arm in dict.fromkeys(r["arm"] for r in rows):
        cells = {r["n"]: _cell(r) for r in rows if r["arm"] == arm}
        lines.append([arm, *(cells.get(n, "") for n in ns)])
    about = (
        f"{measured_on(found)}: GB/s at 8 bytes a reward, and as a multiple of the copy of the same"
        " run by the same library."
    )
    return f"{about}\n\n{markdown(lines)}\n\n{plots_of(path)}"


def _cell(result: dict[str, Any]) -> str:
    if result["gb_per_s"] is None:
        return str(result["outcome"])
    ratio = "" if result["of_copy"] is None else f" ({figure(result['of_copy'])}x)"
    return f"{figure(result['gb_per_s'])}{ratio}"


def accuracy(results: Path) -> str:
    """A table a device: arms down, offsets across."""
    return "\n\n".join(map(_accuracy, newest("accuracy", results)))


def _accuracy(found: Found) -> str:
    path, record = found
    errors = [Accuracy(**result) for result in record["results"]]
    ns = sorted({error.n for error in errors})
    alone = ", and k=1 by itself" if any(error.k == 1 for error in errors) else ""
    about = (
        f"{measured_on(found)}: relative error of {record['estimator']} in float32 against exact"
        f" arithmetic, over n={ns[0]} to {ns[-1]} and k from 2 to n{alone}: the worst, the largest"
        " median, and the worst relative to the largest result of its row."
    )
    return f"{about}\n\n{markdown(summary(errors))}\n\n{plots_of(path)}"


def scaling(results: Path) -> str:
    """Two tables a device: the ends of the sweeps, and the annealing run."""
    return "\n\n".join(map(_scaling, newest("scaling", results)))


def _scaling(found: Found) -> str:
    path, record = found
    points = [Point(**point) for point in record["points"]]
    fields = Annealing.__dataclass_fields__
    runs = [Annealing(**{name: run[name] for name in fields}) for run in record["annealing"]]
    tables = f"{markdown(growth(points))}\n\n{markdown(annealing_lines(runs))}"
    return f"{measured_on(found)}.\n\n{tables}\n\n{plots_of(path)}"


def gpu_static(results: Path) -> str:
    """What the Triton kernels and other sorts do for a reward, for sm_90."""
    path = results / "gpu-static-sm_90.json"
    record = json.loads(path.read_text())
    rows = {(row["kernel"], row["n"]): row for row in record["rows"]}
    kernel, sorting = "n={n} float32", "tl.sort on int64 + scan + scatter"
    ns = sorted(n for name, n in rows if name == sorting)

    def line(name: str, of: str, figure_of: Callable[[Any], float], digits: int = 0) -> list[str]:
        found = [rows.get((of.format(n=n), n)) for n in ns]
        return [name, *(f"{figure_of(row):.{digits}f}" if row else "–" for row in found)]

    lines = [
        ["samples in a row", *map(str, ns)],
        line("instructions (counted)", kernel, lambda row: row["normal"]["instructions"]),
        line("the same, rows of two levels", kernel, lambda row: row["two_levels"]["instructions"]),
        line("the same, `tl.sort`, scan, scatter", sorting, lambda r: r["normal"]["instructions"]),
        line(
            "the same, torch.compile's sort alone",
            "Inductor's sort_with_index, alone",
            lambda row: row["normal"]["instructions"],
        ),
        line(
            "lanes that exchange (executed)",
            kernel,
            lambda row: row["normal"]["shuffles"] + row["normal"]["wavefronts"],
        ),
        line("of an H200's copy, at most (a model)", kernel, lambda row: row["of_copy"], 2),
        line("the same, rows of two levels", kernel, lambda row: row["two_levels_of_copy"], 2),
    ]
    about = (
        f"Executed on the CPU, for {record['target']}, commit {record['commit']}; nothing was"
        f" measured (`bench/results/{path.name}`): a reward in float32."
    )
    return f"{about}\n\n{markdown(lines)}"


def tpu_static(results: Path) -> str:
    """Bundles that the Pallas kernels take on a v5e, and the cycles of its memory."""
    path = results / "tpu-static-v5e.json"
    record = json.loads(path.read_text())
    rows = {(r["n"], r["path"]): r for r in record["rows"] if r["dtype"] == "float32"}
    ns = sorted({n for n, _ in rows})

    def line(name: str, of_path: str, figure_of: str, digits: int = 0) -> list[str]:
        found = [rows.get((n, of_path)) for n in ns]
        return [name, *(f"{r[figure_of]:.{digits}f}" if r else "–" for r in found)]

    arms = {arm["n"]: arm for arm in record["beside"]}

    def arm(name: str, of: str) -> list[str]:
        return [name, *(f"{arms[n][of]:.0f}" if n in arms else "–" for n in ns)]

    lines = [
        ["samples in a row", *map(str, ns)],
        line("bundles", "sorted", "bundles"),
        line("bundles, rows of two levels", "two levels", "bundles"),
        line("cycles of memory", "sorted", "hbm_cycles"),
        line("of the roofline, at most", "sorted", "fraction", 2),
        line("the same, rows of two levels", "two levels", "fraction", 2),
    ]
    if arms:
        lines += [
            arm("XLA's cycles of the argsort form, without its sorts", "argsort"),
            arm('XLA\'s cycles of `"xla"`, without its sorts', "xla"),
        ]
    about = (
        f"A static count for {record['chip']}, commit {record['commit']}; nothing was run"
        f" (`bench/results/{path.name}`): bundles for 1024 rows in float32, loops counted with"
        " their turns, beside the cycles that the memory takes for the same bytes."
    )
    return f"{about}\n\n{markdown(lines)}"


TABLES: dict[str, Callable[[Path], str]] = {
    "throughput": throughput,
    "accuracy": accuracy,
    "scaling": scaling,
    "gpu static": gpu_static,
    "tpu static": tpu_static,
}


def filled(text: str, results: Path = RESULTS) -> str:
    """The text with all of its blocks made anew; ValueError for a name without a table."""

    def block(found: re.Match[str]) -> str:
        if found[2] not in TABLES:
            raise ValueError(f"results must be one of {', '.join(TABLES)}; got {found[2]!r}")
        return f"{found[1]}\n{TABLES[found[2]](results)}\n\n{found[4]}"

    return _BLOCK.sub(block, text)


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    check: Annotated[bool, typer.Option("--check", help="Only say whether they agree.")] = False,
) -> None:
    """Fill README's tables from the files in bench/results/."""
    text = README.read_text()
    new = filled(text)
    if check and new != text:
        typer.echo("README.md and bench/results/ disagree; run make readme-tables")
        raise typer.Exit(1)
    if new != text:
        write(README, new.encode())


if __name__ == "__main__":
    app()
