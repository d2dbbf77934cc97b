"""LoRA and other adapters around a base checkpoint.

    python -m lerobot_deepfusion.adapters base --config_path=configs/policy/llava_1.5_7b_lora.yaml \
        --dataset.repo_id=you/data --output_dir=outputs/base
    lerobot-train --policy.path=outputs/base --peft.r=16 --dataset.repo_id=you/data --output_dir=outputs/lora
    python -m lerobot_deepfusion.adapters merge outputs/lora/checkpoints/last/pretrained_model outputs/merged

`base` takes the options of lerobot-train, loads the VLM, gives the expert its first weights and writes both as a
checkpoint: PEFT keeps its adapters apart from the weights they adapt, and so needs those in a place to go back to.
`merge` adds adapters to their base; the result needs neither PEFT nor the base.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from lerobot.configs import PreTrainedConfig, parser
from lerobot.configs.train import TrainPipelineConfig
from torch import nn


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


@parser.wrap()  # which reads the annotation: this file can't have them postponed
def write_base(cfg: TrainPipelineConfig) -> None:
    """Write VLM, fresh expert and processors as a checkpoint.

    Raises:
        ValueError: if the policy already has a checkpoint.
        FileExistsError: if the output directory is there.
    """
    from lerobot.datasets.lerobot_dataset import LeRobotDatasetMetadata
    from lerobot.policies.factory import make_policy, make_pre_post_processors
    from lerobot.utils.random_utils import set_seed

    cfg.validate()
    if cfg.policy.pretrained_path:
        raise ValueError(f"{cfg.policy.pretrained_path} is a checkpoint already: give it to lerobot-train as it is")
    if cfg.seed is not None:
        set_seed(cfg.seed)
    meta = LeRobotDatasetMetadata(cfg.dataset.repo_id, root=cfg.dataset.root, revision=cfg.dataset.revision)
    parts = [make_policy(cfg.policy, ds_meta=meta), *make_pre_post_processors(cfg.policy, dataset_stats=meta.stats)]
    cfg.policy.device = None  # a machine without a GPU may write what one with a GPU will train
    for part in parts:
        part.save_pretrained(cfg.output_dir)
    print(f"{cfg.output_dir}: lerobot-train --policy.path={cfg.output_dir} --peft.r=16 ...")


def merge(adapters: str, output_dir: Path) -> None:
    """Write a checkpoint whose weights are those of the base with the adapters added, in float32.

    Args:
        adapters: directory or Hub id of a checkpoint that lerobot-train wrote under `--peft.*`.
        output_dir: must not be there yet.

    Raises:
        ValueError: if `adapters` has none.
        FileExistsError: if the output directory is there.
    """
    from lerobot.policies.factory import make_pre_post_processors
    from peft import PeftConfig, PeftModel

    from .modeling_deepfusion import DeepFusionPolicy

    if output_dir.exists():
        raise FileExistsError(f"{output_dir} is there already; choose another directory")
    config = PreTrainedConfig.from_pretrained(adapters)
    if not config.use_peft:
        raise ValueError(f"{adapters} has no adapters (use_peft is false in its config.json); it needs no merging")
    device = {"device_processor": {"device": config.device}}  # by now one that is here
    dtype, config.dtype = config.dtype, "float32"  # a bfloat16 base would round the small sums away
    config.device = "cpu"
    base = DeepFusionPolicy.from_pretrained(
        PeftConfig.from_pretrained(adapters).base_model_name_or_path, config=config
    )
    merged = PeftModel.from_pretrained(base, adapters).merge_and_unload()
    config.dtype, config.device, config.use_peft, config.pretrained_path = dtype, None, False, None
    for part in (merged, *make_pre_post_processors(config, adapters, preprocessor_overrides=device)):
        part.save_pretrained(output_dir)
    print(f"{output_dir}: lerobot-eval --policy.path={output_dir} ...")


def main() -> None:
    """Command line entry point."""
    import lerobot_policy_deepfusion  # noqa: F401  # registers the policy and its steps

    if sys.argv[1:2] == ["base"]:
        del sys.argv[1]
        write_base()  # which reads the rest as lerobot-train does
        return
    command = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = command.add_subparsers(dest="command", required=True)
    commands.add_parser("base", help="write a base checkpoint; options of lerobot-train", add_help=False)
    merging = commands.add_parser("merge", help="add adapters to their base")
    merging.add_argument("adapters", help="checkpoint with adapters: directory or Hub id")
    merging.add_argument("output_dir", type=Path)
    args = command.parse_args()
    merge(args.adapters, args.output_dir)


if __name__ == "__main__":
    main()
