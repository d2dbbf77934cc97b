"""The offline LLaVA: transformers' real classes at a size that a CPU trains from scratch, no download.

`--policy.vlm_path=tiny` builds it with random weights. Its tokenizer reads bytes, so any text in any
language has tokens, and it has nothing to be trained on.

Its vision tower is convolutional. A CLIP tower of like size and cost, from scratch on a hundred
demonstrations, had learned nothing from the picture after as many steps as this one needs to find the objects
(docs/learning.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    LlamaConfig,
    LlavaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.modeling_outputs import BaseModelOutput

from .chat_template import TASK

TINY = "tiny"  # its name as `policy.vlm_path`
IMAGE_TOKEN, PAD_TOKEN = "<image>", "<pad>"
PROMPT = f"{IMAGE_TOKEN}{TASK}\n"  # what a chat template is to a pretrained LLaVA
IMAGE_MEAN, IMAGE_STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


class TinyVisionConfig(PreTrainedConfig):
    """Config of `TinyVisionModel`."""

    model_type = "deepfusion_tiny_vision"

    def __init__(
        self,
        image_size: int = 96,
        channels: tuple[int, ...] = (16, 32, 64, 64),
        num_tokens: int = 8,
        hidden_size: int = 96,
        num_hidden_layers: int = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.image_size = image_size
        self.channels = list(channels)
        self.num_tokens = num_tokens
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers


def halving_convolutions(channels: Sequence[int]) -> nn.Sequential:
    """[B, 3, side, side] -> [B, last of `channels`, ...]; each convolution halves the picture."""
    layers: list[nn.Module] = []
    for index, (previous, width) in enumerate(pairwise([3, *channels])):
        kernel = 3 if index else 5
        layers += [nn.Conv2d(previous, width, kernel, stride=2, padding=kernel // 2), nn.GELU()]
    return nn.Sequential(*layers)


def halved(side: int, times: int) -> int:
    """What is left of a side, pixels."""
    return -(-side // 2**times)


class TinyTower(PreTrainedModel):
    """First values of the tiny LLaVA's towers."""

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        elif isinstance(module, nn.Linear | nn.LayerNorm):
            module.reset_parameters()


class TinyVisionModel(TinyTower):
    """Strided convolutions, flattened and mapped to a few tokens: [B, 3, size, size] -> [B, tokens, width].

    Every token sees the whole picture through weights of its own for each place, so where something is can be
    read off linearly; attention over patches has to learn that first.
    """

    config_class = TinyVisionConfig
    main_input_name = "pixel_values"
    _supports_sdpa = True  # it has no attention, so any implementation will do

    def __init__(self, config: TinyVisionConfig) -> None:
        super().__init__(config)
        self.convolutions = halving_convolutions(config.channels)
        size = config.channels[-1] * halved(config.image_size, len(config.channels)) ** 2
        self.norm = nn.LayerNorm(size)
        self.to_tokens = nn.Linear(size, config.num_tokens * config.hidden_size)
        self.post_init()

    def forward(self, pixel_values: Tensor, **_: Any) -> BaseModelOutput:
        """Pictures [B, 3, size, size]."""
        x = self.convolutions(pixel_values).flatten(1)
        tokens = self.to_tokens(self.norm(x))
        tokens = tokens.unflatten(1, (self.config.num_tokens, self.config.hidden_size))
        return BaseModelOutput(last_hidden_state=tokens, hidden_states=(tokens,))


AutoConfig.register(TinyVisionConfig.model_type, TinyVisionConfig)
AutoModel.register(TinyVisionConfig, TinyVisionModel)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token for each of the 256 bytes, plus `<image>` (256) and `<pad>` (257)."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(IMAGE_TOKEN, special=True), AddedToken(PAD_TOKEN, special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD_TOKEN)


def tiny_llava_config() -> LlavaConfig:
    """Config of the tiny LLaVA."""
    width, heads = 96, 3
    text = LlamaConfig(
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=3,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=width // heads,
        vocab_size=258,
        max_position_embeddings=2048,
        pad_token_id=257,
        # Llama's own 0.02 is for widths of thousands: here it would start every layer near zero.
        initializer_range=0.08,
    )
    return LlavaConfig(
        vision_config=TinyVisionConfig(),
        text_config=text,
        image_token_index=256,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=False,
    )
