"""`python -m lerobot_deepfusion.demos` of 0.1, which is `deepfusion demos` now."""

from lerobot_deepfusion.renamed import renamed

if __name__ == "__main__":
    renamed("demos")()
