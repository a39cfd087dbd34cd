"""Supervisor → child · the fork, and the first moments of a child.

A child is forked from a clean image: one thread, no event loop, no service connection. Before its own code runs it
dies with its parent, leads its own process group, has default signals, holds no descriptor but its own, and sits on
its cores.

DANGER: PR_SET_PDEATHSIG fires when the *thread* that forked ends, so fork from the main thread only; and the parent
may die before the call, hence the look at getppid() after it. A pipe end that leaks into a sibling means no EOF and a
hang, hence the sweep over all descriptors. The objects whose descriptors were swept must never be collected in the
child (they would close numbers that were given out again): the child never returns to the frames that hold them, and
gc.freeze() keeps the rest.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, NoReturn

from metamusesd.config import Log
from metamusesd.control import EXIT_BAD_CONFIG, Birth, WorkerSpec
from metamusesd.errors import ConfigError
from metamusesd.log import get_logger, obey
from metamusesd.supervisor import numa
from metamusesd.supervisor.evidence import open_path

PR_SET_PDEATHSIG = 1
PR_SET_NAME = 15
EXIT_CRASH = 1  # its code raised
PRIVATE_VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")

_libc = ctypes.CDLL(None, use_errno=True)


def fork(life: Callable[[], int], keep_fds: Iterable[int], title: str, cores: Iterable[int] = ()) -> int:
    """Start `life` in a new process and return its pid; the process ends with what `life` returns."""
    keep, parent = sorted(keep_fds), os.getpid()
    everything = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        pid = os.fork()
        if pid == 0:
            _live(life, keep, parent, title, cores)
        return pid
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, everything)


def python_life(entry: str, birth: Birth, log: Log | None = None) -> Callable[[], int]:
    """The life of a child that is a module of ours: `importlib.import_module(entry).main(birth)`. `log`: other options
    than ours, on a reload."""

    def life() -> int:
        if log is not None:
            obey(log)
        if birth.worker is not None:
            _place(birth.name, birth.worker)
        stacks = _watch_for_crashes(birth)  # noqa: F841 - faulthandler needs its file to stay open
        try:
            module = importlib.import_module(entry)
        except ImportError:
            traceback.print_exc()
            return EXIT_BAD_CONFIG  # something is not installed; another try cannot help
        return int(module.main(birth) or 0)

    return life


def _place(name: str, worker: WorkerSpec) -> None:
    """What must hold before the engine is imported: the GPUs that it sees, and where its memory comes from."""
    if worker.gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(worker.gpus)
        os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    if len(worker.nodes) == 1 and (problem := numa.prefer(worker.nodes[0])):
        get_logger(name).warning("memory may come from a far node", node=worker.nodes[0], problem=problem)


def _watch_for_crashes(birth: Birth) -> IO[bytes] | None:
    """On a crash in C, and on SIGABRT from the supervisor, the stacks of all threads go to a file of our own."""
    import faulthandler

    try:
        path = open_path(birth.config.evidence_dir, birth.name, birth.generation)
        stacks = path.open("wb", buffering=0)
    except OSError:
        faulthandler.enable()  # to standard error
        return None
    faulthandler.enable(stacks)
    return stacks


def _live(life: Callable[[], int], keep: list[int], parent: int, title: str, cores: Iterable[int]) -> NoReturn:
    """The whole rest of the child. Nothing gets past this function."""
    code = EXIT_CRASH
    try:
        _settle_in(keep, parent, title, cores)
        code = life()
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except ConfigError as error:
        sys.stderr.write("".join(f"metamusesd: {mistake}\n" for mistake in error.mistakes))
        code = EXIT_BAD_CONFIG
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError):
                pass  # nobody reads it any more
        os._exit(code & 0xFF)


def _settle_in(keep: list[int], parent: int, title: str, cores: Iterable[int]) -> None:
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(EXIT_CRASH)
    gc.freeze()
    os.setpgid(0, 0)
    _default_signals()
    _close_all_but(keep)
    set_title(title)
    for name in PRIVATE_VARIABLES:
        os.environ.pop(name, None)
    if mine := set(cores):
        os.sched_setaffinity(0, mine)
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))  # models make huge cores


def _default_signals() -> None:
    signal.set_wakeup_fd(-1)
    for signum in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGPIPE, signal.SIGXFSZ}:
        if signal.getsignal(signum) is not None:
            signal.signal(signum, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _close_all_but(keep: list[int]) -> None:
    """Standard output and error stay, standard input becomes /dev/null, everything else not in `keep` goes."""
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    low = 3
    for fd in keep:
        os.closerange(low, fd)
        low = fd + 1
    os.closerange(low, _highest_fd() + 1)


def _highest_fd() -> int:
    return max(int(entry.name) for entry in Path("/proc/self/fd").iterdir())


def set_title(title: str) -> None:
    """What `ps` shows: the thread's name and, as far as the old command line has room, the arguments."""
    _libc.prctl(PR_SET_NAME, title.removeprefix("metamusesd: ").encode()[:15], 0, 0, 0)
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return
    start, end = int(fields[45]), int(fields[46])  # arg_start and arg_end, fields 48 and 49 of proc(5)
    room = end - start
    if room > 1:
        # DANGER: this is the memory of the process' own argv. Its last byte must stay NUL, or the kernel reads on
        # into the environment. Python has copied argv long ago.
        ctypes.memmove(start, title.encode()[: room - 1].ljust(room, b"\0"), room)
