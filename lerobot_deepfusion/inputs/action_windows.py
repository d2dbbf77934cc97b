"""A chunk's actions are read from a data set without the pictures beside them.

A sample has one picture of each camera and `chunk_size` actions. LeRobot 0.6.1 fetches those actions as whole rows:
where pictures lie in the tables (image data sets, as `deepfusion demos` records and many others are) it decodes
each row's, and drops all of them. Its development tree reads columns alone (huggingface/lerobot, pull request 4314);
until a release does, the data sets of a policy that is being trained do it here.
"""

from __future__ import annotations

from typing import Any

from lerobot.datasets.dataset_reader import DatasetReader

from .dataset_facts import DatasetFacts


class ColumnReader(DatasetReader):
    """LeRobot's reader, which for what it queries by rows sees the queried columns alone.

    A class of a module and not a function on the instance, so that workers of a loader get it however they start.
    """

    hf_dataset: Any
    _narrow: tuple[Any, Any] | None = None  # the table, and its queried columns

    def _query_hf_dataset(self, query_indices: dict[str, list[int]]) -> dict[str, Any]:
        whole = self.hf_dataset
        if self._narrow is None or self._narrow[0] is not whole:
            columns = [key for key in query_indices if key in whole.column_names]
            self._narrow = whole, whole.select_columns(columns)
        self.hf_dataset = self._narrow[1]
        try:
            return super()._query_hf_dataset(query_indices)
        finally:
            self.hf_dataset = whole


def read_actions_alone(meta: Any) -> None:
    """Of every data set of this metadata that is in use."""
    for dataset in DatasetFacts(meta).datasets:
        reader = getattr(dataset, "reader", None)  # a streamed one has none
        if type(reader) is DatasetReader:
            reader.__class__ = ColumnReader
