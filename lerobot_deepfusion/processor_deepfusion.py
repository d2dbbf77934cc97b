"""Pre- and post-processing: LeRobot's stock steps, one that checks values and one that writes the prompt."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from lerobot.configs import PipelineFeatureType, PolicyFeature
from lerobot.lerobot_types import EnvTransition, TransitionKey
from lerobot.processor import (
    PolicyAction,
    PolicyProcessorPipeline,
    ProcessorStep,
    ProcessorStepRegistry,
    make_default_policy_processor_steps,
    make_policy_processor_pipelines,
)
from lerobot.utils.constants import OBS_LANGUAGE_ATTENTION_MASK, OBS_LANGUAGE_TOKENS, OBS_STATE
from tokenizers import Tokenizer
from torch import Tensor

from .configuration_deepfusion import DeepFusionConfig
from .inputs.batch_checks import check_values
from .inputs.depth_keys import depth_key
from .inputs.prompt import fill_prompt
from .inputs.statistics_checks import check_statistics
from .llava.bounds import check_size
from .network.options import POLICY_SIZES
from .storage.checked_loading import check_before_loading

REMEMBERED = 1000  # texts with their tokens: a robot may be told another one with every picture, for days

logger = logging.getLogger(__name__)

check_before_loading()


class _SameFeatures(ProcessorStep):
    def transform_features(
        self, features: dict[PipelineFeatureType, dict[str, PolicyFeature]]
    ) -> dict[PipelineFeatureType, dict[str, PolicyFeature]]:
        return features


@ProcessorStepRegistry.register(name="deepfusion_value_check_processor")
@dataclass
class DeepFusionValueCheckProcessorStep(_SameFeatures):
    """Stops at numbers that would poison weights or reach the motors; see `check_values`.

    State and actions leave it as float32: LeRobot's normaliser takes on the type of what it is given, and as whole
    numbers its means and deviations would be cut to nothing.

    Attributes:
        cameras: keys that the policy sees; None in pipelines of 0.1, and behind the policy.
        depth: keys of the depth that it sees, if it sees any.
    """

    cameras: list[str] | None = None
    depth: list[str] | None = None

    def __call__(self, transition: EnvTransition) -> EnvTransition:
        transition = transition.copy()
        observation = dict(transition.get(TransitionKey.OBSERVATION) or {})
        action = transition.get(TransitionKey.ACTION)
        about = transition.get(TransitionKey.COMPLEMENTARY_DATA) or {}
        check_values(observation, action, about, self.cameras, self.depth or ())
        if isinstance(observation.get(OBS_STATE), Tensor):
            transition[TransitionKey.OBSERVATION] = {**observation, OBS_STATE: observation[OBS_STATE].float()}
        if isinstance(action, Tensor):
            transition[TransitionKey.ACTION] = action.float()
        return transition

    def get_config(self) -> dict[str, Any]:
        known = {"cameras": self.cameras, "depth": self.depth}
        return {name: keys for name, keys in known.items() if keys is not None}


@ProcessorStepRegistry.register(name="deepfusion_prompt_processor")
@dataclass
class DeepFusionPromptProcessorStep(_SameFeatures):
    """Task text -> token ids of the prompt.

    Writes `observation.language.tokens` (int64 [B, L]) and `observation.language.attention_mask` (bool [B, L]),
    where L = max_length + 1, or more for a longer prompt: whether that is too long is for the policy to say, whose
    `tokenizer_max_length` may be another than that of the checkpoint that this step is of. One image token stands for
    the pictures of all cameras, which the policy puts in its place. A text that comes again is not tokenised again.

    Attributes:
        prompt: text around one task, with one `image_token` and one `{task}`.
        image_token: the token that stands for the pictures.
        max_length: tokens for everything but the pictures, up to which prompts are filled.
        tokenizer: travels in the step's state, not in its config.
    """

    prompt: str
    image_token: str
    max_length: int
    tokenizer: Tokenizer | None = None
    _known: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        # Every prompt is padded to it.
        check_size("max_length", self.max_length, POLICY_SIZES["tokenizer_max_length"])
        if not isinstance(self.prompt, str) or not isinstance(self.image_token, str) or not self.image_token:
            raise ValueError(f"prompt={self.prompt!r:.200} and image_token={self.image_token!r:.200}: expected texts")

    def __call__(self, transition: EnvTransition) -> EnvTransition:
        transition = transition.copy()
        complementary = transition.get(TransitionKey.COMPLEMENTARY_DATA) or {}
        tasks = complementary.get("task")
        if isinstance(tasks, str):
            tasks = [tasks]
        if not isinstance(tasks, (list, tuple)) or not all(isinstance(task, str) for task in tasks):
            raise ValueError(
                f"'task' is {tasks!r}; this policy needs one text for each sample (an empty one is allowed)"
            )
        rows = [self._token_ids(task) for task in tasks]
        lengths = torch.tensor([len(row) for row in rows])
        size = max(self.max_length + 1, *lengths.tolist())
        # What fills the rest is masked, so any id will do; a real pad token may be a word of some tasks.
        tokens = torch.stack([F.pad(row, (0, size - len(row))) for row in rows])
        transition[TransitionKey.OBSERVATION] = {
            **(transition.get(TransitionKey.OBSERVATION) or {}),
            OBS_LANGUAGE_TOKENS: tokens,
            OBS_LANGUAGE_ATTENTION_MASK: torch.arange(size) < lengths[:, None],
        }
        return transition

    def _token_ids(self, task: str) -> Tensor:
        """Token ids of the prompt for one task."""
        if task not in self._known:
            if self.tokenizer is None:
                raise RuntimeError("the prompt step has no tokenizer; load its state or build it with one")
            ids = self.tokenizer.encode(fill_prompt(self.prompt, self.image_token, task)).ids
            pictures = ids.count(self.tokenizer.token_to_id(self.image_token))
            if pictures != 1:
                raise ValueError(
                    f"the prompt {self.prompt!r} has {pictures} tokens {self.image_token!r} in this tokenizer; "
                    "expected one, in whose place the pictures go. Take prompt and tokenizer of one checkpoint"
                )
            if len(self._known) == REMEMBERED:
                self._known.pop(next(iter(self._known)))
            self._known[task] = torch.tensor(ids)
        return self._known[task]

    def get_config(self) -> dict[str, Any]:
        return {"prompt": self.prompt, "image_token": self.image_token, "max_length": self.max_length}

    def state_dict(self) -> dict[str, Tensor]:
        """The tokenizer as bytes: a processor's state may hold tensors only."""
        if self.tokenizer is None:
            return {}
        return {"tokenizer_json": torch.tensor(list(self.tokenizer.to_str().encode()), dtype=torch.uint8)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        try:
            self.tokenizer = Tokenizer.from_str(bytes(state["tokenizer_json"].tolist()).decode())
        except Exception as error:  # tokenizers raises no narrower one
            raise ValueError(
                f"the state of deepfusion_prompt_processor holds no tokenizer ({type(error).__name__}: {error}); "
                "copy or download the checkpoint again"
            ) from error
        self._known.clear()


def make_deepfusion_pre_post_processors(
    config: DeepFusionConfig,
    dataset_stats: dict[str, dict[str, Tensor]] | None = None,
) -> tuple[
    PolicyProcessorPipeline[dict[str, Any], dict[str, Any]],
    PolicyProcessorPipeline[PolicyAction, PolicyAction],
]:
    """Fresh pipelines; those of a checkpoint are loaded by LeRobot and never come here.

    Args:
        config: of the policy; `vlm_config` is filled if it is empty.
        dataset_stats: of the data set to train on. Without any nothing is normalised, which is said: a policy that
            is not trained can be tried so.

    Raises:
        ValueError: if a statistic that normalisation needs is missing or not finite.
    """
    from .llava.reader import read_tokenizer, read_vlm_config

    if dataset_stats is None:
        logger.warning("no statistics are given: these processors leave states and actions as they are")
    else:
        check_statistics(config, dataset_stats)
    if config.vlm_config is None:
        config.vlm_config = read_vlm_config(config.vlm_path)
    prompt = DeepFusionPromptProcessorStep(
        prompt=config.vlm_config["prompt"],
        image_token=config.vlm_config["image_token"],
        max_length=config.tokenizer_max_length,
        tokenizer=read_tokenizer(config.vlm_path),
    )
    steps = make_default_policy_processor_steps(config, dataset_stats)
    return make_policy_processor_pipelines(
        input_steps=[
            steps.rename_observations,
            steps.add_batch_dim,
            DeepFusionValueCheckProcessorStep(
                config.cameras, [depth_key(camera) for camera in config.depth_cameras] or None
            ),
            prompt,
            steps.to_device,
            steps.normalize,
        ],
        output_steps=[steps.unnormalize, steps.to_cpu, DeepFusionValueCheckProcessorStep()],
    )
