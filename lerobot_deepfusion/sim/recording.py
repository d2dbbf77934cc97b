"""Record demonstrations from scripted experts as a LeRobotDataset v3: `deepfusion demos --help`.

    deepfusion demos --task push-v3 --episodes 60 --root outputs/data/push

Episodes are recorded in parts of twenty, each in a data set of its own beside the target, and merged at the
end. A part is renamed into place when it is complete, so an interrupted run goes on where it stopped when
the same command is given again, and two workers can record at once. Episodes that the expert fails are
left out and counted.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_all_start_methods, get_context
from multiprocessing.context import BaseContext
from pathlib import Path

PART_EPISODES = 20
PART_SEEDS = 1000  # seeds that a part may try; the next part starts behind them
FIRST_SEED = 100_000  # far from the seeds of `lerobot-eval`, which start at --seed (1000)


@dataclass(frozen=True)
class Recipe:
    """What to record. `tasks` x `episodes` episodes; the fields are those of the command line."""

    simulator: str
    tasks: tuple[str, ...]
    episodes: int
    size: int
    seed: int
    noise: float
    cameras: str = ""
    goal_markers: bool = True
    depth: bool = False
    camera_poses: str = "fixed"

    def parts(self) -> Iterator[Part]:
        """The parts in order; each has its own range of seeds."""
        per_task = -(-self.episodes // PART_EPISODES)
        for task_index, task in enumerate(self.tasks):
            for index in range(per_task):
                kept = min(PART_EPISODES, self.episodes - index * PART_EPISODES)
                first_seed = self.seed + (task_index * per_task + index) * PART_SEEDS
                yield Part(f"{task}-{index:03d}", task, kept, first_seed)


@dataclass(frozen=True)
class Part:
    """`episodes` successes of `task` from the seeds `first_seed`, `first_seed + 1`, ..."""

    name: str
    task: str
    episodes: int
    first_seed: int


def record_part(recipe: Recipe, part: Part, folder: Path) -> int:
    """Record one part into `folder / part.name`.

    Returns:
        How many episodes the expert failed.

    Raises:
        RuntimeError: if the seeds run out, that is, if the expert nearly always fails.
    """
    # That torchcodec finds no FFmpeg is a hundred lines of each process, and no video is read here.
    logging.getLogger("lerobot.utils.import_utils").setLevel(logging.ERROR)
    import datasets
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    from . import experts_by_name

    datasets.disable_progress_bars()  # one for each episode, over the one that counts episodes
    root = folder / f"{part.name}.partial"
    shutil.rmtree(root, ignore_errors=True)
    expert = experts_by_name.make(
        recipe.simulator,
        part.task,
        size=recipe.size,
        noise=recipe.noise,
        cameras=recipe.cameras,
        goal_markers=recipe.goal_markers,
        depth=recipe.depth,
        camera_poses=recipe.camera_poses,
    )
    data = LeRobotDataset.create(
        f"local/{part.name}",
        fps=expert.fps,
        features=expert.features,
        root=root,
        robot_type=expert.robot_type,
        use_videos=False,  # PNG and TIFF keep what evaluation shows; a video codec would not
    )
    failed = 0
    for seed in range(part.first_seed, part.first_seed + PART_SEEDS):
        if data.num_episodes == part.episodes:
            break
        frames = expert.episode(seed)
        if frames is None:
            failed += 1
            continue
        for frame in frames:
            data.add_frame(frame)
        data.save_episode()
    expert.close()
    data.finalize()
    if data.num_episodes < part.episodes:
        raise RuntimeError(
            f"{part.task}: the expert succeeded {data.num_episodes} times in {PART_SEEDS} episodes, and "
            f"{part.episodes} were wanted; lower --noise (now {recipe.noise}) or choose another task"
        )
    (root / "failed.json").write_text(json.dumps(failed))
    root.rename(folder / part.name)
    return failed


def record(recipe: Recipe, root: Path, workers: int = 2) -> dict[str, int]:
    """Record a whole data set at `root`.

    Args:
        recipe: what to record.
        root: folder of the data set; must not exist.
        workers: processes that record at the same time.

    Returns:
        Counts: `kept`, `failed` and `frames`.

    Raises:
        FileExistsError: if `root` exists, or if its unfinished parts come from another recipe.
    """
    if root.exists():
        raise FileExistsError(f"{root} exists; choose another --root or remove it")
    folder = root.with_name(f"{root.name}.parts")
    _same_recipe_or_stop(recipe, folder)
    from lerobot.datasets.aggregate import aggregate_datasets
    from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata
    from tqdm import tqdm

    parts = list(recipe.parts())
    todo = [part for part in parts if not (folder / part.name).exists()]
    done = sum(part.episodes for part in parts) - sum(part.episodes for part in todo)
    with (
        tqdm(total=done + sum(part.episodes for part in todo), initial=done, unit="episode") as bar,
        ProcessPoolExecutor(workers, mp_context=_processes()) as pool,
    ):
        runs = {pool.submit(record_part, recipe, part, folder): part for part in todo}
        for run in as_completed(runs):
            run.result()
            bar.update(runs[run].episodes)

    merged = root.with_name(f"{root.name}.merging")
    shutil.rmtree(merged, ignore_errors=True)
    aggregate_datasets(
        [f"local/{part.name}" for part in parts],
        f"local/{root.name}",
        roots=[folder / part.name for part in parts],
        aggr_root=merged,
        concatenate_data=False,  # appending to one file would write it anew for every part
    )
    meta = LeRobotDatasetMetadata(f"local/{root.name}", root=merged)
    failed = sum(json.loads((folder / part.name / "failed.json").read_text()) for part in parts)
    counts = {"kept": meta.total_episodes, "failed": failed, "frames": meta.total_frames}
    (merged / "meta" / "demos.json").write_text(json.dumps({**asdict(recipe), **counts}, indent=1))
    merged.rename(root)
    shutil.rmtree(folder)
    return counts


def _processes() -> BaseContext:
    """Where the system can, one process imports LeRobot for all workers; it must not touch the simulator."""
    if "forkserver" not in get_all_start_methods():
        return get_context("spawn")
    processes = get_context("forkserver")
    processes.set_forkserver_preload(["lerobot_policy_deepfusion"])
    return processes


def _same_recipe_or_stop(recipe: Recipe, folder: Path) -> None:
    manifest = folder / "recipe.json"
    wanted = json.dumps(asdict(recipe))
    if manifest.exists() and manifest.read_text() != wanted:
        raise FileExistsError(
            f"{folder} holds parts of another recipe, {manifest.read_text()}; give the same options to go on "
            "with it, or remove the folder"
        )
    folder.mkdir(parents=True, exist_ok=True)
    manifest.write_text(wanted)
