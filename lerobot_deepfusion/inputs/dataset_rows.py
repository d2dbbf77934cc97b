"""Numbers of a data set's tables, read before training: without pictures, and of a large one only a part."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

FILES = 4  # of a data set of more tables, so many are read, spread over it


@dataclass
class Rows:
    """Some rows of one column.

    Attributes:
        values: [N, P], as they are stored.
        episode, frame: where each stands, [N].
    """

    values: np.ndarray
    episode: np.ndarray
    frame: np.ndarray

    def __getitem__(self, rows: np.ndarray) -> Rows:
        return Rows(self.values[rows], self.episode[rows], self.frame[rows])

    def places(self, rows: np.ndarray) -> str:
        """The first few of some rows, for a message."""
        places = [f"frame {self.frame[row]} of episode {self.episode[row]}" for row in rows[:3]]
        return ", ".join(places) + (f" and {len(rows) - 3} more" if len(rows) > 3 else "")


def read_rows(root: Path, column: str, episodes: Sequence[int], everything: bool = False) -> Iterator[Rows]:
    """A column's rows, table by table.

    Args:
        root: of the data set. Where there are no tables (a streamed one) nothing is given.
        column: of numbers.
        episodes: of which rows are wanted.
        everything: read every table; else up to `FILES` of them.
    """
    import pyarrow.parquet as parquet

    files = sorted((root / "data").rglob("*.parquet"))
    if not everything and len(files) > FILES:
        files = [files[round(place)] for place in np.linspace(0, len(files) - 1, FILES)]
    for file in files:
        if column not in parquet.read_schema(file).names:
            continue
        table = parquet.read_table(file, columns=[column, "episode_index", "frame_index"])
        episode, frame = (table[name].to_numpy() for name in ("episode_index", "frame_index"))
        values = table[column].combine_chunks()
        while hasattr(values, "flatten") and str(values.type).startswith(("list", "fixed_size_list")):
            values = values.flatten()
        flat = values.to_numpy(zero_copy_only=False)
        if len(episode) and flat.dtype != object and len(flat) % len(episode) == 0:
            wanted = np.isin(episode, np.asarray(list(episodes)))
            yield Rows(flat.reshape(len(episode), -1), episode, frame)[wanted]
