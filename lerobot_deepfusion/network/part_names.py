"""The parts of the network as users know them, told from parameter names."""

from __future__ import annotations

VISION, PROJECTOR, POSITIONS, TEXT, EXPERT = PARTS = (
    *("vision tower", "projector"),
    "positions",  # of points in space; trained whatever of the VLM is frozen
    *("text model", "expert"),
)
PREFIXES = {
    "perception.vision_tower.": VISION,
    "position_3d.": POSITIONS,
    "perception.language_model.": TEXT,
    "expert.": EXPERT,
}


def part_of(name: str) -> str:
    """The part that a parameter or module of `DeepFusionModel` belongs to; an image newline is the projector's."""
    return next((part for prefix, part in PREFIXES.items() if name.startswith(prefix)), PROJECTOR)
