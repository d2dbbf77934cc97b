"""Checkpoint files as an attacker or a bad disk would leave them: no code, no other file, no bound-less allocation.

A policy loads whole, with the weights of its file, or not at all and with an error that says what is wrong.
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
import json
import os
import pickle
import shutil
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lerobot.policies.factory import make_pre_post_processors
from safetensors.torch import load_file

from lerobot_deepfusion.configuration_deepfusion import DeepFusionConfig
from lerobot_deepfusion.llava import bounds
from lerobot_deepfusion.llava.reader import read_tokenizer, read_vlm_config
from lerobot_deepfusion.modeling_deepfusion import DeepFusionPolicy
from lerobot_deepfusion.network.options import POLICY_SIZES
from lerobot_deepfusion.storage.processor_files import PROCESSOR_FILES
from tests.checkpoints import write_llava
from tests.llava.test_pretrained_llava import config_of

PRE, POST = PROCESSOR_FILES
PROMPT_STEP, NORMALIZER_STEP = 2, 4  # of the preprocessor
# The allowed ends of a load: what was found wrong with a value, a weight, a file. No subclass but these, so that
# a RecursionError (a RuntimeError) or UnicodeDecodeError (a ValueError) from deep inside does not pass.
CLEAR = (ValueError, RuntimeError, FileNotFoundError, json.JSONDecodeError)


@pytest.fixture
def checkpoint(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "checkpoint"))


def load(folder: Path) -> DeepFusionPolicy:
    """Policy, then processors, as LeRobot's commands and its policy server do."""
    policy = DeepFusionPolicy.from_pretrained(folder)
    make_pre_post_processors(policy.config, pretrained_path=str(folder))
    return policy


def edit(file: Path, change: Any) -> None:
    """Change a JSON file in place."""
    values = json.loads(file.read_text())
    change(values)
    file.write_text(json.dumps(values))


def put(values: Any, path: tuple, value: Any) -> None:
    for key in path[:-1]:
        values = values[key]
    values[path[-1]] = value


def places(values: Any, path: tuple = ()) -> Iterator[tuple[tuple, Any]]:
    """Every path into nested dicts and lists, with its value."""
    for key, value in values.items() if isinstance(values, dict) else enumerate(values):
        yield (*path, key), value
        if isinstance(value, dict | list):
            yield from places(value, (*path, key))


# --- code -------------------------------------------------------------------------------------------------


@pytest.fixture
def no_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything by which a file could run code raises."""

    def stop(*_: Any, **__: Any) -> None:
        raise AssertionError("a checkpoint must not run code")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, stop)
    monkeypatch.setattr(torch, "load", stop)
    for name in ("get_class_from_dynamic_module", "get_cached_module_file", "resolve_trust_remote_code"):
        for module in [
            m for m in list(sys.modules.values()) if getattr(m, "__name__", "").startswith("transformers")
        ]:
            if name in vars(module):
                monkeypatch.setattr(module, name, stop)


@pytest.mark.usefixtures("no_code")
def test_loading_needs_no_pickle_and_no_remote_code(saved: Path) -> None:
    """Policy and processors load while unpickling, `torch.load` and remote code raise."""
    with pytest.raises(AssertionError, match="run code"):
        pickle.loads(pickle.dumps(1))
    assert set(load(saved).state_dict()) == set(load_file(saved / "model.safetensors"))


def test_pickled_weights_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    """A checkpoint and a LLaVA with `.bin` weights alone, which are pickles, stop with a message that says so."""
    weights = load_file(checkpoint / "model.safetensors")
    (checkpoint / "model.safetensors").unlink()
    torch.save(weights, checkpoint / "pytorch_model.bin")
    with pytest.raises(
        FileNotFoundError, match=r"no model\.safetensors; weights are read from safetensors files only"
    ):
        load(checkpoint)
    llava = write_llava(tmp_path / "llava", "clip_llama", sharded=False)
    torch.save(load_file(llava / "model.safetensors"), llava / "pytorch_model.bin")
    (llava / "model.safetensors").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"no model\.safetensors; weights are read from safetensors files only"
    ):
        DeepFusionPolicy(config_of(llava))


AUTO_MAP = dict.fromkeys(("AutoConfig", "AutoModel", "AutoProcessor", "AutoTokenizer"), "evil.Evil")


def plant(folder: Path) -> Path:
    """A module that leaves a trace when it is imported."""
    trace = folder / "trace"
    (folder / "evil.py").write_text(f"open({str(trace)!r}, 'w')\nclass Evil: pass\n")
    return trace


@pytest.mark.parametrize("at", [(), ("vision_config",), ("text_config",)])
def test_auto_map_of_a_checkpoint_runs_nothing(checkpoint: Path, at: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    """Code and kernels that the VLM's config names are left alone, and the policy is what it would be without."""
    trace = plant(checkpoint)
    monkeypatch.chdir(checkpoint)
    before = load(checkpoint).state_dict()

    def change(config: dict) -> None:
        model = config["vlm_config"]["model"]
        for key in at:
            model = model[key]
        model |= {"auto_map": AUTO_MAP, "attn_implementation": "evil/kernel", "_name_or_path": str(checkpoint)}

    edit(checkpoint / "config.json", change)
    after = load(checkpoint).state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert not trace.exists()
    # Another type has no code of ours to fall back on.
    edit(checkpoint / "config.json", lambda config: put(config, ("vlm_config", "model", *at, "model_type"), "evil"))
    with pytest.raises(ValueError, match="model_type"):
        load(checkpoint)
    assert not trace.exists()


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json", "processor_config.json"])
def test_auto_map_of_a_llava_runs_nothing(file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is ignored where transformers has a class, and refused without a question where it has none."""
    llava = write_llava(tmp_path / "llava", "clip_llama", sharded=False)
    trace = plant(llava)
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked whether to run code"))
    edit(llava / file, lambda values: values.update(auto_map=AUTO_MAP))
    DeepFusionPolicy(config_of(llava))
    assert not trace.exists()
    for key in {"config.json": ["model_type"], "tokenizer_config.json": ["tokenizer_class"]}.get(file, []):
        edit(llava / file, lambda values, key=key: values.update({key: "Evil"}))
    with contextlib.suppress(ValueError):  # a tokenizer of any class is read as a fast one
        read_vlm_config(str(llava))
        read_tokenizer(str(llava))
    if file == "config.json":
        with pytest.raises(ValueError, match="trust_remote_code"):
            read_vlm_config(str(llava))
    assert not trace.exists()


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ({"class": "os.system", "config": {"command": "touch trace"}}, "'os.system'"),
        ({"class": "evil.Evil"}, "'evil.Evil'"),
        ({"class": "lerobot.processor.pipeline.IdentityProcessorStep"}, "by 'registry_name' only"),
        ({"registry_name": None, "class": "evil.Evil"}, "'evil.Evil'"),
        ({"registry_name": "no_such_processor"}, "no step is registered as 'no_such_processor'"),
        # With `trust_remote_code` on unless the file says otherwise, and the repository named by the file.
        ({"registry_name": "action_tokenizer_processor", "config": {"action_tokenizer_name": "."}}, "no use for"),
        ({"registry_name": "tokenizer_processor", "config": {"tokenizer_name": "/tmp"}}, "no use for"),
        # Folders to be read, as LeRobot after 0.6.1 declares them.
        ({"registry_name": "device_processor", "artifacts": {"device": "../outside"}}, "no paths inside"),
        ({"registry_name": "device_processor", "artifacts": {"device": "/etc"}}, "no paths inside"),
        ({"registry_name": "device_processor", "artifacts": {"device": "a\\..\\..\\b"}}, "no paths inside"),
        ({"registry_name": "device_processor", "artifacts": ["tokenizer"]}, "no paths inside"),
    ],
)
@pytest.mark.parametrize("file", PROCESSOR_FILES)
def test_processor_files_run_nothing(
    checkpoint: Path, file: str, step: dict, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step by import path, unknown or one that loads code by name stops before LeRobot's loader sees it."""
    trace = plant(checkpoint)
    monkeypatch.chdir(checkpoint)
    monkeypatch.syspath_prepend(str(checkpoint))
    edit(checkpoint / file, lambda values: values["steps"].append(step))
    with pytest.raises(ValueError, match=message) as caught:
        load(checkpoint)
    assert str(checkpoint / file) in str(caught.value)
    assert not trace.exists()


# --- paths ------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def opened(*folders: Path) -> Iterator[set[str]]:
    """The files in these folders that are opened meanwhile, known at its end.

    The kernel tells them (inotify), since libraries in other languages pass by Python's audit hooks.
    """
    if sys.platform != "linux":
        pytest.skip("inotify is Linux's")
    libc, names = ctypes.CDLL(None, use_errno=True), set[str]()
    queue = libc.inotify_init1(os.O_NONBLOCK)
    try:
        of = {libc.inotify_add_watch(queue, os.fsencode(folder), 0x20): folder for folder in folders}  # IN_OPEN
        assert min(of) > 0, os.strerror(ctypes.get_errno())
        yield names
        with contextlib.suppress(BlockingIOError):
            while events := os.read(queue, 1 << 20):
                while events:
                    watch, mask, _, length = struct.unpack_from("iIII", events)
                    assert not mask & 0x4000, "more files were opened than the kernel keeps"  # IN_Q_OVERFLOW
                    name = events[16 : 16 + length].rstrip(b"\0")  # none where the folder itself was opened
                    names.add(str(of[watch] / os.fsdecode(name)))
                    events = events[16 + length :]
    finally:
        os.close(queue)


@pytest.fixture
def outside(tmp_path: Path, saved: Path) -> Path:
    """Beside the checkpoint: whatever it could want, under the names that it would ask for."""
    return Path(shutil.copytree(saved, tmp_path / "outside"))


def escapes(outside: Path, file: str) -> list[str]:
    return [f"../outside/{file}", str(outside / file)]


def attempt(folder: Path) -> str:
    """Load, and the error's message if there is one."""
    try:
        load(folder)
    except CLEAR as error:
        return str(error)
    return ""


@pytest.mark.medium
def test_no_field_of_the_config_opens_a_file(checkpoint: Path, outside: Path) -> None:
    """Paths in all text fields of `config.json`, nested ones too, one by one: nothing outside is opened."""
    config = json.loads((checkpoint / "config.json").read_text())
    fields = [path for path, value in places(config) if isinstance(value, str | None.__class__)]
    assert ("vlm_config", "model", "text_config", "_name_or_path") in fields
    assert ("vlm_path",) in fields
    assert ("pretrained_path",) in fields
    with opened(checkpoint, outside) as names:
        for path in fields:
            changed = copy.deepcopy(config)
            put(changed, path, escapes(outside, "config.json")[len(path) % 2])
            (checkpoint / "config.json").write_text(json.dumps(changed))
            attempt(checkpoint)
    assert {str(checkpoint / "config.json"), str(checkpoint / "model.safetensors")} <= names
    assert {name for name in names if name.startswith(str(outside))} == set()


@pytest.mark.medium
@pytest.mark.parametrize("kind", [0, 1])
def test_no_field_of_the_processors_opens_a_file(checkpoint: Path, outside: Path, kind: int) -> None:
    """Likewise in all text fields of both processor files, `state_file` among them, which is refused by name."""
    for file in PROCESSOR_FILES:
        whole = (checkpoint / file).read_text()
        with opened(checkpoint, outside) as names:
            for path, value in places(json.loads(whole)):
                if not isinstance(value, str):
                    continue
                name = value if path[-1] == "state_file" else "config.json"
                edit(checkpoint / file, lambda v, path=path, name=name: put(v, path, escapes(outside, name)[kind]))
                refused = "no file name inside the checkpoint's directory" in attempt(checkpoint)
                assert refused == (path[-1] == "state_file"), path
                (checkpoint / file).write_text(whole)
        assert {str(checkpoint / file), str(checkpoint / "model.safetensors")} <= names
        assert {name for name in names if name.startswith(str(outside))} == set()


@pytest.mark.parametrize("kind", [0, 1])
def test_shards_of_a_llava_stay_in_its_directory(tmp_path: Path, kind: int) -> None:
    """An index that names a whole and fitting file elsewhere is refused before that is opened."""
    llava = write_llava(tmp_path / "llava", "clip_llama")
    outside = Path(shutil.copytree(llava, tmp_path / "outside"))
    index = llava / "model.safetensors.index.json"

    def change(values: dict) -> None:
        values["weight_map"] = {key: escapes(outside, file)[kind] for key, file in values["weight_map"].items()}

    edit(index, change)
    with opened(llava, outside) as names, pytest.raises(ValueError, match="is no file name inside its directory"):
        DeepFusionPolicy(config_of(llava))
    assert str(index) in names
    assert {name for name in names if name.startswith(str(outside))} == set()
    index.write_text("[")
    with pytest.raises(ValueError, match="is damaged"):
        DeepFusionPolicy(config_of(llava))


# --- sizes ------------------------------------------------------------------------------------------------

HUGE = 10**9
VALUES = (0, -1, HUGE, 2.5, None)
TEXT = ("vlm_config", "model", "text_config")
VISION = ("vlm_config", "model", "vision_config")
SIZES = [
    *((name,) for name in POLICY_SIZES),
    *((*TEXT, name) for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")),
    *((*TEXT, name) for name in ("num_key_value_heads", "head_dim", "vocab_size", "max_position_embeddings")),
    *((*VISION, name) for name in ("hidden_size", "num_hidden_layers", "image_size", "num_tokens")),
    (*VISION, "channels", 0),
]


@contextlib.contextmanager
def little_memory(budget: int = 300_000_000) -> Iterator[None]:
    """More than this at once fails, as if the machine had no more; about ten times what these policies take."""
    import resource

    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + budget, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def refusal(folder: Path, path: tuple, value: Any) -> str | None:
    """The message with which a checkpoint is refused after one change to its config, in little time and memory."""
    edit(folder / "config.json", lambda config: put(config, path, value))
    start = time.perf_counter()
    try:
        with little_memory():
            load(folder)
    except CLEAR as error:
        assert time.perf_counter() - start < 5
        return str(error)
    return None


@pytest.mark.slow
@pytest.mark.parametrize("path", SIZES, ids=lambda path: ".".join(map(str, path[-2:])))
def test_sizes_are_refused_before_anything_is_allocated(checkpoint: Path, path: tuple) -> None:
    """Zero, negative, huge and no whole number: an error that names the field, the value and, if huge, the bound."""
    whole = (checkpoint / "config.json").read_text()
    name = "channels" if "channels" in path else path[-1]
    for value in VALUES:
        (checkpoint / "config.json").write_text(whole)
        message = refusal(checkpoint, path, value)
        may_be_zero = POLICY_SIZES.get(name, (1, 1))[0] == 0
        if (value is None and name in {*bounds.MAY_BE_NONE, "expert_num_layers"}) or (value == 0 and may_be_zero):
            continue
        assert message is not None, value
        assert name in message, message
        if value == HUGE:
            assert "needs at most" in message, message


def test_bounds_are_far_above_what_exists() -> None:
    """The defaults and the largest LLaVA's text model (72B: 80 layers of 8192) are a quarter of the bound or less."""
    for name, (_, high) in POLICY_SIZES.items():
        assert (getattr(DeepFusionConfig(), name) or 0) <= high / 4
    largest = {"hidden_size": 8192, "intermediate_size": 29568, "num_hidden_layers": 80, "vocab_size": 152064}
    for name, value in (largest | {"num_attention_heads": 64, "max_position_embeddings": 131072}).items():
        assert value <= bounds.VLM_SIZES[name][1] / 4


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ((*TEXT, "hidden_size"), 3 * 21840, "does not fit this policy"),
        ((*TEXT, "vocab_size"), 2**22, "1 of another shape: model.perception.language_model.embed_tokens.weight"),
        ((*TEXT, "num_hidden_layers"), 4, "missing: model.expert.backbone.layers.3"),
        (("max_state_dim",), 4096, "1 of another shape: model.expert.state_in_proj.weight"),
        (("input_features", "observation.state", "shape"), [], "expected whole numbers above zero"),
        (("input_features", "observation.state", "shape"), [None], "expected whole numbers above zero"),
        (("input_features", "observation.state", "shape"), [2, 2], "expected a vector"),
        (("output_features", "action", "shape"), [0], "expected whole numbers above zero"),
        (("vlm_config", "model", "vision_feature_layer"), HUGE, "vision_feature_layer=1000000000"),
        (("vlm_config", "model", "vision_feature_layer"), -3, "the vision tower has 1 layers"),
        (("vlm_config", "model", "num_labels"), HUGE, "num_labels=1000000000: needs at most"),
        ((*TEXT, "num_hidden_layers"), 10**4000, "num_hidden_layers=2**13287 and more: needs at most 1024"),
        ((*TEXT, "rope_parameters"), {"rope_type": "evil"}, "can't be built: KeyError"),
        (("vlm_config", "image_mean"), [0.5], "image_mean=[0.5]: expected three finite numbers"),
        (("vlm_config", "image_std"), [1, 1, 0], "image_std=[1, 1, 0]: expected three finite numbers above zero"),
    ],
)
def test_weights_decide_before_the_network_is_built(checkpoint: Path, path: tuple, value: Any, message: str) -> None:
    """Within the bounds the file's header decides: 65536 wide or 4 million words take no memory to refuse."""
    found = refusal(checkpoint, path, value)
    assert found is not None
    assert message in found


def test_a_tower_of_many_patches_is_refused(tmp_path: Path) -> None:
    """Position ids are real memory even where weights are not."""
    llava = write_llava(tmp_path / "llava", "siglip_qwen2", sharded=False)
    config = config_of(llava)
    config.vlm_config = read_vlm_config(str(llava))
    vision = config.vlm_config["model"]["vision_config"]
    for change in ({"image_size": 8192, "patch_size": 1}, {"image_size": 4, "patch_size": 8}, {"patch_size": 0}):
        config.vlm_config["model"]["vision_config"] = vision | change
        with pytest.raises(ValueError, match="patch"), little_memory():
            DeepFusionPolicy(config)


@pytest.mark.parametrize("change", [("text_config", 1024), ("vision_config", 1000)])
def test_a_llava_larger_than_its_weights_is_refused(tmp_path: Path, change: tuple[str, int]) -> None:
    """A config that describes more than the files hold stops before an expert of that size is built."""
    llava = write_llava(tmp_path / "llava", "clip_llama", sharded=False)
    edit(llava / "config.json", lambda config: config[change[0]].update(num_hidden_layers=change[1]))
    with pytest.raises(RuntimeError, match=r"lacks weights.*its files hold"), little_memory():
        DeepFusionPolicy(config_of(llava))
