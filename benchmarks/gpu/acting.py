"""How long a chunk takes: by evaluations and objective, eager, compiled and as one CUDA graph; beside the peers."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lerobot_deepfusion.modeling_deepfusion import DeepFusionPolicy
from lerobot_deepfusion.network.objective import evaluation_times
from lerobot_deepfusion.training.precision import autocast

from ..clock import Seconds, quartiles, race, ratio
from ..report import Row
from ..speed import measures
from .options import Options
from .policies import DIMENSIONS, ONEVISION, SEVEN_B, make_batch, random_policy

EVALUATIONS = (10, 2, 1)


def chunks(options: Options) -> list[Row]:
    """OneVision 0.5B eager, by the number of evaluations; and by the objectives that need few."""
    policy = random_policy(ONEVISION, options.small, options.device)
    jobs = {f"flow, {count}": partial(act, policy, make_batch(policy, 1), count) for count in EVALUATIONS}
    for objective in ("two_step", "drift"):
        other = random_policy(ONEVISION, options.small, options.device, objective=objective)
        jobs[objective] = partial(act, other, make_batch(other, 1))
    return rows("chunk, eager", race(jobs, options.rounds, options.device), "flow, 10")


def fast_chunks(options: Options) -> list[Row]:
    """The same policy with its denoise step compiled, with and without torch's graph of it, and with one CUDA graph
    of everything; each beside the eager one.
    """
    policy = random_policy(ONEVISION, options.small, options.device)
    batch, ways = make_batch(policy, 1), {"eager": policy}
    if shutil.which("g++") or shutil.which("clang++"):
        for name, mode in (("compiled", "default"), ("compile_model=true", "reduce-overhead")):
            ways[name] = random_policy(ONEVISION, options.small, options.device)
            ways[name]._denoise = torch.compile(ways[name].model.denoise, fullgraph=True, dynamic=False, mode=mode)
    table: list[Row] = []
    for count in (10, 1):
        jobs: dict[str, Callable[[], object]] = {name: partial(act, way, batch, count) for name, way in ways.items()}
        if options.device.startswith("cuda"):
            jobs["one CUDA graph"] = graph_of(policy, count).replay
        table += rows(f"chunk, {count} evaluations", race(jobs, options.rounds, options.device), "eager")
    return table


def seven_b(options: Options) -> list[Row]:
    """LLaVA-1.5 7B with an expert of a quarter of its width, which acts and is not trained."""
    policy = random_policy(SEVEN_B, options.small, options.device)
    jobs = {f"flow, {count}": partial(act, policy, make_batch(policy, 1), count) for count in (10, 1)}
    return rows("chunk, LLaVA-1.5 7B", race(jobs, options.rounds, options.device), "flow, 10")


def beside(options: Options) -> list[Row]:
    """LeRobot's pi0 and smolvla at OneVision's shape, with one patch embedding for all and weights in float32 under
    autocast; see `benchmarks.speed` for what is alike and what is not.
    """
    case = "tiny" if options.small else "OneVision-B1"
    names = ["deepfusion kv", "deepfusion kv adarms", "pi0", "smolvla"]
    arms = {name: measures.build(name, case, device=options.device) for name in names}
    for arm in arms.values():
        arm.model.eval()
    jobs = {f"{name}, 10": partial(arm.act, 10) for name, arm in arms.items()}
    jobs |= {f"{name}, 1": partial(arms[name].act, 1) for name in names[:2]}
    with measures.autocast(options.device, "bfloat16"):
        return rows(f"beside, {case}", race(jobs, options.rounds, options.device), "pi0, 10")


def numerics(options: Options) -> list[Row]:
    """How far a chunk in bfloat16 is from that in float32, as a share of what the network moved it by."""
    whole = random_policy(ONEVISION, options.small, options.device, dtype="float32")
    half = random_policy(ONEVISION, options.small, options.device)
    half.load_state_dict(whole.state_dict())
    batch = make_batch(whole, 1)
    noise = torch.randn(1, whole.config.chunk_size, DIMENSIONS, generator=torch.Generator().manual_seed(1))
    exact, close = (act(policy, batch, 10, noise.to(options.device)).float() for policy in (whole, half))
    share = ((close - exact).norm() / (exact - noise.to(options.device)).norm()).item()
    return [Row("bfloat16 off float32", "chunk", "flow, 10", [100 * share], "%")]


def act(
    policy: DeepFusionPolicy, batch: dict[str, Any], evaluations: int = 10, noise: Tensor | None = None
) -> Tensor:
    policy.config.num_inference_steps = evaluations
    return policy.predict_action_chunk(batch, noise=noise)


@torch.no_grad()
def graph_of(policy: DeepFusionPolicy, evaluations: int) -> torch.cuda.CUDAGraph:
    """The network's whole chunk, captured: pictures as the tower takes them, and nothing asked of the device."""
    config, model = policy.eval().config, policy.model
    perception, device = model.perception, torch.device(config.device)
    side, known = perception.config.vision_config.image_size, perception.config
    pictures = [known.image_token_id] * (len(config.cameras) * perception.image_tokens)
    tokens = torch.tensor([pictures + [1] * config.tokenizer_max_length], device=device)
    pixels = torch.rand(1, len(config.cameras), 3, side, side, device=device)
    valid, state = torch.ones_like(tokens, dtype=torch.bool), torch.randn(1, config.max_state_dim, device=device)
    noise = torch.randn(1, 1, config.chunk_size, config.max_action_dim, device=device)
    times = evaluation_times("flow", evaluations, device)

    def chunk() -> Tensor:
        with autocast(device, config.dtype):
            states = model.project_contexts(model.prefill(pixels, tokens, valid))
            actions = noise
            for time in model.embed_time(times).split(1, dim=2):
                actions = actions - model.denoise(states, state, actions, time).float() / evaluations
        return actions

    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):  # torch wants to have run it on a stream of its own before
        for _ in range(3):
            chunk()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        chunk()
    return graph


def rows(case: str, seconds: Seconds, reference: str) -> list[Row]:
    """Milliseconds, and ratios to the reference in the same rounds."""
    return [
        Row(
            "gpu",
            case,
            name,
            [1e3 * value for value in quartiles(values)],
            "ms",
            reference,
            ratio(seconds, name, reference),
        )
        for name, values in seconds.items()
    ]
