"""`DeepFusionPolicy`: LeRobot's policy interface around the lockstep model.

Axis letters: B batch, C cameras, S prefix tokens, K flow samples, T actions of a chunk, A action dim.
"""

import logging
from collections import deque
from contextlib import nullcontext
from typing import Any

import torch
from lerobot.policies.common.flow_matching import euler_integrate, sample_noise, sample_time_beta
from lerobot.policies.rtc.modeling_rtc import RTCProcessor
from lerobot.utils.constants import OBS_LANGUAGE_ATTENTION_MASK, OBS_LANGUAGE_TOKENS, OBS_STATE
from torch import Tensor

from . import processor_deepfusion  # noqa: F401  # registers the steps that a checkpoint's processors name
from .configuration_deepfusion import DeepFusionConfig
from .cost.report import describe
from .inputs.batch_checks import check_chunk
from .inputs.batch_shapes import fit_noise, fit_observation, fit_targets
from .inputs.calibration import before_the_cameras
from .inputs.cameras import absent_cameras, stack_cameras
from .inputs.dataset_checks import check_dataset
from .inputs.dataset_facts import DatasetFacts
from .inputs.images import random_shift
from .inputs.points import stack_points
from .inputs.prompt import expand_image_token, fit_tokens
from .inputs.real_time import given_by_rtc, without_padding
from .inputs.relative_actions import relative_lines, relative_sources
from .inputs.task_checks import check_tasks
from .llava.empty_weights import empty_weights, fill_empty
from .llava.geometry import context_window
from .llava.reader import check_vlm_config, read_tokenizer, read_vlm_config
from .llava.tiny import TINY
from .network.fusion import VlmStates
from .network.given import Given, draw_mask
from .network.lockstep import build_model, frozen_modules
from .network.objective import ask, evaluation_times, few_step_chunk, losses, training_times
from .network.relative import RelativeActions
from .storage.checkpoint_place import has_shards
from .storage.policy_files import StoredPolicy
from .storage.trained_settings import BuiltSettings, adopt_names
from .storage.vlm_weights import check_vlm_weights, load_vlm_weights
from .training.fsdp import keep_types, unit_classes
from .training.precision import TypesOfTheConfig, autocast, set_precision
from .training.step_behind import StepBehind
from .training.trained_policy import TrainedPolicy

logger = logging.getLogger(__name__)


class DeepFusionPolicy(TrainedPolicy, TypesOfTheConfig, StoredPolicy):
    """A LLaVA perceives, an action expert beside it acts (see `network.lockstep`).

    Args:
        config: its `vlm_config` is filled if it is empty.
        vlm_weights: whether to load the VLM's pretrained weights; `from_pretrained` does not, since the
            checkpoint carries them.
        kwargs: what LeRobot's factory passes besides: `dataset_meta` of the data set to train on is checked.

    Raises:
        ValueError: if the config is wrong, or the data set can't be learned from; see `inputs.dataset_checks`.
    """

    config: Any  # a `DeepFusionConfig`
    image_mean: Tensor
    image_std: Tensor

    def __init__(self, config: DeepFusionConfig, vlm_weights: bool = True, **kwargs: Any) -> None:
        meta = kwargs.get("dataset_meta")
        super().__init__(config, kwargs.get("flat_weights", False), meta is not None)
        config.validate_features()
        # Of a run that resumes from shards, the weights come once they are distributed.
        fresh = vlm_weights and not has_shards(config.pretrained_path)
        if meta is not None:
            adopt_names(config, meta)
            if config.workspace_center is None and (fresh or self.flat_weights):
                config.workspace_center = before_the_cameras(config, getattr(meta, "stats", None))
            from .inputs.action_windows import read_actions_alone  # whose imports acting does without

            check_dataset(config, meta)
            read_actions_alone(meta)
        if config.vlm_config is None:
            config.vlm_config = read_vlm_config(config.vlm_path)
        check_vlm_config(config.vlm_config)
        if meta is not None and fresh:
            prompt, token = config.vlm_config["prompt"], config.vlm_config["image_token"]
            tokenizer, tasks = read_tokenizer(config.vlm_path), DatasetFacts(meta).tasks()
            check_tasks(tasks, prompt, token, tokenizer, config.tokenizer_max_length)
        pretrained = fresh and config.vlm_path != TINY
        if pretrained:
            check_vlm_weights(config.vlm_path, config.vlm_config["model"])
        with nullcontext() if fresh else empty_weights():
            self.model = build_model(config, config.vlm_config["model"], empty_perception=pretrained)
        keep_types()
        self._no_split_modules = unit_classes(self.model, frozen_modules(config, self.model))
        # LeRobot asks the class. A process trains one policy.
        type(self)._fsdp_wrap_modules = self._no_split_modules
        self._check_context_window()
        if pretrained:
            half = config.dtype == "bfloat16" and not config.trains_vlm
            load_vlm_weights(self.model.perception, config.vlm_path, torch.bfloat16 if half else torch.float32)
        if fresh and config.expert_init == "vlm":
            self.model.expert_from_vlm()
        for name in ("image_mean", "image_std"):
            value = torch.tensor(config.vlm_config[name]).view(3, 1, 1)
            self.register_buffer(name, value, persistent=False)
        self.relative = (
            RelativeActions(relative_sources(config), config.chunk_size) if config.relative_actions else None
        )
        if fresh:
            self.measure_relative_actions(meta)
        self._compile()
        self._built, self._built_dtype, self._step_behind = BuiltSettings(config), config.dtype, StepBehind()
        self.init_rtc_processor()
        self.reset()
        if vlm_weights:
            if not fresh:
                fill_empty(self)
            set_precision(self, self.config.dtype)
            self.to(config.device)
        logger.info(self.describe())

    def measure_relative_actions(self, meta: Any) -> None:
        """Where actions are relative: take the statistics of a data set to train on.

        Raises:
            ValueError: without one, or, for adapters, if they are not those of the base.
        """
        if self.relative is None:
            return
        if meta is None:
            raise ValueError(
                "policy.relative_actions=true needs the data set to train on: give DeepFusionPolicy its metadata as "
                "dataset_meta, as LeRobot's make_policy does"
            )
        lines = relative_lines(self.config, meta, relative_sources(self.config))
        if self.config.use_peft:
            self.relative.require(*lines)
        else:
            self.relative.fill(*lines)

    def _compile(self) -> None:
        self._denoise = self.model.denoise
        if self.config.compile_model:
            # Every chunk of a policy has the same shapes. This mode captures a CUDA graph, which a small VLM needs
            # most: its denoise step is bound by launches.
            self._denoise = torch.compile(self._denoise, fullgraph=True, dynamic=False, mode="reduce-overhead")

    def __getstate__(self) -> dict[str, Any]:
        """Without the compiled step, which can't be pickled and is made anew."""
        return {name: value for name, value in self.__dict__.items() if name != "_denoise"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._compile()

    def _check_context_window(self) -> None:
        config, perception = self.config, self.model.perception
        prefix = len(config.cameras) * perception.image_tokens + config.tokenizer_max_length
        if prefix > context_window(perception.config):
            raise ValueError(
                f"{len(config.cameras)} cameras of {perception.image_tokens} tokens and "
                f"policy.tokenizer_max_length={config.tokenizer_max_length} are {prefix} tokens; the text model "
                f"attends over {context_window(perception.config)}. Use fewer cameras or policy.image_token_pooling"
            )

    def describe(self) -> str:
        """One readable summary of what goes in, what comes out and what is trained."""
        return describe(self.config, self.model)

    def _observe(self, batch: dict[str, Tensor]) -> VlmStates:
        """One pass of the VLM."""
        config, perception = self.config, self.model.perception
        vlm = config.vlm_config
        size = vlm["model"]["vision_config"]["image_size"]
        images, present, whole = stack_cameras(batch, config.cameras, size, vlm["image_resample"])
        points = stack_points(config, batch, size)
        if self.training and config.image_shift:
            layers = images if points is None else torch.cat([images, points], dim=2)
            layers = random_shift(layers, round(config.image_shift * size))
            images, points = layers[:, :, :3], None if points is None else layers[:, :, 3:]
        tokens, valid = expand_image_token(
            *fit_tokens(
                batch[OBS_LANGUAGE_TOKENS],
                batch[OBS_LANGUAGE_ATTENTION_MASK].bool(),
                config.tokenizer_max_length + 1,
            ),
            perception.config.image_token_id,
            present,
            perception.image_tokens,
        )
        pixels = (images - self.image_mean) / self.image_std
        states = self.model.prefill(pixels, tokens, valid, right_padded=whole, points=points)
        return states.detach() if config.knowledge_insulation else states

    # --- training -----------------------------------------------------------------------------------------

    def forward(self, batch: dict[str, Tensor], reduction: str = "mean") -> tuple[Tensor, dict[str, Any]]:
        """Loss of a batch, by `config.objective`.

        Args:
            batch: pre-processed; `action` [B, T, A], `action_is_pad` bool [B, T].
            reduction: `none` for one loss a sample, the mean over its valid actions, [B]; `mean` for the mean of
                those, which several processes with a part of the batch each get too, however much is padding.

        Returns:
            The loss, and what is to be watched (`network.watched`), in training of the step before.

        Raises:
            ValueError: for another reduction.
        """
        if reduction not in ("mean", "none"):
            raise ValueError(f"reduction={reduction!r}: choose 'mean' or 'none'")
        config = self.config
        self._built.require(config)
        if self.training:
            self._settle_cameras(batch)
        batch = fit_observation(config, batch)
        action, valid = fit_targets(config, batch)
        padded = 1 - valid.float().mean()
        if self.relative is not None:
            action = self.relative.relative(action, batch[OBS_STATE])
        noise = sample_noise((len(action), config.num_flow_samples, *action.shape[1:]), action.device)
        time = self._training_times(*noise.shape[:2], action.device)
        noisy, velocity = ask(config.objective, action, noise, time)
        state = batch[OBS_STATE]
        if self.training and config.state_dropout:
            # Zero is the mean state, or the middle of its range, since states are normalised.
            state = state * (torch.rand(len(state), 1, device=state.device) >= config.state_dropout)
        given = None
        with autocast(action.device, config.dtype):
            if config.rtc_training_max_delay:
                given = self._given(draw_mask(action, config.rtc_training_max_delay), action)
                valid = valid & ~given.mask
            answer = self.model.denoise(self._observe(batch), state, noisy, self.model.embed_time(time), given)
        names = config.action_feature_names or range(action.shape[-1])
        each, watched = losses(config.objective, answer, velocity, action, valid, time, list(map(str, names)))
        watched["padded"] = padded
        shown = self._step_behind.swap(watched) if self.training else {name: v.item() for name, v in watched.items()}
        return (each if reduction == "none" else each.mean()), shown

    def _training_times(self, size: int, samples: int, device: torch.device) -> Tensor:
        """Flow times [B, K]."""
        config = self.config
        times = training_times(config.objective, samples)
        if times is not None:
            return times.to(device).expand(size, -1)
        return sample_time_beta(
            size * samples,
            device,
            alpha=config.time_sampling_beta_alpha,
            beta=config.time_sampling_beta_beta,
            scale=config.time_sampling_scale,
            offset=config.time_sampling_offset,
        ).view(size, samples)

    def _given(self, mask: Tensor, actions: Tensor) -> Given:
        return Given(mask, actions, self.model.embed_time(torch.zeros(1, 1, device=actions.device)))

    def _settle_cameras(self, batch: dict[str, Tensor]) -> None:
        """A base's cameras that the data set lacks: LeRobot tells the policy neither their names nor the rename map,
        so that the first batch has to. Their slots are empty from then on, in the checkpoint too.
        """
        absent = absent_cameras(batch, self.config.cameras)
        if absent:
            self.config.leave_empty(absent)
            self.config.validate_features()
            self._built = BuiltSettings(self.config)
            logger.warning(
                f"the data set has no pictures of {absent}, which the policy knows: their slots stay empty, and the "
                f"trained policy will not look at such cameras. The slots are now {self.config.cameras}"
            )

    # --- acting -------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """Forget the actions still queued; to be called when an episode starts."""
        self._action_queue: deque[Tensor] = deque()
        self._queued_steps = self.config.n_action_steps

    def supports_rtc(self) -> bool:
        return True

    def init_rtc_processor(self) -> None:
        """Read `config.rtc_config` again; LeRobot's rollout sets it after the policy is built.

        Raises:
            ValueError: for a policy that has no flow to guide.
        """
        self.config.check_run_time()
        rtc = self.config.rtc_config
        self.rtc_processor = None if rtc is None else RTCProcessor(rtc)

    @torch.no_grad()
    def predict_action_chunk(self, batch: dict[str, Tensor], noise: Tensor | None = None, **rtc: Any) -> Tensor:
        """Normalised actions [B, T, A] for one observation.

        Args:
            batch: pre-processed.
            noise: where the flow starts, [B, T, A]; drawn if not given. `two_step` has no use for it.
            rtc: `inference_delay`, `prev_chunk_left_over` and `execution_horizon` of real-time chunking. A policy
                that was trained for it (`rtc_training_max_delay`) goes on from the actions that will be executed
                meanwhile, another one's flow is guided towards them.
        """
        self.eval()
        config = self._current_config()
        batch = fit_observation(config, batch)
        state = batch[OBS_STATE]
        shape = (state.shape[0], config.chunk_size, config.action_feature.shape[0])
        if rtc.get("prev_chunk_left_over") is not None:
            left = rtc["prev_chunk_left_over"]
            left = left if left.ndim == 3 else left[None]  # LeRobot's rollout gives [R, A]
            left = without_padding(left) if config.rtc_training_max_delay else left
            rtc["prev_chunk_left_over"] = left if self.relative is None else self.relative.relative(left, state)
        noise = sample_noise(shape, state.device) if noise is None else fit_noise(noise, shape)
        with autocast(state.device, config.dtype):
            from_rtc = given_by_rtc(config, shape, rtc)
            given = from_rtc and self._given(*(value.to(state.device) for value in from_rtc))
            states = self.model.project_contexts(self._observe(batch))
            # The schedule is known: one pass of the time branch serves all steps.
            times = evaluation_times(config.objective, config.num_inference_steps, state.device)
            schedule = iter(self.model.embed_time(times).split(1, dim=2))

            @torch.no_grad()  # real-time chunking turns gradients on and has no use for ours
            def answer(noisy: Tensor, _: Tensor | None = None) -> Tensor:
                return self._denoise(states, state, noisy[:, None], next(schedule), given)[:, 0].float()

            if config.objective == "flow":
                guided = self._rtc_enabled() and given is None
                chunk = euler_integrate(
                    answer, noise, times.shape[1], rtc_processor=self.rtc_processor, rtc_enabled=guided, **rtc
                )
            else:
                chunk = few_step_chunk(config.objective, answer, noise)
            chunk = chunk if given is None else given.put(chunk[:, None])[:, 0]
        return check_chunk(chunk if self.relative is None else self.relative.absolute(chunk, state))

    def _current_config(self) -> DeepFusionConfig:
        """The config, whose run-time settings count from now on.

        Raises:
            ValueError: if one has no such value, or another than those was changed.
        """
        config, processor = self.config, self.rtc_processor
        self._built.require(config)
        config.check_run_time()
        self._check_context_window()
        if config.dtype == "float32" and self._built_dtype == "bfloat16":
            set_precision(self, config.dtype)  # frozen weights; in the other direction autocast does without
            self._built_dtype = config.dtype
        if (None if processor is None else processor.rtc_config) is not config.rtc_config:
            self.init_rtc_processor()
        return config

    def _rtc_enabled(self) -> bool:
        return self.config.rtc_config is not None and self.config.rtc_config.enabled

    @torch.no_grad()
    def select_action(self, batch: dict[str, Tensor], **kwargs: Any) -> Tensor:
        """The next normalised action [B, A]; a new chunk is predicted when the last one is used up.

        Raises:
            RuntimeError: under real-time chunking, which needs whole chunks.
        """
        if self._rtc_enabled():
            raise RuntimeError("real-time chunking works on whole chunks: call predict_action_chunk instead")
        steps = self.config.n_action_steps
        if steps != self._queued_steps:  # changed in between: what is queued was to be executed differently
            self.reset()
        if not self._action_queue:
            chunk = self.predict_action_chunk(batch, **kwargs)
            self._action_queue.extend(chunk[:, :steps].transpose(0, 1))
        return self._action_queue.popleft()
