"""LeRobot's own policies, as near to the study's size as they go."""

from __future__ import annotations

from typing import Any
from unittest import mock

import torch
from lerobot.configs import PreTrainedConfig
from lerobot.policies.act import modeling_act as act
from lerobot.policies.factory import make_policy, make_policy_config
from lerobot.policies.pi0 import modeling_pi0 as pi0
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.processor import tokenizer_processor
from lerobot.utils.constants import OBS_STATE
from lerobot.utils.feature_utils import dataset_to_policy_features
from torch import Tensor, nn
from transformers.initialization import no_init_weights
from transformers.modeling_outputs import BaseModelOutputWithPooling

from lerobot_deepfusion.llava.tiny import TinyVisionModel, byte_tokenizer, tiny_llava_config

from .arms import COMMON
from .vlm import LAYERS

ALIKE = {name: COMMON[name] for name in ("n_action_steps", "device", "push_to_hub")}
# Their vision network is a ResNet-18 of 11 M parameters at least, and its pretrained weights are a download.
RESNET = {"vision_backbone": "resnet18", "pretrained_backbone_weights": None}


def peer_config(name: str, words: int) -> PreTrainedConfig:
    """Config of `act`, `diffusion` or `pi0`, whose text has so many tokens; docs/study.md has the reasons."""
    options: dict[str, dict[str, Any]] = {
        "act": {
            **RESNET,
            "chunk_size": COMMON["chunk_size"],
            "dim_model": 128,
            "n_heads": 4,
            "dim_feedforward": 512,
            "n_encoder_layers": 3,
            "use_vae": False,
            "optimizer_lr": 3e-4,
            "optimizer_lr_backbone": 3e-4,
        },
        "diffusion": {
            **RESNET,
            "use_group_norm": True,
            "horizon": 16,
            "drop_n_last_frames": 0,
            "down_dims": (64, 128, 256),
            "noise_scheduler_type": "DDIM",
            "num_inference_steps": 10,
            "do_mask_loss_for_padding": True,
            "optimizer_lr": 3e-4,
        },
        "pi0": {
            **{n: COMMON[n] for n in ("chunk_size", "num_inference_steps", "max_state_dim", "max_action_dim")},
            "optimizer_lr": COMMON["optimizer_lr"],
            "image_resolution": (96, 96),
            "tokenizer_max_length": words,
        },
    }
    return make_policy_config(name, **ALIKE, **options[name])


def make_peer(config: PreTrainedConfig, meta: Any) -> PreTrainedPolicy:
    """A peer with random weights, for the data set that `meta` describes."""
    if config.type == "pi0":
        config.output_features = {"action": dataset_to_policy_features(meta.features)["action"]}
        return small_pi0(config)
    # ACT's frozen batch norm does nothing without pretrained statistics; Diffusion Policy's own way out serves both.
    with mock.patch.object(act, "FrozenBatchNorm2d", lambda channels: nn.GroupNorm(channels // 16, channels)):
        return make_policy(config, ds_meta=meta)


def hide_state(batch: dict[str, Any]) -> dict[str, Any]:
    """The share of states hidden that our policy hides in training, as it does: normalised, zero says nothing."""
    state = batch[OBS_STATE]
    seen = torch.rand(len(state), *[1] * (state.ndim - 1)) >= COMMON["state_dropout"]
    return {**batch, OBS_STATE: state * seen}


class _Tower(nn.Module):
    """Our vision tower where PaliGemma has its own."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = TinyVisionModel(tiny_llava_config().vision_config)

    @property
    def dtype(self) -> torch.dtype:
        return self.tower.dtype

    def forward(self, pixel_values: Tensor, **_: Any) -> BaseModelOutputWithPooling:
        return BaseModelOutputWithPooling(last_hidden_state=self.tower(pixel_values).last_hidden_state)


def small_pi0(config: Any) -> PreTrainedPolicy:
    """LeRobot's pi0 at the study's shape: its code, our vision tower and the spread of our initial weights."""
    text = tiny_llava_config().text_config
    heads = 8  # LeRobot's code has no other number
    width = text.hidden_size
    geometry = pi0.GemmaConfig(width, LAYERS, text.intermediate_size, heads, 1, width // heads)
    # Without first values, which take half a minute for the vision tower of 400 M weights that is then replaced.
    with mock.patch.object(pi0, "get_gemma_config", return_value=geometry), no_init_weights():
        policy = pi0.PI0Policy(config)
    both = policy.model.paligemma_with_expert
    vlm = both.paligemma.model
    vlm.vision_tower = _Tower()
    vlm.multi_modal_projector = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
    words = vlm.language_model.embed_tokens
    vlm.language_model.embed_tokens = type(words)(text.vocab_size, width, 0, embed_scale=words.scalar_embed_scale)
    both.paligemma.lm_head = both.gemma_expert.lm_head = nn.Identity()
    for stream in (vlm.language_model, both.gemma_expert):
        for weight in stream.parameters():
            if weight.ndim > 1:
                nn.init.normal_(weight, std=text.initializer_range)
    for module in policy.model.children():
        if isinstance(module, nn.Linear):
            module.reset_parameters()
    return policy


def byte_words() -> Any:
    """pi0's processor asks the Hub for a tokenizer; under this it gets ours."""
    return mock.patch.object(tokenizer_processor.AutoTokenizer, "from_pretrained", return_value=byte_tokenizer())
