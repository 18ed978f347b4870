# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""A data set on a Hub is found by its name, configuration and revision, streamed or not."""

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from pair_files import draw_pixels, encode, write_parquet

REPO_ID = "me/pairs"
CARD = """---
configs:
- config_name: letters
  default: true
  data_files: letters/*.parquet
- config_name: digits
  data_files: digits/*.parquet
---
"""
LOAD = """
import json, sys
from hf_vqdit.data import load_pairs
found = []
for arguments in json.loads(sys.argv[1]):
    splits = load_pairs("me/pairs", cache_dir=sys.argv[2], num_held_out_samples=1, **arguments)
    rows = [row for split in splits.values() for row in split]
    assert all(row["image"]["bytes"] for row in rows)
    found.append("".join(sorted(row["caption"][0] for row in rows)))
print(json.dumps(found))
"""


class HubHandler(BaseHTTPRequestHandler):
    """As much of the Hub's protocol as reading one data set takes: commit -> name -> content, and a branch on each."""

    protocol_version = "HTTP/1.1"
    commits: dict[str, dict[str, bytes]]
    branches: dict[str, str]

    def log_message(self, *arguments):
        pass

    def respond(self, body, status: int = 200, **headers):
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": len(body), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def answer(self, paths: list[str] | None = None):
        path = unquote(urlsplit(self.path).path)
        match = re.fullmatch(rf"(/api)?/datasets/{REPO_ID}(?:/([a-z-]+)(?:/([^/]+)(?:/(.*))?)?)?", path)
        if match is None:
            return self.respond(b"", 404, X_Error_Code="RepoNotFound")
        is_api, what, revision, name = match.groups()
        commit = self.branches.get(revision or "main", revision)
        files = self.commits.get(commit)
        if files is None:
            return self.respond(b"", 404, X_Error_Code="RevisionNotFound")
        if not is_api:
            if name not in files:
                return self.respond(b"", 404, X_Error_Code="EntryNotFound")
            etag = f'"{hashlib.sha1(files[name]).hexdigest()}"'
            start, content = self.headers.get("Range"), files[name]
            if start is not None and self.command == "GET":
                first, last = re.fullmatch(r"bytes=(\d+)-(\d*)", start).groups()
                content = content[int(first) : int(last or len(content)) + 1]
                return self.respond(content, 206, ETag=etag, X_Repo_Commit=commit)
            return self.respond(content, ETag=etag, X_Repo_Commit=commit)
        folders = {path.rpartition("/")[0] for path in files} - {""}
        if what == "tree":
            paths = [path for path in [*files, *folders] if path.rpartition("/")[0] == (name or "")]
        if what in ("tree", "paths-info"):
            entries = [self.describe(files, path) for path in paths if path in files]
            entries += [{"type": "directory", "path": path, "oid": "0"} for path in paths if path in folders]
            return self.respond(entries)
        siblings = [{"rfilename": path} for path in files]
        return self.respond({"id": REPO_ID, "sha": commit, "siblings": siblings, "private": False})

    def do_GET(self):
        self.answer()

    do_HEAD = do_GET

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        is_json = "json" in self.headers.get("Content-Type", "")
        paths = json.loads(body)["paths"] if is_json else parse_qs(body.decode()).get("paths", [])
        self.answer(paths if isinstance(paths, list) else [paths])

    @staticmethod
    def describe(files: dict[str, bytes], path: str) -> dict:
        return {"type": "file", "path": path, "size": len(files[path]), "oid": hashlib.sha1(files[path]).hexdigest()}


@pytest.fixture
def hub(tmp_path):
    """A Hub on this machine, whose data set has two configurations and, in another revision, other pairs."""
    commits = {}
    for commit, captions in {"a" * 40: {"letters": "abcd", "digits": "1234"}, "b" * 40: {"letters": "wxyz"}}.items():
        commits[commit] = {"README.md": CARD.encode()}
        for config, words in captions.items():
            folder = tmp_path / commit / config
            write_parquet(folder, [(encode(draw_pixels(i)), word.encode()) for i, word in enumerate(words)])
            commits[commit] |= {f"{config}/{file.name}": file.read_bytes() for file in folder.iterdir()}
    branches = {"main": "a" * 40, "next": "b" * 40}
    handler = type("Handler", (HubHandler,), {"commits": commits, "branches": branches})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.slow
def test_a_name_a_configuration_and_a_revision_are_found_streamed_or_not(hub, tmp_path):
    expected = {"abcd": {}, "1234": {"dataset_config_name": "digits"}, "wxyz": {"revision": "next"}}
    expected = {key: [settings | {"streaming": way} for way in (False, True)] for key, settings in expected.items()}
    arguments = [settings for each in expected.values() for settings in each]
    # The address of the Hub is read when huggingface_hub is imported
    environment = {**os.environ, "HF_ENDPOINT": hub, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-c", LOAD, json.dumps(arguments), str(tmp_path / "cache")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    assert json.loads(done.stdout) == [key for key in expected for _ in range(2)]
