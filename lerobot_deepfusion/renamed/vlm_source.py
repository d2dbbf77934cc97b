"""`lerobot_deepfusion.vlm_source` of 0.1, which is `lerobot_deepfusion.llava.reader` now; gone with 0.3."""

from lerobot_deepfusion.llava.reader import check_vlm_config, read_tokenizer, read_vlm_config

__all__ = ["check_vlm_config", "read_tokenizer", "read_vlm_config"]
