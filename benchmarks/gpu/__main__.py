"""Everything that a card has to say about this policy, in one command.

    python -m benchmarks.gpu                           # on a card, into benchmarks/results/gpu.json
    python -m benchmarks.gpu --device cpu --small      # the same road with small stand-ins, anywhere

Random weights and no network; rows are of this run alone. On a machine that has nothing but torch, torchvision, NumPy
and Pillow it runs from the folder that `make gpu-kit` makes. What fails is said and written down, and the next
measurement starts; none starts after `--minutes`.
"""

from __future__ import annotations

import argparse
import gc
import importlib.machinery
import importlib.util
import os
import sys
import time
import traceback
import types
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
if importlib.util.find_spec("cv2") is None:
    # LeRobot's list of policies imports OpenCV, sixty megabytes of which nothing is called here.
    sys.modules["cv2"] = types.ModuleType("cv2")
    sys.modules["cv2"].__spec__ = importlib.machinery.ModuleSpec("cv2", None)

import torch

from .. import report
from .acting import beside, chunks, fast_chunks, graphs, numerics, seven_b
from .kernels import kernels
from .options import Options
from .training import training

RESULTS = Path(__file__).resolve().parents[1] / "results" / "gpu.json"
# The most telling first, since the time may be over.
MEASURES = {
    "chunks": chunks,
    "kernels": kernels,
    "numerics": numerics,
    "fast_chunks": fast_chunks,
    "training": training,
    "beside": beside,
    "seven_b": seven_b,
    "graphs": graphs,  # at the end: a capture that fails can take the context with it
}
BARS = {("chunk, 10 evaluations", 40.0), ("chunk, 1 evaluations", 15.0)}  # ms on an H100, by the fastest way


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="small stand-ins for the published LLaVAs")
    parser.add_argument("--what", default=",".join(MEASURES), help=f"of {', '.join(MEASURES)}")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--minutes", type=float, default=7.0, help="start nothing after so many")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    chosen = args.what.split(",")
    if unknown := set(chosen) - set(MEASURES):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; choose from {', '.join(MEASURES)}")
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("torch finds no CUDA card here; `--device cpu --small` runs the same without one")
    if not args.device.startswith("cuda"):
        torch.set_num_threads(1)  # whose own time the clock counts
    else:
        torch.cuda.set_device(torch.device(args.device).index or 0)
    args.out.unlink(missing_ok=True)  # what another machine found
    options = Options(args.device, args.small, args.rounds)
    start = time.monotonic()
    where = report.machine(args.device, "bfloat16", args.rounds) | card(args.device) | {"small": args.small}
    report.print_machine(where)
    failed: dict[str, str] = {}
    for what in chosen:
        since = time.monotonic()
        if since - start > 60 * args.minutes:
            failed[what] = f"not started: {args.minutes:g} minutes were over"
            report.save(args.out, where | {"failed": failed}, [])
            continue
        try:
            table = MEASURES[what](options)
        except Exception as error:  # a rented card's other figures are worth having
            traceback.print_exc()
            failed[what] = f"{type(error).__name__}: {error}".splitlines()[0]
            table = []
        report.print_rows(table)
        where["seconds"] = {**where.get("seconds", {}), what: round(time.monotonic() - since, 1)}
        report.save(args.out, where | {"failed": failed}, table)
        gc.collect()
        if args.device.startswith("cuda") and what not in failed:
            torch.cuda.empty_cache()
    if not args.small:
        print_bars(report.load(args.out))
    print(
        f"{time.monotonic() - start:.0f} s, {args.out}", *(f"\nFAILED {what}: {why}" for what, why in failed.items())
    )
    sys.exit(bool(failed))


def card(device: str) -> dict[str, object]:
    """What the card is."""
    import lerobot

    found: dict[str, object] = {"lerobot": lerobot.__version__}
    if device.startswith("cuda"):
        about = torch.cuda.get_device_properties(device)
        found |= {
            "memory": f"{about.total_memory / 2**30:.0f} GiB",
            "capability": f"{about.major}.{about.minor}",
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    return found


def print_bars(table: list[report.Row]) -> None:
    for case, limit in sorted(BARS):
        times = {row.arm: report.middle(row.value) for row in table if row.case == case}
        if times:
            best = min(times, key=lambda arm: times[arm])
            met = "met" if times[best] <= limit else "MISSED"
            print(f"{case}: {times[best]:.1f} ms ({best}), bar {limit:g} ms on an H100: {met}")


if __name__ == "__main__":
    main()
