"""Fill the tables and plots of bench/README.md from bench/results/, and bench/paper's likewise.

    python -m bench.readme_tables

Between `<!-- results: NAME -->` and `<!-- end -->` it holds what the functions below make of the
result files, one a device; nothing there is written by hand. Every block begins with what it is:
measured, and on what; executed on the CPU for a GPU; or a static count of code that was not run.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from bench import accuracy, grouping, host, kernels, throughput
from bench.command import Bench, new_app
from bench.paper import tables as paper
from bench.records import RESULTS, Lines, Row, number, read_table

README = RESULTS.parent / "README.md"
Table = Callable[[Path], str]  # a folder of results → what fills a block
_BLOCK = re.compile(r"(<!-- results: (.*?) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def markdown(lines: Lines) -> str:
    """Write lines as a table; the first is the heading.

    >>> print(markdown([["a", "b"], ["1", "2"]]))
    | a | b |
    |---|---|
    | 1 | 2 |
    """
    rows = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([rows[0], "|" + "---|" * len(lines[0]), *rows[1:]])


def measured(bench: Bench) -> Table:
    """Make what fills a bench's block: for every device where it ran, its tables, and its plot."""

    def block(results: Path) -> str:
        parts = []
        for path in sorted(results.glob(f"{bench.name}-*.csv")):
            rows = read_table(path)
            runs = dict.fromkeys(f"{row['date']} at commit {row['commit']}" for row in rows)
            name, conditions = rows[0]["device"], rows[0]["conditions"]
            parts.append(
                f"Measured on {name} ({conditions}), {' and '.join(runs)} (`results/{path.name}`)."
            )
            parts += map(markdown, bench.tables(rows).values())
            if path.with_suffix(".png").exists():
                parts.append(f"![{path.stem}](results/{path.stem}.png)")
        return "\n\n".join(parts)

    return block


def by_length(
    rows: Sequence[Row],
    kind: Callable[[Row], str],
    lengths_of: str,
    lines: Sequence[tuple[str, str, str, int]],
) -> str:
    """Lay out static figures over n, for the lengths of one kind of rows.

    A line is its name, the kind that it is of, the columns whose sum it shows, and digits.
    """
    found = {(kind(row), int(row["n"])): row for row in rows}
    lengths = sorted(n for name, n in found if name == lengths_of)
    table = [["samples in a row", *map(str, lengths)]]
    for name, of, columns, digits in lines:
        table.append([name])
        for n in lengths:
            figures = [number(found.get((of, n), {}), column) for column in columns.split()]
            there = [it for it in figures if it is not None]
            table[-1].append(f"{sum(there):.{digits}f}" if there else "–")
    return markdown(table)


def gpu_static(results: Path) -> str:
    """What the Triton kernels do for a reward, for sm_90."""
    path = results / "gpu-static-sm_90.csv"
    rows = read_table(path)
    table = by_length(
        rows,
        lambda row: row["kernel"].replace(f"n={row['n']} float32", "ours"),
        "ours",
        [
            ("instructions (counted)", "ours", "normal_instructions", 0),
            ("the same, rows of two values", "ours", "two_values_instructions", 0),
            ("the same, rows of four values", "ours", "four_values_instructions", 0),
            ("the same, rows of near ties", "ours", "near_ties_instructions", 0),
            ("lanes that exchange (executed)", "ours", "normal_shuffles normal_wavefronts", 0),
            ("the same of global memory", "ours", "normal_global_wavefronts", 0),
            ("of an H200's copy, at most (a model)", "ours", "of_copy", 2),
            ("the same, rows of two values", "ours", "two_values_of_copy", 2),
        ],
    )
    commits = " and ".join(dict.fromkeys(f"commit {row['commit']}" for row in rows))
    about = f"Executed on the CPU, for {rows[0]['target']}, {commits}"
    return f"{about}; nothing was measured (`results/{path.name}`).\n\n{table}"


def tpu_static(results: Path) -> str:
    """Bundles that the Pallas kernels take on a v5e, and the cycles of its memory."""
    path = results / "tpu-static-v5e.csv"
    rows = [row for row in read_table(path) if row["dtype"] != "bool"]
    narrow = "sorted, bfloat16"
    table = by_length(
        rows,
        lambda row: row["path"] + (", bfloat16" if row["dtype"] == "bfloat16" else ""),
        "sorted",
        [
            ("bundles", "sorted", "bundles", 0),
            ("delays", "sorted", "delays", 0),
            ("bundles, rows of up to 4 values", "4 values", "bundles", 0),
            ("delays, rows of up to 4 values", "4 values", "delays", 0),
            ("bundles, rows of up to 8 values", "8 values", "bundles", 0),
            ("delays, rows of up to 8 values", "8 values", "delays", 0),
            ("bundles, bfloat16", narrow, "bundles", 0),
            ("delays, bfloat16", narrow, "delays", 0),
            ("cycles of memory", "sorted", "hbm_cycles", 0),
            ("of the roofline, at most", "sorted", "fraction", 2),
            ("the same, without delays", "sorted", "fraction_without_delays", 2),
            ("of the roofline, rows of up to 4 values", "4 values", "fraction", 2),
            ("the same, without delays", "4 values", "fraction_without_delays", 2),
            ("of the roofline, rows of up to 8 values", "8 values", "fraction", 2),
            ("the same, without delays", "8 values", "fraction_without_delays", 2),
            ("of the roofline, bfloat16 (half the bytes)", narrow, "fraction", 2),
        ],
    )
    commits = " and ".join(dict.fromkeys(row["commit"] for row in rows))
    about = f"A static count for {rows[0]['chip']}, commit {commits}"
    return f"{about}; nothing was run (`results/{path.name}`).\n\n{table}"


BENCHES = tuple(it.BENCH for it in (throughput, kernels, accuracy, host, grouping))
TABLES: dict[str, Table] = {
    **{bench.name: measured(bench) for bench in BENCHES},
    "gpu static": gpu_static,
    "tpu static": tpu_static,
}


def of_paper(name: str, tables: Callable[[Sequence[Row]], Sequence[Lines]]) -> Table:
    """Make what fills a block of bench/paper: what an experiment must show, and its figures."""

    def block(results: Path) -> str:
        claims = read_table(results / f"{name}-claims.csv")
        run = claims[0]
        about = f"Found on {run['device']} ({run['conditions']}), {run['date']} at commit "
        about += f"{run['commit']}, in {run['wall_s']} s, {run['cpu_s']} s of processors "
        parts = [f"{about}(`results/{name}.csv`).", markdown(paper.claims_table(claims))]
        parts += map(markdown, tables(read_table(results / f"{name}.csv")))
        return "\n\n".join(parts)

    return block


PAPER_TABLES = {name: of_paper(name, tables) for name, tables in paper.EXPERIMENTS.items()}


def filled(text: str, results: Path = RESULTS, tables: Mapping[str, Table] = TABLES) -> str:
    """Make all blocks of a text anew; ValueError for a name without a table."""

    def block(found: re.Match[str]) -> str:
        if found[2] not in tables:
            raise ValueError(f"results must be one of {', '.join(tables)}; got {found[2]!r}")
        return f"{found[1]}\n{tables[found[2]](results)}\n\n{found[4]}"

    return _BLOCK.sub(block, text)


app = new_app()


@app.command()
def main() -> None:
    """Fill the tables of bench/README.md and bench/paper/README.md from the files in results/."""
    every = (README, RESULTS, TABLES), (paper.README, paper.RESULTS, PAPER_TABLES)
    for readme, results, tables in every:
        readme.write_text(filled(readme.read_text(), results, tables))


if __name__ == "__main__":
    app()
