"""Weights on disk, read one tensor at a time so that no second copy of a model is ever in memory."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn


@dataclass(frozen=True)
class StoredTensor:
    """A tensor still in its file; indexing reads it, which is all that transformers' loader does with it.

    Each read opens the file anew and copies: a tensor that is only mapped keeps the pages of all the file that
    were touched, and changes when the file does.
    """

    path: Path
    key: str
    dimensions: tuple[int, ...]

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
                for key in file.keys():  # noqa: SIM118  # not a dict
                    stored[key] = StoredTensor(path, key, tuple(file.get_slice(key).get_shape()))
        except SafetensorError as error:
            raise ValueError(
                f"{path} is not a complete safetensors file ({error}); copy or download it again"
            ) from error
    return stored


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a transformers checkpoint, single or sharded.

    Raises:
        FileNotFoundError: if there are none, or a shard is missing.
        ValueError: if the index is damaged, or names a file elsewhere.
    """
    index = folder / "model.safetensors.index.json"
    names = _shards(index) if index.exists() else {"model.safetensors"}
    missing = sorted(name for name in names if not (folder / name).is_file())
    if missing:
        raise FileNotFoundError(f"{folder} has no {', '.join(missing)}; weights are read from safetensors files only")
    return [folder / name for name in sorted(names)]


def _shards(index: Path) -> set[str]:
    try:
        shards = list(json.loads(index.read_bytes())["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{index} is damaged: expected a 'weight_map' of weights to files ({error!r})") from error
    for name in shards:
        if not is_file_name(name):
            raise ValueError(f"{index} names {name!r:.200}, which is no file name inside its directory")
    return set(shards)


def is_file_name(name: object) -> bool:
    """Whether it names a file of the directory that it is joined to, on any system."""
    return isinstance(name, str) and bool(name.strip(". ")) and not any(char in name for char in "/\\:\0")


def load_weights(
    module: nn.Module, stored: dict[str, StoredTensor], source: object, new: Collection[str] = ()
) -> None:
    """Give a module built under `empty_weights` its weights, in the type that they are stored in.

    Nothing is changed unless every weight is there, has its shape, and none is left over.

    Args:
        module: parameters and persistent buffers are replaced.
        stored: by the module's own names.
        source: named in the error.
        new: names of weights that are not stored and stay as they are.

    Raises:
        RuntimeError: naming the weights that are missing, left over or of another shape.
    """
    wanted = {key: value for key, value in module.state_dict().items() if key not in new}
    problems = {"missing": wanted.keys() - stored.keys(), "left over": stored.keys() - wanted.keys()}
    both = wanted.keys() & stored.keys()
    problems["of another shape"] = {key for key in both if stored[key].dimensions != wanted[key].shape}
    if any(problems.values()):
        raise RuntimeError(
            f"{source} does not fit this policy. "
            + "; ".join(f"{len(keys)} {what}: {some(keys)}" for what, keys in problems.items() if keys)
        )
    module.load_state_dict({key: stored[key][...] for key in wanted}, assign=True, strict=not new)


def some(keys: Iterable[str]) -> str:
    """The first few names, for a message."""
    names = sorted(keys)
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
