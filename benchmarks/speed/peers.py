"""LeRobot's own pi0, smolvla and molmoact2 at a given shape, with random weights and without a download.

Their code runs as it is. Only sizes are patched, and each vision tower with its projector is replaced by the shared
patch embedding.
"""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace
from unittest import mock

import torch
from accelerate import init_empty_weights
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.policies.molmoact2 import modeling_molmoact2 as molmoact2
from lerobot.policies.molmoact2.configuration_molmoact2 import MolmoAct2Config
from lerobot.policies.molmoact2.molmoact2_hf_model import configuration_molmoact2 as molmoact2_hf
from lerobot.policies.pi0 import modeling_pi0 as pi0
from lerobot.policies.pi0.configuration_pi0 import PI0Config
from lerobot.policies.smolvla import modeling_smolvla as smolvla
from lerobot.policies.smolvla import smolvlm_with_expert
from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
from torch import Tensor, nn
from transformers import SmolVLMConfig

from .arms import TrainedArm
from .shapes import ACTION_DIM, IMAGE_TOKEN, STATE_DIM, VOCABULARY, Inputs, PatchEmbed, Shape


def fill(model: nn.Module, device: torch.device) -> None:
    """Give every weight that was built empty a place and a value; which value does not matter to the clock."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.is_meta:
                value = torch.full_like(parameter, float(name != "bias"), device=device)
                if value.ndim > 1:
                    nn.init.normal_(value, std=0.02)
                setattr(module, name, nn.Parameter(value, parameter.requires_grad))
    model.to(device)


class FromOpenpi(TrainedArm):
    """What pi0 and smolvla have in common: how they are given an observation, and their loss."""

    def __init__(self, inputs: Inputs) -> None:
        self.inputs = inputs
        there = inputs.state.new_ones(len(inputs.state), dtype=torch.bool)
        pictures = list(inputs.pixels.unbind(1))
        words = torch.ones_like(inputs.text, dtype=torch.bool)
        self.observation = (pictures, [there] * len(pictures), inputs.text, words, inputs.state)

    def loss(self) -> Tensor:
        x = self.inputs
        return self.model(*self.observation, x.actions, x.noise[:, 0], x.time[:, 0]).mean()


class Pi0(FromOpenpi):
    """`PI0Pytorch`: both streams in one eager attention in training, a cloned cache in each step at acting."""

    model: pi0.PI0Pytorch

    def __init__(self, shape: Shape, inputs: Inputs) -> None:
        super().__init__(inputs)
        geometry = pi0.GemmaConfig(
            width=shape.width,
            depth=shape.layers,
            mlp_dim=shape.mlp,
            num_heads=shape.heads,
            num_kv_heads=shape.kv_heads,
            head_dim=shape.head_dim,
        )
        config = PI0Config(chunk_size=shape.chunk, n_action_steps=1, device="cpu")
        with mock.patch.object(pi0, "get_gemma_config", return_value=geometry), init_empty_weights():
            self.model = pi0.PI0Pytorch(config)
            both = self.model.paligemma_with_expert
            vlm = both.paligemma.model
            vlm.vision_tower, vlm.multi_modal_projector = PatchEmbed(shape.width), nn.Identity()
            scale = vlm.language_model.embed_tokens.scalar_embed_scale
            vlm.language_model.embed_tokens = type(vlm.language_model.embed_tokens)(
                VOCABULARY, shape.width, 0, embed_scale=scale
            )
            both.paligemma.lm_head = both.gemma_expert.lm_head = nn.Identity()
        fill(self.model, inputs.state.device)
        self.vlm = both.paligemma

    def act(self, steps: int) -> Tensor:
        return self.model.sample_actions(*self.observation, noise=self.inputs.noise[:, 0], num_steps=steps)


class SmolVLA(FromOpenpi):
    """`VLAFlowMatching` with its own defaults, among them cross-attention in every other layer."""

    model: smolvla.VLAFlowMatching

    def __init__(self, shape: Shape, inputs: Inputs) -> None:
        super().__init__(inputs)
        text = {"model_type": "llama", "pad_token_id": 0, **shape.text_config()}
        vlm_config = SmolVLMConfig(text_config=text, image_token_id=IMAGE_TOKEN)
        config = SmolVLAConfig(
            chunk_size=shape.chunk,
            n_action_steps=1,
            num_vlm_layers=shape.layers,
            expert_width_multiplier=1.0,
            freeze_vision_encoder=False,
            train_expert_only=False,
            device="cpu",
        )
        with _offline_smolvlm(vlm_config), init_empty_weights():
            self.model = smolvla.VLAFlowMatching(config)
            vlm = self.model.vlm_with_expert.vlm
            vlm.model.vision_model, vlm.model.connector = PatchEmbed(shape.width), nn.Identity()
            vlm.lm_head = nn.Identity()
        self.vlm = vlm
        fill(self.model, inputs.state.device)

    @torch.no_grad()
    def act(self, steps: int) -> Tensor:
        self.model.config.num_steps = steps
        return self.model.sample_actions(*self.observation, noise=self.inputs.noise[:, 0])


@contextmanager
def _offline_smolvlm(config: SmolVLMConfig):
    """smolvla asks the Hub for a config and a tokenizer; this answers."""
    processor = SimpleNamespace(tokenizer=SimpleNamespace(fake_image_token_id=1, global_image_token_id=2))
    with (
        mock.patch.object(smolvlm_with_expert.AutoConfig, "from_pretrained", return_value=config),
        mock.patch.object(smolvlm_with_expert.AutoProcessor, "from_pretrained", return_value=processor),
    ):
        yield


class MolmoAct2(TrainedArm):
    """`MolmoAct2Policy` on its continuous head: the expert has self- and cross-attention and per-layer modulation."""

    model: molmoact2.MolmoAct2Policy

    def __init__(self, shape: Shape, inputs: Inputs) -> None:
        self.inputs = inputs
        config = MolmoAct2Config(
            chunk_size=shape.chunk,
            n_action_steps=1,
            action_mode="continuous",
            num_flow_timesteps=inputs.noise.shape[1],
            model_dtype="float32",
            enable_inference_cuda_graph=False,
            device="cpu",
        )
        config.input_features = {"observation.images.a": PolicyFeature(FeatureType.VISUAL, (3, 224, 224))}
        config.output_features = {"action": PolicyFeature(FeatureType.ACTION, (ACTION_DIM,))}
        with init_empty_weights():
            network = molmoact2.MolmoAct2ForConditionalGeneration(_molmoact2_config(shape))
            network.lm_head = nn.Identity()
            network.model.vision_backbone = _FlatPatchEmbed(shape.width)
        with mock.patch.object(
            molmoact2.MolmoAct2Policy, "_load_hf_model", lambda policy: setattr(policy, "model", network)
        ):
            self.model = molmoact2.MolmoAct2Policy(config)
        # The pixels are there as the patch embedding takes them; nothing is to be cropped or pooled.
        network.model.merge_visual_inputs = lambda pixel_values, **_: (pixel_values, None)
        fill(self.model, inputs.state.device)
        self.network = network.model
        self.vlm = nn.ModuleList([network.model.transformer, network.model.vision_backbone])
        self.batch = {
            "input_ids": inputs.tokens,
            "pixel_values": inputs.pixels.flatten(0, 1),
            "action": inputs.actions,
        }

    def loss(self) -> Tensor:
        return self.model(self.batch)[0]

    def act(self, steps: int) -> Tensor:
        return self.network.generate_actions_from_inputs(
            input_ids=self.batch["input_ids"],
            pixel_values=self.batch["pixel_values"],
            action_horizon=self.inputs.actions.shape[1],
            num_steps=steps,
        )

    def checkpoint(self) -> None:
        self.model.config.gradient_checkpointing = True


class _FlatPatchEmbed(PatchEmbed):
    """The same, with the tokens of all images in one row, as MolmoAct2 puts them into the prompt."""

    def forward(self, pixel_values: Tensor, pooling: None) -> Tensor:  # type: ignore[override]
        return self.tokens(pixel_values).flatten(0, 1)


def _molmoact2_config(shape: Shape) -> molmoact2_hf.MolmoAct2Config:
    text = molmoact2_hf.MolmoAct2TextConfig(
        **shape.text_config(),
        # With more words it would join the two embedding tables in each pass: a cost that only small widths see.
        additional_vocab_size=None,
        qkv_bias=False,
        attn_implementation="sdpa",
    )
    expert = molmoact2_hf.MolmoAct2ActionExpertConfig(
        hidden_size=shape.width,
        num_layers=shape.layers,
        num_heads=shape.heads,
        mlp_ratio=shape.mlp / shape.width,
    )
    return molmoact2_hf.MolmoAct2Config(
        text_config=text,
        action_expert_config=expert,
        image_patch_id=IMAGE_TOKEN,
        max_action_dim=ACTION_DIM,
        max_action_horizon=shape.chunk,
        action_mode="continuous",
    )


assert STATE_DIM == 32, "pi0 and smolvla pad states to 32"
