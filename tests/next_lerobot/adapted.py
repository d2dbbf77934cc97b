"""LeRobot's own tests of its policies, for this one: copied out of a checkout with other names in the same places.

Nothing else of them is changed, so that they ask of this policy what they ask of LeRobot's. Those that take a policy
or data set from the Hub get one from a folder.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

# What is put for what, in each file; which of its tests are taken (all, where nothing is said).
POLICIES = (
    (r"AVAILABLE_POLICIES = \[.*?\n\]", 'AVAILABLE_POLICIES = ["deepfusion"]'),
    (r"""(get_policy_class|make_policy_config)\("act"\)""", r'\1("deepfusion")'),
    (
        r"""make_policy_config\(("deepfusion"|policy_name)\)""",
        r'make_policy_config(\1, vlm_path="tiny", device="cpu")',
    ),
    (r"config = ACTConfig\(", "config = DeepFusionConfig("),
    (r"^from lerobot\.policies\.vqbet.*$", ""),
    (
        r"^AVAILABLE_POLICIES",
        "from lerobot_deepfusion.modeling_deepfusion import DeepFusionConfig\nAVAILABLE_POLICIES",
    ),
)
PEFT = (
    (r'\["smolvla"\]', '["deepfusion"]'),
    (r'return "lerobot/smolvla_base"', 'return "{base}"'),
    (r'policy_type == "smolvla"', 'policy_type == "deepfusion"'),
    (r'"--dataset.repo_id=lerobot/pusht",', '"--dataset.repo_id=local/noise", "--dataset.root={data}",'),
    (r"--peft\.method(_type)?=", "--peft.method_type="),  # which 0.6.1's test calls by an older name
    # What is trained whole beside the adapters is the expert here.
    (r'"state_proj",\s+"action_in_proj",[^]]*', '"state_in_proj", "action_in_proj", "action_out_proj", "time_mlp"'),
)
CAMERAS = (
    (r'pretrained_path = "lerobot/smolvla_base"', 'pretrained_path = "{three_cameras}"'),
    (r'"smolvla",\n', '"deepfusion",\n'),
    (r"^@pytest.mark.skip.*$", ""),
    (r"^    _dataset, root", "    import lerobot_policy_deepfusion\n    _dataset, root"),
)
RTC = (
    (r"^@require_cuda$", ""),
    (r"from lerobot.policies.pi0 import .*", "{imports}"),
    (r"PI0Config\(", 'DeepFusionConfig(vlm_path="tiny", device="cpu", '),
    (r"PI0Policy\(", "DeepFusionPolicy("),
    (r"make_pi0_pre", "make_deepfusion_pre"),
    (r"policy\.model\.sample_noise\(", "sample_noise("),
)
IMPORTS = """
from lerobot.policies.common.flow_matching import sample_noise
from lerobot_deepfusion.modeling_deepfusion import DeepFusionConfig, DeepFusionPolicy
from lerobot_deepfusion.processor_deepfusion import make_deepfusion_pre_post_processors
"""
FILES = {
    "policies/test_policies.py": (
        POLICIES,
        "get_policy_and_config or policy_defaults or save_and_load or save_pretrained or multikey",
    ),
    "policies/pi0_pi05/test_pi0_rtc.py": (RTC, "not without_rtc_config"),  # a policy that has no features
    "policies/test_factory_peft_revision.py": ((), ""),
    "test_cli_peft.py": (PEFT, ""),
    "training/test_visual_validation.py": (CAMERAS, ""),
}


def adapt(checkout: Path, folder: Path, **names: object) -> list[list[str]]:
    """Write the adapted tests.

    Args:
        checkout: LeRobot's repository.
        folder: to write into.
        names: `base` and `three_cameras`, folders of policies, and `data`, of a data set.

    Returns:
        For each file what pytest has to be given.
    """
    shutil.copytree(checkout / "tests", folder / "tests", dirs_exist_ok=True)
    values = {"imports": IMPORTS, **names}
    commands = []
    for file, (changes, chosen) in FILES.items():
        path = folder / "tests" / file
        text = path.read_text()
        for pattern, replacement in changes:
            for name, value in values.items():
                replacement = replacement.replace(f"{{{name}}}", str(value))
            text, count = re.subn(
                pattern, replacement, text, flags=re.MULTILINE | (re.DOTALL if "*?" in pattern else 0)
            )
            assert count, f"{file} has no {pattern!r} any more"
        path.write_text(text)
        commands.append([str(path), *(["-k", chosen] if chosen else [])])
    return commands
