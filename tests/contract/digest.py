"""Digests of what the policy computes: the same to the bit before and after a change that moves code only.

    python -m tests.contract.digest > before.txt     # then the change, and again into after.txt, on the same machine

Twenty training steps from one seed, the loss before and after them, every weight and one chunk, for some ways to
build and train a policy.
"""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor

from tests.policies import loss, make

STEPS = 20
WAYS: dict[str, dict[str, Any]] = {
    "kv": {},
    "hidden, narrower, token": {"fusion": "hidden", "expert_width_multiplier": 0.5, "time_conditioning": "token"},
    "late, Gemma": {"fusion": "late", "action_expert_type": "late_gemma"},
    "kv, 3 flow samples, shift, dropout": {"num_flow_samples": 3, "image_shift": 0.1, "state_dropout": 0.3},
    "kv, bfloat16, checkpointed, frozen tower": {
        "dtype": "bfloat16",
        "gradient_checkpointing": True,
        "freeze_vision_encoder": True,
        "cameras": ("images.front", "images.wrist"),
    },
    "kv, the expert alone, every second layer": {"train_expert_only": True, "fusion_layers": "every_2"},
}


def digest(*tensors: Tensor) -> str:
    whole = hashlib.sha256()
    for tensor in tensors:
        whole.update(tensor.detach().flatten().view(torch.uint8).numpy().tobytes())
    return whole.hexdigest()[:16]


def main() -> None:
    torch.set_num_threads(1)
    for name, changes in WAYS.items():
        policy, batch, _ = make(**changes)
        optimizer = policy.config.get_optimizer_preset().build(policy.get_optim_params())
        scheduler = policy.config.get_scheduler_preset().build(optimizer, STEPS)
        policy.train()
        losses = []
        torch.manual_seed(0)
        for _ in range(STEPS):
            value = policy.forward(batch)[0]
            losses.append(value.detach())
            value.backward()
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        noise = torch.randn(batch["action"].shape, generator=torch.Generator().manual_seed(0))
        chunk = policy.predict_action_chunk(batch, noise=noise)
        weights = policy.state_dict()
        policy.train()
        print(f"{name}: losses {digest(*losses)}, last {losses[-1].item()!r}, loss {digest(loss(policy, batch))}")
        print(
            f"  weights {digest(*(weights[key] for key in sorted(weights)))} of {len(weights)}, chunk {digest(chunk)}"
        )


if __name__ == "__main__":
    main()
