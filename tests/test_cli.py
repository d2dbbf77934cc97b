"""The command `deepfusion`: quick to answer, and one line for what is wrong."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lerobot_deepfusion.cli import deepfusion, main
from tests.commands import ROOT

VERBS = (
    *("base", "card", "check-data", "config", "demos", "info", "look"),
    *("merge", "open-loop", "policy", "recover", "serve", "space", "try"),
)
HEAVY = ("lerobot", "torch", "transformers", "numpy", "huggingface_hub")
# Every help in one process; then the modules that none of them needs.
HELP = f"""
import sys
from lerobot_deepfusion.cli import main
for verb in ([], *([verb] for verb in {VERBS!r})):
    main([*verb, "--help"])
print("imported", *(name for name in {HEAVY!r} if name in sys.modules))
"""


def python(*command: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        list(map(str, command)), capture_output=True, text=True, cwd=ROOT, env={**os.environ, **environment}
    )


def test_help_imports_nothing_heavy() -> None:
    """So that it answers at once: 0.2 s, where LeRobot alone takes fifteen to import."""
    done = python(sys.executable, "-c", HELP)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "imported"
    assert done.stdout.count("Usage: deepfusion") == 1 + len(VERBS)


def test_every_verb_is_told_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert tuple(sorted(deepfusion.commands)) == VERBS
    main(["--help"])
    listed = capsys.readouterr().out.split("Commands:")[1].splitlines()[1:]
    assert [line.split()[0] for line in listed] == list(VERBS)
    assert not any(line.endswith("...") for line in listed)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["inof"], 2, "deepfusion: No such command 'inof'. Did you mean 'info'? (deepfusion --help)"),
        (["demos"], 2, "deepfusion demos: Missing option '--root'. (deepfusion demos --help)"),
        (["demos", "--root=x", "--episodes=0"], 2, "'--episodes': 0 is not in the range x>=1."),
        (["demos", "--root=here"], 1, "deepfusion demos: here exists; choose another --root or remove it"),
        (["info", "nowhere"], 1, "deepfusion info: 'nowhere': no config.json in a directory of that name"),
        (["info", "configs/tniy.yaml"], 1, "configs/tniy.yaml: there is no such file; `deepfusion config` lists"),
        (["info", "tiny", "--fusion=kv"], 2, "deepfusion info: --fusion=kv: expected --policy.<field>=<value>"),
        (["info", "tiny", "--policy.fusion=["], 1, "deepfusion info: --policy.fusion=[ is not YAML"),
        (["merge", "here", "merged"], 1, "deepfusion merge: config.json not found in here"),
        (["merge", "here", "here"], 1, "deepfusion merge: here is there already; choose another directory"),
        (["config", "tniy"], 1, "no config 'tniy'; there are llava_1.5_7b, llava_1.5_7b_lora, onevision_0.5b, "),
        (["recover", "nowhere"], 1, "deepfusion recover: nowhere/checkpoints has no checkpoint"),
        (["check-data", "nowhere"], 1, "nowhere has no folder `meta`, so it is no data set"),
        (["card", "nowhere"], 1, "deepfusion card: nowhere has no config.json; give a checkpoint's folder"),
    ],
)
def test_what_is_wrong_is_one_line(
    arguments: list[str], code: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    # What `sys.exit` is given it prints itself, when nobody catches it.
    line = capfd.readouterr().err.strip() if isinstance(stopped.value.code, int) else str(stopped.value.code)
    assert said in line
    assert len(line.splitlines()) == 1
    assert (stopped.value.code if isinstance(stopped.value.code, int) else 1) == code


@pytest.mark.parametrize(
    "arguments", [["try"], ["look", "nowhere", "--dataset=here"], ["open-loop", "nowhere", "--dataset=here"]]
)
def test_without_matplotlib_nothing_begins(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The first thing that is said, in a line with the mend."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SystemExit, match=rf"deepfusion {arguments[0]}: pictures need Matplotlib: pip .*look"):
        main(arguments)


def test_a_missing_ffmpeg_is_a_line() -> None:
    """LeRobot warns of it by all that torchcodec says, a hundred lines before the one that tells."""
    main(["config"])
    logger = logging.getLogger("lerobot.utils.import_utils")
    record = logger.makeRecord(
        logger.name, logging.WARNING, "", 0, "no library %s\nTraceback\nFalling back to 'pyav'", (8,), None
    )
    # Asked of the logger's filters: whether a record goes further is for whoever set levels up before this test.
    assert logger.filter(record)
    assert record.getMessage() == "Falling back to 'pyav'"


@pytest.mark.medium
@pytest.mark.parametrize(
    ("command", "verb"),
    [
        (["-m", "lerobot_deepfusion.recover", "nowhere"], "recover"),
        (["-m", "lerobot_deepfusion.dataset_files", "nowhere"], "check-data"),
        (["-m", "lerobot_deepfusion.demos", "--help"], "demos"),
        (["-m", "lerobot_deepfusion.info", "--help"], "info"),
        (["-m", "lerobot_deepfusion.hub", "--help"], "card"),
        (["-m", "lerobot_deepfusion.policy_server", "--help"], "serve"),
        (["-m", "lerobot_deepfusion.adapters", "base", "--help"], "base"),
        (["-m", "lerobot_deepfusion.adapters", "merge", "--help"], "merge"),
        ([Path(sys.executable).with_name("deepfusion-info"), "--help"], "info"),
        ([Path(sys.executable).with_name("deepfusion-demos"), "--help"], "demos"),
    ],
)
def test_old_names_go_on_with_a_notice(command: list[str], verb: str) -> None:
    done = python(*([sys.executable] if command[0] == "-m" else []), *command)
    first, *rest = done.stderr.splitlines()
    assert f"is now `deepfusion {verb}`; the old name goes with 0.3" in first
    assert done.stdout.startswith(f"Usage: deepfusion {verb}") or "nowhere" in rest[-1]


def test_shell_completion() -> None:
    command = Path(sys.executable).with_name("deepfusion")
    script = python(command, _DEEPFUSION_COMPLETE="bash_source").stdout
    assert "_DEEPFUSION_COMPLETE=bash_complete" in script
    words = {"COMP_WORDS": "deepfusion che", "COMP_CWORD": "1", "_DEEPFUSION_COMPLETE": "bash_complete"}
    assert python(command, **words).stdout.strip() == "plain,check-data"
