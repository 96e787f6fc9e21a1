"""One writer for a run folder: others are refused by name, and what a kill leaves is taken over."""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from spectral_monitor.monitor import SpectralMonitor
from spectral_monitor.run.lock import LOCK_FILE, RunLock, _process_started
from spectral_monitor.run.reader import load_run
from spectral_monitor.run.recorder import Recorder
from spectral_monitor.step.frame import SpectralFrame

HOLDER = """
import sys, time
from spectral_monitor.run.recorder import Recorder
recorder = Recorder(sys.argv[1])
print("here", flush=True)
time.sleep(600)
"""


def one_frame(step: int) -> SpectralFrame:
    frame = SpectralMonitor({"a": torch.eye(3)}, every=1).step(step)
    assert frame is not None
    return frame


def leave(folder: Path, **changes: Any) -> Path:
    """The lock of another writer."""
    lock = RunLock(folder)
    content = json.loads(lock.path.read_text())
    lock.release()
    lock.path.write_text(json.dumps({**content, "token": "another", **changes}))
    return lock.path


def test_a_second_recorder_of_this_process_is_refused(tmp_path: Path) -> None:
    first = Recorder(tmp_path)
    with pytest.raises(ValueError, match="written by another Recorder of this process; close it"):
        Recorder(tmp_path)
    first.write(one_frame(0))
    # Reading needs no lock.
    assert load_run(tmp_path).steps.tolist() == [0]
    first.close()
    assert not (tmp_path / LOCK_FILE).exists()
    second = Recorder(tmp_path)
    second.write(one_frame(1))
    # One that is forgotten holds nothing.
    del second
    gc.collect()
    Recorder(tmp_path).close()
    assert load_run(tmp_path).steps.tolist() == [0, 1]


def test_a_recorder_that_fails_to_open_holds_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="vectors: expected one of"):
        Recorder(tmp_path, vectors="int8")
    assert not (tmp_path / LOCK_FILE).exists()


def test_another_process_is_named_and_once_it_is_killed_taken_over_from(tmp_path: Path) -> None:
    environment = {**os.environ, "RANK": "3"}
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, env=environment, cwd=Path(__file__).parents[2]
    ) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"here\n"
            told = f"written by rank 3, process {holder.pid} on {socket.gethostname()} since 20"
            with pytest.raises(ValueError, match=f"{told}.*record on one alone"):
                Recorder(tmp_path)
        finally:
            holder.send_signal(signal.SIGKILL)
    with (
        pytest.warns(UserWarning, match=f"taken over from rank 3, process {holder.pid}.*no longer"),
        Recorder(tmp_path) as recorder,
    ):
        recorder.write(one_frame(0))
    assert list(tmp_path.glob(f"{LOCK_FILE}*")) == []


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc to tell processes by")
def test_a_process_that_ended_and_was_not_waited_for_is_dead(tmp_path: Path) -> None:
    # What a launcher has that is busy elsewhere.
    with subprocess.Popen([sys.executable, "-c", "pass"]) as ended:
        os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
        process = _process_started(ended.pid)
        leave(tmp_path, pid=ended.pid, process=process)
        with pytest.warns(UserWarning, match="it ended, and nobody has waited for it"):
            Recorder(tmp_path).close()


@pytest.mark.parametrize("content", ["", "[]", "{", '{"pid": 5}', '{"pid": "x", "host": "y"}'])
def test_a_lock_that_says_nothing_is_somebodys(tmp_path: Path, content: str) -> None:
    path = tmp_path / LOCK_FILE
    path.write_text(content)
    with pytest.raises(ValueError, match="a writer that has not told its name"):
        Recorder(tmp_path)
    long_ago = time.time() - 100
    os.utime(path, (long_ago, long_ago))
    with pytest.warns(UserWarning, match="has not told its name, which has been silent"):
        Recorder(tmp_path).close()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc to tell processes by")
def test_an_id_that_has_another_process_now_is_not_the_holder(tmp_path: Path) -> None:
    leave(tmp_path, pid=os.getppid(), process="another boot 17")
    with pytest.warns(UserWarning, match="its id has another process now"):
        Recorder(tmp_path).close()


def test_another_host_is_dead_when_it_has_been_silent(tmp_path: Path) -> None:
    path = leave(tmp_path, host="elsewhere", rank=None)
    with pytest.raises(ValueError, match=r"process \d+ on elsewhere.*try again when 60 s have"):
        Recorder(tmp_path)
    long_ago = time.time() - 100
    os.utime(path, (long_ago, long_ago))
    with pytest.warns(UserWarning, match=r"on elsewhere since .* has been silent for 1\d\d s"):
        Recorder(tmp_path).close()


def test_a_holder_renews_its_lock_as_it_writes(tmp_path: Path) -> None:
    with Recorder(tmp_path) as recorder:
        long_ago = time.time() - 100
        os.utime(recorder._lock.path, (long_ago, long_ago))
        status = recorder._lock.path.stat()
        recorder._lock._identity = (status.st_ino, status.st_mtime_ns)
        recorder._lock._renewed -= 11
        recorder.write(one_frame(0))
        assert time.time() - recorder._lock.path.stat().st_mtime < 50
        recorder.write(one_frame(1))


def test_who_was_taken_over_from_stops(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    recorder._lock.path.unlink()
    recorder.write(one_frame(0))  # A folder that somebody tidied up is taken again.
    recorder._lock.path.unlink()
    path = leave(tmp_path, host="elsewhere", rank=5)
    with pytest.raises(ValueError, match=r"taken over .* by rank 5, process \d+ on elsewhere"):
        recorder.write(one_frame(1))
    recorder.close()
    assert path.exists()
    assert load_run(tmp_path).steps.tolist() == [0]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_does_not_write_and_does_not_free_the_folder(tmp_path: Path) -> None:
    recorder, frame = Recorder(tmp_path), one_frame(0)
    recorder.write(frame)
    pid = os.fork()
    if not pid:
        frame.step = 1
        try:
            recorder.write(frame)
        except ValueError as error:
            recorder.close()
            os._exit(0 if "forked child" in str(error) else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert (tmp_path / LOCK_FILE).exists()
    recorder.write(one_frame(1))
    recorder.close()
    assert load_run(tmp_path).steps.tolist() == [0, 1]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_of_many_that_find_a_dead_holder_one_takes_over(tmp_path: Path) -> None:
    for attempt in range(5):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        leave(folder, pid=2**22 + 1)
        begin, hold = os.pipe(), os.pipe()
        children = []
        for _ in range(6):
            pid = os.fork()
            if not pid:
                os.close(begin[1])
                os.close(hold[1])
                os.read(begin[0], 1)
                warnings.simplefilter("ignore")
                try:
                    lock = RunLock(folder)
                except ValueError:
                    os._exit(1)
                os.read(hold[0], 1)  # Until all have tried.
                try:
                    lock.check()
                except ValueError:
                    os._exit(1)
                os._exit(0)
            children.append(pid)
        os.close(begin[0])
        os.close(begin[1])
        time.sleep(0.3)
        os.close(hold[0])
        os.close(hold[1])
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
        assert sorted(codes) == [0, 1, 1, 1, 1, 1]
