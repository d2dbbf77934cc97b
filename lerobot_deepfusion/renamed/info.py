"""`python -m lerobot_deepfusion.info` of 0.1, which is `deepfusion info` now."""

from lerobot_deepfusion.renamed import renamed

if __name__ == "__main__":
    renamed("info")()
