"""The notebook runs from top to bottom, offline, and what it trains is better than what it began with."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import Client, Listener
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.commands import run

NOTEBOOK = Path(__file__).parents[1] / "examples" / "first_policy.ipynb"
# What bash reads first: those of the notebook's commands that import LeRobot are forks of one process that has.
FORKED = """
forked() {
    python -c 'import sys
from multiprocessing.connection import Client
with Client(sys.argv[1]) as asked:
    asked.send(sys.argv[2:])
    code, printed = asked.recv()
print(printed)
sys.exit(code)' "$FORKS" "$PWD" "$@"
}
lerobot-train() { forked lerobot-train "$@"; }
lerobot-eval() { forked lerobot-eval "$@"; }
deepfusion() { if [ "$1" = policy ]; then command deepfusion "$@"; else forked deepfusion "$@"; fi; }
"""


@contextmanager
def forks(address: Path, done: list[str]) -> Iterator[None]:
    """Runs what is asked for, one after another; `done` are the commands that went well."""

    def serve() -> None:
        while True:
            with listener.accept() as asked:
                if not (request := asked.recv()):
                    return
                folder, *command = request
                try:
                    asked.send((0, run(*command, inside=partial(os.chdir, folder))))
                    done.append(" ".join(command[:2]).split(" -")[0])
                except Exception as error:
                    asked.send((1, str(error)))

    with Listener(str(address)) as listener:
        server = threading.Thread(target=serve)
        server.start()
        try:
            yield
        finally:
            with Client(str(address)) as end:
                end.send([])
            server.join()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "forked.sh").write_text(FORKED)
    for name, value in {"IPYTHONDIR": "ipython", "BASH_ENV": "forked.sh", "FORKS": "forks"}.items():
        monkeypatch.setenv(name, str(tmp_path / value))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    done: list[str] = []
    with forks(tmp_path / "forks", done):
        NotebookClient(notebook, timeout=600, resources={"metadata": {"path": tmp_path}}).execute()
    looked = ["deepfusion open-loop", "deepfusion look"]
    assert done == ["deepfusion demos", "lerobot-train", *looked, "lerobot-eval", "lerobot-eval"]
    found = {
        output.data["text/plain"] for cell in notebook.cells for output in cell.get("outputs", ()) if "data" in output
    }
    (success,) = (eval(text) for text in found if text.startswith("{'trained here'"))
    assert success["trained here"] > success["before"]
    pictures = [
        cell for cell in notebook.cells for output in cell.get("outputs", ()) if "image/png" in output.get("data", {})
    ]
    assert len(pictures) == 3
    assert os.listdir(tmp_path / "outputs" / "first_policy" / "look")
