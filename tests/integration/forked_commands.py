"""`lerobot-motion-precompute` in processes that are forked from one that has imported all of it.

Reads requests from its input, a line of JSON each, and answers a line each: `{"argv": …, "log": …}`
starts the command and gives its process id, `{"wait": <id>}` its exit status (negative: the signal
that ended it). Each command has a session of its own, so that all of its processes can be found.
"""

import json
import os
import sys
from typing import Any

from lerobot_motion.cli import precompute


def start(argv: list[str], log: str) -> int:
    """Fork a process that runs the command, with its output in files."""
    process = os.fork()
    if process:
        return process
    os.setsid()
    for descriptor, name in ((1, f"{log}.out"), (2, f"{log}.err")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), descriptor)
    status = 70
    try:
        status = precompute.main(argv)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def answer(request: dict[str, Any]) -> int:
    if "wait" in request:
        return os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1])
    return start(request["argv"], request["log"])


if __name__ == "__main__":
    for line in sys.stdin:
        sys.stdout.write(f"{answer(json.loads(line))}\n")
        sys.stdout.flush()
