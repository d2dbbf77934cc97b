"""LeRobot's commands, several in one process: importing it takes longer than most of them run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

RUNNER = """
import json, runpy, sys
for command in json.loads(sys.argv[1]):
    sys.argv = command
    try:
        if command[0] == "-m":
            sys.argv = command[1:]
            runpy.run_module(command[1], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(command[0], run_name="__main__")
    except SystemExit as end:
        if end.code:
            raise
"""


def run_all(*commands: list[str], fails: bool = False) -> str:
    """Run commands and return what they print.

    Each is a console script or `-m <module>` with its options.
    With `fails` the last one has to end in an error.
    """
    folder = Path(sys.executable).parent
    lines = [command if command[0] == "-m" else [str(folder / command[0]), *command[1:]] for command in commands]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "passive"}
    result = subprocess.run(
        [sys.executable, "-c", RUNNER, json.dumps(lines)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=280,
    )
    output = result.stdout + result.stderr
    assert (result.returncode != 0) == fails, (
        f"{result.stdout[-3000:]}\n{result.stderr[:3000]}\n...\n{result.stderr[-3000:]}"
    )
    return output
