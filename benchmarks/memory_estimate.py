"""The memory that `deepfusion info` estimates beside what a step takes on a CPU, as a Markdown table.

    python -m benchmarks.memory_estimate [float32 | bfloat16]

Small LLaVAs of every make, each fusion. A cell is the peak of activations and gradients in MiB, estimated / measured,
and their ratio; weights and AdamW's states, which are counted exactly, are left out of both. LoRA is PEFT's own.
"""

from __future__ import annotations

import argparse

import torch
from torch import nn

from lerobot_deepfusion.cost.fake_step import Setting, Workload
from lerobot_deepfusion.cost.few_layers import peak_bytes
from lerobot_deepfusion.network.fusion import FUSIONS
from lerobot_deepfusion.network.lockstep import DeepFusionModel
from lerobot_deepfusion.network.part_names import EXPERT, PARTS, TEXT, part_of
from lerobot_deepfusion.training.adapters import LORA_TARGETS

from .allocations import allocated
from .report import machine, print_machine
from .small_llavas import MAKES, llava_config

LOAD, STATE_DIM, ACTION_DIM = Workload(batch=4, cameras=2, text_tokens=8, chunk=10, samples=2), 8, 8
# What is trained, and the rank of LoRA.
WAYS: dict[str, tuple[frozenset[str], int]] = {
    "everything": (frozenset(PARTS), 0),
    "frozen VLM": (frozenset({EXPERT}), 0),
    "LoRA": (frozenset({TEXT, EXPERT}), 4),
}


def small_model(make: str, fusion: str, layers: int = 6, **switch) -> DeepFusionModel:
    """Wide enough that layers outweigh what stands around them."""
    config = llava_config(make, hidden_size=96, intermediate_size=256, num_hidden_layers=layers, head_dim=24)
    vision = config.vision_config
    vision.hidden_size, vision.intermediate_size, vision.num_hidden_layers = 48, 128, layers
    options = {"expert_width_multiplier": 0.5, "time_conditioning": "adarms", **switch}
    torch.manual_seed(0)
    return DeepFusionModel(config, fusion, max_state_dim=STATE_DIM, max_action_dim=ACTION_DIM, **options).train()


def prepare(model: DeepFusionModel, setting: Setting) -> None:
    """Freeze, adapt and convert as the policy, LeRobot and PEFT do."""
    if setting.rank:
        from peft import LoraConfig, inject_adapter_in_model

        inject_adapter_in_model(LoraConfig(r=setting.rank, target_modules=LORA_TARGETS["target_modules"]), model)
        model.expert.requires_grad_(True)
    else:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(part_of(name) in setting.trained)
    for parameter in model.parameters():
        half = setting.half and not parameter.requires_grad
        parameter.data = parameter.data.to(torch.bfloat16 if half else torch.float32)
    if setting.checkpointing:
        model.gradient_checkpointing_enable()


def make_inputs(model: DeepFusionModel) -> dict[str, torch.Tensor]:
    """A batch of `LOAD`."""
    perception, size = model.perception, LOAD.batch
    images = torch.full((size, LOAD.cameras * perception.image_tokens), perception.config.image_token_id)
    tokens = torch.cat([images, torch.ones(size, LOAD.text_tokens, dtype=torch.long)], dim=1)
    side = perception.config.vision_config.image_size
    return {
        "pixels": torch.randn(size, LOAD.cameras, 3, side, side),
        "tokens": tokens,
        "valid": torch.ones_like(tokens, dtype=torch.bool),
        "state": torch.randn(size, STATE_DIM),
        "noisy": torch.randn(size, LOAD.samples, LOAD.chunk, ACTION_DIM),
        "time": torch.rand(size, LOAD.samples),
        **({} if model.position_3d is None else {"points": torch.rand(size, LOAD.cameras, 4, side, side)}),
    }


def step(model: DeepFusionModel, inputs: dict[str, torch.Tensor], setting: Setting) -> None:
    """Forward and backward pass, or a chunk of one step."""
    with torch.autocast("cpu", torch.bfloat16, enabled=setting.half), torch.set_grad_enabled(not setting.acting):
        states = model.prefill(*(inputs[name] for name in ("pixels", "tokens", "valid")), points=inputs.get("points"))
        states = model.project_contexts(states) if setting.acting else states
        velocity = model.denoise(states, inputs["state"], inputs["noisy"], model.embed_time(inputs["time"]))
    del states
    if not setting.acting:
        velocity.float().square().mean().backward()


def measured_peak(model: nn.Module, setting: Setting) -> int:
    """Most bytes allocated at once in a step."""
    inputs = make_inputs(model)
    return allocated(lambda: step(model, inputs, setting))


def compare(make: str, fusion: str, setting: Setting) -> tuple[int, int]:
    """Estimated and measured bytes."""
    model = small_model(make, fusion)
    estimate = peak_bytes(model, LOAD, setting)
    prepare(model, setting)
    return estimate, measured_peak(model, setting)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dtype", nargs="?", choices=("float32", "bfloat16"), default="float32")
    dtype = parser.parse_args().dtype
    torch.set_num_threads(1)
    print_machine(machine("cpu", dtype, rounds=1))
    columns = [(name, checkpointing) for name in WAYS for checkpointing in (False, True)]
    heads = [f"{name}, checkpointed" if checkpointing else name for name, checkpointing in columns]
    print(f"\n| LLaVA | fusion | {' | '.join(heads)} |\n|{' --- |' * (2 + len(heads))}")
    ratios = []
    for make in MAKES:
        for fusion in FUSIONS:
            cells = []
            for name, checkpointing in columns:
                trained, rank = WAYS[name]
                estimate, measured = compare(make, fusion, Setting(dtype == "bfloat16", trained, checkpointing, rank))
                ratios.append(estimate / measured)
                cells.append(f"{estimate / 2**20:.2f} / {measured / 2**20:.2f} ({ratios[-1]:.3f})")
            print(f"| {make} | {fusion} | {' | '.join(cells)} |", flush=True)
    print(f"\nratios {min(ratios):.3f} to {max(ratios):.3f}")


if __name__ == "__main__":
    main()
