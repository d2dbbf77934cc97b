"""A planner that solves PushT: greedy over simulated straight pushes.

Of the pushes that start on the T's outline, the one that brings its corners nearest to the goal's, as a copy
of the simulator predicts, is carried out; then again from the new pose. In between, the agent walks round the
T on the shortest path. Lengths are in the simulator's pixels (512 x 512), steps are of its 10 Hz.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import shapely.geometry as sg
from gym_pusht.envs.pusht import PushTEnv

from .scripted_expert import image_state_action_features

AGENT_RADIUS = 15
CLEARANCE = 6  # between the agent and the T when it does not push
WALK, PUSH = 24.0, 9.0  # pixels a step
PUSH_STEPS = 14  # longest push
SETTLE = 3  # steps until the agent has caught up with its target
OUTLINE_POINTS = 32
TILTS = np.radians([-40, -20, 0, 20, 40])  # of a push against the outline's normal
FINALISTS = 12
MAX_STEPS = 300  # of LeRobot's environment
SIZE = 96

Point = np.ndarray  # float64 [2]


class PushTPlanner:
    """Plans in a simulator of its own; `actions` yields targets for the agent until the T is home."""

    def __init__(self) -> None:
        self.sim = PushTEnv(obs_type="state")
        self.sim.reset(seed=0)
        self.goal = self._corners_at(self.sim.get_goal_pose_body(self.sim.goal_pose))

    def actions(self, env: PushTEnv) -> Iterator[Point]:
        """Targets [2] in pixels, one a step; reads the state of `env` as it changes."""
        while True:
            push = self._best_push(self._state(env))
            if push is None:
                return
            start, direction, steps = push
            yield from self._walk(env, start)
            for index in range(steps + SETTLE):
                yield start + direction * PUSH * min(index + 1, steps)
            # Leave the way it came, so that the T stays where it is.
            here = np.array(env.agent.position)
            yield from self._line(here, here - direction * 2 * CLEARANCE)

    # --- choosing a push ----------------------------------------------------------------------------------

    def _best_push(self, state: np.ndarray) -> tuple[Point, Point, int] | None:
        """Start, unit direction and number of steps."""
        self._set(state)
        before = self._distance()
        tried = []
        for start, direction in self._candidates():
            costs = self._simulate(state, start, direction, PUSH_STEPS, every_step=True)
            steps = int(np.argmin(costs)) + 1
            tried.append((costs[steps - 1], steps, start, direction))
        tried.sort(key=lambda entry: entry[0])
        best, choice = before, None
        for _, steps, start, direction in tried[:FINALISTS]:
            # The agent overshoots while it stops: what counts is where the T comes to rest.
            for shorter in range(max(1, steps - 2), steps + 1):
                cost = self._simulate(state, start, direction, shorter)[-1]
                if cost < best:
                    best, choice = cost, (start, direction, shorter)
        return choice

    def _candidates(self) -> Iterator[tuple[Point, Point]]:
        polygon = self._polygon()
        outline = polygon.exterior
        reach = AGENT_RADIUS + CLEARANCE
        tight = polygon.buffer(reach - 1)
        for distance in np.linspace(0, outline.length, OUTLINE_POINTS, endpoint=False):
            point, ahead = (np.array(outline.interpolate(d).coords[0]) for d in (distance, distance + 1e-3))
            tangent = (ahead - point) / np.linalg.norm(ahead - point)
            normal = np.array([-tangent[1], tangent[0]])
            if polygon.contains(sg.Point(point + normal)):
                normal = -normal
            start = point + reach * normal
            if not (start.min() > 20 and start.max() < 492) or tight.contains(sg.Point(start)):
                continue
            for tilt in TILTS:
                cosine, sine = math.cos(tilt), math.sin(tilt)
                yield start, -np.array([cosine * normal[0] - sine * normal[1], sine * normal[0] + cosine * normal[1]])

    def _simulate(
        self, state: np.ndarray, start: Point, direction: Point, steps: int, every_step: bool = False
    ) -> list[float]:
        """Distance to the goal after each step of a push, or at its end only."""
        self._set(np.concatenate([start, state[2:]]))
        costs = []
        for index in range(steps + (0 if every_step else SETTLE)):
            self._step(start + direction * PUSH * min(index + 1, steps))
            if every_step:
                costs.append(self._distance())
        return costs or [self._distance()]

    # --- walking ------------------------------------------------------------------------------------------

    def _walk(self, env: PushTEnv, target: Point) -> Iterator[Point]:
        """Round the T to `target`, on the shortest path along the corners of its widened outline."""
        self._set(self._state(env))
        polygon = self._polygon()
        blocked = polygon.buffer(AGENT_RADIUS + CLEARANCE / 2)
        corners = list(polygon.buffer(AGENT_RADIUS + CLEARANCE, quad_segs=2).exterior.coords)[:-1]
        here = np.array(env.agent.position)
        nodes = [here, target, *(np.array(c) for c in corners if min(c) > 20 and max(c) < 492)]
        for point in _shortest_path(nodes, blocked):
            yield from self._line(np.array(env.agent.position), point)
        for _ in range(8):  # stand still before pushing
            if np.linalg.norm(np.array(env.agent.position) - target) < 1 and env.agent.velocity.length < 5:
                return
            yield target

    @staticmethod
    def _line(start: Point, end: Point) -> Iterator[Point]:
        steps = max(1, math.ceil(float(np.linalg.norm(end - start)) / WALK))
        for index in range(steps):
            yield start + (end - start) * (index + 1) / steps

    # --- the planner's own simulator ----------------------------------------------------------------------

    @staticmethod
    def _state(env: PushTEnv) -> np.ndarray:
        return np.array([*env.agent.position, *env.block.position, env.block.angle])

    def _set(self, state: np.ndarray) -> None:
        sim = self.sim
        sim.agent.velocity = sim.block.velocity = (0, 0)
        sim.block.angular_velocity = 0
        sim.agent.position = tuple(state[:2])
        sim.block.angle = state[4]
        sim.block.position = tuple(state[2:4])
        sim.space.reindex_shapes_for_body(sim.agent)
        sim.space.reindex_shapes_for_body(sim.block)

    def _step(self, target: Point) -> None:
        sim = self.sim
        for _ in range(int(1 / (sim.dt * sim.control_hz))):
            acceleration = sim.k_p * (target - sim.agent.position) - sim.k_v * np.array(sim.agent.velocity)
            sim.agent.velocity += tuple(acceleration * sim.dt)
            sim.space.step(sim.dt)

    def _corners_at(self, body: Any) -> np.ndarray:
        return np.array([body.local_to_world(v) for shape in self.sim.block.shapes for v in shape.get_vertices()])

    def _distance(self) -> float:
        """Mean distance of the T's corners from where they belong."""
        return float(np.linalg.norm(self._corners_at(self.sim.block) - self.goal, axis=1).mean())

    def _polygon(self) -> sg.Polygon:
        parts = (
            sg.Polygon([self.sim.block.local_to_world(v) for v in s.get_vertices()]) for s in self.sim.block.shapes
        )
        first, second = parts
        # The two boxes of the T share an edge, which rounding may open.
        return first.buffer(0.01).union(second.buffer(0.01)).simplify(0.1)


def _shortest_path(nodes: list[Point], blocked: sg.Polygon) -> list[Point]:
    """Points from the first node (left out) to the second; Dijkstra over the segments that cross nothing."""
    best: dict[int, float] = {0: 0.0}
    previous: dict[int, int] = {}
    done: set[int] = set()
    while best.keys() - done:
        current = min(best.keys() - done, key=best.__getitem__)
        if current == 1:
            break
        done.add(current)
        for other in range(1, len(nodes)):
            line = sg.LineString([nodes[current], nodes[other]])
            inside = line.intersection(blocked).length
            # What the agent touches at its start or end it may leave or reach; anything longer is a detour.
            if other in done or inside > 2 * CLEARANCE * ((current == 0) + (other == 1)) + 1e-6:
                continue
            cost = best[current] + line.length
            if cost < best.get(other, math.inf):
                best[other], previous[other] = cost, current
    path, node = [], 1
    while node in previous:
        path.append(nodes[node])
        node = previous[node]
    return path[::-1] or [nodes[1]]


class PushTExpert:
    """PushT as `lerobot-eval --env.type=pusht` shows it, solved by the planner.

    Args:
        size: frame size, pixels; LeRobot's environment renders 96 whatever it is told.
        noise: must be zero: the planner's actions are targets, and noise on them teaches no recovery.

    Raises:
        ValueError: for another size or for noise.
    """

    robot_type = "pusht"
    fps = 10

    def __init__(self, size: int, noise: float) -> None:
        if size != SIZE:
            raise ValueError(f"--size={size}: PushT is rendered at {SIZE} pixels in LeRobot's evaluation")
        if noise:
            raise ValueError(f"--noise={noise}: not supported for PushT, set it to 0")
        self.env = PushTEnv(obs_type="pixels_agent_pos")
        self.planner = PushTPlanner()
        self.features = image_state_action_features(size, ["x", "y"], ["x", "y"])

    def episode(self, seed: int) -> list[dict[str, Any]] | None:
        observation, _ = self.env.reset(seed=seed)
        frames = []
        for target in itertools.islice(self.planner.actions(self.env), MAX_STEPS):
            action = np.clip(target, 0, 512).astype(np.float32)
            frames.append(
                {
                    "observation.image": observation["pixels"],
                    "observation.state": observation["agent_pos"].astype(np.float32),
                    "action": action,
                    "task": "",  # LeRobot's evaluation has no sentence for PushT
                }
            )
            observation, _, terminated, _, _ = self.env.step(action)
            if terminated:
                return frames
        return None

    def close(self) -> None:
        self.env.close()
