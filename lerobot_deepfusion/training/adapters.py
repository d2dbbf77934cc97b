"""Which modules adapters such as LoRA are put around."""

from __future__ import annotations

from typing import Any

from torch import nn

# What LoRA adapts: the attention of the VLM. The expert, which is not pretrained, is trained whole, as a copy: under
# adapters of a low rank its random weights would stay as they were drawn.
LORA_TARGETS: dict[str, Any] = {
    "target_modules": r".*\.language_model\.layers\.\d+\.self_attn\.(q|k|v|o)_proj",
    "modules_to_save": ["expert"],
}
TRAINED_WHOLE = (*LORA_TARGETS["modules_to_save"], "position_3d")  # those of them that a network has


def check_adapter_targets(policy: nn.Module, peft_config: Any) -> None:
    """PEFT is content if one of several names is found; here each has to be.

    Raises:
        ValueError: naming the option and the name that no module has.
    """
    modules = [name for name, _ in policy.named_modules()]
    for option, field in (("target_modules", "target_modules"), ("full_training_modules", "modules_to_save")):
        names = getattr(peft_config, field, None)
        for name in names if isinstance(names, list | set | tuple) else ():
            if not any(module == name or module.endswith(f".{name}") for module in modules):
                ends = sorted({module.split(".")[-1] for module in modules if module and not module[-1].isdigit()})
                raise ValueError(f"--peft.{option} has {name!r}, and no module is named so; names: {', '.join(ends)}")
