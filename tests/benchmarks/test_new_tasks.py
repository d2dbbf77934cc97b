"""The studies of tasks that nobody tuned on: which they are, what each arm asks LeRobot for, and their tables."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from lerobot.configs import parser
from lerobot.configs.train import TrainPipelineConfig
from lerobot.scripts import lerobot_train

import lerobot_policy_deepfusion  # noqa: F401
from benchmarks import few_demonstrations, rollouts, single_tasks
from benchmarks.study.arms import ARMS, task_named
from lerobot_deepfusion.storage.shipped import shipped_policies


def test_the_rule_gives_twelve() -> None:
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS

    chosen = single_tasks.tasks()
    assert len(chosen) == 12
    assert set(single_tasks.TRIED) | set(chosen) <= set(ALL_V3_ENVIRONMENTS)
    assert not set(single_tasks.TRIED) & set(chosen)
    assert all(task_named(name).environments == (name,) for name in chosen)
    runs = list(single_tasks.plan())
    assert len({run.name for run in runs}) == len(runs) == 12 * (4 * 3 + 1)
    assert [run.task for run in runs[:12]] == list(chosen)
    assert {run.arm for run in runs} <= set(ARMS)


def test_its_table(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"task": task, "arm": "kv", "seed": seed, "successes": 5 + seed, "episodes": 10}
        for task in ("a", "b")
        for seed in (0, 1)
    ]
    single_tasks.report([*rows, {**rows[0], "arm": "act", "successes": 0}])
    printed = capsys.readouterr().out
    assert "| a | **55%** (34% to 74%; 50%, 60%) | **0%** (0% to 28%) | - | - | - |" in printed
    assert "| **all** | **55%** (40% to 69%; 50%, 60%) |" in printed


@pytest.mark.parametrize("arm", few_demonstrations.ARMS)
def test_what_lerobot_is_asked_for(arm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trained by LeRobot's command on the first demonstrations, judged in unseen environments as it was saved."""
    asked: dict[str, Any] = {}

    def train(config: Any) -> None:
        config.validate()
        begins = [option.rsplit("/", 1)[-1] for option in sys.argv if option.startswith("--config_path=")]
        asked.update(config=config, begins=begins)
        shutil.copytree(shipped_policies()["mt10"], config.output_dir / "checkpoints" / "last" / "pretrained_model")

    train.__annotations__ = {"config": TrainPipelineConfig}  # the class itself is what LeRobot's parser asks for

    def successes(policy: Any, before: Any, after: Any, task: str, episodes: int, seed: int) -> int:
        asked.update(judged=(task, episodes, seed), training=policy.training)
        return 7

    monkeypatch.setattr(lerobot_train, "main", parser.wrap()(train))
    monkeypatch.setattr(rollouts, "successes", successes)
    row = few_demonstrations.execute(few_demonstrations.Run("dial-turn-v3", arm, 5, 2), tmp_path, smoke=False)
    assert (row["successes"], row["episodes"], row["run"]) == (7, 50, f"dial-turn-v3-{arm}-5-2")
    assert set(row) == set(few_demonstrations.COLUMNS)
    assert asked["judged"] == ("dial-turn-v3", 50, 1000)
    assert not asked["training"]
    config, scratch = asked["config"], arm.startswith("scratch")
    assert (config.dataset.episodes, config.seed) == ([0, 1, 2, 3, 4], 2)
    assert config.steps == config.save_freq == (1500 if arm == "scratch_long" else 500)
    assert config.policy.pretrained_path == (None if scratch else shipped_policies()["mt10"])
    assert asked["begins"] == (["tiny.yaml"] if scratch else [])
    assert config.policy.tokenizer_max_length == 64
    assert config.policy.train_expert_only == (arm == "expert")
    assert (config.peft is not None) == (arm == "lora")
