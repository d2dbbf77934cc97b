"""What the features of a policy have to be, and which are cameras: what a data set says in its config."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from lerobot.configs import FeatureType, PolicyFeature, PreTrainedConfig
from lerobot.utils.constants import ACTION, OBS_IMAGES, OBS_STATE

from .calibration import adopt_calibration, check_calibration
from .cameras import EMPTY_CAMERA
from .depth_keys import depth_key

logger = logging.getLogger(__name__)


class PolicyFeatures(PreTrainedConfig):
    """The part of `DeepFusionConfig`, which says what the options are, that looks at features."""

    max_state_dim: int
    max_action_dim: int
    empty_cameras: int
    position_3d: str
    camera_calibration: dict[str, Any] | None

    @property
    def cameras(self) -> list[str]:
        """Batch keys of the camera slots, in their fixed order, which is that of `input_features`."""
        keys = list(self.image_features)
        depth = set() if self.position_3d == "none" else {depth_key(key) for key in keys}
        return [key for key in keys if key not in depth]

    @property
    def depth_cameras(self) -> list[str]:
        """Those of the cameras whose depth the policy sees."""
        seen = {} if self.position_3d == "none" else self.image_features
        return [camera for camera in self.cameras if depth_key(camera) in seen]

    def validate_features(self) -> None:
        """Add the declared empty cameras and check what the policy needs.

        Raises:
            ValueError: without a camera, state or action feature, or with one that is no colour picture, no vector or
                wider than its padded size.
        """
        if self.input_features is None:
            raise ValueError("policy.input_features is null, which only a data set can fill in")
        offered = sorted({**self.input_features, **(self.output_features or {})})
        _drop_features(self, lambda key, feature: feature.type is not FeatureType.VISUAL and key != OBS_STATE)
        for key, feature in {**self.input_features, **(self.output_features or {})}.items():
            if not feature.shape or not all(isinstance(size, int) and size > 0 for size in feature.shape):
                raise ValueError(f"{key} has the shape {feature.shape}; expected whole numbers above zero")
        for index in range(self.empty_cameras):
            key = f"{OBS_IMAGES}.{EMPTY_CAMERA}_{index}"
            self.input_features.setdefault(key, PolicyFeature(type=FeatureType.VISUAL, shape=(3, 64, 64)))
        if not self.image_features:
            raise ValueError(
                f"no camera among the input features {sorted(self.input_features)}; this policy needs at least "
                "one observation.image or observation.images.<name>"
            )
        for key, feature in self.image_features.items():
            if len(feature.shape) != 3 or feature.shape[0] != (3 if key in self.cameras else 1):
                raise ValueError(
                    f"{key} has the shape {feature.shape}; expected (3, height, width), a colour picture, or, with "
                    "policy.position_3d, (1, height, width), the depth under one. Leave others out of "
                    "policy.input_features"
                )
        self._validate_space()
        for feature, key, name in (
            (self.robot_state_feature, OBS_STATE, "max_state_dim"),
            (self.action_feature, ACTION, "max_action_dim"),
        ):
            if feature is None:
                raise ValueError(
                    f"{key} is not among the features of the data set, which are {offered}; this policy needs it. "
                    "Rename the column that it is in the data set (--rename_map works with --policy.path alone)"
                )
            if len(feature.shape) != 1:
                raise ValueError(f"{key} has the shape {feature.shape}; expected a vector")
            if feature.shape[0] > getattr(self, name):
                raise ValueError(
                    f"{key} has {feature.shape[0]} dimensions and policy.{name} is {getattr(self, name)}; "
                    f"set --policy.{name}={feature.shape[0]} or more"
                )

    def _validate_space(self) -> None:
        if self.position_3d != "none" and not self.depth_cameras:
            raise ValueError(
                f"policy.position_3d={self.position_3d} and none of the cameras {self.cameras} has depth: expected a "
                f"feature such as {depth_key(self.cameras[0])} of the shape (1, height, width). Record with "
                "use_depth, or set policy.position_3d=none"
            )
        if self.position_3d == "cloud" and self.depth_cameras != self.cameras:
            unseen = [camera for camera in self.cameras if camera not in self.depth_cameras]
            raise ValueError(
                f"policy.position_3d=cloud sees points alone, and the cameras {unseen} have no depth. Leave them out "
                "of policy.input_features, or use policy.position_3d=world"
            )
        if self.camera_calibration is not None:
            check_calibration(self.camera_calibration, self.cameras)

    def set_dataset_feature_metadata(self, features: dict[str, Any]) -> None:
        """LeRobot calls this with the columns of the data set, which it has just made the features of."""
        depth = {key for key, feature in self.image_features.items() if key in features and feature.shape[0] == 1}
        seen = set() if self.position_3d == "none" else {depth_key(camera) for camera in self.cameras}
        if unseen := sorted(depth - seen):
            what = "colour pictures" if self.position_3d == "none" else "depth under colour pictures of the same name"
            logger.info(f"the policy sees {what}: it takes nothing of {unseen}")
        _drop_features(self, lambda key, _: key in unseen)
        if self.depth_cameras:
            self.camera_calibration = adopt_calibration(self, features)

    def leave_empty(self, cameras: Sequence[str]) -> None:
        """Make empty slots of the slots of these cameras, in their places."""
        config: Any = self
        features, depth = {}, {depth_key(camera) for camera in cameras}
        for key, feature in config.input_features.items():
            if key in depth:
                continue
            if key in cameras:
                key = f"{OBS_IMAGES}.{EMPTY_CAMERA}_{self.empty_cameras}"
                self.empty_cameras += 1
            features[key] = feature
        config.input_features = features
        if self.camera_calibration is not None:
            left = {camera: said for camera, said in self.camera_calibration.items() if camera not in cameras}
            self.camera_calibration = left or None


def _drop_features(config: Any, unused: Callable[[str, PolicyFeature], bool]) -> None:
    """Leave what the policy takes nothing of out of its features: it is then neither normalised nor asked for."""
    inputs, outputs = config.input_features or {}, config.output_features or {}
    config.input_features = {key: feature for key, feature in inputs.items() if not unused(key, feature)}
    config.output_features = {key: feature for key, feature in outputs.items() if key == ACTION}
