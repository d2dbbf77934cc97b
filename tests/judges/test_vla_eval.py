"""vla-eval counts our Meta-World's episodes as lerobot-eval does, and serves our checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lerobot.configs.policies import PreTrainedConfig
from lerobot.envs.factory import make_env, make_env_pre_post_processors
from lerobot.policies.factory import make_policy, make_pre_post_processors
from lerobot.scripts.lerobot_eval import eval_policy_all
from lerobot.utils.random_utils import set_seed
from vla_eval import evaluate
from vla_eval.model_servers import serve
from vla_eval.model_servers.base import SessionContext

from lerobot_deepfusion.judges.vla_eval_metaworld import FastMetaworld
from lerobot_deepfusion.judges.vla_eval_policy import DeepFusionServer
from lerobot_deepfusion.modeling_deepfusion import DeepFusionPolicy
from lerobot_deepfusion.sim.metaworld_env import FastMetaworld as Environment
from lerobot_deepfusion.sim.metaworld_fast import MetaworldFastEnv
from tests.judges.conftest import untrained
from tests.small_data import picture

TASKS, LENGTH, EPISODES, SEED = "reach-v3,drawer-close-v3", 84, 2, 5000
BENCHMARK = "lerobot_deepfusion.judges.vla_eval_metaworld:FastMetaworld"


@pytest.fixture
def acted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bytes]]:
    """What any policy would do in Meta-World: task and action, step by step. In one task the scripted expert does it
    in its stead, so that episodes succeed. Pictures are taken when the policy looks at them.
    """
    steps: list[tuple[str, bytes]] = []
    original, reset = Environment.step, Environment.reset

    def looking(self: Environment, **options: Any) -> Any:
        self.look_every(3)
        return reset(self, **options)

    def noting(self: Environment, action: np.ndarray) -> Any:
        steps.append((self.task, action.tobytes()))
        if self.task == "drawer-close-v3":
            action = np.clip(self.expert_policy.get_action(self.raw_observation), -1, 1).astype(np.float32)
        return original(self, action)

    monkeypatch.setattr(Environment, "reset", looking)
    monkeypatch.setattr(Environment, "step", noting)
    return steps


def by_lerobot(checkpoint: Path) -> dict[str, list[bool]]:
    """What `lerobot-eval --seed=5000 --eval.batch_size=1` does, in its order; the successes by task."""
    config = MetaworldFastEnv(task=TASKS, episode_length=LENGTH)
    options = PreTrainedConfig.from_pretrained(checkpoint)
    options.pretrained_path, options.device = checkpoint, "cpu"
    set_seed(SEED)
    envs = make_env(config, n_envs=1)
    policy = make_policy(options, env_cfg=config).eval()
    pipelines = make_pre_post_processors(options, str(checkpoint))
    with torch.no_grad():
        found = eval_policy_all(
            envs,
            policy,
            *make_env_pre_post_processors(env_cfg=config, policy_cfg=options),
            *pipelines,
            n_episodes=EPISODES,
            start_seed=SEED,
        )
    return {task["task_group"]: task["metrics"]["successes"] for task in found["per_task"]}


@pytest.mark.slow
def test_it_counts_what_lerobot_counts(policy: Path, acted: list[tuple[str, bytes]], tmp_path: Path) -> None:
    """Every action of every episode is the same to the bit; some succeed and some do not."""
    params = {"task": TASKS, "episode_length": LENGTH, "seed": SEED}
    entry = {"benchmark": BENCHMARK, "episodes_per_task": EPISODES, "params": params}
    server = DeepFusionServer(str(policy), device="cpu", seed=SEED)
    (found,) = evaluate(server, {"benchmarks": [entry], "output_dir": str(tmp_path)}, docker=False)
    episodes = {task["task"]: task["episodes"] for task in found["tasks"]}
    actions = list(acted)
    acted.clear()
    lerobots = by_lerobot(policy)
    assert {task: [one["metrics"]["success"] for one in each] for task, each in episodes.items()} == lerobots
    assert lerobots == {"reach-v3": [False] * 2, "drawer-close-v3": [True] * 2}
    assert sum(one["steps"] for each in episodes.values() for one in each) == len(actions) < 4 * LENGTH
    assert actions == acted
    assert found["mean_success"] == 0.5
    assert found["num_errors"] == 0


@pytest.mark.medium
def test_cameras_go_to_their_own_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By name: the policy has them in another order than the alphabet's, by which vla-eval's server deals."""
    names = ("gripperPOV", "corner2")
    checkpoint = untrained(tmp_path, **{f"observation__images__{name}": picture(48, 48) for name in names})
    seen: dict[str, float] = {}

    def noting(self: DeepFusionPolicy, batch: dict, **_: object) -> torch.Tensor:
        seen.update({key: float(batch[key].mean()) for key in batch if ".images." in key})
        return torch.zeros(1, 3, 4)

    monkeypatch.setattr(DeepFusionPolicy, "predict_action_chunk", noting)
    benchmark = FastMetaworld(task="push-v3", cameras="corner2,gripperPOV", observation_size=48)
    task = {**benchmark.get_tasks()[0], "episode_idx": 0}
    observation = benchmark.make_obs(benchmark.reset(task), task)
    benchmark.cleanup()
    assert observation["task_description"] == "Push the puck to a goal"
    server = DeepFusionServer(str(checkpoint), device="cpu")
    assert server.predict(observation, SessionContext("session", "episode"))["actions"].shape == (3, 4)
    means = {name: observation["images"][name].mean() / 255 for name in names}
    assert abs(means["corner2"] - means["gripperPOV"]) > 0.01
    assert seen == {f"observation.images.{name}": pytest.approx(means[name], abs=1e-4) for name in names}


@pytest.mark.medium
def test_the_command_takes_a_checkpoint(policy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its options come of the class's signature, theirs among them."""
    served: list[Any] = []
    monkeypatch.setattr(serve, "serve", lambda server, host, port: served.extend([server, host, port]))
    options = ["--address=127.0.0.1:8123", f"--args.checkpoint={policy}", "--args.device=cpu", "--args.chunk_size=2"]
    monkeypatch.setattr("sys.argv", ["server", *options])
    serve.run_server(DeepFusionServer)
    server, *address = served
    assert address == ["127.0.0.1", 8123]
    assert server.chunk_size == 2


def test_what_it_cannot_judge_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"depth=true: .* hands on pictures and state alone"):
        FastMetaworld(depth=True)
    (tmp_path / "config.json").write_text(json.dumps({"type": "act"}))
    with pytest.raises(ValueError, match=r"a policy of type act; .* --args\.policy_type=act"):
        DeepFusionServer(str(tmp_path))
