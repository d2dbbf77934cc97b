"""`python -m lerobot_deepfusion.adapters base` and `merge` of 0.1, which are `deepfusion base` and `merge` now."""

import sys

from lerobot_deepfusion.renamed import renamed

if __name__ == "__main__":
    renamed(sys.argv.pop(1) if len(sys.argv) > 1 else "--help")()
