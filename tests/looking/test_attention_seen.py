"""What `deepfusion look` calls attention is the softmax that the network really had, at the pixels it stands for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.utils.constants import OBS_LANGUAGE_ATTENTION_MASK, OBS_LANGUAGE_TOKENS, OBS_STATE
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from benchmarks.small_llavas import IMAGE_TOKEN_ID, MAKES, llava_config
from benchmarks.speed.peers import fill
from lerobot_deepfusion import DeepFusionConfig
from lerobot_deepfusion.inputs.images import letterbox
from lerobot_deepfusion.looking.attention_seen import watch
from lerobot_deepfusion.looking.picture_cells import Grid, coarse_grid, patch_grid, without_places
from lerobot_deepfusion.modeling_deepfusion import DeepFusionPolicy
from tests.llavas import enlarge

FRONT, WRIST = "observation.images.front", "observation.images.wrist"
WORDS, SIZE = 7, (24, 64)  # pixels, so that there are bars


def make_policy(make: str, **changes) -> DeepFusionPolicy:
    config = DeepFusionConfig(
        vlm_path=make, device="cpu", chunk_size=5, n_action_steps=5, tokenizer_max_length=WORDS, **changes
    )
    config.num_inference_steps = 2
    config.vlm_config = {
        "model": json.loads(json.dumps(llava_config(make).to_dict())),
        "prompt": "<image>",
        "image_token": "<image>",
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "image_resample": "bilinear",
    }
    config.input_features = {name: PolicyFeature(FeatureType.VISUAL, (3, *SIZE)) for name in (FRONT, WRIST)}
    config.input_features[OBS_STATE] = PolicyFeature(FeatureType.STATE, (4,))
    config.output_features = {"action": PolicyFeature(FeatureType.ACTION, (3,))}
    torch.manual_seed(0)
    policy = DeepFusionPolicy(config, vlm_weights=False)
    fill(policy, torch.device("cpu"))
    enlarge(policy)
    return policy.eval()


def make_batch(absent: bool = False) -> dict:
    generator = torch.Generator().manual_seed(0)
    batch = {name: torch.rand(2, 3, *SIZE, generator=generator) for name in (FRONT, WRIST)}
    batch[OBS_STATE] = torch.randn(2, 4, generator=generator)
    batch[OBS_LANGUAGE_TOKENS] = torch.randint(1, 80, (2, WORDS + 1), generator=generator)
    batch[OBS_LANGUAGE_TOKENS][:, 0] = IMAGE_TOKEN_ID
    batch[OBS_LANGUAGE_ATTENTION_MASK] = torch.ones(2, WORDS + 1, dtype=torch.bool)
    batch[OBS_LANGUAGE_ATTENTION_MASK][1, 5:] = False
    if absent:
        batch[f"{FRONT}_padding_mask"] = torch.tensor([False, True])
    return batch


@contextmanager
def written_out(policy: DeepFusionPolicy) -> Iterator[list[torch.Tensor]]:
    """Weights of each attention call of the expert, row by row, from what its modules are given."""
    found: list[torch.Tensor] = []
    names = ("hidden_states", "position_embeddings", "attention_mask", "cross_key_value_states")

    def note(attention, arguments: tuple, keywords: dict) -> None:
        given = dict(zip(names, arguments, strict=False)) | keywords
        x = given["hidden_states"].flatten(1, -2)
        heads = attention.head_dim

        def split(linear):
            return linear(x).unflatten(-1, (-1, heads)).transpose(1, 2)

        query, key = apply_rotary_pos_emb(
            split(attention.q_proj), split(attention.k_proj), *given["position_embeddings"]
        )
        key = torch.cat([given["cross_key_value_states"][0], key], dim=2)
        found.append(softmax(query.double(), key.double(), given["attention_mask"], heads))

    layers = policy.model.expert.backbone.layers
    handles = [layer.self_attn.register_forward_pre_hook(note, with_kwargs=True) for layer in layers]
    yield found
    for handle in handles:
        handle.remove()


def softmax(query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor, heads: int) -> torch.Tensor:
    mask = mask.expand(-1, -1, query.shape[2], -1)
    weights = torch.zeros(*query.shape[:3], key.shape[2], dtype=query.dtype)
    for batch in range(len(query)):
        for head in range(query.shape[1]):
            group = head // (query.shape[1] // key.shape[1])
            for row in range(query.shape[2]):
                seen = mask[batch, 0, row]
                scores = (key[batch, group, seen] @ query[batch, head, row]) / heads**0.5
                weights[batch, head, row, seen] = scores.softmax(0)
    return weights.float()


CASES = [
    *((make, "kv", 1, "float32") for make in MAKES),
    ("onevision", "hidden", 2, "float32"),
    ("siglip_qwen2", "late", 2, "float32"),
    ("onevision", "kv", 1, "bfloat16"),
]


@pytest.mark.medium
@pytest.mark.parametrize(("make", "fusion", "pooling", "dtype"), CASES)
def test_weights_are_the_softmax_written_out(make: str, fusion: str, pooling: int, dtype: str) -> None:
    """With padding, an absent camera, pooled tokens, class tokens and newlines, and where the network is rounded."""
    policy = make_policy(make, fusion=fusion, image_token_pooling=pooling, dtype=dtype)
    batch, noise = make_batch(absent=True), torch.randn(2, 5, 3)
    with torch.no_grad(), written_out(policy) as reference:
        plain = policy.predict_action_chunk(dict(batch), noise=noise)
    with torch.no_grad(), watch(policy) as watched:
        seen = policy.predict_action_chunk(dict(batch), noise=noise)
    assert torch.equal(plain, seen)
    layers = len(policy.model.expert.backbone.layers)
    by_layer = torch.stack(reference).unflatten(0, (2, layers)).mean(0)
    for index in (0, 1):
        attention = watched.attention(index)
        # Sums in another order.
        torch.testing.assert_close(attention.weights, by_layer[:, index, :, -5:], atol=2e-6, rtol=0)
        torch.testing.assert_close(attention.weights.sum(-1), torch.ones(attention.weights.shape[:-1]))
        shares = attention.shares()
        torch.testing.assert_close(sum(shares.values()), torch.ones(layers))
        assert (shares[FRONT] == 0).all() == (index == 0)
        assert shares[WRIST].min() > 0
        words = attention.words(lambda ids: "".join(f" {number}" for number in ids))
        assert len(words) == (WORDS, 4)[index]
        assert sum(share for _, share in words) == pytest.approx(shares["text"].mean().item(), rel=1e-4)
        cells = without_places(attention.camera_weights()[WRIST], policy.model.perception.config)
        side = patch_grid(policy.model.perception.config, pooling).count
        assert cells.shape[-2:] == (side, side) == (4 // pooling, 4 // pooling)


def test_tokens_that_are_no_patches_have_no_cell() -> None:
    """A class token in front, a newline behind."""
    clip, onevision = llava_config("clip_llama"), llava_config("onevision")
    clip.vision_feature_select_strategy = "full"
    patches = torch.arange(16.0).view(4, 4)
    assert torch.equal(without_places(torch.arange(-1.0, 16), clip), patches)
    assert torch.equal(without_places(torch.arange(17.0), onevision), patches)


def test_nothing_stays_when_nobody_looks() -> None:
    policy = make_policy("clip_llama")
    denoise = policy._denoise
    with pytest.raises(RuntimeError, match="on the way"), watch(policy):
        raise RuntimeError("on the way")
    assert policy._denoise == denoise
    assert not policy.model.perception._forward_pre_hooks


@pytest.mark.parametrize(("height", "width"), [(24, 64), (64, 24), (32, 32), (9, 20), (480, 640)])
def test_cells_are_where_the_tower_sees_them(height: int, width: int) -> None:
    """A cell painted in the camera's own pixels shows in that cell of the letterboxed picture, and hardly beyond."""
    grid = Grid(size=32, cell=8, count=4)
    picture = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    covered = torch.zeros(height, width)
    visible = grid.pixels(height, width) > 0
    around = -(-32 // min(height, width)) + 1  # pixels of the square that antialiasing or enlarging may touch
    for row, column in visible.nonzero().tolist():
        cells = torch.zeros(4, 4)
        cells[row, column] = 1
        mask = grid.spread(cells, height, width)
        covered += mask
        share = mask.sum().item() / (8 * max(height, width) / 32) ** 2  # 1 for a whole cell
        assert grid.heat(cells, height, width).sum() == pytest.approx(share, rel=0.05)  # whole pixels
        painted = torch.where(mask.bool(), 1 - picture, picture)
        moved = (letterbox(painted, 32) - letterbox(picture, 32)).abs().sum((0, 1))
        inside = torch.zeros(32, 32, dtype=torch.bool)
        inside[
            max(0, 8 * row - around) : 8 * row + 8 + around, max(0, 8 * column - around) : 8 * column + 8 + around
        ] = True
        assert moved[8 * row : 8 * row + 8, 8 * column : 8 * column + 8].sum() > 0
        assert moved[~inside].max() < 1e-5
    assert (covered == 1).all()  # each pixel is in one cell
    bars = ~visible
    assert bars.any() == (32 * (1 - min(height, width) / max(height, width)) / 2 >= 8)
    heat = grid.heat(torch.ones(4, 4), height, width)
    assert heat.max() == heat.min()  # what is alike looks alike


def test_pixels_beyond_the_last_patch_are_of_none() -> None:
    """OneVision's 384 pixels are 27 patches of 14, and 6 pixels that nobody sees."""
    grid = Grid(size=384, cell=14, count=27)
    mask = grid.spread(torch.ones(27, 27), 384, 384)
    assert mask[:378, :378].all()
    assert not mask[378:].any()
    assert not mask[:, 378:].any()
    assert coarse_grid(384, 14) == Grid(384, 28, 14)
    assert coarse_grid(96) == Grid(96, 8, 12)
