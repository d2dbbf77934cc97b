"""What a checkpoint's processor files may name, looked at before LeRobot loads them.

LeRobot's loader imports whatever `class` path such a file names and calls what it finds there with arguments from
the file (`os.system` included), and joins `state_file` to the directory, wherever that leads. Its commands and the
policy server load the policy first, so the policy looks at these files too, and so does LeRobot's factory before it
loads processors for a config of this policy (`checked_loading`). What neither sees: a pipeline that is loaded by
itself, without a config (`PolicyProcessorPipeline.from_pretrained`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub.constants import SAFETENSORS_SINGLE_FILE
from lerobot.processor import ProcessorStepRegistry
from lerobot.utils.constants import POLICY_POSTPROCESSOR_DEFAULT_NAME, POLICY_PREPROCESSOR_DEFAULT_NAME

from .checkpoint_place import file_of
from .safetensors_files import is_file_name, stored_tensors

PROCESSOR_FILES = (f"{POLICY_PREPROCESSOR_DEFAULT_NAME}.json", f"{POLICY_POSTPROCESSOR_DEFAULT_NAME}.json")
# LeRobot's steps that compute and do nothing else. Others of its registry load tokenizers and models by a name in
# the file, `action_tokenizer_processor` with `trust_remote_code` on.
LEROBOT_STEPS = {
    "absolute_actions_processor",
    "device_processor",
    "image_crop_resize_processor",
    "libero_processor",
    "normalizer_processor",
    "numpy2torch_action_processor",
    "observation_processor",
    "relative_actions_processor",
    "rename_observations_processor",
    "to_batch_processor",
    "to_batch_processor_action",
    "to_batch_processor_complementary_data",
    "to_batch_processor_observation",
    "torch2numpy_action_processor",
    "unnormalizer_processor",
}


def check_checkpoint_files(source: str | Path, **hub: Any) -> None:
    """Whether the weights are there and the processor files are safe to load.

    Args:
        source: directory or Hub id; of the latter the two processor files are downloaded, as LeRobot does next.
        hub: `revision`, `token` and the like.

    Raises:
        FileNotFoundError: if a directory lacks `model.safetensors` or a state file.
        ValueError: if a processor file is damaged, or names code or a file outside; the message says which.
    """
    folder = Path(source)
    local = folder.is_dir()
    if local and not (folder / SAFETENSORS_SINGLE_FILE).is_file():
        raise FileNotFoundError(
            f"{folder} has no {SAFETENSORS_SINGLE_FILE}; weights are read from safetensors files only, never from "
            "pickled ones (.bin, .pt, .ckpt), which can run code"
        )
    check_processor_files(source, PROCESSOR_FILES, **hub)


def check_processor_files(source: str | Path, names: Sequence[str], **hub: Any) -> None:
    """Whether processor files, where they are there, are safe to load; see `check_checkpoint_files`."""
    for name in names:
        path = file_of(source, name, hub)
        if path is not None:  # a policy without processors is one that LeRobot refuses next
            _check_processor_file(path, with_state=Path(source).is_dir())


def _check_processor_file(path: Path, with_state: bool) -> None:
    try:
        processor = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON, as a processor file is: {error}") from error
    steps = processor.get("steps") if isinstance(processor, dict) else None
    if not isinstance(steps, list) or not isinstance(processor.get("name", ""), str):
        raise ValueError(f"{path} is no processor file: expected a 'name' and a list of 'steps'")
    for index, step in enumerate(steps):
        where = f"{path}, step {index}"
        if not isinstance(step, dict) or not isinstance(step.get("config", {}), dict):
            raise ValueError(f"{where}: expected a 'registry_name', a 'config' and perhaps a 'state_file'")
        _check_step_name(step, where)
        _check_artifacts(step, where)
        if "state_file" not in step:
            continue
        state_file = step["state_file"]
        if not is_file_name(state_file):
            raise ValueError(
                f"{where}: state_file={state_file!r:.200} is no file name inside the checkpoint's directory"
            )
        if with_state:
            if not (path.parent / state_file).is_file():
                raise FileNotFoundError(f"{where}: there is no {state_file} beside it")
            stored_tensors([path.parent / state_file])  # a damaged one stops here, with its name


def _check_artifacts(step: dict[str, Any], where: str) -> None:
    """Folders that a step wants to read, as LeRobot after 0.6.1 saves them: inside the checkpoint, or not at all."""
    artifacts = step.get("artifacts") or {}
    inside = isinstance(artifacts, dict) and all(
        isinstance(path, str) and path and not PurePosixPath(path).is_absolute() and ".." not in path.split("/")
        for path in artifacts.values()
    )
    if not inside or "\\" in str(artifacts):
        raise ValueError(f"{where}: artifacts={artifacts!r:.200} are no paths inside the checkpoint's directory")


def _check_step_name(step: dict[str, Any], where: str) -> None:
    name = step.get("registry_name")
    if not isinstance(name, str):
        raise ValueError(
            f"{where}: steps are taken by 'registry_name' only, found {step.get('class', name)!r:.200}; importing "
            "what a file names would run its code. Register the step with ProcessorStepRegistry"
        )
    if name not in ProcessorStepRegistry.list():
        raise ValueError(f"{where}: no step is registered as {name!r:.200}; import the package that registers it")
    ours = not ProcessorStepRegistry.get(name).__module__.startswith("lerobot.")
    if not ours and name not in LEROBOT_STEPS:
        raise ValueError(
            f"{where}: {name!r} is a step of LeRobot that this policy has no use for, and some of those load code or "
            f"models by name; expected one of {', '.join(sorted(LEROBOT_STEPS))} or a step registered elsewhere"
        )
