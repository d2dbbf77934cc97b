"""What `deepfusion look` and `open-loop` found of a checkpoint, for its card: a picture and a sentence each."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class CardPicture:
    """A section of the card.

    Attributes:
        title: of the section.
        picture: its file, beside the card.
        said: what the command that drew it says under it.
    """

    title: str
    picture: str
    said: str


def take_look(checkpoint: Path, folder: Path) -> CardPicture:
    """Copy what `deepfusion look` drew into the checkpoint; see `_found` for errors."""
    found = _found(checkpoint, folder, "look.json", "strip.png", "look.png")
    where = f"frames of {found['dataset']}" if "dataset" in found else f"an episode of {found['env'].get('task')}"
    how = "the expert's attention" if found["by"] == "attention" else "how far the chunk moves when a cell is hidden"
    return CardPicture("What it looks at", "look.png", f"Heat, over {where}, is {how}: {found['said']}.")


def take_open_loop(checkpoint: Path, folder: Path) -> CardPicture:
    """Copy what `deepfusion open-loop` drew into the checkpoint; see `_found` for errors."""
    found = _found(checkpoint, folder, "open_loop.json", "open_loop.png", "open_loop.png")
    errors = ", ".join(f"{name} {error:.3f}" for name, error in found["error"].items())
    held_out = "that it was not trained on" if found["held_out"] else "not known to be held out from its training"
    return CardPicture(
        "What it would have done",
        "open_loop.png",
        f"Its chunks beside recorded ones of episodes {', '.join(found['episodes'])}, {held_out}. Errors in the "
        f"units that it normalises to: {errors}, always zero {found['error_of_the_mean_action']:.3f}.",
    )


def _found(checkpoint: Path, folder: Path, numbers: str, picture: str, name: str) -> dict[str, Any]:
    """Numbers of a command's folder, whose picture is copied into the checkpoint under `name`.

    Raises:
        FileNotFoundError: if one of the two is not there.
        ValueError: if they are of another checkpoint.
    """
    for file in (numbers, picture):
        if not (folder / file).is_file():
            raise FileNotFoundError(f"{folder} has no {file}; give the --output-dir of the command that wrote it")
    found = json.loads((folder / numbers).read_text())
    if Path(found["checkpoint"]).resolve() != checkpoint.resolve():
        raise ValueError(
            f"{folder} is of the checkpoint {found['checkpoint']}, and the card is of {checkpoint}; run the command "
            "on this one"
        )
    shutil.copyfile(folder / picture, checkpoint / name)
    return found
