"""What a checkpoint was trained with, against the config that it is to be run with.

    comes from the checkpoint alone ..... `checkpoint_config.ARCHITECTURE`, and `TRAINED` unless it is trained on
    may change at any time .............. everything else; of a policy that acts these matter: `RUN_TIME`

A change of `RUN_TIME` on a policy that is built counts from the next action; one of the others is refused there too.
"""

from __future__ import annotations

import copy
import logging
from typing import Any

from lerobot.utils.constants import ACTION, OBS_STATE

from ..configuration_deepfusion import DeepFusionConfig
from ..inputs.dataset_facts import DatasetFacts
from ..inputs.identity import check_names, displaced, slots
from .checkpoint_config import ARCHITECTURE, of_another_revision, where

logger = logging.getLogger(__name__)

TRAINED = (
    "chunk_size",
    "normalization_mapping",
    "cameras",
    "depth",
    "state",
    "action",
    "state names",
    "action names",
)
RUN_TIME = (
    "n_action_steps",
    "num_inference_steps",
    "tokenizer_max_length",
    "dtype",
    "rtc_config",
    "rtc_training_max_delay",
)


def trained_settings(config: DeepFusionConfig) -> dict[str, Any]:
    """The values of `TRAINED`, so that equal ones are equal however they were written."""
    state, action, mapping = config.robot_state_feature, config.action_feature, config.normalization_mapping
    return {
        "chunk_size": config.chunk_size,
        "normalization_mapping": {name: str(getattr(mode, "value", mode)) for name, mode in sorted(mapping.items())},
        "cameras": list(config.cameras),
        "depth": list(config.depth_cameras),
        "state": None if state is None else list(state.shape),
        "action": None if action is None else list(action.shape),
        "state names": _known(config.state_feature_names, state),
        "action names": _known(config.action_feature_names, action),
    }


def _known(names: list[str] | None, feature: Any) -> list[str] | None:
    return list(names) if names and feature is not None and len(names) == feature.shape[0] else None


def require_trained_settings(
    config: DeepFusionConfig, saved: DeepFusionConfig, source: object, revision: Any
) -> None:
    """For acting: what was trained is what is run.

    Args:
        config: to be run; its cameras are put into the slots that they were trained in.
        saved: of the checkpoint.
        source: where that is.
        revision: of it, if it is on the Hub and one was asked for.

    Raises:
        ValueError: naming what differs, with both values.
    """
    map_cameras(config, saved)
    given, trained = trained_settings(config), trained_settings(saved)
    different = [name for name in TRAINED if given[name] != trained[name]]
    if different:
        found = ", ".join(f"{name}={given[name]} (checkpoint: {trained[name]})" for name in different)
        raise ValueError(
            f"the config given is not the one that the weights of {where(source, revision)} were trained with: "
            f"{found}. These come from the checkpoint, and acting takes no others: leave them out, or take an "
            f"environment or robot like the one that was trained on. {of_another_revision(revision)}"
        )
    if config.rtc_training_max_delay > saved.rtc_training_max_delay:
        raise ValueError(
            f"policy.rtc_training_max_delay={config.rtc_training_max_delay} and {where(source, revision)} was "
            f"trained with {saved.rtc_training_max_delay}: it never learned to go on from so many actions. Leave the "
            "option out; with 0 real-time chunking guides the flow instead"
        )


def map_cameras(config: DeepFusionConfig, saved: DeepFusionConfig) -> None:
    """Every camera that was trained into its own slot, in whatever order the config has them."""
    order = slots(config.cameras, saved.cameras)
    if order != config.cameras:
        features = dict(config.input_features or {})
        others = {key: feature for key, feature in features.items() if key not in order}
        config.input_features = {**{key: features[key] for key in order}, **others}
    if new := [camera for camera in config.cameras if camera not in saved.cameras]:
        logger.warning(
            f"cameras {new} take slots of the policy that {saved.cameras} were trained in; the slots are now "
            f"{config.cameras}"
        )
    own = {camera: slot for slot, camera in enumerate(saved.cameras)}
    if moved := [camera for slot, camera in enumerate(config.cameras) if own.get(camera, slot) != slot]:
        logger.warning(
            f"cameras {moved} are seen in other slots than they were trained in, since there are fewer than the "
            f"{len(own)} of {saved.cameras}; the slots are now {config.cameras}"
        )


def adopt_dataset(config: DeepFusionConfig, saved: DeepFusionConfig, meta: Any, source: object) -> None:
    """For training on: the data set is of the robot that was trained, or one of other sizes, or said to be another.

    LeRobot takes the action's size from the data set, and leaves the state's.

    Args:
        config: to be trained; `state_feature_names=None` where `saved` has names says that it is another robot.
        saved: of the checkpoint.
        meta: of the data set.
        source: where the checkpoint is.

    Raises:
        ValueError: if joints have other names, or another order.
    """
    map_cameras(config, saved)
    facts, trained = DatasetFacts(meta), trained_settings(saved)
    column = facts.features.get(facts.column(OBS_STATE))
    if column is not None and config.robot_state_feature is not None:
        config.robot_state_feature.shape = tuple(column["shape"])
    another = saved.state_feature_names is not None and config.state_feature_names is None
    for key, expected in ((OBS_STATE, trained["state names"]), (ACTION, trained["action names"])):
        found = facts.names(key)
        if not another and (len(found or ()) == len(expected or ()) or displaced(found, expected)):
            remove = "remove the names from its config.json"
            mend = "give --policy.state_feature_names=null" if saved.state_feature_names else remove
            check_names(
                key,
                found,
                expected,
                f"the data set {meta.repo_id}",
                f"These are the joints that {source} was trained on. Put the data set's columns into that order, or, "
                f"to train on for another robot, {mend}",
            )


def adopt_names(config: DeepFusionConfig, meta: Any) -> None:
    """The data set's names; without any, none, since those of a base may be another robot's."""
    facts = DatasetFacts(meta)
    config.state_feature_names, config.action_feature_names = facts.names(OBS_STATE), facts.names(ACTION)


class BuiltSettings:
    """What a policy was built with, to notice when its config is changed afterwards."""

    NAMES = (*ARCHITECTURE, "compile_model")

    def __init__(self, config: DeepFusionConfig) -> None:
        self.values = copy.deepcopy(self._of(config))
        self.most = config.rtc_training_max_delay

    def _of(self, config: DeepFusionConfig) -> dict[str, Any]:
        return {**{name: getattr(config, name) for name in self.NAMES}, **trained_settings(config)}

    def require(self, config: DeepFusionConfig) -> None:
        """
        Raises:
            ValueError: naming what was changed.
        """
        now = self._of(config)
        changed = [name for name, value in self.values.items() if now[name] != value]
        changed += ["rtc_training_max_delay (above what it was)"] * (config.rtc_training_max_delay > self.most)
        if changed:
            raise ValueError(
                f"policy.config was changed in {', '.join(changed)} after the policy was built, which can't follow. "
                f"What may change is {', '.join(RUN_TIME)}; for the rest build or load a policy anew"
            )
