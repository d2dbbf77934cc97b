"""The objectives against references with loops and closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lerobot_deepfusion.network.drift import TEMPERATURES, drift_force, drift_losses
from lerobot_deepfusion.network.given import draw_mask
from lerobot_deepfusion.network.objective import (
    OBJECTIVES,
    ask,
    evaluation_times,
    few_step_chunk,
    losses,
    training_times,
)
from lerobot_deepfusion.network.two_step import T_STAR
from lerobot_deepfusion.network.watched import watch

B, K, T, A = 2, 4, 5, 3
TIME, NAMES = torch.tensor([[0.1, 0.2, 0.9, 1.0], [0.0, 0.3, 0.34, 0.7]]), ["x", "y", "z"]


def data(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Chunks near their demonstration, that, and which actions are valid."""
    generator = torch.Generator().manual_seed(5)
    action = torch.randn(B, T, A, generator=generator)
    chunks = action[:, None] + torch.randn(B, K, T, A, generator=generator) * 0.3
    valid = torch.ones(B, T, dtype=torch.bool)
    valid[1, 3:] = False
    return chunks.to(dtype), action, valid


def force_by_loops(chunks: Tensor, action: Tensor, valid: Tensor) -> tuple[list, list]:
    """V[b][k][a] as lists over time, and the unit of each dimension; plain numbers, in float64."""
    values = chunks.double().tolist()
    forces = [[[[0.0] * T for _ in range(A)] for _ in range(K)] for _ in range(B)]
    units = []
    for a in range(A):
        series = [
            [[values[b][k][t][a] if valid[b, t] else 0.0 for t in range(T)] for k in range(K)]
            + [[action[b, t, a].item() if valid[b, t] else 0.0 for t in range(T)]]
            for b in range(B)
        ]
        far = [[[math.dist(series[b][k], y) for y in series[b]] for k in range(K)] for b in range(B)]
        others = [far[b][k][y] for b in range(B) for k in range(K) for y in range(K + 1) if y != k]
        mean = sum(others) / len(others)
        unit = mean / math.sqrt(T)
        units.append(unit)
        for tau in TEMPERATURES:
            drifts = []
            for b in range(B):

                def say(k: int, y: int, far: list = far[b], mean: float = mean, tau: float = tau) -> float:
                    return 0.0 if k == y else math.exp(-far[k][y] / mean / tau)

                for k in range(K):
                    row = sum(say(k, y) for y in range(K + 1))
                    pull = [
                        math.sqrt(say(k, y) / row * say(k, y) / sum(say(j, y) for j in range(K)))
                        for y in range(K + 1)
                    ]
                    weights = [-pull[j] * pull[K] for j in range(K)] + [pull[K] * sum(pull[:K])]
                    assert abs(sum(weights)) < 1e-12
                    drifts.append(
                        [
                            sum(weights[y] * (series[b][y][t] - series[b][k][t]) for y in range(K + 1)) / unit
                            for t in range(T)
                        ]
                    )
            squares = [x * x for i, drift in enumerate(drifts) for t, x in enumerate(drift) if valid[i // K, t]]
            rms = math.sqrt(sum(squares) / len(squares))
            for i, drift in enumerate(drifts):
                for t in range(T):
                    forces[i // K][i % K][a][t] += drift[t] / rms
    return forces, units


def test_drift_equals_loops() -> None:
    """Force and unit; worst error 4e-6 of a force of 2, from softmax in float32."""
    chunks, action, valid = data()
    there = valid[:, None, :, None]
    found, unit = drift_force(chunks * there, (action * valid[..., None])[:, None], valid)
    expected, units = force_by_loops(chunks, action, valid)
    assert torch.allclose(found.transpose(2, 3).double(), torch.tensor(expected, dtype=torch.float64), atol=1e-4)
    assert torch.allclose(unit.double(), torch.tensor(units, dtype=torch.float64), rtol=1e-5)


def test_drift_s_gradient_is_the_force() -> None:
    """-2 V / s' for each chunk, spread over its valid numbers, by autograd and by differences, the target held."""
    chunks, action, valid = data()
    force, unit = drift_force(chunks * valid[:, None, :, None], (action * valid[..., None])[:, None], valid)
    chunks.requires_grad_()
    each, _ = drift_losses(chunks, action, valid)
    (gradient,) = torch.autograd.grad(each.sum(), chunks)
    numbers = K * A * valid.sum(1).view(B, 1, 1, 1)
    expected = -2 * force / unit / numbers
    assert torch.allclose(gradient, expected, rtol=1e-3, atol=1e-4)
    assert not gradient[1, :, 3:].any()
    target = (chunks.detach() / unit + force).double()

    def held(x: Tensor) -> float:
        error = ((x.double() / unit - target) ** 2 * valid[:, None, :, None]).mean((1, 3)).sum(1)
        return (error / valid.sum(1)).sum().item()

    step = torch.zeros_like(chunks)
    step[0, 1, 2, 0] = 1e-3
    slope = (held(chunks + step) - held(chunks - step)) / 2e-3
    assert slope == pytest.approx(gradient[0, 1, 2, 0].item(), rel=1e-2)


def test_drift_pulls_to_the_demonstration_and_apart() -> None:
    """Far from the demonstration siblings come nearer; at one place they would not stay together."""
    chunks, action, valid = data()
    far = action[:, None] + 3 + 0.1 * (chunks - action[:, None])
    force, _ = drift_force(far, action[:, None], torch.ones_like(valid))
    assert (force.mean((1, 2)) < 0).all()
    _, watched = drift_losses(far, action, torch.ones_like(valid))
    assert watched["centroid_distance"] == pytest.approx(3, abs=0.1)
    assert watched["sibling_variance"] == pytest.approx(0.01 * 0.09 * (K - 1) / K, rel=0.5)


def test_drift_of_equal_chunks_is_finite() -> None:
    """No distance at all, and an observation without a valid action."""
    _, action, valid = data()
    valid[1] = False
    chunks = action[:, None].expand(-1, K, -1, -1).clone().requires_grad_()
    each, watched = drift_losses(chunks, action, valid)
    (gradient,) = torch.autograd.grad(each.sum(), chunks)
    assert each.isfinite().all()
    assert gradient.isfinite().all()
    assert each[1] == 0
    assert watched == {"centroid_distance": 0, "sibling_variance": 0}


def test_drift_learns_two_answers() -> None:
    """Of toys with two right answers: flows of numbers, no network. The mean of the two is nobody's answer.

    Siblings push each other away, so that a third of them ends beyond the answers, at two or three times of them.
    Which ones is chance, and the processor's last digits; their share over many toys is not, 0.68 (0.39 before).
    """
    torch.manual_seed(0)
    toys = 64
    chunks = torch.randn(toys, 8, 1, 1, requires_grad=True)
    optimizer = torch.optim.Adam([chunks], 0.02)
    for step in range(600):
        demonstration = torch.full((toys, 1, 1), 1.0 if step % 2 else -1.0)
        optimizer.zero_grad()
        drift_losses(chunks, demonstration, torch.ones(toys, 1, dtype=torch.bool))[0].sum().backward()
        optimizer.step()
    near = (chunks.abs() - 1).abs() < 0.4
    assert near.float().mean() > 0.62
    assert (chunks > 0).any(dim=1).all()
    assert (chunks < 0).any(dim=1).all()


def test_two_step_asks_at_two_times() -> None:
    """Half of the samples see nothing at t = 1 and half nearly everything; targets -a and z - a."""
    _, action, _ = data()
    noise, times = torch.randn(B, K, T, A), training_times("two_step", K)
    assert times is not None
    noisy, velocity = ask("two_step", action, noise, times.expand(B, -1))
    for b in range(B):
        for k in range(K):
            z, a = noise[b, k], action[b]
            first = k < K // 2
            assert torch.allclose(noisy[b, k], torch.zeros(T, A) if first else 0.9 * a + 0.1 * z)
            assert torch.allclose(velocity[b, k], -a if first else z - a)


def test_two_step_acts_as_it_was_asked() -> None:
    """A network that answers both questions rightly gives the action, and nothing is drawn."""
    _, action, _ = data()
    asked: list[Tensor] = []

    def answer(noisy: Tensor) -> Tensor:
        asked.append(noisy)
        return -action if len(asked) == 1 else (noisy - action) / T_STAR

    chunk = few_step_chunk("two_step", answer, torch.randn(B, T, A))
    assert torch.allclose(chunk, action, atol=1e-6)
    assert len(asked) == evaluation_times("two_step", 10, torch.device("cpu")).shape[1] == 2
    assert not asked[0].any()
    assert torch.allclose(asked[1], (1 - T_STAR) * action)


def test_drift_acts_at_once() -> None:
    noise = torch.randn(B, T, A)
    assert torch.equal(few_step_chunk("drift", lambda x: x + 1, noise), noise + 1)
    assert evaluation_times("drift", 10, torch.device("cpu")).tolist() == [[1.0]]
    _, action, _ = data()
    times = training_times("drift", K)
    assert times is not None
    noise = torch.randn(B, K, T, A)
    assert torch.equal(ask("drift", action, noise, times.expand(B, -1))[0], noise)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_padding_counts_for_nothing(objective: str) -> None:
    """What stands behind the end of an episode changes neither a loss nor, in that row, any gradient."""
    chunks, action, valid = data()
    velocity = torch.randn(B, K, T, A)
    chunks.requires_grad_()
    each, _ = losses(objective, chunks, velocity, action, valid, TIME, NAMES)
    (gradient,) = torch.autograd.grad(each.sum(), chunks)
    assert each.shape == (B,)
    assert not gradient[1, :, 3:].any()
    assert gradient[1, :, :3].any()
    behind = torch.where(valid[..., None], action, 99.0)
    other = torch.where(valid[:, None, :, None], velocity, 99.0)
    assert torch.equal(losses(objective, chunks, other, behind, valid, TIME, NAMES)[0], each)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_bfloat16_answers_are_measured_in_float32(objective: str) -> None:
    """The loss of rounded chunks is that of the same numbers in float32, to the bit."""
    chunks, action, valid = data(torch.bfloat16)
    velocity = torch.randn(B, K, T, A)
    each, _ = losses(objective, chunks, velocity, action, valid, TIME, NAMES)
    assert each.dtype == torch.float32
    assert torch.equal(each, losses(objective, chunks.float(), velocity, action, valid, TIME, NAMES)[0])


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_what_is_watched(objective: str) -> None:
    """Each mean against a loop over all numbers; by flow time where the objective has several."""
    chunks, action, valid = data()
    velocity = torch.randn(B, K, T, A)
    _, found = losses(objective, chunks, velocity, action, valid, TIME, NAMES)
    target = action[:, None].expand_as(chunks) if objective == "drift" else velocity
    sums: dict[str, list[float]] = {}
    for b, k, t, a in torch.cartesian_prod(*map(torch.arange, (B, K, T, A))).tolist():
        if not valid[b, t]:
            continue
        third = ("low", "middle", "high")[min(2, int(TIME[b, k].item() * 3))]
        part = ("early", "early", "middle", "middle", "late")[t]  # the first thirds are the longer ones
        keys = [f"loss_{part}", f"loss_dim_{NAMES[a]}", *([f"loss_time_{third}"] if objective == "flow" else [])]
        for key in keys:
            sums.setdefault(key, []).append((chunks[b, k, t, a] - target[b, k, t, a]).item() ** 2)
    drifted = {"centroid_distance", "sibling_variance"} if objective == "drift" else set()
    assert set(found) == set(sums) | drifted
    for key, values in sums.items():
        assert found[key].item() == pytest.approx(sum(values) / len(values), rel=1e-5), key
    high = watch(torch.ones(B, K, T, A), valid, torch.ones(B, K), NAMES)
    assert all(value == 1 for value in high.values())  # where there is nothing, the mean of all
    nothing = watch(torch.ones(B, K, T, A), torch.zeros_like(valid), torch.ones(B, K), NAMES)
    assert all(value == 0 for value in nothing.values())
    assert list(nothing) == list(high)


def test_given_actions_are_the_first() -> None:
    """None in half of the chunks, else 1 to the most alike (4000 draws, off by five deviations at most)."""
    torch.manual_seed(0)
    mask = draw_mask(torch.zeros(4000, T, A), 4)
    counts = mask.sum(1)
    assert torch.equal(mask, torch.arange(T) < counts[:, None])
    assert abs((counts == 0).sum() - 2000) < 160
    assert all(abs((counts == n).sum() - 500) < 105 for n in range(1, 5))
