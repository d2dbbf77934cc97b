"""Which episodes of a data set a checkpoint was trained on, as far as its `train_config.json` says."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

SEEN, HELD_OUT, OTHER, UNKNOWN = "seen in training", "held out", "of another data set", "no word of the training data"


def told(checkpoint: Path, root: Path, repo_id: str | None, episodes: Sequence[int]) -> dict[int, str]:
    """What each episode was to the checkpoint: one of the four above.

    Args:
        checkpoint: folder of the policy.
        root: of the data set.
        repo_id: its name, if it was given.
        episodes: to be told of.
    """
    path = checkpoint / "train_config.json"
    dataset = json.loads(path.read_text()).get("dataset") if path.is_file() else None
    if not dataset:
        return dict.fromkeys(episodes, UNKNOWN)
    trained_at, trained_on = dataset.get("root"), dataset.get("repo_id")
    same_place = trained_at is not None and Path(trained_at).resolve() == root.resolve()
    if (repo_id is None and not same_place) or dataset.get("eval_split"):  # by which LeRobot leaves out what it draws
        return dict.fromkeys(episodes, UNKNOWN)
    if trained_on != repo_id and not same_place:
        return dict.fromkeys(episodes, OTHER)
    used = dataset.get("episodes")
    return {episode: SEEN if used is None or episode in used else HELD_OUT for episode in episodes}
