"""`python -m lerobot_deepfusion.recover` of 0.1, which is `deepfusion recover` now."""

from lerobot_deepfusion.renamed import renamed

if __name__ == "__main__":
    renamed("recover")()
