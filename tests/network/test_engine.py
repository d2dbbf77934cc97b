"""What acting and training compute, counted: no clock is asked.

Shape S256: 8 layers of width 256, 440 prefix tokens, chunks of 50, 10 steps (benchmarks/shapes.py).
"""

from __future__ import annotations

import gc
from collections import Counter
from typing import Any

import pytest
import torch
from lerobot.policies.common.flow_matching import euler_integrate
from lerobot.utils.constants import OBS_STATE
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.speed.arms import DeepFusion
from benchmarks.speed.shapes import VOCABULARY, make_inputs, shape_of
from tests.policies import make

SHAPE = shape_of("S256")
OWN = 1 + 1 + SHAPE.chunk  # state, time and actions


def arm(fusion: str, batch: int = 1) -> DeepFusion:
    torch.manual_seed(0)
    shape = shape_of(f"S256-B{batch}")
    return DeepFusion(shape, make_inputs(shape, 1, "cpu"), fusion)


def linear_flops(job: Any) -> float:
    """Floating-point operations of all matrix products but attention's, in units of 1e9."""
    with FlopCounterMode(display=False) as counter:
        job()
    counts = counter.get_flop_counts()["Global"]
    return sum(counts[op] for op in counts if "mm" in str(op)) / 1e9


@pytest.mark.medium
@pytest.mark.parametrize(("fusion", "acting", "training"), [("kv", 12.5, 18.8), ("hidden", 13.4, 21.2)])
def test_nothing_is_computed_twice(fusion: str, acting: float, training: float) -> None:
    """Operations of acting and training at most those of a design without waste.

    Measured: kv 12.47 and 18.2, hidden 13.28 and 20.6. Projecting hidden states again in each step would be 29.
    """
    model = arm(fusion)
    assert 0.9 * acting < linear_flops(lambda: model.act(SHAPE.steps)) < acting
    assert 0.9 * training < linear_flops(model.train_step) < training


@pytest.mark.medium
def test_frozen_vlm_has_no_backward_pass() -> None:
    model = arm("kv")
    model.vlm.requires_grad_(False)
    assert linear_flops(model.train_step) < 8.0


class Operations(TorchDispatchMode):
    """Counts the operations that reach the backend."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.medium
def test_attention_is_fused_and_vision_runs_once() -> None:
    """One fused call a layer and step, one call of the tower for all cameras, and no logits."""
    model = arm("kv", batch=2)
    calls: Counter[str] = Counter()
    perception, layer = model.model.perception, model.model.expert.backbone.layers[0]
    perception.vision_tower.register_forward_hook(lambda *_: calls.update(tower=1))
    layer.self_attn.k_proj.register_forward_hook(lambda _, x, __: calls.update(rows=x[0][..., 0].numel()))
    with Operations() as operations:
        model.act(SHAPE.steps)
    count = operations.count
    fused = sum(number for name, number in count.items() if "scaled_dot_product" in name)
    assert fused == SHAPE.layers - 1 + SHAPE.layers * SHAPE.steps
    assert count["_softmax"] == 0
    assert calls == {"tower": 1, "rows": 2 * OWN * SHAPE.steps}
    assert all(getattr(module, "out_features", 0) != VOCABULARY for module in model.model.modules())


def test_hidden_states_are_projected_once() -> None:
    model, rows = arm("hidden"), []
    projection = model.model.expert.backbone.layers[0].self_attn.k_proj
    projection.register_forward_hook(lambda _, x, __: rows.append(x[0].shape[-2]))
    model.act(SHAPE.steps)
    assert rows == [SHAPE.prefix] + [OWN] * SHAPE.steps


def live_bytes() -> int:
    gc.collect()
    tensors = [item for item in gc.get_objects() if type(item) in (torch.Tensor, torch.nn.Parameter)]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


@pytest.mark.medium
@pytest.mark.parametrize("fusion", ["kv", "hidden", "late"])
def test_memory_does_not_grow_over_the_steps(fusion: str) -> None:
    """As many bytes are alive at the last step as at the second."""
    policy, batch, _ = make(fusion=fusion)
    policy.config.num_inference_steps = 6
    alive, denoise = [], policy._denoise
    policy._denoise = lambda *args: alive.append(live_bytes()) or denoise(*args)
    gc.collect()
    gc.freeze()  # what was there before can't grow, and takes a second to walk through
    try:
        policy.predict_action_chunk(batch)
    finally:
        gc.unfreeze()
    assert len(alive) == 6
    assert len(set(alive[1:])) == 1, alive


@pytest.mark.parametrize("conditioning", ["token", "adarms"])
def test_one_pass_of_the_time_branch_serves_all_steps(conditioning: str) -> None:
    """The chunk is that of a loop which embeds each time when it comes. Worst error: 2e-7."""
    policy, batch, _ = make(time_conditioning=conditioning)
    model, noise, calls = policy.model, torch.randn(3, 6, 3), Counter()
    model.expert.time_mlp.register_forward_hook(lambda *_: calls.update(time=1))
    chunk = policy.predict_action_chunk(batch, noise=noise)
    assert calls == {"time": 1}
    with torch.no_grad():
        states = model.project_contexts(policy._observe(batch))
        expected = euler_integrate(
            lambda x, t: model.denoise(states, batch[OBS_STATE], x[:, None], model.embed_time(t[:, None]))[:, 0],
            noise,
            policy.config.num_inference_steps,
        )
    assert (chunk - expected).abs().max() < 1e-5


@pytest.mark.parametrize("steps", [1, 2, 4, 10])
def test_batch_equals_rows(steps: int) -> None:
    """Chunks of three observations together and one by one, for any number of steps. Worst error: 1.7e-6."""
    policy, batch, _ = make(cameras=("images.a", "images.b"))
    policy.config.num_inference_steps = steps
    noise = torch.randn(3, 6, 3)
    together = policy.predict_action_chunk(batch, noise=noise)
    for row in range(3):
        one = {
            key: value[row : row + 1] if isinstance(value, torch.Tensor | list) else value
            for key, value in batch.items()
        }
        alone = policy.predict_action_chunk(one, noise=noise[row : row + 1])
        assert (alone - together[row : row + 1]).abs().max() < 1e-5
