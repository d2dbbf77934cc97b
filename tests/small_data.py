"""Data sets of a few frames, and LeRobot's way from one of them to a policy's first loss, in this process."""

from __future__ import annotations

import atexit
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.policies.factory import make_policy, make_pre_post_processors

from lerobot_deepfusion import DeepFusionConfig

CHUNK = 6


def picture(height: int = 48, width: int = 64, channels: int = 3) -> dict[str, Any]:
    return {"dtype": "image", "shape": (height, width, channels), "names": ["height", "width", "channels"]}


def vector(size: int, dtype: str = "float32", names: Sequence[str] | None = None) -> dict[str, Any]:
    return {"dtype": dtype, "shape": (size,), "names": list(names or (f"joint{index}" for index in range(size)))}


def columns(**changes: Any) -> dict[str, dict[str, Any]]:
    """A camera, a state of four and actions of three; `__` stands for a dot, None takes a column out."""
    named = {key.replace("__", "."): value for key, value in changes.items()}
    features = {"observation.image": picture(), "observation.state": vector(4), "action": vector(3), **named}
    return {key: feature for key, feature in features.items() if feature is not None}


def write(
    root: Path,
    features: dict[str, dict[str, Any]] | None = None,
    episodes: Sequence[tuple[int, str]] = ((12, "pick"), (12, "place")),
    value: Callable[[str, int, int], Any] | None = None,
) -> Path:
    """A LeRobotDataset of noise, where `value(key, episode, frame)` gives nothing else."""
    features = features or columns()
    if value is not None:
        return _write(root, features, episodes, value)
    made = _made / hashlib.sha256(repr((features, episodes)).encode()).hexdigest()
    if not made.exists():
        _write(made, features, episodes, lambda *_: None)
    shutil.copytree(made, root)
    return root


_made = Path(tempfile.mkdtemp())  # what several tests of a process write alike


@atexit.register
def _remove(own: int = os.getpid()) -> None:
    if os.getpid() == own:  # and not of a process that was forked from this one
        shutil.rmtree(_made, ignore_errors=True)


def _write(
    root: Path,
    features: dict[str, dict[str, Any]],
    episodes: Sequence[tuple[int, str]],
    value: Callable[[str, int, int], Any],
) -> Path:
    rng = np.random.default_rng(0)
    data = LeRobotDataset.create("local/small", fps=10, features=features, root=root, use_videos=False)
    for episode, (length, task) in enumerate(episodes):
        for frame in range(length):
            row: dict[str, Any] = {"task": task}
            for key, feature in features.items():
                own = value(key, episode, frame)
                if own is not None:
                    row[key] = np.asarray(own, None if feature["dtype"] == "image" else feature["dtype"])
                elif feature["dtype"] == "image" and feature["shape"][-1] == 1:  # depth, in millimetres
                    row[key] = rng.integers(0, 5000, feature["shape"], dtype=np.uint16)
                elif feature["dtype"] == "image":
                    row[key] = rng.integers(0, 255, feature["shape"], dtype=np.uint8)
                elif feature["dtype"] == "bool":
                    row[key] = rng.integers(0, 2, feature["shape"]).astype(bool)
                elif feature["dtype"] == "string":
                    row[key] = "a note"
                else:
                    row[key] = (4 * rng.random(feature["shape"])).astype(feature["dtype"])
            data.add_frame(row)
        data.save_episode()
    data.finalize()
    return root


def load(root: Path, episodes: list[int] | None = None) -> LeRobotDataset:
    """With chunks of actions, as training has them."""
    steps = {"action": [index / 10 for index in range(CHUNK)]}
    return LeRobotDataset("local/small", root=root, episodes=episodes, delta_timestamps=steps)


def config(**changes: Any) -> DeepFusionConfig:
    options = {"chunk_size": CHUNK, "n_action_steps": 3, "num_inference_steps": 2, "tokenizer_max_length": 24}
    return DeepFusionConfig(vlm_path="tiny", device="cpu", push_to_hub=False, **{**options, **changes})


def prepare(data: LeRobotDataset, options: DeepFusionConfig, rename: dict[str, str] | None = None) -> tuple:
    """Policy and pipelines, as `lerobot-train` makes them of a data set and a config with or without a base."""
    policy = make_policy(options, ds_meta=data.meta, rename_map=rename)
    kwargs: dict[str, Any] = {"dataset_stats": data.meta.stats}
    if options.pretrained_path:
        inputs, outputs, modes = options.input_features, options.output_features, options.normalization_mapping
        normalize = {"features": {**inputs, **outputs}, "norm_map": modes, "stats": data.meta.stats}
        kwargs["preprocessor_overrides"] = {
            "normalizer_processor": normalize,
            "rename_observations_processor": {"rename_map": rename or {}},
        }
        kwargs["postprocessor_overrides"] = {"unnormalizer_processor": {**normalize, "features": outputs}}
    return policy, *make_pre_post_processors(options, options.pretrained_path, **kwargs)


def first_loss(data: LeRobotDataset, options: DeepFusionConfig, size: int = 4, **kwargs: Any) -> float:
    """The loss of one batch of noise, through everything that training goes through."""
    policy, pre, _ = prepare(data, options, **kwargs)
    policy.train()
    batch = next(iter(torch.utils.data.DataLoader(data, batch_size=size)))
    return policy.forward(pre(batch))[0].item()


def save(folder: Path, policy: Any, *pipelines: Any) -> Path:
    for part in (policy, *pipelines):
        part.save_pretrained(folder)
    return folder
