"""A folder, or the name of a model on the Hub: told apart before either is asked for."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id


def check_place(what: str, place: str) -> str:
    """The place itself, with `~` as the home directory.

    Args:
        what: is looked for, for the message.
        place: a directory, or a Hub id.

    Raises:
        FileNotFoundError: if it is neither a directory that is there nor a name that the Hub could know.
    """
    folder = Path(place).expanduser()
    if folder.is_dir():
        return str(folder)
    try:
        validate_repo_id(place)
    except HFValidationError:
        parent = next((parent for parent in folder.absolute().parents if parent.is_dir()), folder)
        raise FileNotFoundError(
            f"{what} is to be at {place!r}, and there is no such directory (what is there is {parent}); a model on "
            "the Hub is named 'owner/model'"
        ) from None
    return place
