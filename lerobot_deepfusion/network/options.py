"""Options that a network can be built from: which values each has, and which contradict each other.

Read off a `DeepFusionConfig`, which the network has no need to know: it has no LeRobot in it.
"""

from __future__ import annotations

from typing import Any

from ..llava.bounds import check_size
from .fusion import FUSIONS, LAYERS
from .objective import OBJECTIVES
from .positions import POSITIONS

CHOICES = {
    "fusion": FUSIONS,
    "action_expert_type": ("deep_llama", "late_gemma"),
    "action_attention": ("bidirectional", "causal"),
    "time_conditioning": ("token", "adarms"),
    "objective": OBJECTIVES,
    "position_3d": POSITIONS,
    "expert_init": ("vlm", "random"),
    "dtype": ("float32", "bfloat16"),
}
# Least and greatest value: far above any robot that exists, and far below what fills a machine's memory.
POLICY_SIZES = {
    "chunk_size": (1, 10_000),  # 100 s of a robot at 100 Hz
    "n_action_steps": (1, 10_000),
    "max_state_dim": (1, 4096),  # two hands with every joint, force and tactile cell are some hundreds
    "max_action_dim": (1, 4096),
    "num_inference_steps": (1, 10_000),  # 10 are enough; each costs a pass
    "num_flow_samples": (1, 4096),  # each is a copy of the chunk in memory
    "rtc_training_max_delay": (0, 9_999),  # less than a chunk
    "tokenizer_max_length": (1, 2**17),  # prompts are sentences
    "image_token_pooling": (1, 512),  # more patches than that in a row are refused below
    "empty_cameras": (0, 64),
    "drop_n_last_frames": (0, 10_000),
    "expert_num_layers": (1, 1024),
}


FARTHEST = 10.0  # metres that a camera, or the workspace, may be from the origin


def check_options(config: Any) -> None:
    """
    Raises:
        ValueError: for an option of a `DeepFusionConfig` that is no choice, out of bounds, or contradicts another,
            whatever the VLM.
    """
    for name, choices in CHOICES.items():
        value = getattr(config, name)
        if value not in choices:
            raise ValueError(f"policy.{name}={value!r}: choose one of {', '.join(choices)}")
    _check_sizes(config)
    _check_switch(config)
    _check_space(config)
    _check_objective(config)


def _check_sizes(config: Any) -> None:
    for name, bounds in POLICY_SIZES.items():
        value = getattr(config, name)
        if not (value is None and name == "expert_num_layers"):
            check_size(f"policy.{name}", value, bounds)


def _check_switch(config: Any) -> None:
    layers, fusion = config.fusion_layers, config.fusion
    if not isinstance(layers, str) or not LAYERS.fullmatch(layers):
        raise ValueError(
            f"policy.fusion_layers={layers!r:.80}: choose all, middle, every_<n> or first_<m>, n and m from 1 to 9999"
        )
    if fusion == "late" and not layers.startswith(("all", "first_")):
        raise ValueError(
            f"policy.fusion_layers={layers} chooses among the layers that policy.fusion=late does not read: it reads "
            "one state, behind the last layer. Choose all or first_<m>, or policy.fusion=kv or hidden"
        )
    if config.expert_init == "vlm" and config.expert_width_multiplier != 1.0:
        raise ValueError(
            f"policy.expert_init=vlm copies the text model's weights and so needs "
            f"policy.expert_width_multiplier=1.0, found {config.expert_width_multiplier}; "
            "use policy.expert_init=random for a narrower expert"
        )
    if config.action_expert_type == "late_gemma" and fusion != "late":
        raise ValueError(
            f"policy.action_expert_type=late_gemma has one key/value head and reads the VLM's last hidden state, so "
            f"it needs policy.fusion=late, found {fusion}; use policy.action_expert_type=deep_llama for every layer"
        )
    if config.action_expert_type == "late_gemma" and config.expert_init == "vlm":
        raise ValueError(
            "policy.expert_init=vlm copies a Llama's or Qwen2's weights, which a Gemma has no place for; use "
            "policy.expert_init=random with policy.action_expert_type=late_gemma"
        )


def _check_space(config: Any) -> None:
    if config.position_3d != "none" and config.knowledge_insulation:
        raise ValueError(
            f"policy.position_3d={config.position_3d} is learned by what the expert reads of the VLM's states, which "
            "policy.knowledge_insulation=true cuts off: nothing would train it. Use policy.train_expert_only=true"
        )
    near, far = config.depth_range if len(config.depth_range) == 2 else (0.0, 0.0)
    if not (0 < near < far <= 1000):
        raise ValueError(
            f"policy.depth_range={config.depth_range}: expected the nearest and the farthest distance in metres that "
            "the depth camera measures, such as [0.02, 5.0]"
        )
    if (center := config.workspace_center) is not None and not (
        len(center) == 3 and all(abs(value) <= FARTHEST for value in center)
    ):
        raise ValueError(
            f"policy.workspace_center={center}: expected x, y and z in metres, at most {FARTHEST:g} from the origin"
        )


def _check_objective(config: Any) -> None:
    samples, delay = config.num_flow_samples, config.rtc_training_max_delay
    if config.objective == "two_step" and samples % 2:
        raise ValueError(
            f"policy.objective=two_step asks half of the flow samples at t = 1 and half at t = 0.1, and "
            f"policy.num_flow_samples={samples} is odd; use policy.num_flow_samples={samples + 1}"
        )
    if config.objective == "drift" and samples < 2:
        raise ValueError(
            "policy.objective=drift pushes the chunks of one observation off each other, and "
            "policy.num_flow_samples=1 is a single one; use policy.num_flow_samples=8"
        )
    if delay >= config.chunk_size:
        raise ValueError(
            f"policy.rtc_training_max_delay={delay} gives a whole chunk of policy.chunk_size={config.chunk_size} and "
            "leaves nothing to predict; choose the actions that a robot executes while the policy thinks"
        )
    rtc = config.rtc_config
    if config.objective != "flow" and rtc is not None and rtc.enabled and not delay:
        raise ValueError(
            f"policy.objective={config.objective} has no flow that real-time chunking could guide step by step. "
            "Train with policy.rtc_training_max_delay above zero, after which a chunk goes on from given actions, or "
            "run without real-time chunking"
        )
