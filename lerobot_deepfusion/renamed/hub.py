"""`python -m lerobot_deepfusion.hub` of 0.1, which is `deepfusion card` now."""

from lerobot_deepfusion.renamed import renamed

if __name__ == "__main__":
    renamed("card")()
