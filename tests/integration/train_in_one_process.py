"""Several `lerobot-train` command lines in one process: starting one takes longer than its run.

Reads a JSON list of command lines from standard input and writes a JSON list of what became of
each: the error's type and message, or null, how many steps were trained, and our log.
"""

import contextlib
import functools
import gc
import io
import json
import logging
import sys
from typing import Any

import draccus.wrappers.docstring
import torch
from lerobot.scripts import lerobot_train

# Help texts are read again for every command line, which takes seconds.
draccus.wrappers.docstring.get_attribute_docstring = functools.cache(
    draccus.wrappers.docstring.get_attribute_docstring
)


def main() -> None:
    """Run the command lines one after the other."""
    outcomes = [train(arguments) for arguments in json.load(sys.stdin)]
    sys.stdout.write(json.dumps(outcomes))


def train(arguments: list[str]) -> dict[str, Any]:
    """Run one command line."""
    steps = 0
    update_policy = lerobot_train.update_policy

    def counting(tracker: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal steps
        steps += 1
        # LeRobot restores the random state on a resume, but making the data loader's iterator
        # afterwards draws from it. With a seed for each step, equal runs are equal.
        torch.manual_seed(tracker.steps)
        return update_policy(tracker, *args, **kwargs)

    log, printed = io.StringIO(), io.StringIO()
    handler = logging.StreamHandler(log)
    lerobot_train.update_policy = counting
    # The command replaces the root logger's handlers: its own loggers keep this one.
    logging.getLogger("lerobot_motion").addHandler(handler)
    sys.argv = ["lerobot-train", *arguments]
    error = message = None
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            lerobot_train.main()
    except SystemExit:  # The parser's way, after it has printed why.
        error, message = "SystemExit", printed.getvalue()
    except Exception as raised:  # noqa: BLE001 - whatever it is, it is reported
        error, message = type(raised).__name__, str(raised)
    finally:
        lerobot_train.update_policy = update_policy
        logging.getLogger("lerobot_motion").removeHandler(handler)
        gc.collect()
    return {"error": error, "message": message, "steps": steps, "log": log.getvalue()}


if __name__ == "__main__":
    main()
