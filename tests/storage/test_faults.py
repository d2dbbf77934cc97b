"""Kills, full disks, damaged files, chance and long use: what is promised when things go wrong.

What breaks a run is in `breakage.py`.
"""

from __future__ import annotations

import functools
import gc
import os
import random
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from lerobot.policies.factory import make_pre_post_processors

from lerobot_deepfusion.cli import main
from lerobot_deepfusion.inputs import damaged_files
from lerobot_deepfusion.modeling_deepfusion import DeepFusionPolicy
from lerobot_deepfusion.processor_deepfusion import make_deepfusion_pre_post_processors
from lerobot_deepfusion.storage import recovery
from tests.commands import SCRIPTS, TINY_YAML, finish, run, write_noise
from tests.policies import STATS, make_batch, make_config
from tests.storage import breakage

STEPS = 8  # of 12 in an epoch: LeRobot 0.6.1 resumes in a later epoch with the order of the first


class Trainer:
    """Runs `lerobot-train` on a data set of noise; the losses of the last run's steps are in `steps`."""

    options = ["--num_workers=0", "--log_freq=1", "--save_freq=2", "--batch_size=2", f"--steps={STEPS}"]

    def __init__(self, folder: Path) -> None:
        self.folder, self.losses = folder, folder / "losses"
        self.dataset = write_noise(folder / "data", ("image",), 2, 2)
        self.fresh = [f"--config_path={TINY_YAML}", *self.dataset, *self.options]

    def run(self, *argv: str, code: int = 0, kill: tuple[str, float] | None = None, **broken: object) -> str:
        """What a run printed that ends with `code`; `broken` as in `breakage.prepare`."""
        self.losses.unlink(missing_ok=True)
        inside = functools.partial(breakage.prepare, self.losses, **broken)
        return run("lerobot-train", *argv, code=code, inside=inside, kill=kill)

    @property
    def steps(self) -> list[float]:
        return [float(line) for line in self.losses.read_text().splitlines()]


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    return Trainer(tmp_path_factory.mktemp("faults"))


@pytest.fixture(scope="module")
def undisturbed(trainer: Trainer) -> tuple[Path, list[float]]:
    """A run that nothing happened to, and the losses of its steps."""
    out = trainer.folder / "undisturbed"
    trainer.run(*trainer.fresh, f"--output_dir={out}")
    assert len(trainer.steps) == STEPS
    return out, trainer.steps


def recovered(out: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, list[str]]:
    """Step of the checkpoint that `recover` found, what it said, and the arguments of the command that resumes, if
    there is something left to do.
    """
    main(["recover", str(out)])
    said = capsys.readouterr().out
    step = int((out / "checkpoints/last").resolve().name)
    if step == STEPS:
        assert said.endswith("The run is finished\n")
        return step, said, []
    program, *argv = shlex.split(said.split("Resume with ")[1])
    assert program == "lerobot-train"
    return step, said, argv


# The end of the path that is being written when the kill comes, how much of that file is there by then, the step of
# the last complete checkpoint, and what `recover` says of the newer one.
TORN = [
    ("000004/pretrained_model/.partial/model.safetensors", 0.5, 2, "pretrained_model/model.safetensors is missing"),
    ("000006/pretrained_model/policy_preprocessor.json", 0.3, 4, "policy_preprocessor.json is damaged"),
    ("000006/training_state/rng_state.safetensors", 0.7, 4, "rng_state.safetensors is damaged"),
    ("000004/training_state/optimizer_state.safetensors", 0.999, 2, "optimizer_state.safetensors is damaged"),
    ("000006/training_state/scheduler_state.json", 0.5, 4, "scheduler_state.json is damaged"),
    ("last->000006", 0.0, 6, ""),
]


@pytest.mark.slow
@pytest.mark.parametrize(("end", "share", "complete", "said"), TORN, ids=[end.split("/")[-1] for end, *_ in TORN])
def test_killed_inside_a_checkpoint(
    trainer: Trainer, undisturbed: tuple, tmp_path: Path, capsys, end: str, share: float, complete: int, said: str
) -> None:
    """A run killed while it writes resumes from the last complete checkpoint; its losses are the same to the bit."""
    trainer.run(*trainer.fresh, f"--output_dir={tmp_path}/out", code=-9, tear=(end, share))
    assert (tmp_path / "out/checkpoints/last").is_symlink() == (not end.startswith("last"))
    step, report, resume = recovered(tmp_path / "out", capsys)
    assert step == complete
    assert said in report
    trainer.run(*resume)
    assert trainer.steps == undisturbed[1][step:]
    assert recovered(tmp_path / "out", capsys)[0] == STEPS


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_killed_at_random(trainer: Trainer, undisturbed: tuple, tmp_path: Path, capsys, seed: int) -> None:
    """A run killed at any moment resumes, with the losses of an undisturbed run to the bit."""
    moment = random.Random(seed)
    after, delay = moment.randint(3, 5), moment.uniform(0, 0.05)  # after the first checkpoint
    trainer.run(*trainer.fresh, f"--output_dir={tmp_path}/out", code=-9, kill=(f"step:{after} ", delay))
    done = len(trainer.steps)
    step, _, resume = recovered(tmp_path / "out", capsys)
    assert done >= after
    assert done - step <= 3  # a step may be half done, and its loss known
    trainer.run(*resume)
    assert trainer.steps == undisturbed[1][step:]


@pytest.mark.slow
def test_same_seed_same_losses_and_actions(trainer: Trainer, undisturbed: tuple, tmp_path: Path) -> None:
    """Two trainings of one seed have the same losses and weights to the bit, and their policies the same actions."""
    trainer.run(*trainer.fresh, f"--output_dir={tmp_path}/out")
    assert trainer.steps == undisturbed[1]
    trainer.run(*trainer.fresh, f"--output_dir={tmp_path}/other", "--seed=1")
    assert trainer.steps != undisturbed[1]
    actions = []
    for out in (undisturbed[0], tmp_path / "out", tmp_path / "out", tmp_path / "other"):
        actions.append(act(out / "checkpoints/last/pretrained_model"))
    assert torch.equal(actions[0], actions[1])
    assert torch.equal(actions[1], actions[2])
    assert not torch.equal(actions[2], actions[3])


def act(saved: Path) -> torch.Tensor:
    """Twelve actions of a checkpoint from a seed."""
    policy = DeepFusionPolicy.from_pretrained(saved)
    pre, post = make_pre_post_processors(policy.config, pretrained_path=str(saved))
    torch.manual_seed(3)
    observations = [
        {"observation.image": torch.rand(1, 3, 96, 96), "observation.state": torch.rand(1, 2), "task": ["push"]}
        for _ in range(12)
    ]
    return torch.cat([post(policy.select_action(pre(observation))) for observation in observations])


# --- a full disk ------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("larger", ["model", "optimizer"])
def test_disk_full_while_training(trainer: Trainer, undisturbed: tuple, tmp_path: Path, capsys, larger: str) -> None:
    """The kernel refuses to write a file to its end: the error says where and how much, and what was there resumes.

    The weights take 10 MB and the optimizer's state 21 MB.
    """
    out = tmp_path / "out"
    shutil.copytree(undisturbed[0], out, symlinks=True)
    for step in ("000006", "000008"):
        shutil.rmtree(out / "checkpoints" / step)
    step, _, resume = recovered(out, capsys)
    log = trainer.run(*resume, code=1, largest_file=5_000_000 if larger == "model" else 15_000_000)
    if larger == "model":
        needed = r"OSError: .*File too large: the policy was not saved to \S+000006/pretrained_model\. It needs 10,2"
        assert re.search(needed + r"[\d,]+ bytes and [\d,]+ are free there\. What was saved before is as it was", log)
        assert not list(out.glob("checkpoints/000006/pretrained_model/*"))
    else:
        assert "File too large" in log  # LeRobot's own error
        assert recovery.faults(out / "checkpoints/000006")[0].startswith("training_state/optimizer_state.safetensors")
    again, _, resume = recovered(out, capsys)
    assert again == step == 4
    trainer.run(*resume)
    assert trainer.steps == undisturbed[1][step:]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 MB, where one may be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("no right to mount a file system; test_disk_full_while_training has a limit in its place")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_disk_full_while_saving(small_disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A policy that does not fit leaves the one before loadable, also where it was to be saved over it."""
    policy = DeepFusionPolicy(make_config())
    first = small_disk / "000002/pretrained_model"
    policy.save_pretrained(first)
    assert "the optimizer's state needs 20,5" in caplog.text
    whole, free = (first / "model.safetensors").read_bytes(), shutil.disk_usage(small_disk).free
    for folder in (small_disk / "000004/pretrained_model", first):
        message = (
            rf"No space left on device: the policy was not saved to {folder}\. It needs 10,[\d,]+ bytes and [56],"
        )
        with pytest.raises(OSError, match=message):
            policy.save_pretrained(folder)
    assert shutil.disk_usage(small_disk).free > free - 100_000
    assert (first / "model.safetensors").read_bytes() == whole
    DeepFusionPolicy.from_pretrained(first)


# --- recover ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_recover_adapters(trainer: Trainer, undisturbed: tuple, tmp_path: Path, capsys) -> None:
    """A run that trains LoRA adapters and is killed while it writes them resumes likewise."""
    base = undisturbed[0] / "checkpoints/last/pretrained_model"
    lora = [f"--policy.path={base}", "--peft.method_type=LORA", "--peft.r=4", "--policy.push_to_hub=false"]
    lora += [*trainer.dataset, *trainer.options]
    trainer.run(*lora, f"--output_dir={tmp_path}/whole")
    expected = trainer.steps
    trainer.run(
        *lora,
        f"--output_dir={tmp_path}/out",
        code=-9,
        tear=("000004/pretrained_model/adapter_model.safetensors", 0.5),
    )
    step, report, resume = recovered(tmp_path / "out", capsys)
    assert step == 2
    assert "adapter_model.safetensors is damaged" in report
    assert "pretrained_model/model.safetensors" not in report
    trainer.run(*resume)
    assert trainer.steps == expected[step:]


@pytest.mark.slow
def test_recover_as_a_command(undisturbed: tuple, tmp_path: Path) -> None:
    """Every file that resuming reads is missed; nothing is deleted; a run that was moved resumes where it is."""
    out = tmp_path / "out"
    shutil.copytree(undisturbed[0], out, symlinks=True)
    last = out / "checkpoints/000008"
    files = sorted(path for path in last.rglob("*") if path.is_file())
    assert len(files) == 13
    for path in files:
        content = path.read_bytes()
        path.write_bytes(content[:-3])
        assert [why.split()[0] for why in recovery.faults(last)] == [str(path.relative_to(last))]
        path.unlink()
        assert f"{path.relative_to(last)} is missing" in recovery.faults(last)
        path.write_bytes(content)
    assert recovery.faults(last) == []
    assert recovery.finished(last)
    assert not recovery.finished(out / "checkpoints/000006")
    (last / "training_state/training_step.json").unlink()
    before = sorted(out.rglob("*"))
    said = finish(SCRIPTS / "deepfusion", "recover", out)
    assert "000008 is not complete:\n    training_state/training_step.json is missing\n" in said
    assert said.endswith(f"last/pretrained_model/train_config.json --resume=true --output_dir={out}\n")
    assert sorted(out.rglob("*")) == before
    assert (out / "checkpoints/last").resolve().name == "000006"


def test_recover_without_checkpoints_or_link(tmp_path: Path) -> None:
    """What can't be recovered is said in a line."""
    with pytest.raises(SystemExit, match="has no checkpoint; give the --output_dir of a run"):
        main(["recover", str(tmp_path)])
    (tmp_path / "checkpoints/000002").mkdir(parents=True)
    with pytest.raises(SystemExit, match=r"no checkpoint of .* is complete"):
        main(["recover", str(tmp_path)])
    (tmp_path / "checkpoints/last").mkdir()
    with pytest.raises(FileExistsError, match="is a folder and not a link"):
        recovery.point_last(tmp_path / "checkpoints/000002")


# --- data that was cut short ------------------------------------------------------------------------------


def write_video_noise(root: Path) -> list[str]:
    """A data set with a video; returns the options that name it to LeRobot."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    features = {
        "observation.image": {"dtype": "video", "shape": (96, 96, 3), "names": ["height", "width", "channels"]},
        "observation.state": {"dtype": "float32", "shape": (2,), "names": ["a", "b"]},
        "action": {"dtype": "float32", "shape": (2,), "names": ["a", "b"]},
    }
    data = LeRobotDataset.create("local/video", fps=10, features=features, root=root, use_videos=True)
    rng = np.random.default_rng(0)
    for _ in range(8):
        frame = {key: rng.uniform(0, 1, 2).astype(np.float32) for key in ("observation.state", "action")}
        frame["observation.image"] = rng.integers(0, 255, (96, 96, 3), dtype=np.uint8)
        data.add_frame({**frame, "task": ""})
    data.save_episode()
    data.finalize()
    return ["--dataset.repo_id=local/video", f"--dataset.root={root}"]


@pytest.mark.slow
def test_data_cut_short(trainer: Trainer, tmp_path: Path, capsys) -> None:
    """A video that is cut short stops lerobot-train before the first step, with its name; a table has a command."""
    dataset = write_video_noise(tmp_path / "data")
    train = [f"--config_path={TINY_YAML}", *dataset, *trainer.options, f"--output_dir={tmp_path}/out"]
    [video] = (tmp_path / "data").rglob("*.mp4")
    [table] = (tmp_path / "data/data").rglob("*.parquet")
    main(["check-data", str(tmp_path / "data")])
    assert "every file of" in capsys.readouterr().out
    content = video.read_bytes()
    for size in (len(content) - 1, len(content) // 2, 10, 0):
        video.write_bytes(content[:size])
        with pytest.raises(ValueError, match=re.escape(f"can't be read:\n{video} ")):
            damaged_files.check_videos(tmp_path / "data")
    video.write_bytes(content[:-100])
    log = trainer.run(*train, code=1)
    assert f"ValueError: the data set can't be read:\n{video} is cut short" in log
    video.write_bytes(content)
    content = table.read_bytes()
    for size in (len(content) - 1, len(content) // 2, 10, 0):
        table.write_bytes(content[:size])
        with pytest.raises(SystemExit, match=re.escape(f"{table} is cut short")):
            main(["check-data", str(tmp_path / "data")])
    # LeRobot reads the tables before it makes a policy. It stops, and its error does not name the file.
    assert "datasets.exceptions.DatasetGenerationError" in trainer.run(*train, code=1)
    table.write_bytes(content)
    trainer.run(*train, "--steps=1")


# --- long use ---------------------------------------------------------------------------------------------


def kept() -> int:
    """Bytes of the tensors that this process can still reach."""
    gc.collect()
    tensors = [thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
def test_soak() -> None:
    """2,000 actions in 80 episodes of three batch sizes: no NaN, no action of the episode before, nothing kept.

    An observation that is kept has over 60,000 bytes, and there are 1,350 after the first measurement. What else the
    process holds, and how it is laid out, moves by a few MB.
    """
    torch.manual_seed(0)
    config = make_config()
    config.n_action_steps, config.num_inference_steps = config.chunk_size, 1
    policy = DeepFusionPolicy(config)
    pre = make_deepfusion_pre_post_processors(config, STATS)[0]
    warm = (0, 0)
    for episode in range(80):
        size = (1, 2, 3)[episode % 3]
        batch = pre(make_batch(config, size, training=False))
        batch["observation.state"] = torch.randn(size, 4)
        noise = torch.randn(size, config.chunk_size, 3)
        policy.reset()
        first = policy.select_action(batch, noise=noise)
        if episode % 40 == 0:
            assert torch.equal(first, policy.predict_action_chunk(batch, noise=noise)[:, 0])
        assert first.shape == (size, 3)
        for _ in range(24):
            assert policy.select_action(batch).isfinite().all()
        if episode == 25:  # of the same batch size as the last
            warm = kept(), resident()
    assert kept() - warm[0] < 10_000
    assert resident() - warm[1] < 32 * 2**20
