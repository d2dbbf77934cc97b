"""Whether two vectors are the same joints in the same order: by their names, never by their number."""

from __future__ import annotations

from collections.abc import Sequence

Names = Sequence[str] | None


def difference(found: Names, expected: Names) -> str | None:
    """How names differ, in words; None if they don't, or if either has none."""
    if not found or not expected or list(found) == list(expected):
        return None
    if sorted(found) == sorted(expected):
        return f"the same names in another order: {list(found)}, and not {list(expected)}"
    return f"other names: {list(found)}, and not {list(expected)}"


def displaced(found: Names, expected: Names) -> bool:
    """Whether a name of both stands at another place."""
    places = {name: index for index, name in enumerate(expected or ())}
    return any(places.get(name, index) != index for index, name in enumerate(found or ()))


def check_names(key: str, found: Names, expected: Names, who: str, mend: str) -> None:
    """
    Args:
        key: of the state or the actions.
        found: names of what is offered.
        expected: names of what the policy was trained on.
        who: offers it, for the message.
        mend: what helps, for the message.

    Raises:
        ValueError: if both are known and differ.
    """
    if how := difference(found, expected):
        raise ValueError(f"{who} has for {key} {how}. {mend}")


def check_robot_names(state: Names, actions: Names, trained_state: Names, trained_actions: Names) -> None:
    """A robot's joints against those that a policy was trained on, before anything moves.

    Args:
        state, actions: names that the robot gives, in its order; None for one that gives none.
        trained_state, trained_actions: `state_feature_names` and `action_feature_names` of the policy's config.

    Raises:
        ValueError: with both lists.
    """
    for key, found, expected in (
        ("observation.state", state, trained_state),
        ("action", actions, trained_actions),
    ):
        check_names(
            key,
            found,
            expected,
            "the robot",
            "Put its motors into that order in its config, or take the policy that was trained on it",
        )


def slots(cameras: Sequence[str], trained: Sequence[str]) -> list[str]:
    """The order of camera slots in which every camera that was trained keeps its own; where too few are left to fill
    those before it, it moves up.

    Example: trained `[top, wrist]`; `[wrist, top]` becomes `[top, wrist]`, `[wrist, side]` becomes `[side, wrist]`.
    """
    others = iter(camera for camera in cameras if camera not in trained)
    kept = [camera if camera in cameras else next(others, None) for camera in trained]
    return [camera for camera in [*kept, *others] if camera is not None]
