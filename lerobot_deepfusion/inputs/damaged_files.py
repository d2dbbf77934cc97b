"""Files of a data set that were cut short, named: the decoders' own errors often do not name them.

A policy checks the videos as training starts. A damaged table stops LeRobot before there is a policy; this names it:

    deepfusion check-data <root of the data set>

Only the files' own sizes are compared with what they say of themselves: no frame is decoded, no row is read.
"""

from __future__ import annotations

from pathlib import Path

PARQUET = b"PAR1"


def video_fault(path: Path) -> str | None:
    """Why an MP4 file can't be whole: its top-level boxes state their lengths, and one of them is the index."""
    size, at, kinds = path.stat().st_size, 0, set()
    with path.open("rb") as file:
        while at < size:
            file.seek(at)
            head = file.read(16)
            length = int.from_bytes(head[:4], "big")
            if length == 1:
                length = int.from_bytes(head[8:], "big")
            elif length == 0:  # to the end of the file
                length = size - at
            if len(head) < 8 or length < 8:
                return "is not a whole MP4 file"
            kinds.add(head[4:8])
            at += length
    if at > size:
        return f"is cut short: it has {size:,} bytes of at least {at:,}"
    return None if b"moov" in kinds else "has no index (its `moov` box is missing)"


def table_fault(path: Path) -> str | None:
    """Why a Parquet file can't be whole: it ends with the length of its footer and a mark."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(4)
        file.seek(max(size - 8, 0))
        end = file.read()
    if start != PARQUET or end[4:] != PARQUET or int.from_bytes(end[:4], "little") + 12 > size:
        return "is cut short or not a Parquet file: its footer is missing"
    return None


def damaged_files(root: Path, videos_only: bool = False) -> list[str]:
    """Each damaged file of a data set, with what is wrong."""
    checks = {"*.mp4": video_fault} if videos_only else {"*.mp4": video_fault, "*.parquet": table_fault}
    found = ((path, check(path)) for pattern, check in checks.items() for path in sorted(root.rglob(pattern)))
    return [f"{path} {why}" for path, why in found if why]


def check_videos(root: Path) -> None:
    """
    Raises:
        ValueError: naming each video file that is not whole.
    """
    damaged = damaged_files(root / "videos", videos_only=True)
    if damaged:
        raise ValueError("\n".join(["the data set can't be read:", *damaged, "copy or download these files again"]))
