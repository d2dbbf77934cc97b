"""Weights on disk, read one tensor at a time so that no second copy of a model is ever in memory."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from accelerate import init_empty_weights
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn


def empty_weights() -> AbstractContextManager:
    """Within it modules are built without memory for their parameters; buffers are real."""
    return init_empty_weights(include_buffers=False)


@dataclass(frozen=True)
class StoredTensor:
    """A tensor still in its file; indexing reads it, which is all that transformers' loader does with it.

    Each read opens the file anew and copies: a tensor that is only mapped keeps the pages of all the file that
    were touched, and changes when the file does.
    """

    path: Path
    key: str

    def __getitem__(self, index: object) -> Tensor:
        with safe_open(self.path, framework="pt") as file:
            return file.get_slice(self.key)[index].clone()


def stored_tensors(files: Iterable[Path]) -> dict[str, StoredTensor]:
    """Every tensor of some safetensors files, by name.

    Raises:
        ValueError: for a file that is not whole.
    """
    stored: dict[str, StoredTensor] = {}
    for path in files:
        try:
            with safe_open(path, framework="pt") as file:
                stored |= {key: StoredTensor(path, key) for key in file.keys()}  # noqa: SIM118  # not a dict
        except SafetensorError as error:
            raise ValueError(
                f"{path} is not a complete safetensors file ({error}); copy or download it again"
            ) from error
    return stored


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a transformers checkpoint, single or sharded.

    Raises:
        FileNotFoundError: if there are none, or a shard is missing.
    """
    index = folder / "model.safetensors.index.json"
    names = set(json.loads(index.read_text())["weight_map"].values()) if index.exists() else {"model.safetensors"}
    missing = sorted(name for name in names if not (folder / name).is_file())
    if missing:
        raise FileNotFoundError(f"{folder} has no {', '.join(missing)}; weights are read from safetensors files only")
    return [folder / name for name in sorted(names)]


def load_weights(module: nn.Module, stored: dict[str, StoredTensor], source: object) -> None:
    """Give a module built under `empty_weights` its weights, in the type that they are stored in.

    Nothing is changed unless every weight is there, has its shape, and none is left over.

    Args:
        module: parameters and persistent buffers are replaced.
        stored: by the module's own names.
        source: named in the error.

    Raises:
        RuntimeError: naming the weights that are missing, left over or of another shape.
    """
    wanted = module.state_dict()
    problems = {"missing": wanted.keys() - stored.keys(), "left over": stored.keys() - wanted.keys()}
    read = {key: stored[key][...] for key in wanted.keys() & stored.keys()}
    problems["of another shape"] = {key for key, value in read.items() if value.shape != wanted[key].shape}
    if any(problems.values()):
        raise RuntimeError(
            f"{source} does not fit this policy. "
            + "; ".join(f"{len(keys)} {what}: {some(keys)}" for what, keys in problems.items() if keys)
        )
    module.load_state_dict(read, assign=True)


def some(keys: Iterable[str]) -> str:
    """The first few names, for a message."""
    names = sorted(keys)
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
