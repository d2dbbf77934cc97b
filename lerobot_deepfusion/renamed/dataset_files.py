"""`python -m lerobot_deepfusion.dataset_files` of 0.1, which is `deepfusion check-data` now."""

from lerobot_deepfusion.renamed import renamed

if __name__ == "__main__":
    renamed("check-data")()
