"""The scripted expert of a simulator and task, by their names."""

from __future__ import annotations

from .scripted_expert import Expert


def make(
    simulator: str, task: str, *, size: int, noise: float, cameras: str = "", goal_markers: bool = True
) -> Expert:
    """Build an expert.

    Args:
        simulator: `metaworld` or `pusht`.
        task: the task's name there.
        size: frame width and height, pixels.
        noise: standard deviation of the noise on executed actions, in units of the action's half range.
        cameras: comma-separated names of Meta-World's cameras; by default the one that LeRobot shows.
        goal_markers: whether pictures show what Meta-World marks.

    Raises:
        ValueError: for an unknown simulator, task or camera, and for what a simulator can't do.
    """
    if simulator == "metaworld":
        from .metaworld_expert import MetaworldExpert

        return MetaworldExpert(task, size, noise, cameras or "corner2", goal_markers)
    if simulator == "pusht":
        from .pusht_planner import PushTExpert

        if cameras:
            raise ValueError(f"--cameras={cameras}: PushT has one camera, leave it out")
        if not goal_markers:
            raise ValueError("--no-goal-markers: PushT's goal is no marker but part of its picture, leave it out")
        return PushTExpert(size, noise)
    raise ValueError(f"no simulator {simulator!r}; there are 'metaworld' and 'pusht'")
