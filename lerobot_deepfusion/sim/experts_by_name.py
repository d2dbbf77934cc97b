"""The scripted expert of a simulator and task, by their names."""

from __future__ import annotations

from .scripted_expert import Expert


def make(
    simulator: str,
    task: str,
    *,
    size: int,
    noise: float,
    cameras: str = "",
    goal_markers: bool = True,
    depth: bool = False,
    camera_poses: str = "fixed",
) -> Expert:
    """Build an expert.

    Args:
        simulator: `metaworld`, `pusht` or `robo_evals`.
        task: the task's name there.
        size: frame width and height, pixels.
        noise: standard deviation of the noise on executed actions, in units of the action's half range.
        cameras: comma-separated names of Meta-World's cameras; by default the one that LeRobot shows.
        goal_markers: whether pictures show what Meta-World marks.
        depth: whether each camera's depth is recorded too.
        camera_poses: where Meta-World's cameras stand, a name of `camera_poses.py`.

    Raises:
        ValueError: for an unknown simulator, task, camera or range of poses, and for what a simulator can't do.
    """
    if simulator == "metaworld":
        from .metaworld_expert import MetaworldExpert

        options = {"goal_markers": goal_markers, "depth": depth, "camera_poses": camera_poses}
        return MetaworldExpert(task, size, noise, cameras=cameras or "corner2", **options)
    if simulator == "pusht":
        from .pusht_planner import PushTExpert

        if task != "pusht":
            raise ValueError(f"--task={task}: PushT has one task, leave it out")
        if cameras:
            raise ValueError(f"--cameras={cameras}: PushT has one camera, leave it out")
        if depth or camera_poses != "fixed":
            raise ValueError("--depth and --camera-poses: PushT is flat and has no camera in space, leave them out")
        if not goal_markers:
            raise ValueError("--no-goal-markers: PushT's goal is no marker but part of its picture, leave it out")
        return PushTExpert(size, noise)
    if simulator == "robo_evals":
        from .robo_evals_expert import RoboEvalsExpert

        if cameras or depth or camera_poses != "fixed" or not goal_markers:
            raise ValueError(
                "--cameras, --depth, --camera-poses and --no-goal-markers: robo-evals shows its front camera, as it "
                "is, leave them out"
            )
        return RoboEvalsExpert(task, size, noise)
    raise ValueError(f"no simulator {simulator!r}; there are 'metaworld', 'pusht' and 'robo_evals'")
