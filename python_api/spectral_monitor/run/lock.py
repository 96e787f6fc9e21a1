"""One writer for a run folder: ``writer.lock`` names the process that has it.

The file is made with O_EXCL, which is atomic on local disks and on NFS of version 3 and later. It
is removed by `RunLock.release`, by garbage collection and at the end of the process; a process that
was killed leaves it, and who comes next finds out whether the holder still lives:

- on this host by its id, and, since ids are used again, by when it was started (Linux);
- on another host by the age of the file, which a holder renews as it writes. One that was silent
  for a minute is taken for dead.

Both are judgements, so a holder looks before each write whether the file is still its own, and
stops with an error where it is not: rows of two writers never mix. Reading needs no lock.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import socket
import time
import uuid
import warnings
import weakref
from pathlib import Path
from typing import Any

LOCK_FILE = "writer.lock"
_SILENT_SECONDS = 60.0
_RENEWED_SECONDS = 10.0


class RunLock:
    """Holds a run folder until it is released.

    Args:
        run_dir: an existing folder.

    Raises:
        ValueError: another writer has it; the message names it.
    """

    def __init__(self, run_dir: Path) -> None:
        self.path = run_dir / LOCK_FILE
        self._token, self._pid = uuid.uuid4().hex, os.getpid()
        self._identity, self._renewed = (0, 0), 0.0
        self._take()
        self._finalizer = weakref.finalize(self, _remove, self.path, self._token, self._pid)

    def check(self) -> None:
        """To be called before a write.

        Raises:
            ValueError: this is a forked child of the holder, or another writer took the folder.
        """
        if os.getpid() != self._pid:
            raise ValueError(
                f"{self.path.parent} is written by process {self._pid}, and this is its forked "
                f"child {os.getpid()}; record in the parent alone, or make a Recorder of another "
                "folder here"
            )
        try:
            identity = _identity(os.stat(self.path))
        except FileNotFoundError:
            # Somebody tidied up.
            self._take()
            return
        if identity != self._identity:
            raise ValueError(
                f"{self.path.parent} was taken over from this process {self._pid} by "
                f"{_described(_read(self.path))}, after it was silent or taken for dead; nothing "
                "more is recorded here"
            )
        now = time.monotonic()
        if now - self._renewed > _RENEWED_SECONDS:
            os.utime(self.path)
            self._identity, self._renewed = _identity(os.stat(self.path)), now

    def release(self) -> None:
        """Let others write; a second time does nothing, nor does a forked child."""
        self._finalizer()

    def _take(self) -> None:
        for _ in range(8):
            if self._make():
                return
            holder = _read(self.path)
            if holder is None:
                continue  # It is gone.
            reason = _dead(holder, self.path)
            if reason is None:
                raise ValueError(_refusal(self.path.parent, holder))
            warnings.warn(
                f"{self.path.parent}: taken over from {_described(holder)}, which {reason}",
                stacklevel=4,
            )
            _set_aside(self.path, holder, self._token)
        raise ValueError(f"{self.path}: other processes take this folder again and again")

    def _make(self) -> bool:
        try:
            file = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return False
        try:
            os.write(file, json.dumps(_here(self._token), indent=1).encode())
            self._identity = _identity(os.fstat(file))
        finally:
            os.close(file)
        self._renewed = time.monotonic()
        return True


def _identity(status: os.stat_result) -> tuple[int, int]:
    # The number of a file that was removed is used again at once; its time is another.
    return status.st_ino, status.st_mtime_ns


def _here(token: str) -> dict[str, Any]:
    rank = os.environ.get("RANK") or os.environ.get("SLURM_PROCID")
    return {
        "token": token,
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "rank": None if rank is None else int(rank),
        "since": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "process": _process_started(os.getpid()),
    }


def _process_started(pid: int) -> str | None:
    """What tells a process from another one with its id later; None where nobody knows."""
    with contextlib.suppress(OSError, IndexError):
        ticks = _process_fields(pid)[19]
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {ticks}"
    return None


def _is_zombie(pid: int) -> bool:
    with contextlib.suppress(OSError, IndexError):
        return _process_fields(pid)[0] in "ZX"
    return False


def _process_fields(pid: int) -> list[str]:
    """Linux's, from the state on."""
    # The name of the program, in brackets, may have blanks.
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _read(path: Path) -> dict[str, Any] | None:
    """The holder; empty where the file says nothing, None where there is no file."""
    for _ in range(5):
        try:
            content = json.loads(path.read_text())
            return content if isinstance(content, dict) else {}
        except FileNotFoundError:
            return None
        except ValueError:
            time.sleep(0.02)  # Being written.
    return {}


def _dead(holder: dict[str, Any], path: Path) -> str | None:
    """Why a holder is taken for dead; None where it is not."""
    pid = holder.get("pid")
    if isinstance(pid, int) and holder.get("host") == socket.gethostname() and os.name == "posix":
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return "no longer runs"
        except PermissionError:
            pass  # Somebody else's process.
        started = _process_started(pid)
        if holder.get("process") and started and holder["process"] != started:
            return "no longer runs (its id has another process now)"
        if _is_zombie(pid):
            return "no longer runs (it ended, and nobody has waited for it)"
        return None
    silent = _age(path)
    return f"has been silent for {silent:.0f} s" if silent > _SILENT_SECONDS else None


def _age(path: Path) -> float:
    """Seconds since a file was renewed, by the clock of its file system."""
    probe = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    try:
        probe.touch()
        return probe.stat().st_mtime - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
    finally:
        probe.unlink(missing_ok=True)


def _set_aside(path: Path, holder: dict[str, Any], token: str) -> None:
    """Remove the file of a dead holder, and no other one that has come in its place."""
    aside = path.with_name(f"{path.name}.{token}")
    try:
        os.rename(path, aside)
    except FileNotFoundError:
        return
    if (_read(aside) or {}).get("token") != holder.get("token"):
        with contextlib.suppress(FileExistsError):
            os.link(aside, path)
    aside.unlink()


def _remove(path: Path, token: str, pid: int) -> None:
    if os.getpid() == pid and (_read(path) or {}).get("token") == token:
        path.unlink(missing_ok=True)


def _described(holder: dict[str, Any] | None) -> str:
    if not holder or not {"pid", "host", "since"} <= holder.keys():
        return "a writer that has not told its name"
    rank = "" if holder.get("rank") is None else f"rank {holder['rank']}, "
    return f"{rank}process {holder['pid']} on {holder['host']} since {holder['since']}"


def _refusal(folder: Path, holder: dict[str, Any]) -> str:
    if holder.get("pid") == os.getpid() and holder.get("host") == socket.gethostname():
        return (
            f"{folder} is being written by another Recorder of this process; close it first "
            "(monitor.close() does), or choose another folder"
        )
    message = (
        f"{folder} is being written by {_described(holder)}; choose another folder, or, of several "
        "ranks, record on one alone (recorder=None on the others)"
    )
    if holder.get("host") != socket.gethostname():
        message += (
            f"; if that process was killed, try again when {_SILENT_SECONDS:.0f} s have passed"
        )
    return message
