"""A policy in words: what goes in and comes out, what the expert reads, what is trained, what memory it takes."""

from __future__ import annotations

from lerobot.configs import PolicyFeature

from ..configuration_deepfusion import DeepFusionConfig
from ..llava.geometry import context_window
from ..network.fusion import vlm_layers_needed
from ..network.lockstep import DeepFusionModel
from ..network.part_names import EXPERT, PARTS, POSITIONS, TEXT, VISION
from ..network.positions import IN_WORLD
from . import memory

# Ways to train: what is trained, and whether by LoRA.
WAYS: tuple[tuple[str, set[str], bool], ...] = (
    ("LoRA", {TEXT, EXPERT, POSITIONS}, True),
    ("the expert", {EXPERT, POSITIONS}, False),
    ("all but the vision tower", set(PARTS) - {VISION}, False),
    ("everything", set(PARTS), False),
)


def describe(config: DeepFusionConfig, model: DeepFusionModel) -> str:
    """What goes in, what comes out, what the expert reads and what is trained.

    Args:
        config: of the policy; what a data set decides may still be missing.
        model: its network, real or on the meta device.
    """
    size, tokens = model.perception.config.vision_config.image_size, model.perception.image_tokens
    trained, frozen = (memory.parameters(model, trained=flag) for flag in (True, False))
    there = _parts(model)
    load, half = _load(config, 1), config.dtype == "bfloat16"
    lengths = (
        f"{config.tokenizer_max_length} tokens; {load.prefix(model)} with the images, "
        f"of at most {context_window(model.perception.config)}"
    )
    prompt = "the VLM's chat template" if config.vlm_config is None else repr(config.vlm_config["prompt"])
    depth = f", depth in the frame of {'the robot' if config.position_3d in IN_WORLD else 'the camera'}"
    depth += " alone" * (config.position_3d == "cloud")
    cameras = [
        f"{camera}: {size} x {size} pixels, {tokens} tokens{depth if camera in config.depth_cameras else ''}"
        for camera in config.cameras
    ]
    keys = f"keys and values {_size(memory.key_value_bytes(model, load, half))}"
    if config.fusion != "kv":
        keys = f"hidden states {_size(memory.context_bytes(model, load, half))}, projected to {keys}"
    rows = [
        ("VLM", [config.vlm_path]),
        ("cameras", cameras),
        ("prompt", [prompt, lengths]),
        ("state", [_dimensions(config.robot_state_feature, config.max_state_dim)]),
        ("action", [_dimensions(config.action_feature, config.max_action_dim)]),
        ("chunk", [f"{config.chunk_size} actions, {config.n_action_steps} executed", *_objective(config)]),
        ("fusion", [config.fusion, *_layer_map(model)]),
        ("expert", [_expert(config, model)]),
        ("context", [f"{keys} an observation"]),
        ("weights", [f"{'':12} {'trained':>9} {'frozen':>9}"]),
        ("", [f"{part:12} {_count(trained[part]):>9} {_count(frozen[part]):>9}" for part in there]),
        ("", [f"{'total':12} {_count(sum(trained.values())):>9} {_count(sum(frozen.values())):>9}"]),
    ]
    lines = ["deepfusion"]
    for label, values in rows:
        lines += [f"  {label if not index else '':9}{value}".rstrip() for index, value in enumerate(values)]
    return "\n".join(lines)


def report(config: DeepFusionConfig, model: DeepFusionModel, batch_size: int, rank: int) -> str:
    """`describe`, and the memory that acting and every way of training would take.

    Args:
        config: of the policy.
        model: its network, real or on the meta device; with all of it frozen the run is one of LoRA.
        batch_size: observations in one training step.
        rank: of LoRA.
    """
    load, half = _load(config, batch_size, config.num_flow_samples), config.dtype == "bfloat16"
    acting = _size(memory.acting_bytes(model, _load(config, 1), half))
    lines = [
        f"  memory   {config.dtype}; estimated, without the CUDA context; * as configured",
        f"           {'act, 1 observation':45}{acting:>10}",
        f"           {f'train, batch {batch_size}, flow samples {load.samples}':34}{'trained':>9}"
        f"{'plain':>13}{'checkpointed':>15}",
    ]
    there = set(_parts(model))
    for name, parts, by_lora in WAYS:
        lora_rank = rank if by_lora else 0
        counts = memory.lora_parameters(model, rank) if lora_rank else memory.parameters(model)
        chosen = memory.trained_parts(model) == (set() if by_lora else parts & there)
        cells = [
            _size(memory.training_bytes(model, load, half, parts, checkpointing, lora_rank))
            + (" *" if chosen and checkpointing == config.gradient_checkpointing else "  ")
            for checkpointing in (False, True)
        ]
        trained = _count(sum(counts[part] for part in parts))
        title = f"{name}, rank {rank}" if by_lora else name
        lines.append(f"             {title:32}{trained:>9} {cells[0]:>13} {cells[1]:>13}".rstrip())
    return "\n".join([describe(config, model), *lines])


def _parts(model: DeepFusionModel) -> list[str]:
    """Those that it has weights of."""
    return [part for part, count in memory.parameters(model).items() if count]


def _objective(config: DeepFusionConfig) -> list[str]:
    """How a chunk comes about, where it is not as by default; and what it is relative to."""
    lines = {
        "flow": [],
        "two_step": ["objective two_step: two evaluations of the expert"],
        "drift": ["objective drift: one evaluation of the expert"],
    }[config.objective]
    if config.relative_actions:
        lines.append("relative to the state, made absolute when predicted")
    if config.rtc_training_max_delay:
        lines.append(f"real-time chunking goes on from up to {config.rtc_training_max_delay} given actions")
    return lines


def _load(config: DeepFusionConfig, batch: int, samples: int = 1) -> memory.Workload:
    return memory.Workload(batch, len(config.cameras), config.tokenizer_max_length, config.chunk_size, samples)


def _dimensions(feature: PolicyFeature | None, padded: int) -> str:
    if feature is None:
        return f"up to {padded} dimensions, as the data set has them"
    return f"{feature.shape[0]} dimensions, padded to {padded}"


def _layer_map(model: DeepFusionModel) -> list[str]:
    """Which VLM layer each expert layer reads, and what the VLM keeps."""
    perception, sources = model.perception, model.perception.sources
    whole, cut = vlm_layers_needed(perception.fusion, sources)
    read, what = {
        "kv": (_sources(sources), "keys and values"),
        "hidden": (_sources(sources), "layer input, projected"),
        "late": (f"{sources[-1]}", "last hidden state, projected"),
    }[perception.fusion]
    cuts = [f"VLM layer {whole} is cut to those"] if cut else []
    left = perception.vlm_depth - whole - cut
    if left:
        many = left > 1
        cuts.append(
            f"VLM layer{'s' * many} {_range(whole + cut, perception.vlm_depth)} {'are' if many else 'is'} left out"
        )
    first = f"expert {_range(0, len(sources))} <- VLM {read}: {what}"
    return [first, "; ".join(cuts)] if cuts else [first]


def _sources(sources: list[int]) -> str:
    """A layer map in a few words, where it has a rule, and else in full."""
    read = sorted(set(sources))
    times, step = len(sources) // len(read), read[1] - read[0] if len(read) > 1 else 1
    if sources != [index for index in read for _ in range(times)]:
        return f"{', '.join(map(str, sources))}, in this order"
    if read != list(range(read[0], read[-1] + 1, step)) or (step > 1 and len(read) < 4):
        text = ", ".join(map(str, read))
    else:
        text = _range(read[0], read[-1] + 1) if step == 1 else f"{read[0]}, {read[1]}, ... {read[-1]}"
    return f"{text}, each {'its own' if times == 1 else f'for {times} layers'}"


def _range(start: int, stop: int) -> str:
    return f"{start}-{stop - 1}" if stop > start + 1 else f"{start}"


def _expert(config: DeepFusionConfig, model: DeepFusionModel) -> str:
    expert = model.expert.backbone.config
    return (
        f"{config.action_expert_type}, {expert.num_hidden_layers} layers of {expert.hidden_size}, "
        f"{expert.num_attention_heads} heads, {expert.num_key_value_heads} for keys and values, "
        f"{config.action_attention}"
    )


def _count(number: int) -> str:
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number}  "


def _size(number: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1024
    return f"{number:.1f} GiB"
