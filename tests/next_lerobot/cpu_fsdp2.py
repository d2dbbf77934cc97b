"""`lerobot-train` of a LeRobot after 0.6.1 by FSDP2 on CPU processes, which accelerate takes for GPUs alone."""

from __future__ import annotations

from lerobot.scripts.lerobot_train import main

from tests.training.cpu_fsdp import take_plugin

if __name__ == "__main__":
    take_plugin()
    main()
