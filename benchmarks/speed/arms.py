"""What is compared: an `Arm` is one model at one shape that can act and be trained; ours are here."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from lerobot.policies.common.flow_matching import euler_integrate
from torch import Tensor, nn
from transformers import LlamaConfig, LlavaConfig, SiglipVisionConfig

from lerobot_deepfusion.network.flow import flow_error, interpolate
from lerobot_deepfusion.network.fusion import Fusion
from lerobot_deepfusion.network.given import Given
from lerobot_deepfusion.network.lockstep import DeepFusionModel
from lerobot_deepfusion.network.objective import evaluation_times, few_step_chunk

from .shapes import ACTION_DIM, IMAGE_TOKEN, STATE_DIM, Inputs, PatchEmbed, Shape


class Arm(ABC):
    """A model with inputs of its own making, that acts."""

    model: nn.Module

    @abstractmethod
    def act(self, steps: int) -> Tensor:
        """A chunk of actions [B, T, A] after so many Euler steps."""

    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters())


class TrainedArm(Arm):
    """One that is trained too.

    Attributes:
        vlm: the part of the model that expert-only training freezes.
    """

    vlm: nn.Module

    @abstractmethod
    def loss(self) -> Tensor:
        """Flow-matching loss of the batch."""

    def checkpoint(self) -> None:
        """Turn on gradient checkpointing, as the model's own policy does; not every model has it."""
        self.model.gradient_checkpointing_enable()  # type: ignore[operator]

    def train_step(self) -> None:
        """Forward and backward pass; the optimizer, alike for everybody, is left out."""
        self.model.zero_grad(set_to_none=True)
        self.loss().backward()


class DeepFusion(TrainedArm):
    """This package's model; `late` and `hidden` project the VLM's states once for an observation.

    Args:
        compiled: the denoise step compiled as `--policy.compile_model=true` does.
        objective: by which it acts.
        given: how many first actions are, as after training for real-time chunking; None for a network that knows
            of none.
    """

    model: DeepFusionModel

    def __init__(
        self,
        shape: Shape,
        inputs: Inputs,
        fusion: Fusion = "kv",
        time_conditioning: str = "token",
        compiled: bool = False,
        objective: str = "flow",
        given: int | None = None,
    ) -> None:
        self.inputs, self.objective, self.given = inputs, objective, given
        self.model = deepfusion_model(shape, fusion, time_conditioning).to(inputs.state.device)
        self.vlm = self.model.perception
        self.valid = torch.ones_like(inputs.tokens, dtype=torch.bool)
        self.denoise: Any = self.model.denoise
        if compiled:
            self.denoise = torch.compile(self.denoise, fullgraph=True, dynamic=False, mode="reduce-overhead")

    def loss(self) -> Tensor:
        x = self.inputs
        noisy, target = interpolate(x.actions, x.noise, x.time)
        states = self.model.prefill(x.pixels, x.tokens, self.valid)
        return flow_error(self.model.denoise(states, x.state, noisy, self.model.embed_time(x.time)), target).mean()

    @torch.no_grad()
    def act(self, steps: int) -> Tensor:
        x = self.inputs
        states = self.model.project_contexts(self.model.prefill(x.pixels, x.tokens, self.valid))

        times = evaluation_times(self.objective, steps, x.state.device)
        schedule = iter(self.model.embed_time(times).split(1, dim=2))
        given = None
        if self.given is not None:
            mask = torch.arange(x.actions.shape[1], device=x.state.device)[None] < self.given
            given = Given(mask, x.actions, self.model.embed_time(torch.zeros(1, 1, device=x.state.device)))

        def answer(noisy: Tensor, _: Tensor | None = None) -> Tensor:
            return self.denoise(states, x.state, noisy[:, None], next(schedule), given)[:, 0].float()

        if self.objective == "flow":
            return euler_integrate(answer, x.noise[:, 0], steps)
        return few_step_chunk(self.objective, answer, x.noise[:, 0])


def deepfusion_model(shape: Shape, fusion: Fusion, time_conditioning: str) -> DeepFusionModel:
    """Our model with random weights, an expert as wide as its VLM and the shared patch embedding."""
    text = LlamaConfig(**shape.text_config())
    smallest = SiglipVisionConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    config = LlavaConfig(
        vision_config=smallest,
        text_config=text,
        image_token_index=IMAGE_TOKEN,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    model = DeepFusionModel(config, fusion, 1.0, time_conditioning, STATE_DIM, ACTION_DIM)
    model.perception.vision_tower = PatchEmbed(shape.width)
    model.perception.multi_modal_projector = nn.Identity()
    return model
