"""Runs the experiment command many times, fast: a process that has everything imported forks a child for each.

Started with the tiny experiment registered and `crash.so` preloaded, it reads one JSON request a line and answers with
one: the exit status (negative: killed by that signal), seconds, and how many calls on files below the folder it made.
"""

import ctypes
import json
import os
import signal
import sys
import time

from experiments import run
from experiments.claims import EXPERIMENTS
from tests.faults.experiments import TINY

EXPERIMENTS |= TINY  # pyright: ignore


def child(request: dict, crash: ctypes.CDLL) -> None:
    """The command in this process, with its output in a file; never returns."""
    out = os.open(request["out"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(out, 1)
    os.dup2(out, 2)
    crash.crash_arm(request["folder"].encode(), request["crash_at"], request["crash_name"].encode())
    status = run.FAILED
    try:
        status = run.main(run.parse(["run", *request["arguments"]]))
    except SystemExit as error:
        status = error.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
    sys.stdout.flush()
    sys.stderr.flush()
    with open(request["out"] + ".count", "w") as file:
        file.write(str(crash.crash_count()))
    os._exit(status)


def main() -> None:
    """Serves until its input ends."""
    crash = ctypes.CDLL(os.environ["LD_PRELOAD"])
    for line in sys.stdin:
        request, begun = json.loads(line), time.monotonic()
        pid = os.fork()
        if pid == 0:
            child(request, crash)
        for delay, number in request["signals"]:
            time.sleep(delay)
            os.kill(pid, number)  # a child that has ended is not reaped yet, so its number is still its own
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        print(json.dumps({"status": status, "seconds": time.monotonic() - begun}), flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    main()
