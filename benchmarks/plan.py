"""What the published LLaVAs cost on cards that are not at hand: operations and bytes counted, time from the peaks.

    python -m benchmarks.plan

The network is built and run on the meta device, so that every matrix product is counted and none computed. A time is
the larger of operations over the card's dense bfloat16 peak and bytes over its bandwidth, for the VLM's pass and for
the denoise steps apart: no kernel is faster, and launches, norms and joins come on top. Frozen weights are bfloat16,
trained ones float32; acting is with the VLM frozen (`--policy.train_expert_only=true`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lerobot_deepfusion.cost import memory
from lerobot_deepfusion.cost.blueprint import assume_cameras, build, read_policy
from lerobot_deepfusion.cost.fake_step import Workload
from lerobot_deepfusion.network import part_names as parts
from lerobot_deepfusion.network.lockstep import DeepFusionModel

from .speed.floor import count_flops


@dataclass(frozen=True)
class Card:
    """Peaks from the makers' data sheets."""

    name: str
    gib: int
    flops: float
    bytes: float


CARDS = (
    Card("RTX 4090 24 GB", 24, 165e12, 1.01e12),
    Card("A100 80 GB", 80, 312e12, 2.04e12),
    Card("H100 SXM 80 GB", 80, 989e12, 3.35e12),
)
RUNS = (("onevision-0.5b", 0.5), ("onevision-0.5b", 1.0), ("llava-1.5-7b", 0.25), ("llava-1.5-7b", 1.0))
CAMERAS, TEXT, CHUNK, STEPS, BATCH, HALF = 2, 64, 50, 10, 8, 2


@dataclass(frozen=True)
class Cost:
    """Operations and bytes of one pass of the VLM and one denoise step, for one observation."""

    prefix_flops: int
    prefix_bytes: int
    step_flops: int
    step_bytes: int

    def acting(self, card: Card) -> tuple[float, float]:
        """Seconds of the VLM's pass and of one step."""
        return (
            max(self.prefix_flops / card.flops, self.prefix_bytes / card.bytes),
            max(self.step_flops / card.flops, self.step_bytes / card.bytes),
        )


def count(model: DeepFusionModel) -> Cost:
    """Count one observation on the meta device."""
    vision, tokens = model.perception.config.vision_config, CAMERAS * model.perception.image_tokens + TEXT
    with torch.device("meta"), torch.no_grad():
        pixels = torch.empty(1, CAMERAS, 3, vision.image_size, vision.image_size)
        ids, valid = torch.empty(1, tokens, dtype=torch.long), torch.empty(1, tokens, dtype=torch.bool)
        states = model.project_contexts(model.prefill(pixels, ids, valid))
        state, noisy = torch.empty(1, 32), torch.empty(1, 1, CHUNK, 32)
        time = model.embed_time(torch.empty(1, 1))
        prefix = count_flops(lambda: model.project_contexts(model.prefill(pixels, ids, valid)))
        step = count_flops(lambda: model.denoise(states, state, noisy, time))
    weights = memory.parameters(model)
    context = memory.key_value_bytes(model, Workload(1, CAMERAS, TEXT, CHUNK), half=True)
    expert = HALF * (weights[parts.EXPERT] - memory.modulation_parameters(model))  # those once a chunk
    return Cost(prefix, HALF * sum(weights.values()) - expert + context, step, expert + context)


def main() -> None:
    print(
        f"{CAMERAS} cameras, {TEXT} words, chunks of {CHUNK}, {STEPS} steps, kv, bfloat16; batch {BATCH} in training"
    )
    for name, width in RUNS:
        options = {"expert_width_multiplier": width, "dtype": "bfloat16", "train_expert_only": True}
        config, _ = read_policy(name, options)
        assume_cameras(config, CAMERAS)
        model = build(config)
        cost, bytes_of = count(model), sizes(model)
        acting = cost.prefix_flops + STEPS * cost.step_flops
        print(f"\n{name}, expert of {width} of its width: {acting / 1e12:.2f} TFLOP a chunk")
        print(f"  VLM {cost.prefix_flops / 1e12:.2f} TFLOP, {cost.prefix_bytes / 1e9:.2f} GB; ", end="")
        print(f"step {cost.step_flops / 1e9:.1f} GFLOP, {cost.step_bytes / 1e9:.2f} GB")
        for card in CARDS:
            prefix, step = cost.acting(card)
            # Of what is trained a backward pass costs twice the forward pass.
            frozen = BATCH * (cost.prefix_flops + 3 * cost.step_flops) / card.flops
            whole = BATCH * 3 * (cost.prefix_flops + cost.step_flops) / card.flops
            print(f"  {card.name:15} chunk >= {1e3 * (prefix + STEPS * step):6.1f} ms", end="")
            print(f" (VLM {1e3 * prefix:.1f}, step {1e3 * step:.2f}); step of training >= ", end="")
            print(f"{1e3 * frozen:.0f} ms expert only, {1e3 * whole:.0f} ms everything; fits: {fits(bytes_of, card)}")


def sizes(model: DeepFusionModel) -> dict[str, int]:
    """Bytes of acting, and of each way to train with gradient checkpointing."""
    ways = {
        "expert only": ({parts.EXPERT}, 0),
        "LoRA": ({parts.TEXT, parts.EXPERT}, 16),
        "everything": (set(parts.PARTS), 0),
    }
    load = Workload(BATCH, CAMERAS, TEXT, CHUNK)
    return {"acting": memory.acting_bytes(model, Workload(1, CAMERAS, TEXT, CHUNK), half=True)} | {
        name: memory.training_bytes(model, load, True, trained, True, rank) for name, (trained, rank) in ways.items()
    }


def fits(bytes_of: dict[str, int], card: Card) -> str:
    """What a card has room for, with a tenth of it left over."""
    return ", ".join(name for name, size in bytes_of.items() if size <= 0.9 * card.gib * 2**30) or "nothing"


if __name__ == "__main__":
    main()
