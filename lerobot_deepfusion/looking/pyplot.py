"""Matplotlib, which draws into files alone and is not among what the policy itself needs."""

from __future__ import annotations

from typing import Any


def load_pyplot() -> Any:
    """
    Returns:
        `matplotlib.pyplot`. Call this before what takes long, so that nothing is lost where it is not installed.

    Raises:
        ImportError: without Matplotlib.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError('pictures need Matplotlib: pip install "lerobot_policy_deepfusion[look]"') from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot
