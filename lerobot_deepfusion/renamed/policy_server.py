"""`python -m lerobot_deepfusion.policy_server` of 0.1, which is `deepfusion serve` now."""

from lerobot_deepfusion.renamed import renamed

if __name__ == "__main__":
    renamed("serve")()
