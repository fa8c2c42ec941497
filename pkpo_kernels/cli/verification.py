"""`pkpo verify`, which also runs where typer and rich are not installed: how findings and progress
are shown is given to it."""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pkpo_kernels import selfcheck
from pkpo_kernels.backends import registry
from pkpo_kernels.cli import machine
from pkpo_kernels.cli.whole_files import check_folder, written_whole
from pkpo_kernels.selfcheck import Finding

# What is being done and how much there is to do → while it runs, tells how much is done.
Progress = Callable[[str, float], AbstractContextManager[Callable[[float], None]]]

HEADINGS = ("implementation", "estimator", "against", "rows", "worst error", "allowed", "outcome")


def verify(
    implementations: Sequence[str] | None,
    *,
    seed: int,
    fuzz: float | None,
    report: Path | None,
    show: Callable[[Sequence[Finding]], None],
    progress: Progress,
) -> int:
    """Check implementations, tell what was found, and write the report: → the exit code.

    Args:
        implementations, seed: as for `selfcheck.verify`.
        fuzz: for so many minutes go on with random shapes.
        report: the file for all findings, versions and devices.
        show: prints the findings.
        progress: shows how much is done.

    Raises:
        ValueError, OSError: an argument is wrong; raised before anything is computed.
        KeyboardInterrupt: once all that was found before an interrupt is told.
    """
    if fuzz is not None and not 0 < fuzz < math.inf:
        raise ValueError(f"--fuzz must be minutes above 0; got {fuzz}")
    if report is not None:
        check_folder(report)
    start = time.monotonic()
    found: list[Finding] = []
    interrupted = False
    # What was found before an interrupt is told all the same: it may be hours of work.
    try:
        with progress("verifying", selfcheck.count_findings(implementations)) as completed:
            for finding in selfcheck.verify(implementations, seed=seed):
                found.append(finding)
                completed(len(found))
        if fuzz is not None:
            with progress("fuzzing, seconds", math.ceil(60 * fuzz)) as completed:
                found += selfcheck.fuzz(
                    implementations, seed=seed, minutes=fuzz, progress=completed
                )
    except KeyboardInterrupt:
        interrupted = True
    if report is not None:
        record = {
            "seed": seed,
            "fuzz_minutes": fuzz,
            "seconds": round(time.monotonic() - start, 1),
            "interrupted": interrupted,
        }
        with written_whole(report) as file:
            file.write(_report(record, found))

    show(found)
    if report is not None:
        print(f"written to {report}")
    faults = sum(not finding.ok for finding in found)
    if interrupted:
        print(f"interrupted after {len(found)} checks, of which {faults} failed")
        raise KeyboardInterrupt
    if faults:
        print(f"{faults} of {len(found)} checks failed")
        return 1
    print(f"all {len(found)} checks passed")
    return 0


def verify_plainly(arguments: Sequence[str]) -> int:
    """Run `pkpo verify` with these arguments, without typer and rich: → the exit code."""
    parser = argparse.ArgumentParser(prog="pkpo verify", allow_abbrev=False)
    parser.add_argument("--implementation", action="append")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fuzz", type=float, metavar="MINUTES")
    parser.add_argument("--report", type=Path)
    given = parser.parse_args(arguments)

    def show(found: Sequence[Finding]) -> None:
        for finding in found:
            print(*cells(finding), sep="  ")

    return verify(
        given.implementation,
        seed=given.seed,
        fuzz=given.fuzz,
        report=given.report,
        show=show,
        progress=lambda task, total: nullcontext(lambda done: None),
    )


def cells(finding: Finding) -> tuple[str, ...]:
    """Write a finding as a row of a table under HEADINGS."""
    return (
        finding.implementation,
        finding.estimator,
        finding.against,
        str(finding.cases),
        f"{finding.worst_error:.1e}",
        f"{finding.tolerance:.0e}",
        "ok" if finding.ok else f"FAILED at {finding.worst_case}",
    )


def _report(record: dict[str, Any], found: Sequence[Finding]) -> bytes:
    """Write what whoever reads the findings elsewhere must know of this machine, as JSON."""
    record |= {
        "passed": all(finding.ok for finding in found) and not record["interrupted"],
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "platform": platform.platform(),
        "versions": machine.versions(),
        "devices": machine.devices(),
        "implementations": registry.available_implementations(),
        "findings": [finding.as_dict() for finding in found],
    }
    return json.dumps(record, indent=1, allow_nan=False).encode() + b"\n"
