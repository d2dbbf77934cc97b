"""Where cameras in the room stand when they stand elsewhere in each episode: ranges to train on, others to test on.

A place is an azimuth (degrees from the table's x axis, counter-clockwise seen from above: the robot looks along 90),
an elevation (degrees above the table) and a distance (metres) from the middle of the table. corner2, which LeRobot
shows, stands at -35, 37.4 and 1.152. From each place the camera looks at the space above the middle, upright.

| `camera_poses`                    | azimuth                                  | elevation  | distance    |
| --------------------------------- | ---------------------------------------- | ---------- | ----------- |
| `few_train`                       | one of -40, -15, 10, 35                  | 37.4       | 1.152       |
| `few_held_out`                    | one of -27.5, -2.5, 22.5: between those  | 37.4       | 1.152       |
| `narrow_train`                    | -25 to -5                                | 37.4       | 1.152       |
| `narrow_held_out`                 | -35 to -25 or -5 to 5: beyond those      | 37.4       | 1.152       |
| `wide_train`                      | -50 to 20                                | 27 to 48   | 1.0 to 1.25 |
| `wide_held_out`                   | -65 to -50 or 20 to 35: beyond those     | 27 to 48   | 1.0 to 1.25 |

Further still, from -70, the robot's own body comes between.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

MIDDLE = np.array([0.0, 0.6, 0.0])  # of the table's top, metres
LOOKS_AT = np.array([0.0, 0.6, 0.1])  # where hands and things are
CORNER2_ELEVATION, CORNER2_DISTANCE = 37.4, 1.152

Interval = tuple[float, float]


@dataclass(frozen=True)
class CameraPoses:
    """Azimuths in one of several intervals of equal length, degrees; elevation, degrees; distance, metres."""

    azimuths: tuple[Interval, ...]
    elevation: Interval = (CORNER2_ELEVATION, CORNER2_ELEVATION)
    distance: Interval = (CORNER2_DISTANCE, CORNER2_DISTANCE)

    def draw(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """One pose: position [3], metres, and axes [3, 3], whose columns are the camera's right, up and back."""
        azimuth = np.radians(rng.uniform(*self.azimuths[rng.integers(len(self.azimuths))]))
        elevation = np.radians(rng.uniform(*self.elevation))
        across = np.cos(elevation)
        direction = np.array([across * np.cos(azimuth), across * np.sin(azimuth), np.sin(elevation)])
        position = MIDDLE + rng.uniform(*self.distance) * direction
        return position, upright(position, LOOKS_AT)


def upright(position: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Axes [3, 3] of a camera at `position` that looks at `target` with a level horizon: right, up, back."""
    back = (position - target) / np.linalg.norm(position - target)
    right = np.cross([0.0, 0.0, 1.0], back)
    right /= np.linalg.norm(right)
    return np.stack([right, np.cross(back, right), back], axis=1)


def at(*azimuths: float) -> tuple[Interval, ...]:
    return tuple((azimuth, azimuth) for azimuth in azimuths)


CAMERA_POSES: dict[str, CameraPoses | None] = {
    "fixed": None,
    "few_train": CameraPoses(at(-40, -15, 10, 35)),
    "few_held_out": CameraPoses(at(-27.5, -2.5, 22.5)),
    "narrow_train": CameraPoses(((-25, -5),)),
    "narrow_held_out": CameraPoses(((-35, -25), (-5, 5))),
    "wide_train": CameraPoses(((-50, 20),), (27, 48), (1.0, 1.25)),
    "wide_held_out": CameraPoses(((-65, -50), (20, 35)), (27, 48), (1.0, 1.25)),
}
