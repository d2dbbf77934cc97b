"""A folder to carry to a machine that has a card and no network: wheels of what it lacks, and this benchmark.

    make gpu-kit                                  # here, into outputs/gpu_kit
    sh run.sh                                     # there, in the folder; options as of `python -m benchmarks.gpu`

The machine is expected to have Python 3.12, pip, torch, torchvision, NumPy and Pillow, and a C++ compiler for the
compiled rows. All else that the benchmark imports is in the folder, at the versions of `uv.lock`.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

from .. import report

ROOT = Path(__file__).resolve().parents[2]
# What LeRobot's policies, transformers and this package import on their way, and torch does not need itself.
PACKAGES = (
    *("lerobot", "transformers", "tokenizers", "safetensors", "huggingface-hub", "accelerate", "peft"),
    *("draccus", "mergedeep", "typing-inspect", "mypy-extensions", "pyyaml", "einops", "psutil", "packaging"),
    *("gymnasium", "farama-notifications", "cloudpickle", "regex", "tqdm", "click", "filelock", "fsspec"),
    *("httpx", "httpcore", "h11", "anyio", "certifi", "idna", "requests", "urllib3", "charset-normalizer"),
)
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in (28, 27, 24, 17, 12, 5)] + ["manylinux2014_x86_64"]
MOST = 60  # megabytes
RUN = """#!/bin/sh
# python3 is the one that has torch. Options are those of benchmarks.gpu.
set -e
cd "$(dirname "$0")"
[ -d site ] || python3 -m pip install --quiet --no-index --no-deps --target site wheels/*.whl
PYTHONPATH="$PWD/site" exec python3 -m benchmarks.gpu --out gpu.json "$@"
"""


def pinned() -> list[str]:
    """Requirements at the versions of the lock."""
    locked = tomllib.loads((ROOT / "uv.lock").read_text())["package"]
    versions = {package["name"]: package.get("version") for package in locked}
    return [f"{name}=={versions[name]}" for name in PACKAGES]


def gather(out: Path) -> int:
    """Fill the folder; how many bytes it has.

    Raises:
        subprocess.CalledProcessError: if a wheel can't be had.
    """
    shutil.rmtree(out, ignore_errors=True)
    wheels, uv = out / "wheels", [sys.executable, "-m", "uv"]
    platforms = [f"--platform={name}" for name in PLATFORMS]
    options = ["--quiet", "--no-deps", "--only-binary=:all:", "--python-version=3.12", "--implementation=cp"]
    subprocess.run(
        [*uv, "tool", "run", "pip", "download", *options, *platforms, f"--dest={wheels}", *pinned()], check=True
    )
    subprocess.run([*uv, "build", "--quiet", "--wheel", f"--out-dir={wheels}", str(ROOT)], check=True)
    (wheels / ".gitignore").unlink(missing_ok=True)
    shutil.copytree(ROOT / "benchmarks", out / "benchmarks", ignore=shutil.ignore_patterns("__pycache__", "results"))
    (out / "benchmarks" / report.COMMIT.name).write_text(str(report.machine("cpu", "", 0)["commit"]))
    (out / "run.sh").write_text(RUN)
    return sum(path.stat().st_size for path in out.rglob("*") if path.is_file())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "outputs" / "gpu_kit")
    out = parser.parse_args().out
    megabytes = gather(out) / 1e6
    print(f"{out}: {megabytes:.1f} MB, {len(list((out / 'wheels').iterdir()))} wheels")
    if megabytes > MOST:
        sys.exit(f"more than {MOST} MB")


if __name__ == "__main__":
    main()
