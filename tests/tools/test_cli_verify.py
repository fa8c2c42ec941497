"""`pkpo verify` and `pkpo info`: what they find, in tables and in reports."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("typer")
pytest.importorskip("rich")

from command_line import pkpo, python, rows_of

from pkpo_kernels import available_implementations, selfcheck
from pkpo_kernels.backends import registry
from pkpo_kernels.cli import machine
from pkpo_kernels.selfcheck import Finding


class TestVerify:
    def test_what_is_right(self) -> None:
        code, out, err = pkpo("verify", "--implementation", "numpy")
        assert (code, err) == (0, ""), out
        rows = rows_of(out)
        assert {row[0] for row in rows} == {"numpy"}
        assert {row[2] for row in rows} == {
            *("enumeration", "reference", "rows that are not finite", "random shapes"),
            *("exact gradient", "exact value"),
        }
        assert all(row[-1] == "ok" and float(row[4]) <= float(row[5]) for row in rows)
        assert f"all {len(rows)} checks passed" in out

    @pytest.mark.parametrize("error", [2e-6, float("nan")])
    def test_what_is_wrong(self, monkeypatch: pytest.MonkeyPatch, error: float) -> None:
        def findings(names: Any, seed: int) -> Iterator[Finding]:
            assert (names, seed) == (["numpy", "torch"], 7)
            yield Finding("numpy", "s", "reference", 10, 1e-9, 1e-6, "n=9 k=2 gaussian")
            yield Finding("torch", "s", "reference", 10, error, 1e-6, "n=9 k=3 0/1")

        monkeypatch.setattr(selfcheck, "verify", findings)
        monkeypatch.setattr(selfcheck, "count_findings", lambda names: 2)
        code, out, _ = pkpo(
            *("verify", "--implementation", "numpy", "--implementation", "torch", "--seed", "7")
        )
        assert code == 1
        assert [row[-1] for row in rows_of(out)] == ["ok", "FAILED at n=9 k=3 0/1"]
        assert "1 of 2 checks failed" in out

    def test_report(self, tmp_path: Path) -> None:
        path = tmp_path / "report.json"
        options = ("--seed", "3", "--fuzz", "0.002", "--report", path)
        code, out, err = pkpo("verify", "--implementation", "numpy", *options)
        assert (code, err) == (0, "")
        report = json.loads(path.read_text())
        assert (report["passed"], report["interrupted"]) == (True, False)
        assert (report["seed"], report["fuzz_minutes"]) == (3, 0.002)
        assert report["versions"]["numpy"] == np.__version__
        assert report["implementations"] == available_implementations()
        rows = rows_of(out)
        assert [
            [f["implementation"], f["estimator"], f["against"], str(f["cases"])]
            for f in report["findings"]
        ] == [row[:4] for row in rows]
        # What fuzzing adds comes last, one line an estimator.
        assert {row[2] for row in rows[-6:]} == {"random shapes"}
        assert f"written to {path}" in out

    def test_report_of_faults(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        bad = Finding("numpy", "s", "reference", 10, float("inf"), 1e-6, "n=9: OSError: no")
        monkeypatch.setattr(selfcheck, "verify", lambda names, seed: iter([bad]))
        path = tmp_path / "report.json"
        assert pkpo("verify", "--report", path)[0] == 1
        report = json.loads(path.read_text())
        assert report["passed"] is False
        assert report["findings"][0]["worst_error"] is None
        assert report["findings"][0]["worst_case"] == "n=9: OSError: no"

    def test_an_interrupted_run_tells_what_it_has_found(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupted(*_: Any, **__: Any) -> Iterator[Finding]:
            yield Finding("numpy", "s", "reference", 10, 0.0, 1e-6, "none")
            raise KeyboardInterrupt

        monkeypatch.setattr(selfcheck, "verify", interrupted)
        monkeypatch.setattr(selfcheck, "count_findings", lambda names: 2)
        code, out, _ = pkpo("verify", "--report", tmp_path / "report.json")
        assert code == 130
        assert [row[-1] for row in rows_of(out)] == ["ok"]
        assert "interrupted after 1 checks, of which 0 failed" in out
        report = json.loads((tmp_path / "report.json").read_text())
        assert (report["passed"], report["interrupted"]) == (False, True)
        assert len(report["findings"]) == 1

    def test_without_typer_or_rich(self, tmp_path: Path) -> None:
        path = tmp_path / "report.json"
        arguments = ["verify", "--implementation", "numpy", "--report", str(path)]
        code = (
            "import sys\n"
            "absent = ('typer', 'rich', 'torch', 'jax', 'matplotlib')\n"
            "sys.modules |= dict.fromkeys(absent)\n"
            "from pkpo_kernels import cli, selfcheck\n"
            "selfcheck.EVERYTHING = ('s',)\n"  # enough to see the lines
            f"sys.argv = {['pkpo', *arguments]!r}\n"
            "cli.main()"
        )
        done = python("-c", code)
        assert (done.returncode, done.stderr) == (0, "")
        lines = done.stdout.splitlines()
        report = json.loads(path.read_text())
        assert lines[-2:] == [
            f"written to {path}",
            f"all {len(report['findings'])} checks passed",
        ]
        assert len(lines) == len(report["findings"]) + 2


class TestInfo:
    def test_everything_is_said_in_full(self) -> None:
        code, out, err = pkpo("info")
        assert (code, err) == (0, "")
        rows = rows_of(out)
        assert ["numpy", np.__version__] in rows
        there = {row[0]: row[-1] for row in rows if len(row) == 4}
        for name, reason in available_implementations().items():
            assert there[name] == (reason or "available")
        for row in registry.defaults_by_device():
            assert list(row) in rows
        assert ["numpy", "cpu", "numpy"] in rows

    def test_what_serves_on_this_machine(self) -> None:
        """No name of a kernel beside a processor that it does not run on."""
        pytest.importorskip("torch")
        pytest.importorskip("jax")
        there = [row for row in rows_of(pkpo("info")[1]) if len(row) == 3 and "cpu" in row[1]]
        interpreted = os.environ.get("TRITON_INTERPRET") == "1"
        assert {(arrays, name) for arrays, _, name in there} == {
            ("numpy", "numpy"),
            ("torch", "triton" if interpreted else "numpy"),
            ("jax", "numpy"),
        }

    def test_what_is_not_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(machine, "find_spec", lambda name: None if name == "jax" else True)
        monkeypatch.setattr(machine, "_torch_devices", lambda torch: ["cpu", "cuda:0 H200"])
        _, out, _ = pkpo("info")
        rows = rows_of(out)
        assert ["jax", "not installed; pip install jax"] in rows
        assert ["jax", "none", "not installed; pip install jax"] in rows
        assert ["", "cuda:0 H200"] in rows

    def test_a_broken_library_is_reported(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def broken(_: Any) -> list[str]:
            raise OSError("libcuda.so.1: no such file")

        monkeypatch.setattr(machine, "_torch_devices", broken)
        code, out, _ = pkpo("info")
        assert code == 0
        assert "not usable: OSError: libcuda.so.1: no such file" in out
