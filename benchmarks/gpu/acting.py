"""How long a chunk takes: by evaluations and objective, eager, compiled and as one CUDA graph; beside the peers."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lerobot_deepfusion.modeling_deepfusion import DeepFusionPolicy
from lerobot_deepfusion.network.objective import evaluation_times
from lerobot_deepfusion.training.precision import autocast

from ..clock import race
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
    return timed("chunk, eager", jobs, options, "flow, 10")


def fast_chunks(options: Options) -> list[Row]:
    """The same policy with its denoise step compiled, with and without torch's graph of it, beside the eager one."""
    policy = random_policy(ONEVISION, options.small, options.device)
    batch, ways = make_batch(policy, 1), {"eager": policy}
    if not (shutil.which("g++") or shutil.which("clang++")):
        raise RuntimeError("no C++ compiler here, without which torch compiles nothing")
    for name, mode in (("compiled", "default"), ("compile_model=true", "reduce-overhead")):
        ways[name] = random_policy(ONEVISION, options.small, options.device)
        ways[name]._denoise = torch.compile(ways[name].model.denoise, fullgraph=True, dynamic=False, mode=mode)
    table: list[Row] = []
    for count in (10, 1):
        jobs: dict[str, Callable[[], object]] = {name: partial(act, way, batch, count) for name, way in ways.items()}
        table += timed(f"chunk, {count} evaluations", jobs, options, "eager")
    return table


def graphs(options: Options) -> list[Row]:
    """The network's whole chunk as one CUDA graph, beside the same without: what is left when launches cost nothing.
    From pictures as the tower takes them; what `predict_action_chunk` does before is not in it.
    """
    if not options.device.startswith("cuda"):
        return []
    policy, table = random_policy(ONEVISION, options.small, options.device), []
    for count in (10, 1):
        chunk = whole_chunk(policy, count)
        replay = captured(chunk)
        jobs: dict[str, Callable[[], object]] = {"network, eager": chunk, "network, one CUDA graph": replay}
        torch.testing.assert_close(replay(), chunk(), rtol=0.05, atol=0.05)
        table += timed(f"network, {count} evaluations", jobs, options, "network, eager")
    return table


def seven_b(options: Options) -> list[Row]:
    """LLaVA-1.5 7B with an expert of a quarter of its width, which acts and is not trained."""
    policy = random_policy(SEVEN_B, options.small, options.device)
    jobs = {f"flow, {count}": partial(act, policy, make_batch(policy, 1), count) for count in (10, 1)}
    return timed("chunk, LLaVA-1.5 7B", jobs, options, "flow, 10")


def beside(options: Options) -> list[Row]:
    """LeRobot's pi0 and smolvla at OneVision's shape, with one patch embedding for all and weights in float32 under
    autocast; see `benchmarks.speed` for what is alike and what is not.
    """
    case = "tiny" if options.small else "OneVision-B1"
    names = ["deepfusion kv", "deepfusion kv adarms", "pi0", "smolvla"]
    arms = {name: measures.build(name, case, device=options.device) for name in names}
    for arm in arms.values():
        arm.model.eval()

    def half(name: str, evaluations: int) -> Tensor:
        with measures.autocast(options.device, "bfloat16"):  # anew for each chunk, as a policy does
            return arms[name].act(evaluations)

    jobs = {f"{name}, 10": partial(half, name, 10) for name in names}
    jobs |= {f"{name}, 1": partial(half, name, 1) for name in names[:2]}
    return timed(f"beside, {case}", jobs, options, "pi0, 10")


def numerics(options: Options) -> list[Row]:
    """How far a chunk in bfloat16 is from that in float32, as a share of what the network moved it by."""
    whole = random_policy(ONEVISION, options.small, options.device, dtype="float32")
    if options.small:  # whose narrow layers would hardly answer otherwise
        for parameter in whole.parameters():
            parameter.data *= 4 if parameter.ndim > 1 else 1
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


def whole_chunk(policy: DeepFusionPolicy, evaluations: int) -> Callable[[], Tensor]:
    """The VLM's pass and all evaluations, which ask nothing of the host."""
    config, model = policy.eval().config, policy.model
    perception, device = model.perception, torch.device(config.device)
    side, known = perception.config.vision_config.image_size, perception.config
    pictures = [known.image_token_id] * (len(config.cameras) * perception.image_tokens)
    tokens = torch.tensor([pictures + [1] * config.tokenizer_max_length], device=device)
    pixels = torch.rand(1, len(config.cameras), 3, side, side, device=device)
    valid, state = torch.ones_like(tokens, dtype=torch.bool), torch.randn(1, config.max_state_dim, device=device)
    noise = torch.randn(1, 1, config.chunk_size, config.max_action_dim, device=device)
    with torch.no_grad(), autocast(device, config.dtype):  # the time's features come from the host
        schedule = model.embed_time(evaluation_times("flow", evaluations, device)).split(1, dim=2)

    @torch.no_grad()
    def chunk() -> Tensor:
        with autocast(device, config.dtype):
            states = model.project_contexts(model.prefill(pixels, tokens, valid))
            actions = noise
            for time in schedule:
                actions = actions - model.denoise(states, state, actions, time).float() / evaluations
        return actions

    return chunk


def captured(job: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """A job as a CUDA graph, and its answer. What is returned holds the job, whose tensors the graph reads."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):  # torch wants to have run it on a stream of its own before
        for _ in range(3):
            job()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        answer = job()

    def replay(_: Callable[[], Tensor] = job) -> Tensor:
        graph.replay()
        return answer

    return replay


def timed(case: str, jobs: Mapping[str, Callable[[], object]], options: Options, reference: str) -> list[Row]:
    return measures.rows("gpu", case, race(jobs, options.rounds, options.device), {}, reference)
