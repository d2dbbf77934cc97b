"""A save that is whole or did not happen, and an error that says what a full disk lacks."""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch.distributed
from safetensors import SafetensorError

logger = logging.getLogger(__name__)

PARTIAL = ".partial"


@contextmanager
def whole_save(directory: Path, needed: int) -> Iterator[Path]:
    """A folder to write files into, which take their places in `directory` once all of them are written.

    So a save over an older one, as a resumed run makes of a checkpoint it reaches again, never leaves a torn file
    where a whole one was.

    Args:
        directory: exists.
        needed: bytes that will be written, for the message.

    Raises:
        OSError: naming the folder, the bytes needed and those free; what was half written is removed by then.
    """
    partial = directory / PARTIAL
    shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed here
    try:
        partial.mkdir()
        yield partial
        for file in partial.iterdir():
            os.replace(file, directory / file.name)
        partial.rmdir()
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        code = error_code(error)
        if code is None:
            raise
        raise OSError(
            code,
            f"{os.strerror(code)}: the policy was not saved to {directory}. It needs {needed:,} bytes and "
            f"{free_bytes(directory):,} are free there. What was saved before is as it was; "
            "`deepfusion recover <output_dir>` finds a run's last complete checkpoint",
        ) from error


def error_code(error: Exception) -> int | None:
    """The operating system's number; safetensors has it only in its text."""
    found = re.search(r"os error (\d+)", str(error))
    return getattr(error, "errno", None) or (int(found[1]) if found else None)


def is_main_process() -> bool:
    """Whether this process writes files: the first of several, or the only one."""
    return not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0


def free_bytes(directory: Path) -> int:
    return shutil.disk_usage(directory).free


def warn_of_little_room(directory: Path, needed: int) -> None:
    """LeRobot writes the optimizer's state next, and its error on a full disk names no file."""
    free = free_bytes(directory)
    if free < needed:
        logger.warning(
            f"The policy is saved to {directory}, but the optimizer's state needs {needed:,} bytes more and {free:,} "
            "are free: the run will probably stop now, and can't be resumed from this checkpoint"
        )
