"""The objective switch and trained real-time chunking through the policy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lerobot.policies.rtc.configuration_rtc import RTCConfig

from lerobot_deepfusion.modeling_deepfusion import DeepFusionPolicy
from lerobot_deepfusion.network.objective import OBJECTIVES
from tests.policies import loss, make, make_config

RTC = {"rtc_config": RTCConfig(enabled=True, execution_horizon=4)}
EVALUATIONS = {"flow": 2, "two_step": 2, "drift": 1}  # `make_config` has two Euler steps
few = pytest.mark.parametrize("objective", [name for name in OBJECTIVES if name != "flow"])
each = pytest.mark.parametrize("objective", OBJECTIVES)


def counted(policy: DeepFusionPolicy) -> list[Any]:
    """Calls of the expert from now on, with what was given to each."""
    calls: list[Any] = []
    denoise = policy._denoise

    def count(*args: Any) -> torch.Tensor:
        calls.append(args[4])
        return denoise(*args)

    policy._denoise = count
    return calls


@pytest.mark.slow
@pytest.mark.parametrize(
    ("objective", "time", "steps"), [("flow", "adarms", 120), ("two_step", "token", 60), ("drift", "adarms", 200)]
)
def test_learns_to_act(objective: str, time: str, steps: int) -> None:
    """Of one batch its actions, to within a quarter of their spread, with the evaluations it is to need."""
    policy, batch, _ = make(objective=objective, num_flow_samples=4, time_conditioning=time, num_inference_steps=2)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=2e-3)
    policy.train()
    for _ in range(steps):
        optimizer.zero_grad()
        policy.forward(batch)[0].backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
    calls = counted(policy)
    chunk = policy.predict_action_chunk(batch)
    assert len(calls) == EVALUATIONS[objective]
    assert (chunk - batch["action"]).square().mean().sqrt() < 0.25 * batch["action"].std()


@each
def test_a_sample_s_loss_is_its_own(objective: str) -> None:
    """`reduction=none` gives one loss each, whose mean is the loss."""
    policy, batch, _ = make(objective=objective, num_flow_samples=2)
    batch["action_is_pad"][0, 2:] = True
    rows = loss(policy, batch, reduction="none")
    assert rows.shape == (3,)
    assert torch.equal(rows.mean(), loss(policy, batch))


@each
def test_what_is_watched_comes_a_step_later(objective: str) -> None:
    """As plain numbers, by the names of the data set; at once where nothing is trained."""
    policy, batch, _ = make(objective=objective, num_flow_samples=2, action_feature_names=["dx", "dy", "grip"])
    batch["action_is_pad"][:, 2:] = True
    policy.train()
    with torch.random.fork_rng():
        torch.manual_seed(7)
        first, watched = policy.forward(batch)
    assert watched == {}
    batch["action_is_pad"][:] = False
    watched = policy.forward(batch)[1]
    assert all(type(value) is float for value in watched.values())
    assert watched["padded"] == pytest.approx(4 / 6)
    dimensions = [watched[f"loss_dim_{name}"] for name in ("dx", "dy", "grip")]
    if objective != "drift":  # whose loss is a force
        assert sum(dimensions) / 3 == pytest.approx(first.item(), rel=1e-5)
        assert watched["loss_early"] == pytest.approx(first.item(), rel=1e-5)
    assert ("centroid_distance" in watched) == (objective == "drift")
    assert policy.forward(batch)[1]["padded"] == 0
    policy.eval()
    batch["action_is_pad"][:, 2:] = True
    assert policy.forward(batch)[1]["padded"] == pytest.approx(4 / 6)


@few
def test_checkpoint_knows_its_objective(tmp_path: Path, objective: str) -> None:
    policy, batch, _ = make(objective=objective, num_flow_samples=2)
    policy.save_pretrained(tmp_path)
    again = DeepFusionPolicy.from_pretrained(tmp_path)
    assert again.config.objective == objective
    noise = torch.randn(3, 6, 3)
    chunk = policy.predict_action_chunk(batch, noise=noise)
    assert torch.equal(again.predict_action_chunk(batch, noise=noise), chunk)
    for other in {"flow", "two_step", "drift"} - {objective}:
        with pytest.raises(ValueError, match=rf"objective='{other}' \(checkpoint: '{objective}'\)"):
            DeepFusionPolicy.from_pretrained(tmp_path, config=make_config(objective=other, num_flow_samples=2))
    again.config.objective = "flow"
    with pytest.raises(ValueError, match="changed in objective"):
        again.predict_action_chunk(batch)


def test_two_step_draws_nothing() -> None:
    policy, batch, _ = make(objective="two_step", num_flow_samples=2)
    state = torch.get_rng_state()
    chunk = policy.predict_action_chunk(batch, noise=torch.randn(3, 6, 3))
    torch.set_rng_state(state)
    assert torch.equal(policy.predict_action_chunk(batch), chunk)
    drift, batch, _ = make(objective="drift", num_flow_samples=2)
    assert not torch.equal(drift.predict_action_chunk(batch), drift.predict_action_chunk(batch))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"objective": "diffusion"}, "policy.objective='diffusion': choose one of flow, two_step, drift"),
        ({"objective": "two_step"}, "num_flow_samples=1 is odd; use policy.num_flow_samples=2"),
        ({"objective": "two_step", "num_flow_samples": 7}, "use policy.num_flow_samples=8"),
        ({"objective": "drift"}, "policy.num_flow_samples=1 is a single one; use policy.num_flow_samples=8"),
        (
            {"objective": "drift", "num_flow_samples": 8, **RTC},
            "objective=drift has no flow .*rtc_training_max_delay",
        ),
        ({"objective": "two_step", "num_flow_samples": 8, **RTC}, "objective=two_step has no flow"),
        ({"rtc_training_max_delay": 6}, "rtc_training_max_delay=6 gives a whole chunk of policy.chunk_size=6"),
        ({"rtc_training_max_delay": -1}, "policy.rtc_training_max_delay=-1"),
        ({"rtc_training_max_delay": 1.5}, "policy.rtc_training_max_delay=1.5"),
    ],
)
def test_what_makes_no_sense(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make_config(**options)


@few
def test_guided_real_time_chunking_is_refused_before_it_starts(objective: str) -> None:
    """A rollout sets its config on a policy that is built, and asks for the processor."""
    policy, _, _ = make(objective=objective, num_flow_samples=2)
    policy.config.rtc_config = RTC["rtc_config"]
    with pytest.raises(ValueError, match="no flow that real-time chunking could guide"):
        policy.init_rtc_processor()


# --- trained real-time chunking ---------------------------------------------------------------------------


@each
@pytest.mark.parametrize("time", ["adarms", "token"])
def test_chunk_goes_on_from_what_is_left(objective: str, time: str) -> None:
    """The actions that will be executed meanwhile stand in the chunk to the bit, those behind them know of it, no
    evaluation more is asked, and no gradient.
    """
    policy, batch, _ = make(objective=objective, num_flow_samples=2, rtc_training_max_delay=3, time_conditioning=time)
    noise = torch.randn(3, 6, 3)
    free = policy.predict_action_chunk(batch, noise=noise)
    policy.config.rtc_config = RTC["rtc_config"]
    policy.init_rtc_processor()
    left = torch.randn(3, 4, 3)
    calls = counted(policy)
    chunk = policy.predict_action_chunk(
        batch, noise=noise, inference_delay=2, prev_chunk_left_over=left, execution_horizon=4
    )
    assert len(calls) == EVALUATIONS[objective]
    assert torch.equal(chunk[:, :2], left[:, :2])
    assert not torch.allclose(chunk[:, 2:], free[:, 2:], atol=1e-3)
    assert not chunk.requires_grad
    other = left.clone()
    other[:, 2:] = 9.0  # what is left behind the delay is not executed, and says nothing
    again = policy.predict_action_chunk(batch, noise=noise, inference_delay=2, prev_chunk_left_over=other)
    assert torch.equal(again, chunk)
    first = policy.predict_action_chunk(batch, noise=noise, inference_delay=2, prev_chunk_left_over=None)
    assert torch.equal(first, free)


def test_longer_delay_than_was_trained_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    policy, batch, _ = make(rtc_training_max_delay=2, **RTC)
    left = torch.randn(3, 6, 3)
    for _ in range(2):
        chunk = policy.predict_action_chunk(batch, inference_delay=4, prev_chunk_left_over=left)
        assert torch.equal(chunk[:, :2], left[:, :2])
        assert not torch.equal(chunk[:, 2:4], left[:, 2:4])
    assert caplog.text.count("a delay of 4 actions and the policy learned to go on from up to 2") == 1


def test_delay_of_zero_guides_instead(tmp_path: Path) -> None:
    """One checkpoint, both ways; and never more than it was trained with."""
    policy, batch, _ = make(rtc_training_max_delay=2)
    policy.save_pretrained(tmp_path)
    config = make_config(rtc_training_max_delay=0, **RTC)
    guided = DeepFusionPolicy.from_pretrained(tmp_path, config=config)
    left = torch.randn(3, 6, 3)
    options = {"inference_delay": 2, "prev_chunk_left_over": left, "execution_horizon": 4}
    assert not torch.equal(guided.predict_action_chunk(batch, **options)[:, :2], left[:, :2])
    policy.config.rtc_training_max_delay = 3
    with pytest.raises(ValueError, match="above what it was"):
        policy.predict_action_chunk(batch)
    with pytest.raises(ValueError, match=r"rtc_training_max_delay=3 and .* was trained with 2"):
        DeepFusionPolicy.from_pretrained(tmp_path, config=make_config(rtc_training_max_delay=3))


@each
def test_given_actions_are_not_learned(objective: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With two given in each chunk the loss is of the other four; what the expert says of the first counts not."""
    policy, batch, _ = make(objective=objective, num_flow_samples=2, rtc_training_max_delay=2)
    monkeypatch.setattr(
        "lerobot_deepfusion.modeling_deepfusion.draw_mask", lambda action, most: torch.arange(6)[None] < most
    )
    denoise, change = policy.model.denoise, [0.0]

    def lie(*args: Any) -> torch.Tensor:
        answer = denoise(*args)
        assert args[4].mask.tolist() == [[True, True, False, False, False, False]]
        return torch.cat([answer[:, :, :2] + change[0], answer[:, :, 2:]], dim=2)

    monkeypatch.setattr(policy.model, "denoise", lie)
    before = loss(policy, batch)
    change[0] = 5.0
    assert torch.equal(loss(policy, batch), before)


def test_learns_to_continue() -> None:
    """Two demonstrations of one observation, told apart by their first action alone: what is given decides."""
    policy, batch, _ = make(rtc_training_max_delay=2, num_flow_samples=4)
    tensors = {key: value for key, value in batch.items() if isinstance(value, torch.Tensor)}
    batch = {key: value[:1].expand(2, *value.shape[1:]).clone() for key, value in tensors.items()}
    batch["action"] = torch.tensor([1.0, -1.0])[:, None, None].expand(2, 6, 3).clone()
    batch["action_is_pad"] = torch.zeros(2, 6, dtype=torch.bool)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=2e-3)
    policy.train()
    for _ in range(150):
        optimizer.zero_grad()
        policy.forward(batch)[0].backward()
        optimizer.step()
    policy.config.rtc_config = RTC["rtc_config"]
    policy.init_rtc_processor()
    signs = []
    for noise in torch.randn(10, 2, 6, 3):
        options = {"inference_delay": 2, "prev_chunk_left_over": batch["action"]}
        chunk = policy.predict_action_chunk(batch, noise=noise, **options)
        signs.append(chunk[:, 2:] * batch["action"][:, 2:] > 0)
    assert torch.stack(signs).float().mean() > 0.95
    policy.config.rtc_config = None  # without what is given either answer comes, whichever row asks
    free = policy.predict_action_chunk(batch, noise=torch.randn(1, 6, 3).expand(2, -1, -1).clone())
    assert torch.allclose(free[0], free[1], atol=1e-5)


@each
def test_bfloat16(objective: str) -> None:
    """Loss and gradients are finite, and given actions exact."""
    policy, batch, _ = make(
        objective=objective, num_flow_samples=2, rtc_training_max_delay=3, dtype="bfloat16", **RTC
    )
    loss(policy, batch).backward()
    assert all(p.grad.isfinite().all() for p in policy.parameters() if p.grad is not None)
    left = torch.randn(3, 6, 3)
    chunk = policy.predict_action_chunk(batch, inference_delay=3, prev_chunk_left_over=left)
    assert torch.equal(chunk[:, :3], left[:, :3])
    assert chunk.dtype == torch.float32


@each
def test_checkpointed_layers_see_what_is_given(objective: str) -> None:
    """Gradients with layers recomputed are those without, to the bit, and those of nothing given are others."""
    gradients, calls = [], []
    for recompute, most in ((False, 3), (True, 3), (True, 0)):
        policy, batch, _ = make(
            objective=objective, num_flow_samples=2, rtc_training_max_delay=most, gradient_checkpointing=recompute
        )
        policy.train()
        passed: list[int] = []
        policy.model.expert.backbone.layers[0].register_forward_pre_hook(lambda *_, passed=passed: passed.append(1))
        loss(policy, batch).backward()
        gradients.append({name: p.grad for name, p in policy.named_parameters() if p.grad is not None})
        calls.append(len(passed))
    plain, recomputed, free = gradients
    assert calls[1] == 2 * calls[0]
    assert plain.keys() == recomputed.keys() == free.keys()
    assert all(torch.equal(plain[name], recomputed[name]) for name in plain)
    assert not any(
        torch.equal(plain[name], free[name]) for name in plain if name.startswith("model.expert.backbone.layers")
    )
