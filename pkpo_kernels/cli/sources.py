"""Where rollouts come from: files, compressed or not, and standard input; their format by name."""

from __future__ import annotations

import gzip
import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO

from pkpo_kernels.cli.rollouts import PathLike, RolloutFileError

__all__ = ["FORMATS", "STDIN", "TEXT", "Progress", "Source", "format_of", "opened"]

FORMATS = ("jsonl", "json", "csv", "tsv", "npy", "parquet")
# Those that are read from their beginning to their end.
TEXT = FORMATS[:4]
STDIN = "-"
# Tells how many bytes are read.
Progress = Callable[[float], None]

# Modules that read .zst, each from a file: Python's own, its backport, and two libraries.
_ZST_READERS: dict[str, Callable[[Any, BinaryIO], Any]] = {
    "compression.zstd": lambda module, file: module.ZstdFile(file),
    "backports.zstd": lambda module, file: module.ZstdFile(file),
    "pyarrow": lambda module, file: module.CompressedInputStream(file, "zstd"),
    "zstandard": lambda module, file: _Frames(module, file),
}
# What else files begin with, and what to do.
_BEGINNINGS = {
    b"\xff\xfe": "; it is UTF-16: convert it, such as with iconv -f UTF-16 -t UTF-8",
    b"\xfe\xff": "; it is UTF-16: convert it, such as with iconv -f UTF-16 -t UTF-8",
    b"\x1f\x8b": "; it is compressed: unpack it by gunzip, or end its name in .gz",
    b"\x28\xb5\x2f\xfd": "; it is compressed: unpack it by unzstd, or end its name in .zst",
}
# Lines between two reports of progress.
_LINES = 512


class Source:
    """A file that is open for reading.

    Attributes:
        path: of the file, for messages.
        file: its bytes, decompressed.
    """

    def __init__(self, path: PathLike, raw: BinaryIO, file: BinaryIO, progress: Progress) -> None:
        self.path = path
        self.file = file
        self._raw = raw
        self._progress = progress
        self._size = os.fstat(raw.fileno()).st_size if path != STDIN else 0

    def tell(self, share: float | None = None) -> None:
        """Tell how much is read: what has passed, or a share of the file."""
        if self.path == STDIN:
            self._progress(0.0)  # of nobody knows how many
        else:
            self._progress(self._raw.tell() if share is None else share * self._size)

    def lines(self) -> Iterator[str]:
        """Read lines in UTF-8, with or without a byte order mark.

        Raises:
            RolloutFileError: a line is not UTF-8.
        """
        for number, raw in enumerate(self.file, 1):
            if not number % _LINES:
                self.tell()
            try:
                # A byte order mark can only be on the first line.
                yield raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                reason = f"not UTF-8 at byte {error.start} of the line"
                if number == 1:
                    reason += "".join(_BEGINNINGS[x] for x in _BEGINNINGS if raw.startswith(x))
                raise RolloutFileError(self.path, reason, number) from None


def format_of(path: PathLike, format: str | None = None) -> str:
    """Choose the format of a file to be read: the user's, or by its extension.

    >>> format_of("r.jsonl.gz"), format_of("r.txt", "csv")
    ('jsonl', 'csv')

    Raises:
        RolloutFileError: the extension names no format, or the file cannot be read in it.
        ValueError: there is no such format.
    """
    name, compression = _split(path)
    if format is not None and format not in FORMATS:
        raise ValueError(f"--format must be one of {', '.join(FORMATS)}; got {format!r}")
    chosen = format or Path(name).suffix.lower()[1:]
    if chosen not in FORMATS:
        if name == STDIN:
            raise RolloutFileError(path, "standard input needs --format, such as --format jsonl")
        raise RolloutFileError(
            path,
            "extension must be .jsonl, .json, .csv or .tsv, each with .gz or .zst after it or not,"
            f" .npy or .parquet; got {Path(name).suffix.lower() or 'none'!r}; or say --format",
        )
    if (compression or name == STDIN) and chosen not in TEXT:
        kind = "standard input" if name == STDIN else f"a {compression} file"
        raise RolloutFileError(path, f"{kind} must be one of {', '.join(TEXT)}; got {chosen}")
    return chosen


@contextmanager
def opened(path: PathLike, progress: Progress = lambda read: None) -> Iterator[Source]:
    """Open a file for reading, or standard input as "-", and tell how many of its bytes are read.

    Raises:
        OSError: it cannot be opened.
        ModuleNotFoundError: nothing that is installed reads .zst.
    """
    if os.fspath(path) == STDIN:
        if sys.stdin is None:  # it was closed before Python began
            raise RolloutFileError(path, "it is closed")
        yield Source(STDIN, sys.stdin.buffer, sys.stdin.buffer, progress)
        return
    _, compression = _split(path)
    with open(path, "rb") as raw:
        file: Any = raw
        if compression:
            inner = gzip.GzipFile(fileobj=raw) if compression == ".gz" else _zst(path, raw)
            file = io.BufferedReader(_Decompressed(path, inner, compression), 1 << 18)
        yield Source(path, raw, file, progress)


def _split(path: PathLike) -> tuple[str, str]:
    """Split a name: → the name of what is in the file, and the extension of its compression."""
    name = os.fspath(path)
    extension = Path(name).suffix.lower()
    return (name[: -len(extension)], extension) if extension in (".gz", ".zst") else (name, "")


def _zst(path: PathLike, raw: BinaryIO) -> Any:
    for name, reader in _ZST_READERS.items():
        try:
            module = import_module(name)
        except ImportError:
            continue
        return reader(module, raw)
    raise ModuleNotFoundError(f"{os.fspath(path)}: .zst needs a reader; pip install zstandard")


class _Frames:
    """Reads the frames of a .zst file by the library zstandard, whose own stream takes a file that
    is cut off for one that ends."""

    def __init__(self, module: Any, file: BinaryIO) -> None:
        self._decompressor = module.ZstdDecompressor()
        self._file = file
        self._frame: Any = None
        self._held = b""
        self._more = b""

    def read(self, size: int) -> bytes:
        """Read up to so many bytes; none at the end.

        Raises:
            EOFError: it is not the end of a frame.
        """
        while not self._held:
            piece = self._more or self._file.read(1 << 16)
            if not piece:
                if self._frame is not None:
                    raise EOFError("it is cut off")
                return b""
            self._frame = self._frame or self._decompressor.decompressobj()
            self._held = self._frame.decompress(piece)
            self._more = self._frame.unused_data
            if self._frame.eof:
                self._frame = None
        content, self._held = self._held[:size], self._held[size:]
        return content


class _Decompressed(io.RawIOBase):
    """Reads from a decompressor, whose errors are of many types, and says whose file it was."""

    def __init__(self, path: PathLike, inner: Any, compression: str) -> None:
        self._path = path
        self._inner = inner
        self._compression = compression

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            content = self._inner.read(len(buffer))
        except Exception as error:
            reason = f"not a whole {self._compression} file: {error}"
            raise RolloutFileError(self._path, reason) from None
        buffer[: len(content)] = content
        return len(content)
