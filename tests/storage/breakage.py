"""What may befall a run of `lerobot-train`: called in the process that becomes the run, before it starts."""

from __future__ import annotations

import json
import os
import resource
import signal
from pathlib import Path

import safetensors.torch
import torch
from torch.utils.data import DataLoader

from lerobot_deepfusion.modeling_deepfusion import DeepFusionPolicy


def prepare(losses: Path, tear: tuple[str, float] | None = None, largest_file: int | None = None) -> None:
    """Write one loss a step to a file, and break the run.

    Args:
        losses: the file, of one repr of a float a step.
        tear: end of a path, and the share of that file that is written before SIGKILL.
        largest_file: bytes, as `ulimit -f`.
    """
    own_generator_for_loaders()
    record_losses(losses)
    if tear:
        tear_at(*tear)
    if largest_file:  # Python ignores SIGXFSZ, so that a write fails in place of the process
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, resource.RLIM_INFINITY))


def tear_at(end: str, share: float) -> None:
    """Die inside the write of the file whose path ends so; `last` is the link, which has no inside."""
    serialize, dump, symlink = safetensors.torch.serialize_file, json.dump, Path.symlink_to

    def die(path: str | os.PathLike, whole: bytes) -> None:
        Path(path).write_bytes(whole[: int(len(whole) * share)])
        os.kill(os.getpid(), signal.SIGKILL)

    def torn_serialize(tensors: dict, path: str | os.PathLike, *args: object, **kwargs: object) -> None:
        serialize(tensors, path, *args, **kwargs)
        if str(path).endswith(end):
            die(path, Path(path).read_bytes())

    def torn_dump(value: object, file: object, **kwargs: object) -> None:
        if str(getattr(file, "name", "")).endswith(end):
            die(file.name, json.dumps(value, **kwargs).encode())
        dump(value, file, **kwargs)

    def torn_symlink(self: Path, target: str | os.PathLike, **kwargs: object) -> None:
        if f"{self.name}->{target}".endswith(end):
            os.kill(os.getpid(), signal.SIGKILL)
        symlink(self, target, **kwargs)

    safetensors.torch.serialize_file, json.dump, Path.symlink_to = torn_serialize, torn_dump, torn_symlink


def record_losses(path: Path) -> None:
    forward = DeepFusionPolicy.forward

    def recorded(self: DeepFusionPolicy, *args: object, **kwargs: object) -> tuple:
        result = forward(self, *args, **kwargs)
        with path.open("a") as file:
            file.write(f"{result[0].item()!r}\n")
        return result

    DeepFusionPolicy.forward = recorded


def own_generator_for_loaders() -> None:
    """A loader draws one seed as it starts, so also when a run resumes; not from the noise's generator here.

    Otherwise the noise of a resumed run on a CPU is that of an undisturbed run shifted by this draw.
    """
    init = DataLoader.__init__

    def with_generator(self: DataLoader, *args: object, **kwargs: object) -> None:
        kwargs["generator"] = kwargs.get("generator") or torch.Generator()
        init(self, *args, **kwargs)

    DataLoader.__init__ = with_generator
