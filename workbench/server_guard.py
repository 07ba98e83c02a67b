"""Runs a command for as long as somebody holds the other end of standard input, then ends all of its processes.

Started as a file of its own: whoever started the server may be killed at any moment, and its end of the pipe closes
with it, so no server outlives the run that asked for it.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from contextlib import suppress

GRACE_S = 15.0


def main(command: list[str]) -> int:
    """Exit code of the command, 127 where it cannot be started; 0 where it was ended because the pipe closed."""
    try:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    except OSError as error:
        print(f"cannot start {command[0]}: {error}", file=sys.stderr)
        return 127
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        while child.poll() is None:
            if select.select([0], [], [], 0.2)[0] and not os.read(0, 4096):
                return 0
        return child.returncode
    finally:
        _end(child)


def _end(child: subprocess.Popen[bytes]) -> None:
    """The command and what it started: asked first, killed after a while."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # whoever is impatient must not leave the server behind
    for number, wait_s in ((signal.SIGTERM, GRACE_S), (signal.SIGKILL, GRACE_S)):
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, number)
        with suppress(subprocess.TimeoutExpired):
            child.wait(wait_s)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
