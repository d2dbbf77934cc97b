"""Where checkpoints are: one commit of a repository, whatever happens to it meanwhile, or a folder that is there."""

from __future__ import annotations

import json
from dataclasses import dataclass
from hashlib import sha1
from pathlib import Path

import pytest
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.policies import factory

from lerobot_deepfusion.llava.place import check_place
from lerobot_deepfusion.llava.reader import read_tokenizer, read_vlm_config
from lerobot_deepfusion.modeling_deepfusion import DeepFusionPolicy
from tests.policies import STATS, make
from tests.small_data import save
from tests.storage.hub_server import Hub, Repo
from tests.storage.test_hub import hub  # noqa: F401  # a fixture

REPO = "user/moving"
STATE = "observation.state"


@dataclass
class Moving(Repo):
    """A repository whose main branch is at its first commit for some requests, and at its last from then on."""

    still: int = 10**9

    def oid(self, revision: str) -> str | None:
        if revision != "main":
            return super().oid(revision)
        self.still -= 1
        return list(self.commits)[0 if self.still >= 0 else -1]


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.fixture
def moving(hub: Hub, tmp_path: Path) -> Moving:  # noqa: F811
    """Two policies of the same architecture, with other weights and statistics."""
    commits = {}
    for name, shift in (("first", 0.0), ("second", 100.0)):
        policy, _, pipelines = make()
        with torch.no_grad():
            policy.model.expert.action_out_proj.bias += shift
        for step in pipelines["pre"].steps[-1:] + pipelines["post"].steps[:1]:
            step.stats = {key: {**value, "mean": value["mean"] + shift} for key, value in STATS.items()}
            step.to(device="cpu")
        commits[sha1(name.encode()).hexdigest()] = files_of(save(tmp_path / name, policy, *pipelines.values()))
    hub.repos[REPO] = Moving(commits, {"v1": next(iter(commits)), "v2": list(commits)[-1]})
    return hub.repos[REPO]


def bias(policy: DeepFusionPolicy) -> float:
    return float(policy.model.expert.action_out_proj.bias.abs().max())


def mean(pipeline) -> float:
    step = next(step for step in pipeline.steps if hasattr(step, "norm_map"))
    return float(torch.as_tensor(step.stats["action"]["mean"]).max())


@pytest.mark.medium
@pytest.mark.parametrize("still", [1, 2, 3, 5, 8])
def test_every_file_is_of_one_commit(moving: Moving, still: int, hub: Hub) -> None:  # noqa: F811
    """However early the branch moves on after the first look at it; the processors are of that commit too."""
    moving.still = still
    policy = DeepFusionPolicy.from_pretrained(REPO)
    asked = [request for request in hub.requests if "resolve/main" in request]
    assert all(request.endswith("config.json") for request in asked), asked
    pre, post = factory.make_pre_post_processors(policy.config, pretrained_path=REPO)
    assert (bias(policy) > 50, mean(pre) > 50, mean(post) > 50) == (False, False, False)


@pytest.mark.medium
@pytest.mark.parametrize(("revision", "second"), [("v1", False), ("v2", True), (None, False)])
def test_processors_are_of_the_policy_s_revision(moving: Moving, revision: str | None, second: bool) -> None:
    """lerobot-eval asks for the policy of `--policy.pretrained_revision` and for the processors of none."""
    config = PreTrainedConfig.from_pretrained(REPO)
    config.pretrained_path, config.pretrained_revision = Path(REPO), revision
    policy = DeepFusionPolicy.from_pretrained(REPO, config=config, revision=revision)
    for asked in (None, revision):
        pre, post = factory.make_pre_post_processors(config, Path(REPO), pretrained_revision=asked)
        assert (bias(policy) > 50, mean(pre) > 50, mean(post) > 50) == (second,) * 3
    pre, _ = factory.make_pre_post_processors(config, REPO, pretrained_revision="v2")
    assert mean(pre) > 50  # what is asked for by name


def test_a_config_of_one_revision_with_weights_of_another(moving: Moving, tmp_path: Path) -> None:
    """Both are named."""
    policy, _, _ = make()
    policy.config.chunk_size = 40
    policy.config.save_pretrained(tmp_path / "other")
    first = next(iter(moving.commits))
    moving.commits[first] = {**moving.commits[first], **files_of(tmp_path / "other")}
    config = PreTrainedConfig.from_pretrained(REPO)
    with pytest.raises(ValueError, match=r"weights of user/moving at revision 'v2'.*chunk_size=40.*'main'"):
        DeepFusionPolicy.from_pretrained(REPO, config=config, revision="v2")


@pytest.mark.medium
def test_the_revision_of_a_base_is_not_that_of_what_is_trained_from_it(moving: Moving, tmp_path: Path) -> None:
    """It would be asked for in the new repository, which has no such commit."""
    config = PreTrainedConfig.from_pretrained(REPO)
    config.pretrained_revision = "v1"
    DeepFusionPolicy.from_pretrained(REPO, config=config, revision="v1").save_pretrained(tmp_path / "tuned")
    assert json.loads((tmp_path / "tuned/config.json").read_text())["pretrained_revision"] is None
    assert config.pretrained_revision == "v1"


# --- processors that are loaded alone -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["policy_preprocessor.json", "policy_postprocessor.json"])
def test_processors_are_looked_at_before_they_are_loaded(tmp_path: Path, name: str) -> None:
    """From another place than the policy, by LeRobot's own factory: nothing of them is imported or called."""
    policy, _, pipelines = make()
    folder = save(tmp_path / "elsewhere", *pipelines.values())
    factory.make_pre_post_processors(policy.config, pretrained_path=str(folder))
    content = json.loads((folder / name).read_text())
    content["steps"].insert(0, {"class": "os.system", "config": {"command": f"touch {tmp_path}/ran"}})
    (folder / name).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"steps are taken by 'registry_name' only, found 'os\.system'"):
        factory.make_pre_post_processors(policy.config, pretrained_path=str(folder))
    (folder / name).rename(folder / "own.json")
    option = f"{name.removeprefix('policy_').removesuffix('.json')}_config_filename"
    with pytest.raises(ValueError, match=r"own\.json, step 0"):
        factory.make_pre_post_processors(policy.config, pretrained_path=str(folder), **{option: "own.json"})
    assert not (tmp_path / "ran").exists()


def test_other_policies_are_loaded_as_ever(tmp_path: Path) -> None:
    """LeRobot's factory, and its name wherever it was imported to."""
    from lerobot.policies import make_pre_post_processors
    from lerobot.policies.act.configuration_act import ACTConfig

    assert make_pre_post_processors is factory.make_pre_post_processors
    assert make_pre_post_processors.__name__ == "make_pre_post_processors"
    _, _, pipelines = make()
    config = ACTConfig(device="cpu", push_to_hub=False, pretrained_path=tmp_path)
    pre, _ = make_pre_post_processors(config, pretrained_path=str(save(tmp_path, *pipelines.values())))
    assert len(pre) == len(pipelines["pre"])


# --- folders that are not there -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "place", ["./models/llava", "/no/such/folder", "models/seven/llava", "~/nothing", "..", "a b/c", "C:\\llava"]
)
def test_a_folder_that_is_not_there(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As VLM and as checkpoint: the place and its nearest folder, not the form of a Hub's names."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    if place == "..":
        monkeypatch.chdir(tmp_path)
        place = "../no"
    for look in (read_vlm_config, read_tokenizer, DeepFusionPolicy.from_pretrained):
        with pytest.raises(FileNotFoundError, match="there is no such directory") as caught:
            look(place)
        assert repr(place) in str(caught.value)


def test_a_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "llava").mkdir()
    assert check_place("it", "~/llava") == str(tmp_path / "llava")
    assert check_place("it", "llava-hf/llava-1.5-7b-hf") == "llava-hf/llava-1.5-7b-hf"
    assert check_place("it", str(tmp_path)) == str(tmp_path)


def test_the_old_name_of_the_reader() -> None:
    from lerobot_deepfusion.vlm_source import read_vlm_config as old

    assert old is read_vlm_config


def test_weights_that_will_come_in_shards(tmp_path: Path) -> None:
    """LeRobot after 0.6.1 builds the policy of a checkpoint of shards and fills it later: no VLM is read."""
    config = make()[0].config
    config.vlm_path, config.pretrained_path = str(tmp_path / "llava"), tmp_path / "pretrained_model"
    with pytest.raises(FileNotFoundError, match="llava"):
        DeepFusionPolicy(config)
    (tmp_path / "pretrained_model/pytorch_model_fsdp_0").mkdir(parents=True)
    policy = DeepFusionPolicy(config)
    assert all(parameter.device.type == "cpu" and not parameter.any() for parameter in policy.parameters())
    policy.load_state_dict(make()[0].state_dict())
    assert bias(policy) == bias(make()[0])
