"""``main.py export --to hf --push``: an upload by the package huggingface_hub to a hub on this machine."""

import base64
import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cli import refused

from main import main

ANSWERS = {
    "/api/repos/create": {"url": "https://huggingface.co/datasets/me/digits", "name": "me/digits", "id": "1"},
    "/api/validate-yaml": {"errors": [], "warnings": []},
    "/api/datasets/me/digits/commit/main": {
        "commitUrl": "https://huggingface.co/datasets/me/digits/commit/1", "commitOid": "1", "success": True
    },
}  # fmt: skip


class FakeHub(BaseHTTPRequestHandler):
    """As much of the hub as an upload asks for: what it was told lies in the server's ``told``."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        self.server.told.append((self.path, self.headers["Authorization"], body))
        self.answer(200, self.preupload(body) if "preupload" in self.path else ANSWERS[self.path])

    def preupload(self, body: bytes) -> dict[str, Any]:
        """How the hub wants each file: whole, in the commit."""
        asked = json.loads(body)["files"]
        return {"files": [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in asked]}

    def do_GET(self) -> None:
        self.server.told.append((self.path, self.headers["Authorization"], b""))
        self.answer(404, {"error": "not here"})

    def answer(self, code: int, value: object) -> None:
        if self.server.refuses:
            code, value = 403, {"error": "no such user"}
        content = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    """A hub on this machine, with a token for it."""
    pytest.importorskip("datasets", reason="the package datasets is not installed")
    pytest.importorskip("huggingface_hub", reason="the package huggingface_hub is not installed")
    with ThreadingHTTPServer(("127.0.0.1", 0), FakeHub) as server:
        server.told, server.refuses = [], False
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_a_set_is_pushed_as_it_is_exported(hub: Any, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(run), "--to", "hf", "--push", "me/digits"]) == 0
    assert "datasets/me/digits" in capsys.readouterr().out.splitlines()[-1]
    assert {token for _, token, _ in hub.told} == {"Bearer hf_of_a_test"}
    about = next(json.loads(body) for path, _, body in hub.told if path == "/api/repos/create")
    assert (about["name"], about["organization"], about["type"]) == ("digits", "me", "dataset")
    (commit,) = (body for path, _, body in hub.told if path.endswith("/commit/main"))
    files = [line["value"] for line in map(json.loads, commit.splitlines()) if line["key"] == "file"]
    folder = run / "exports" / "hf"
    assert {file["path"]: base64.b64decode(file["content"]) for file in files} == {
        str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def test_a_hub_that_refuses_is_one_line_and_the_export_stays(
    hub: Any, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.refuses = True
    error = refused(["export", str(run), "--to", "hf", "--push", "me/digits"], capsys)
    folder = run / "exports" / "hf"
    assert error.startswith("main.py: error: --push me/digits: ")
    assert f"hf upload me/digits {folder} --repo-type dataset" in error
    assert error.count("\n") == 1
    assert (folder / "README.md").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--to", "hf", "--push", "me/digits"], "no token; set the variable HF_TOKEN"),
        (["--to", "hf", "--push", "digits"], "--push digits: give USER/NAME"),
        (["--to", "pt", "--push", "me/digits"], "--push is not read by --to pt"),
    ],
)
def test_what_cannot_be_pushed_is_one_line_and_nothing_is_written(
    arguments: list[str], message: str, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    error = refused(["export", str(run), *arguments], capsys)
    assert message in error
    assert error.count("\n") == 1
    assert not (run / "exports").exists()


def test_pushing_needs_a_package(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    error = refused(["export", str(run), "--to", "hf", "--push", "me/digits"], capsys)
    assert "--push needs the package: pip install huggingface_hub" in error
    assert not (run / "exports").exists()
