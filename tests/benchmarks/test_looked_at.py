"""Where things are in the picture, which the heat is counted on."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.looked_at import PARTS, where
from lerobot_deepfusion.sim.metaworld_fast import MetaworldFastEnv


@pytest.mark.medium
@pytest.mark.parametrize("markers", [True, False])
def test_parts_lie_under_their_colours(markers: bool) -> None:
    """The puck's pixels are red and the goal's green; turned around, as a camera may be, they are of the table."""
    env = MetaworldFastEnv(goal_markers=markers).make("push-v3")
    picture = env.reset(seed=1003)[0]["pixels"].astype(int)
    masks = where(env)
    env.close()
    assert set(masks) == set(PARTS)
    assert masks["hand"].any()
    assert masks["goal"].any() == markers
    assert not (masks["puck"] & masks["hand"]).any()
    redness = picture[..., 0] - picture[..., 1]
    greenness = picture[..., 1] - picture[..., [0, 2]].max(-1)
    for name, colour in (("puck", redness), ("goal", greenness))[: 1 + markers]:
        assert np.median(colour[masks[name]]) > 80, name
        assert np.median(colour[masks[name][::-1, ::-1]]) < 40, name
