"""The checkpoints on either side of training adapters: the base that they are put around, and the two in one.

PEFT keeps its adapters apart from the weights they adapt, and so needs those in a place to go back to: `write_base`
loads the VLM, gives the expert its first weights and writes both as a checkpoint. `merge` adds adapters to their
base; the result needs neither PEFT nor the base.

    deepfusion base --config_path=$(deepfusion config llava_1.5_7b_lora) \\
        --dataset.repo_id=you/data --output_dir=outputs/base
    lerobot-train --policy.path=outputs/base --peft.r=16 --dataset.repo_id=you/data --output_dir=outputs/lora
    deepfusion merge outputs/lora/checkpoints/last/pretrained_model outputs/merged
"""

from pathlib import Path

from lerobot.configs import PreTrainedConfig, parser
from lerobot.configs.train import TrainPipelineConfig


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
    from lerobot.policies.factory import get_policy_class, make_pre_post_processors
    from peft import PeftConfig, PeftModel

    if output_dir.exists():
        raise FileExistsError(f"{output_dir} is there already; choose another directory")
    config = PreTrainedConfig.from_pretrained(adapters)
    if not config.use_peft:
        raise ValueError(f"{adapters} has no adapters (use_peft is false in its config.json); it needs no merging")
    device = {"device_processor": {"device": config.device}}  # by now one that is here
    dtype, config.dtype = config.dtype, "float32"  # a bfloat16 base would round the small sums away
    config.device = "cpu"
    base = get_policy_class(config.type).from_pretrained(
        PeftConfig.from_pretrained(adapters).base_model_name_or_path, config=config
    )
    merged = PeftModel.from_pretrained(base, adapters).merge_and_unload()
    config.dtype, config.device, config.use_peft, config.pretrained_path = dtype, None, False, None
    for part in (merged, *make_pre_post_processors(config, adapters, preprocessor_overrides=device)):
        part.save_pretrained(output_dir)
    print(f"{output_dir}: lerobot-eval --policy.path={output_dir} ...")
