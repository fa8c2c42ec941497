"""Files that are written whole or not at all, whatever ends the process."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import BinaryIO

__all__ = ["check_folder", "written_whole"]

PathLike = str | os.PathLike[str]

# Windows has no SIGHUP. SIGINT raises KeyboardInterrupt, which needs no handler here.
_DEADLY = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
# What is being written, in any thread.
_drafts: set[Path] = set()


def check_folder(path: PathLike) -> None:
    """Raise OSError where no file can be written at `path`."""
    folder = Path(path).parent
    if not folder.is_dir():
        raise FileNotFoundError(f"{os.fspath(path)}: there is no folder {str(folder)!r}")
    if Path(path).is_dir():
        raise IsADirectoryError(f"{os.fspath(path)}: a folder is in the place of the file")
    # What is renamed onto a device or a pipe takes its place, for every other program too.
    if Path(path).exists() and not Path(path).is_file():
        raise FileExistsError(f"{os.fspath(path)}: must be a regular file")
    # /dev/stdout is a regular file where stdout goes to one, and all that it holds would be lost.
    if any(_is_open_as(stream, path) for stream in (1, 2)):
        raise FileExistsError(f"{os.fspath(path)}: must be a file that is not stdout or stderr")


def _is_open_as(descriptor: int, path: PathLike) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except OSError:  # one of them is not there
        return False


@contextmanager
def written_whole(path: PathLike) -> Iterator[BinaryIO]:
    """Open a binary file that appears at `path` when the block ends, and not at all if it fails.

    It is written beside its target, as `.NAME.<random>.tmp`, forced to disk, and then renamed. A
    SIGTERM or SIGHUP that would end the process still does, once that file is removed; where the
    program has a handler of its own, or ignores the signal, that is left to it.

    Raises:
        OSError: as :func:`check_folder`, before the block begins.
    """
    check_folder(path)
    target = Path(os.path.realpath(path))
    draft = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    with _removed_by_signals(draft):
        try:
            with open(draft, "xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            if target.exists():
                shutil.copymode(target, draft)
            os.replace(draft, target)
        except BaseException as error:
            # What a full disk raises names no file.
            if isinstance(error, OSError) and error.errno is not None and error.filename is None:
                error.filename = os.fspath(path)
            with suppress(FileNotFoundError):
                draft.unlink()
            raise


@contextmanager
def _removed_by_signals(draft: Path) -> Iterator[None]:
    """Have the draft removed by signals whose default is to end the process."""
    _drafts.add(draft)
    handled = []
    # Only the main thread of the main interpreter can set a handler.
    with suppress(ValueError):
        for number in _DEADLY:
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, _die)
                handled.append(number)
    try:
        yield
    finally:
        for number in handled:
            if signal.getsignal(number) is _die:
                signal.signal(number, signal.SIG_DFL)
        _drafts.discard(draft)


def _die(number: int, frame: FrameType | None) -> None:
    """Remove what is half written, and die by the signal as if there were no handler."""
    for draft in list(_drafts):
        with suppress(OSError):
            draft.unlink()
    signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)
