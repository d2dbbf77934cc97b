"""`DeepFusionConfig`: every option of the policy, as `--policy.<name>` on LeRobot's command lines."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lerobot.configs import FeatureType, NormalizationMode, PreTrainedConfig
from lerobot.policies.rtc.configuration_rtc import RTCConfig

from .inputs.policy_features import PolicyFeatures
from .network.options import check_options
from .training.optimizer import DeepFusionAdamWConfig, DeepFusionSchedulerConfig


@PreTrainedConfig.register_subclass("deepfusion")
@dataclass
class DeepFusionConfig(PolicyFeatures):
    """Config of `DeepFusionPolicy`. Names that other LeRobot policies have mean the same here.

    Raises:
        ValueError: on creation, for a value out of range; the message names the field and the mend.
    """

    # The VLM: a LLaVA on the Hub or in a local directory (transformers' format), or `tiny`, an offline one
    # with random weights. Read when a policy is built fresh, never when a checkpoint is loaded.
    vlm_path: str = "llava-hf/llava-onevision-qwen2-0.5b-ov-hf"
    # Config of the VLM and of its image preprocessing, written by the policy: a checkpoint needs nothing else.
    vlm_config: dict[str, Any] | None = None

    # What an expert layer reads of the VLM layer beside it: `kv` its keys and values, `hidden` its input
    # through the expert's own projections, `late` the VLM's last hidden state at every layer.
    fusion: str = "kv"
    # Which VLM layers are read: `all`, `every_<n>` (n-1, 2n-1, ...), `first_<m>`, or `middle`, the half around the
    # centre. The VLM ends behind the last of them. `late` reads the state behind it: `all` or `first_<m>`.
    fusion_layers: str = "all"
    # `deep_llama` is built like the text model; `late_gemma` is a Gemma with one key/value head, for `fusion=late`.
    action_expert_type: str = "deep_llama"
    # Among the expert's own tokens: `bidirectional`, or `causal`, where an action sees those before it alone.
    action_attention: str = "bidirectional"
    # Width of the expert as a share of the VLM's text width; its heads are the VLM's own.
    expert_width_multiplier: float = 1.0
    # Layers of the expert, spread over the VLM layers that are read; by default one for each.
    expert_num_layers: int | None = None
    # First weights of the expert: `vlm` copies the text model's (needs equal width), `random` does not.
    expert_init: str = "random"
    # How the flow time reaches the expert: `adarms` scales its norms, `token` is one more token.
    time_conditioning: str = "adarms"

    # Actions predicted at once.
    chunk_size: int = 50
    # Actions executed before the policy looks again; at most `chunk_size`.
    n_action_steps: int = 10
    # State and action vectors are padded to these sizes inside the model.
    max_state_dim: int = 32
    max_action_dim: int = 32

    # What the expert learns to answer: `flow` a velocity, integrated when acting; `two_step` that at two times, asked
    # twice when acting and without noise; `drift` the chunk itself, asked once. See docs/objectives.md.
    objective: str = "flow"
    # Euler steps from noise to actions, of `objective=flow`.
    num_inference_steps: int = 10
    # (noise, time) pairs that share one VLM pass in training; `two_step` needs an even number, `drift` two or more.
    num_flow_samples: int = 1
    # Of each training chunk up to so many first actions are given, and the others learn to continue them: a policy
    # that real-time chunking gives what the robot executes meanwhile, in place of guiding it. 0 turns it off.
    rtc_training_max_delay: int = 0
    # Training times are drawn from Beta(alpha, beta) * scale + offset.
    time_sampling_beta_alpha: float = 1.5
    time_sampling_beta_beta: float = 1.0
    time_sampling_scale: float = 0.999
    time_sampling_offset: float = 0.001

    # Tokens for the task text and the chat template around it; a longer prompt is an error.
    tokenizer_max_length: int = 64
    # Image patches are averaged in blocks of n x n, for fewer tokens; 1 keeps them all.
    image_token_pooling: int = 1
    # Cameras that the data set lacks: slots `observation.images.empty_camera_<i>`, masked out.
    empty_cameras: int = 0
    # What the policy sees in three dimensions, of cameras with depth: nothing (`none`), or the place of each patch in
    # the frame of its `camera`, or of the robot's base (`world`), which needs the cameras' poses. `cloud`, of `tiny`,
    # is `world` without the pictures' own tokens: for cameras that may stand elsewhere than in training.
    position_3d: str = "none"
    # Intrinsics and pose by camera; see `inputs.calibration`. Filled from the data set.
    camera_calibration: dict[str, Any] | None = None
    # Middle of the space in which things are, in that frame, metres. Filled when training starts: a metre before the
    # cameras, on average over the data set where they move. A few decimetres off do no harm.
    workspace_center: tuple[float, float, float] | None = None
    # Nearest and farthest distance, in metres, that counts as measured.
    depth_range: tuple[float, float] = (0.02, 5.0)
    # Training images are shifted by up to this share of their size in each direction; 0 turns it off.
    image_shift: float = 0.0
    # Share of training samples whose state is hidden, so that the picture is not ignored: with few
    # demonstrations the state alone tells them apart. At acting it is always seen.
    state_dropout: float = 0.0

    # Learn actions as differences to the state at the observation, joint by joint, and make a chunk absolute when it
    # is predicted: what comes in and goes out are absolute actions as ever.
    relative_actions: bool = False
    # Actions with one of these words in their names stay absolute, as LeRobot's option for pi0 has it.
    relative_exclude_joints: list[str] = field(default_factory=lambda: ["gripper"])

    # Frames at the end of each episode that training leaves out. Actions behind the end are masked in any case.
    drop_n_last_frames: int = 0

    # Real-time chunking; set by LeRobot's rollout.
    rtc_config: RTCConfig | None = None
    # Names of the action's and of the state's dimensions; filled from the data set. Another data set or robot with
    # other names is refused; training on from --policy.path, `state_feature_names=null` takes it for another robot.
    action_feature_names: list[str] | None = None
    state_feature_names: list[str] | None = None

    # How states and actions are normalised, by LeRobot's modes; pictures stay as they are, `IDENTITY`.
    normalization_mapping: dict[str, NormalizationMode] = field(
        default_factory=lambda: {
            "VISUAL": NormalizationMode.IDENTITY,
            "STATE": NormalizationMode.MEAN_STD,
            "ACTION": NormalizationMode.MEAN_STD,
        }
    )

    # `bfloat16` runs the network under autocast, with trained weights in float32 and frozen ones in bfloat16;
    # `float32` runs it as it is.
    dtype: str = "float32"
    # Compile the denoise step: the first chunk takes minutes, the others less time. On CUDA it becomes one graph.
    compile_model: bool = False
    # Recompute layers in the backward pass: less memory, more time.
    gradient_checkpointing: bool = False
    # Keep the vision tower's weights as they are.
    freeze_vision_encoder: bool = False
    # Keep the whole VLM as it is and train the expert alone.
    train_expert_only: bool = False
    # Cut the gradient from the expert into the VLM's states. No other loss could train the VLM, so it is kept as with
    # `train_expert_only`, and so are adapters in it.
    knowledge_insulation: bool = False

    # Act with an exponential moving average of the trained weights, of which each step keeps so much; 0 turns it off.
    ema_decay: float = 0.0

    # AdamW and a cosine schedule with warmup that always ends at `--steps`; of a short run a tenth is warmup.
    optimizer_lr: float = 1e-4
    # Rates of the VLM's parts where they differ: its text model, the projector between its two, its vision tower.
    optimizer_vlm_lr: float | None = None
    optimizer_connector_lr: float | None = None
    optimizer_vision_lr: float | None = None
    optimizer_betas: tuple[float, float] = (0.9, 0.95)
    optimizer_eps: float = 1e-8
    optimizer_weight_decay: float = 0.01
    optimizer_grad_clip_norm: float = 1.0
    scheduler_warmup_steps: int = 500

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_run_time()
        if self.n_obs_steps != 1:
            raise ValueError(f"policy.n_obs_steps={self.n_obs_steps}: this policy sees one observation, set it to 1")
        if not 0 < self.expert_width_multiplier <= 4:
            raise ValueError(
                f"policy.expert_width_multiplier={self.expert_width_multiplier}: choose a value in (0, 4]"
            )
        visual = self.normalization_mapping.get("VISUAL", NormalizationMode.IDENTITY)
        if visual != NormalizationMode.IDENTITY:
            raise ValueError(
                f"policy.normalization_mapping has VISUAL={getattr(visual, 'value', visual)}; set it to IDENTITY: "
                "the policy normalises pictures as its VLM was trained to see them"
            )
        if unknown := set(self.normalization_mapping) - set(FeatureType.__members__):
            raise ValueError(
                f"policy.normalization_mapping names {sorted(unknown)}; it has a mode for each of VISUAL, STATE and "
                "ACTION"
            )
        if not 0 <= self.image_shift < 0.5:
            raise ValueError(f"policy.image_shift={self.image_shift}: choose a share in [0, 0.5)")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"policy.ema_decay={self.ema_decay}: choose a share in [0, 1), such as 0.999")
        if not 0 <= self.state_dropout < 1:
            raise ValueError(f"policy.state_dropout={self.state_dropout}: choose a share in [0, 1)")

    def check_run_time(self) -> None:
        """What may change on a policy that is built; see `storage.trained_settings`.

        Raises:
            ValueError: for a value that is no choice, out of bounds, or contradicts another.
        """
        check_options(self)
        if self.n_action_steps > self.chunk_size:
            raise ValueError(
                f"policy.n_action_steps={self.n_action_steps} is more than policy.chunk_size={self.chunk_size}; "
                "a chunk has no more actions than that to execute"
            )

    @property
    def trains_vlm(self) -> bool:
        """Whether a gradient reaches any of the VLM's own weights."""
        return not (self.train_expert_only or self.knowledge_insulation)

    def _save_pretrained(self, save_directory: Path) -> None:
        """Without the revision that its weights were loaded from, which is one of another repository."""
        saved = copy.copy(self)
        saved.pretrained_revision = None
        super(DeepFusionConfig, saved)._save_pretrained(save_directory)

    def get_optimizer_preset(self) -> DeepFusionAdamWConfig:
        return DeepFusionAdamWConfig(
            lr=self.optimizer_lr,
            betas=self.optimizer_betas,
            eps=self.optimizer_eps,
            weight_decay=self.optimizer_weight_decay,
            grad_clip_norm=self.optimizer_grad_clip_norm,
        )

    def get_scheduler_preset(self) -> DeepFusionSchedulerConfig:
        return DeepFusionSchedulerConfig(num_warmup_steps=self.scheduler_warmup_steps)

    @property
    def observation_delta_indices(self) -> None:
        return None

    @property
    def action_delta_indices(self) -> list[int]:
        return list(range(self.chunk_size))

    @property
    def reward_delta_indices(self) -> None:
        return None
