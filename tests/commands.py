"""LeRobot's commands as processes of their own, and a data set of noise for them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
TINY_YAML = ROOT / "configs/policy/tiny.yaml"
SHORT = ["--num_workers=0", "--log_freq=1", "--save_freq=2", "--batch_size=4"]

# Runs a console script of the environment with every connection to another machine refused, and writes the
# actions that the policy chooses to a file.
OFFLINE = """
import runpy, socket, sys
from lerobot_deepfusion.modeling_deepfusion import DeepFusionPolicy
def refuse(*args, **kwargs):
    raise AssertionError(f"a connection was tried: {args}")
socket.socket.connect = socket.getaddrinfo = refuse
record, sys.argv = open(sys.argv[1], "wb"), sys.argv[2:]
select_action = DeepFusionPolicy.select_action
def recorded(self, batch):
    action = select_action(self, batch)
    record.write(action.numpy().tobytes())
    return action
DeepFusionPolicy.select_action = recorded
runpy.run_path(sys.argv[0], run_name="__main__")
"""

# Runs several console scripts or modules in one process: importing LeRobot takes longer than most of them run.
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


def finish(*command: object, fails: bool = False, **environment: str) -> str:
    """Run a command to its end, whether good or, with `fails`, bad, and return what it printed."""
    result = subprocess.run(
        list(map(str, command)),
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "passive", **environment},
        timeout=580,
    )
    assert (result.returncode != 0) == fails, (
        f"{result.stdout[-3000:]}\n{result.stderr[:3000]}\n...\n{result.stderr[-6000:]}"
    )
    return result.stdout + result.stderr


def run(*command: str, offline: Path | None = None, hub: bool = False, fails: bool = False) -> str:
    """Run one of LeRobot's commands; `offline` is where the actions go, `hub` says that one is running."""
    script = Path(sys.executable).with_name(command[0])
    prefix = [sys.executable, "-c", OFFLINE, offline] if offline else [sys.executable]
    return finish(*prefix, script, *command[1:], fails=fails, HF_HUB_OFFLINE="0" if offline or hub else "1")


def run_all(*commands: list[str], fails: bool = False) -> str:
    """Run commands in one process and return what they print.

    Each is a console script or `-m <module>` with its options.
    With `fails` the last one has to end in an error.
    """
    folder = Path(sys.executable).parent
    lines = [command if command[0] == "-m" else [str(folder / command[0]), *command[1:]] for command in commands]
    return finish(sys.executable, "-c", RUNNER, json.dumps(lines), fails=fails)


def write_noise(
    root: Path, cameras: tuple[str, ...], state: int, action: int, tasks: tuple[str, ...] = ("", "")
) -> list[str]:
    """A data set of noise, an episode of 12 frames for each task; returns the options that name it to LeRobot."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    features = {
        f"observation.{name}": {"dtype": "image", "shape": (96, 96, 3), "names": ["height", "width", "channels"]}
        for name in cameras
    }
    features["observation.state"] = {"dtype": "float32", "shape": (state,), "names": list("abcdefg"[:state])}
    features["action"] = {"dtype": "float32", "shape": (action,), "names": list("abcdefg"[:action])}
    data = LeRobotDataset.create("local/noise", fps=10, features=features, root=root, use_videos=False)
    rng = np.random.default_rng(0)
    for task in tasks:
        for _ in range(12):
            frame = {f"observation.{name}": rng.integers(0, 255, (96, 96, 3), dtype=np.uint8) for name in cameras}
            frame["observation.state"] = rng.uniform(0, 512, state).astype(np.float32)
            frame["action"] = rng.uniform(0, 512, action).astype(np.float32)
            data.add_frame({**frame, "task": task})
        data.save_episode()
    data.finalize()
    return ["--dataset.repo_id=local/noise", f"--dataset.root={root}"]
