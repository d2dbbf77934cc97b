"""Flow matching against LeRobot's own helpers and closed forms."""

from __future__ import annotations

import torch
from lerobot.policies.common.flow_matching import euler_integrate

from lerobot_deepfusion.network.expert import time_features
from lerobot_deepfusion.network.flow import euler_times, flow_error, interpolate


def test_ends_of_the_path() -> None:
    """t = 1 is the noise and t = 0 the action, exactly."""
    action, noise = torch.randn(2, 5, 3), torch.randn(2, 4, 5, 3)
    at_noise, _ = interpolate(action, noise, torch.ones(2, 4))
    at_action, _ = interpolate(action, noise, torch.zeros(2, 4))
    assert torch.equal(at_noise, noise)
    assert torch.equal(at_action, action[:, None].expand_as(noise))


def test_velocity_is_the_derivative_of_the_path() -> None:
    """u_t = dx_t / dt, and integrating it from noise gives the action back.

    The path is straight, so Euler is exact at any number of steps; worst rounding error 7e-7.
    """
    action, noise = torch.randn(2, 5, 3), torch.randn(2, 1, 5, 3)
    for steps in (1, 3, 10):
        end = euler_integrate(lambda x, t: interpolate(action, noise, t[:, None])[1][:, 0], noise[:, 0], steps)
        assert torch.allclose(end, action, atol=1e-5)


def test_schedule_is_that_of_lerobots_integrator() -> None:
    """The times that acting embeds beforehand are those that `euler_integrate` then asks for."""
    for steps in (1, 3, 10, 64):
        asked: list[torch.Tensor] = []
        euler_integrate(lambda x, t, asked=asked: asked.append(t) or x, torch.zeros(1, 2), steps)
        assert torch.allclose(torch.cat(asked), euler_times(steps, torch.device("cpu"))[0], atol=1e-6)


def test_error_is_the_mean_over_samples_and_dimensions() -> None:
    velocity, target = torch.randn(2, 4, 5, 3), torch.randn(2, 4, 5, 3)
    expected = torch.stack([(velocity[:, k] - target[:, k]).square().mean(-1) for k in range(4)]).mean(0)
    assert torch.allclose(flow_error(velocity, target), expected, atol=1e-6)


def test_time_features_equal_lerobots() -> None:
    """LeRobot's sinusoidal embedding at openpi's periods. Worst error: 0, both in float64 inside."""
    from lerobot.policies.common.vla_utils import create_sinusoidal_pos_embedding

    time = torch.tensor([0.001, 0.3, 0.77, 1.0])
    theirs = create_sinusoidal_pos_embedding(time, 256, 4e-3, 4.0, torch.device("cpu"))
    assert torch.allclose(time_features(time), theirs.float(), atol=1e-6)
