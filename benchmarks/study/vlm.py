"""A small LLaVA in a folder, as `save_pretrained` writes the published ones: what `vlm_path` points to."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import torch
from torch import Tensor
from transformers import CLIPImageProcessor, LlavaForConditionalGeneration, LlavaProcessor

from lerobot_deepfusion.llava.tiny import IMAGE_MEAN, IMAGE_STD, IMAGE_TOKEN, byte_tokenizer, tiny_llava_config

LAYERS = 4  # one more than `tiny`, so that every second layer and the middle are choices
CHAT = (
    "{% for m in messages %}{% for p in m['content'] %}"
    "{% if p['type'] == 'image' %}" + IMAGE_TOKEN + "{% else %}{{ p['text'] }}\n{% endif %}"
    "{% endfor %}{% endfor %}"
)


def write_vlm(folder: Path, seed: int, perception: dict[str, Tensor] | None = None) -> None:
    """Write the LLaVA of the study, unless it is there; whole, since another run may look for it at the same time.

    Args:
        folder: to be made.
        seed: of the weights that are random.
        perception: weights of a policy's `model.perception`, which take the place of random ones.

    Raises:
        RuntimeError: if `perception` has a weight that this LLaVA has not.
    """
    if (folder / "config.json").exists():
        return
    config = tiny_llava_config()
    config.text_config.num_hidden_layers = LAYERS
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlavaForConditionalGeneration(config)
    if perception is not None:
        left = model.model.load_state_dict(perception, strict=False).unexpected_keys
        if left:
            raise RuntimeError(f"the policy has weights that the study's LLaVA has not: {', '.join(left)}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=folder.parent))
    model.save_pretrained(partial)
    size = config.vision_config.image_size
    images = CLIPImageProcessor(
        size={"shortest_edge": size}, crop_size=size, image_mean=IMAGE_MEAN, image_std=IMAGE_STD, resample=2
    )
    LlavaProcessor(image_processor=images, tokenizer=byte_tokenizer(), chat_template=CHAT).save_pretrained(partial)
    try:
        partial.rename(folder)
    except OSError:  # another run was first, with the same weights
        shutil.rmtree(partial)
