"""What the speed benchmark measures: each function turns a case into rows of a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial

import torch

from ..clock import Seconds, quartiles, race, ratio
from ..report import Row
from . import memory, peers
from .arms import Arm, DeepFusion
from .floor import Floor, bytes_read, count_flops, machine_peaks
from .literal import Literal
from .shapes import Shape, make_inputs, shape_of

ARMS: dict[str, Callable[..., Arm]] = {
    "deepfusion kv": DeepFusion,
    "deepfusion hidden": partial(DeepFusion, fusion="hidden"),
    "deepfusion late": partial(DeepFusion, fusion="late"),
    "deepfusion kv adarms": partial(DeepFusion, time_conditioning="adarms"),
    "deepfusion kv compiled": partial(DeepFusion, compiled=True),
    "pi0": peers.Pi0,
    "smolvla": peers.SmolVLA,
    "molmoact2": peers.MolmoAct2,
    "literal plan": Literal,
    "floor": Floor,
}
# Ways to act, with the evaluations of the expert that each has.
EVALUATIONS: dict[str, tuple[Callable[..., Arm], int]] = {
    "deepfusion kv, 10": (DeepFusion, 10),
    "deepfusion kv, 2": (DeepFusion, 2),
    "deepfusion kv, 1": (DeepFusion, 1),
    "deepfusion kv two_step": (partial(DeepFusion, objective="two_step"), 2),
    "deepfusion kv drift": (partial(DeepFusion, objective="drift"), 1),
    "deepfusion kv trained RTC, 10": (partial(DeepFusion, given=8), 10),
    "deepfusion kv adarms, 10": (partial(DeepFusion, time_conditioning="adarms"), 10),
    "deepfusion kv adarms trained RTC, 10": (partial(DeepFusion, time_conditioning="adarms", given=8), 10),
    **{name: (ARMS[name], 10) for name in ("pi0", "smolvla", "molmoact2")},
}
TRAINED = [name for name in ARMS if name not in ("deepfusion kv compiled", "floor")]
FLOW_SAMPLES = 8
SWEEPS = {
    "batch": (1, 2, 4, 8),
    "cameras": (1, 2, 3),
    "image_tokens": (64, 196, 576),
    "chunk": (10, 50, 100),
    "steps": (1, 5, 10, 20),
    "width": (128, 256, 512),
}


@dataclass
class Options:
    """What the command line chose."""

    rounds: int
    device: str
    dtype: str
    arms: list[str]

    def within(self, names: list[str]) -> list[str]:
        return [name for name in names if name in self.arms]


def prepare() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def autocast(device: str, dtype: str) -> AbstractContextManager:
    return nullcontext() if dtype == "float32" else torch.autocast(device.split(":")[0], getattr(torch, dtype))


def build(name: str, case: str | Shape, samples: int = 1, device: str = "cpu") -> Arm:
    """An arm at a case's shape.

    Raises:
        ValueError: for an arm or a case that is not there.
    """
    if name not in ARMS:
        raise ValueError(f"arm {name!r}: choose from {', '.join(ARMS)}")
    shape = shape_of(case) if isinstance(case, str) else case
    return ARMS[name](shape, make_inputs(shape, samples, device))


def timed(jobs: Mapping[str, Callable[[], object]], options: Options) -> Seconds:
    with autocast(options.device, options.dtype):
        return race(jobs, options.rounds, options.device)


def rows(what: str, case: str, seconds: Seconds, arms: Mapping[str, Arm], reference: str = "pi0") -> list[Row]:
    """One row a job: its time in ms and its ratio to the reference in the same rounds, and its arm's parameters."""
    return [
        Row(
            what,
            case,
            name,
            [1e3 * value for value in quartiles(values)],
            "ms",
            reference if reference in seconds else None,
            ratio(seconds, name, reference) if reference in seconds else None,
            arms[name].parameters() if name in arms else None,
        )
        for name, values in seconds.items()
    ]


def acting(case: str, options: Options) -> list[Row]:
    shape = shape_of(case)
    arms = {name: build(name, case, device=options.device) for name in options.within(list(ARMS))}
    for arm in arms.values():
        arm.model.eval()
    whole = timed({name: partial(arm.act, shape.steps) for name, arm in arms.items()}, options)
    once = timed({name: partial(arm.act, 1) for name, arm in arms.items()}, options)
    table = rows("acting", case, whole, arms)
    for name in arms:
        chunk, single = quartiles(whole[name])[1], quartiles(once[name])[1]
        step = (chunk - single) / (shape.steps - 1)
        table.append(Row("acting, one step", case, name, [1e3 * step], "ms"))
        table.append(Row("acting, prefix", case, name, [1e3 * (single - step)], "ms"))
    if "literal plan" in arms:
        table += rows("acting / literal plan", case, whole, arms, "literal plan")
    return table


def evaluations(case: str, options: Options) -> list[Row]:
    """A chunk by objective and number of evaluations, all beside pi0's ten; and what given actions add."""
    shape = shape_of(case)
    ours = "deepfusion kv" in options.arms
    wanted = {
        name: pair
        for name, pair in EVALUATIONS.items()
        if (ours if name.startswith("deepfusion") else name in options.arms)
    }
    arms, jobs = {}, {}
    for name, (arm, steps) in wanted.items():
        arms[name] = arm(shape, make_inputs(shape, 1, options.device))
        arms[name].model.eval()
        jobs[name] = partial(arms[name].act, steps)
    seconds = timed(jobs, options)
    table = rows("evaluations", case, seconds, arms)
    for time in ("", " adarms") if ours else ():
        plain, ours = f"deepfusion kv{time}, 10", f"deepfusion kv{time} trained RTC, 10"
        both = {name: seconds[name] for name in (plain, ours)}
        table += rows("evaluations / plain", case, both, arms, plain)[1:]
    return table


def training(case: str, options: Options, frozen: bool = False) -> list[Row]:
    arms = {name: build(name, case, device=options.device) for name in options.within(TRAINED)}
    for arm in arms.values():
        arm.model.train()
        arm.vlm.requires_grad_(not frozen)
    seconds = timed({name: arm.train_step for name, arm in arms.items()}, options)
    return rows("expert_only" if frozen else "training", case, seconds, arms)


def flow_samples(case: str, options: Options) -> list[Row]:
    """Samples a second; the ratio is throughput over pi0's, so more is better."""
    several = {name: FLOW_SAMPLES for name in ARMS if name.startswith("deepfusion") or name == "molmoact2"}
    arms, jobs = {}, {}
    for name in options.within(TRAINED):
        arms[name] = build(name, case, several.get(name, 1), options.device)
        arms[name].model.train()
        jobs[name] = arms[name].train_step
    seconds, batch = timed(jobs, options), shape_of(case).batch
    table = []
    for name, values in seconds.items():
        count = several.get(name, 1)
        rate = quartiles([batch * count / value for value in values])
        times = [count / value for value in reversed(ratio(seconds, name, "pi0"))] if "pi0" in seconds else None
        table.append(Row("flow_samples", case, f"{name} K={count}", rate, "samples/s", "pi0", times))
    return table


def training_memory(case: str, options: Options) -> list[Row]:
    table: list[Row] = []
    for training_kind in memory.TRAININGS:
        what = "memory" if training_kind == "plain" else f"memory, {training_kind}"
        found = {
            name: memory.peak(name, case, training_kind, options.device, options.dtype)
            for name in options.within(
                ["pi0", "deepfusion kv", "deepfusion hidden", "deepfusion kv adarms", "molmoact2"]
            )
        }
        for name, peak in found.items():
            share = [peak / found["pi0"]] if "pi0" in found else None
            table.append(Row(what, case, name, [peak / 2**20], "MiB", "pi0" if share else None, share))
        if training_kind == "checkpointing":
            plain = {row.arm: row.value[0] for row in table if row.what == "memory"}
            table += [
                Row(
                    "memory, checkpointing / plain",
                    case,
                    name,
                    [peak / 2**20],
                    "MiB",
                    "plain",
                    [peak / 2**20 / plain[name]],
                )
                for name, peak in found.items()
            ]
    return table + checkpointing_time(case, options)


def checkpointing_time(case: str, options: Options) -> list[Row]:
    """A step with gradient checkpointing, and its ratio to the same model's step without."""
    table = []
    for name in options.within(["pi0", "deepfusion kv", "deepfusion hidden"]):
        arms = {kind: build(name, case, device=options.device) for kind in ("plain", "checkpointing")}
        arms["checkpointing"].checkpoint()
        for arm in arms.values():
            arm.model.train()
        seconds = timed({kind: arm.train_step for kind, arm in arms.items()}, options)
        row = rows("training, checkpointing", case, seconds, arms, "plain")[1]
        table.append(replace(row, arm=name))
    return table


def sweep(case: str, options: Options) -> list[Row]:
    base, table = shape_of(case), []
    for axis, values in SWEEPS.items():
        for value in values:
            shape = base.wide(value) if axis == "width" else replace(base, **{axis: value})
            point = f"{axis}={value}"
            arms = {
                name: build(name, shape, device=options.device) for name in options.within(["deepfusion kv", "pi0"])
            }
            chunk = {name: partial(arm.act, shape.steps) for name, arm in arms.items()}
            table += rows("sweep, acting", point, timed(chunk, options), arms)
            if axis != "steps":
                steps = {name: arm.train_step for name, arm in arms.items()}
                table += rows("sweep, training", point, timed(steps, options), arms)
    return table


def roofline(case: str, options: Options) -> list[Row]:
    shape = shape_of(case)
    names = options.within(["floor", "deepfusion kv", "deepfusion kv compiled"])
    arms = {name: build(name, case, device=options.device) for name in names}
    seconds = timed({name: partial(arm.act, shape.steps) for name, arm in arms.items()}, options)
    table = rows("roofline", case, seconds, arms, "floor")
    dtype = getattr(torch, options.dtype)
    peaks = machine_peaks(options.device, dtype, options.rounds)
    ours = DeepFusion(shape, make_inputs(shape, device=options.device))
    flops, read = count_flops(partial(ours.act, shape.steps)), bytes_read(shape, ours.model)
    for name, values in seconds.items():
        second = quartiles(values)[1]
        share = [flops / second / peaks["flops"]]
        table.append(Row("achieved", case, name, [flops / second / 1e9], "GFLOP/s", "matrix product", share))
        share = [read / second / peaks["bytes"]]
        table.append(Row("achieved", case, name, [read / second / 1e9], "GB/s", "copy", share))
    return table


MEASURES: dict[str, Callable[[str, Options], list[Row]]] = {
    "acting": acting,
    "evaluations": evaluations,
    "training": training,
    "expert_only": partial(training, frozen=True),
    "flow_samples": flow_samples,
    "memory": training_memory,
    "sweep": sweep,
    "roofline": roofline,
}
