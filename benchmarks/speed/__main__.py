"""How fast is it, beside LeRobot's pi0, smolvla and molmoact2 of the same shape and beside the plan taken literally?

    python -m benchmarks.speed --what acting,training --out outputs/speed.json
    python -m benchmarks.speed --what all --device cuda --dtype bfloat16 --out outputs/cuda.json

All models run in one process, on the same inputs, in random order within each round; ratios are between times of
the same round. A CPU is measured by the process's own time of one thread. `--out` also draws a PNG beside the JSON
and keeps what the file has of other cases.

| --what | measured |
| --- | --- |
| `acting` | one chunk, and of it the pass of the VLM and one denoise step (from chunks of all steps and of one) |
| `evaluations` | one chunk by objective and by evaluations of the expert, and with given actions |
| `training` | forward and backward pass of everything |
| `expert_only` | the same with the VLM frozen |
| `flow_samples` | training throughput in (noise, time) samples, eight to a VLM pass where the model can |
| `memory` | peak of a training step above weights and inputs; with checkpointing also its time |
| `sweep` | how chunk and training step grow with batch, cameras, image tokens, chunk, steps, width |
| `roofline` | a chunk against its own linear layers and attention calls, a matrix product and a copy |

What is alike: width, depth, heads, key/value heads, MLP, vocabulary, prefix and chunk, float32 (or autocast), and
one patch embedding in the place of every vision tower. The optimizer's step is left out. What is not, and whom it
favours:

- pi0 keeps the whole last VLM layer, whose output nobody reads (6 % of a chunk, against it), attends in both
  directions over the prefix and uses GeGLU. It joins both streams in one eager attention in training, so
  expert-only training has a graph of the frozen prefix too.
- pi0 and smolvla mix the time into the actions by an MLP, which costs little, so `deepfusion` here is with
  `time_conditioning=token` (one token more than theirs). Its default, `adarms`, has a row of its own: its modulation
  adds 6 width^2 weights to each expert layer.
- smolvla's expert attends to the VLM through projections of its own in every other layer, its state is a token of the
  prefix and it does not train the last VLM layer. Its defaults are kept.
- molmoact2's expert has self- and cross-attention in each layer and a modulation of 9 width^2, hence more parameters,
  no state token, and projects the VLM's keys and values once a chunk. Its discrete head is off, as is its CUDA graph.
- the literal plan keeps the whole VLM and its logits.
"""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from .. import report
from .measures import ARMS, MEASURES, Options, prepare

CASES = {
    "acting": ["S256-B1", "S256-B8", "M512-B1", "M512-GQA-B1", "M512-P1200-B1"],
    "evaluations": ["M512-P1200-B1"],
    "training": ["S256-B1", "S256-B8", "M512-B1", "M512-P1200-B1"],
    "expert_only": ["S256-B1", "S256-B8"],
    "flow_samples": ["S256-B8"],
    "memory": ["S256-P1200-B4"],
    "sweep": ["S256-B1"],
    "roofline": ["S256-B1", "M512-B1"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", default="acting,training", help=f"comma-separated or all: {', '.join(MEASURES)}")
    parser.add_argument(
        "--cases", help="comma-separated <shape>[-P<prefix>][-B<batch>], in place of the measure's own"
    )
    parser.add_argument("--arms", help=f"comma-separated, in place of all: {', '.join(ARMS)}")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--out", type=Path, help="JSON file; a PNG is drawn beside it")
    args = parser.parse_args()
    chosen = list(MEASURES) if args.what == "all" else args.what.split(",")
    options = Options(args.rounds, args.device, args.dtype, args.arms.split(",") if args.arms else list(ARMS))
    for name, known in ((set(chosen), MEASURES), (set(options.arms), ARMS)):
        if name - set(known):
            parser.error(f"unknown: {', '.join(sorted(name - set(known)))}; choose from {', '.join(known)}")
    if not (shutil.which("g++") or shutil.which("clang++")):
        print("no C++ compiler here, so without compiled rows")
        options.arms = [name for name in options.arms if "compiled" not in name]
    prepare()
    machine = report.machine(args.device, args.dtype, args.rounds)
    report.print_machine(machine)
    for what in chosen:
        for case in args.cases.split(",") if args.cases else CASES[what]:
            table = MEASURES[what](case, options)
            report.print_rows(table)
            if args.out:
                report.save(args.out, machine, table)
    if args.out:
        report.plot(args.out)


if __name__ == "__main__":
    main()
