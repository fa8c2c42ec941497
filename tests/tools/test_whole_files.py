"""Files are written whole or not at all, whatever ends the process."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from rollout_examples import put

from pkpo_kernels.cli.whole_files import written_whole


@pytest.mark.parametrize("fault", [OSError, KeyboardInterrupt])
def test_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: type[BaseException]
) -> None:
    def failing(*_: Any) -> None:
        raise fault

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(fault), written_whole(tmp_path / "x.bin") as file:
        file.write(b"half")
        assert len(os.listdir(tmp_path)) == 1
        assert not (tmp_path / "x.bin").exists()
    assert os.listdir(tmp_path) == []


def test_a_full_disk_is_told_with_the_name_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    with pytest.raises(OSError, match=f"No space left on device: '{path}'"), written_whole(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert os.listdir(tmp_path) == []


WRITES_AND_WAITS = """
import signal, sys
from pkpo_kernels.cli.whole_files import written_whole

# Whatever these tests were started under: nohup ignores it.
signal.signal(signal.SIGHUP, signal.SIG_IGN if sys.argv[2] == "ignored" else signal.SIG_DFL)
with written_whole(sys.argv[1]) as file:
    file.write(b"half")
    print("written", flush=True)
    sys.stdin.read()
"""


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no signals of POSIX")
def test_signals_leave_nothing_and_still_end_the_process(tmp_path: Path) -> None:
    started = []
    for fate in ("SIGTERM", "SIGHUP", "ignored"):
        folder = tmp_path / fate
        folder.mkdir()
        put(folder / "o.bin", "precious")
        command = [sys.executable, "-c", WRITES_AND_WAITS, str(folder / "o.bin"), fate]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        started.append((fate, folder, subprocess.Popen(command, env=environment, **pipes)))
    for fate, folder, process in started:
        assert process.stdout.readline() == b"written\n"
        assert len(os.listdir(folder)) == 2
        process.send_signal(signal.SIGTERM if fate == "SIGTERM" else signal.SIGHUP)
        # At its end of input the one that ignores the signal goes on.
        process.communicate(timeout=60)
        assert process.returncode == (0 if fate == "ignored" else -getattr(signal, fate))
        assert os.listdir(folder) == ["o.bin"]
        text = (folder / "o.bin").read_text()
        assert text == ("half" if fate == "ignored" else "precious")


class TestHandlers:
    @pytest.mark.parametrize("before", [signal.SIG_DFL, signal.SIG_IGN, lambda *_: None])
    def test_are_set_while_writing_and_put_back(self, tmp_path: Path, before: Any) -> None:
        original = signal.signal(signal.SIGTERM, before)
        try:
            with written_whole(tmp_path / "o"), written_whole(tmp_path / "p"):
                during = signal.getsignal(signal.SIGTERM)
                assert (during is before) == (before is not signal.SIG_DFL)
            assert signal.getsignal(signal.SIGTERM) is before
        finally:
            signal.signal(signal.SIGTERM, original)

    def test_are_left_alone_in_other_threads(self, tmp_path: Path) -> None:
        def write() -> Any:
            with written_whole(tmp_path / "o") as file:
                file.write(b"all")
                return signal.getsignal(signal.SIGTERM)

        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(write).result() is signal.getsignal(signal.SIGTERM)
        assert (tmp_path / "o").read_text() == "all"
