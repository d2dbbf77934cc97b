"""What each row of the switch costs beside the default: parameters, operations and bytes, counted.

    python -m benchmarks.switch_costs

LLaVA-OneVision 0.5B on the meta device, two cameras, 64 words, chunks of 50, 10 steps; keys and values as bfloat16.
What is not in the table costs nothing there: `expert_init`, `knowledge_insulation`; and `num_flow_samples`, of which
each costs one more denoise step in a forward pass of training.
"""

from __future__ import annotations

from typing import Any

from lerobot_deepfusion.cost import memory
from lerobot_deepfusion.cost.blueprint import assume_cameras, build, read_policy
from lerobot_deepfusion.cost.fake_step import Workload
from lerobot_deepfusion.network.part_names import EXPERT

from .plan import CAMERAS, CHUNK, STEPS, TEXT, count

LATE, GEMMA = {"fusion": "late"}, {"action_expert_type": "late_gemma"}
ROWS: tuple[dict[str, Any], ...] = (
    {},
    {"fusion": "hidden"},
    LATE,
    {"fusion_layers": "every_2"},
    {"fusion_layers": "first_12"},
    {"fusion_layers": "middle"},
    {**LATE, "fusion_layers": "first_12"},
    {"expert_num_layers": 12},
    {"fusion_layers": "first_12", "expert_num_layers": 24},
    {"expert_width_multiplier": 0.5},
    {"fusion": "hidden", "expert_width_multiplier": 0.5},
    {**LATE, **GEMMA},
    {"time_conditioning": "token"},
    {"action_attention": "causal"},
)


def main() -> None:
    print("| row | expert, M | VLM kept, M | VLM, GFLOP | step, GFLOP | chunk, GFLOP | keys and values, MiB |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for options in ROWS:
        config, _ = read_policy("onevision-0.5b", {**options, "train_expert_only": True})
        assume_cameras(config, CAMERAS)
        model = build(config)
        cost, weights = count(model), memory.parameters(model)
        load, expert = Workload(1, CAMERAS, TEXT, CHUNK), weights[EXPERT]
        values = (
            f"{expert / 1e6:.0f}",
            f"{(sum(weights.values()) - expert) / 1e6:.0f}",
            f"{cost.prefix_flops / 1e9:.0f}",
            f"{cost.step_flops / 1e9:.1f}",
            f"{(cost.prefix_flops + STEPS * cost.step_flops) / 1e9:.0f}",
            f"{memory.key_value_bytes(model, load, half=True) / 2**20:.1f}",
        )
        name = ", ".join(f"`{field}={value}`" for field, value in options.items()) or "default: `fusion=kv`"
        print(f"| {name} | {' | '.join(values)} |")


if __name__ == "__main__":
    main()
