"""Which policies may be served, and loading one: of this type only, all of it from one place.

A client names the policy that it wants. Whoever starts the server says what there is to choose from; a server that
only its own machine reaches may leave that open.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .messages import Instructions
from .refusal import Refused, invalid

if TYPE_CHECKING:
    from ..modeling_deepfusion import DeepFusionPolicy

DEVICE = re.compile(r"(cpu|mps|(cuda|xpu)(:\d{1,3})?)")
POLICY_TYPE = "deepfusion"


def checkpoint_folder(name: str) -> Path:
    """Where the files of a policy lie, after a look at all that may say what to load.

    Of a Hub repository the config is read first; then one commit of it is downloaded, from which everything comes.

    Args:
        name: directory, Hub id, or `<Hub id>@<revision>`.

    Raises:
        ValueError: if it is no deepfusion policy, or a file of it is damaged or names code.
        FileNotFoundError: if there is nothing of that name, or weights are missing.
    """
    from huggingface_hub import snapshot_download

    from .. import processor_deepfusion  # noqa: F401  # registers the steps that a checkpoint names
    from ..storage.checkpoint_config import read_checkpoint_config
    from ..storage.processor_files import check_checkpoint_files

    folder = Path(name)
    if not folder.is_dir():
        repo, _, revision = name.partition("@")
        try:
            read_checkpoint_config(repo, revision=revision or None)
            files = snapshot_download(repo, revision=revision or None, allow_patterns=["*.json", "*.safetensors"])
        except OSError as error:  # the Hub's are of that kind
            raise FileNotFoundError(
                f"{name} is no folder here, and on the Hub: {str(error).splitlines()[0]}"
            ) from error
        folder = Path(files)
    read_checkpoint_config(folder)
    check_checkpoint_files(folder)
    return folder


class Shelf:
    """The policies of a server.

    Args:
        names: what a client may choose from, each a directory, Hub id or `<Hub id>@<revision>`. Hub repositories are
            downloaded now, and served as they are now. Without any, a client names what it likes.

    Raises:
        ValueError, FileNotFoundError: for a name that can't be served.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.folders = {name: checkpoint_folder(name) for name in names}

    def find(self, instructions: Instructions) -> Path:
        """Where the policy lies that a client asks for; its files were looked at.

        Raises:
            Refused: if it may not have that one, or it is none that can be served.
        """
        if instructions.policy_type != POLICY_TYPE:
            raise invalid(
                f"policy_type={instructions.policy_type!r}: this server serves {POLICY_TYPE!r} only; start the "
                f"client with --policy_type={POLICY_TYPE}, or LeRobot's own server for others"
            )
        if self.folders and instructions.policy not in self.folders:
            raise Refused(
                "PERMISSION_DENIED",
                f"{instructions.policy!r:.300} is not served here; choose with --pretrained_name_or_path among "
                f"{', '.join(self.folders)}",
            )
        return self.folders.get(instructions.policy) or checkpoint_folder(instructions.policy)


def load_policy(folder: Path, device: str) -> tuple[DeepFusionPolicy, Any, Any]:
    """A policy on its device, with LeRobot's pre- and post-processor for it.

    Args:
        folder: of a checkpoint.
        device: as the client asks for it.

    Raises:
        Refused: if the device is no device.
        ValueError, RuntimeError: as `DeepFusionPolicy.from_pretrained`, or if there is no such device here.
    """
    from lerobot.policies.factory import make_pre_post_processors

    from ..modeling_deepfusion import DeepFusionPolicy

    if not DEVICE.fullmatch(device):
        raise invalid(
            f"device={device!r} is no device; start the client with --policy_device=cuda, cuda:1, mps or cpu"
        )
    policy = DeepFusionPolicy.from_pretrained(folder).to(device)
    on_device = {"device_processor": {"device": device}}
    as_named: dict[str, Any] = {"rename_observations_processor": {"rename_map": {}}}  # robots use the policy's names
    processors = make_pre_post_processors(
        policy.config,
        pretrained_path=str(folder),
        preprocessor_overrides={**on_device, **as_named},
        postprocessor_overrides=on_device,
    )
    return policy, *processors
