# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""Saved pipelines load in clean processes: with the package, without it, from a folder, and from a Hub."""

import base64
import hashlib
import inspect
import json
import os
import subprocess
import sys
import sysconfig
import threading
import venv
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from diffusers import AutoModel, DiffusionPipeline, DPMSolverMultistepScheduler
from gaussian_inputs import make_gaussian_pipeline
from huggingface_hub import ModelCard

import hf_vqdit

PYTHON = [sys.executable]
SHIPPED = {
    "pipeline.py": "pipelines/pipeline_vqdit.py",
    "vqvae/autoencoder_vqvae.py": "models/autoencoder_vqvae.py",
    "transformer/transformer_vqdit.py": "models/transformer_vqdit.py",
    "scheduler/scheduling_masked_diffusion.py": "schedulers/scheduling_masked_diffusion.py",
    "text_scheduler/scheduling_masked_diffusion.py": "schedulers/scheduling_masked_diffusion.py",
}


def generate(pipe):
    """Pictures and captions of a fixed seed; its source also runs in the clean processes, hence the imports."""
    import torch

    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    output = pipe(num_images_per_prompt=2, num_inference_steps=3, generator=generator, output_type="np")
    return output.images, output.texts


GENERATE = inspect.getsource(generate)

WITHOUT_PACKAGE = """
import importlib.util, sys
assert importlib.util.find_spec("hf_vqdit") is None, "hf_vqdit must not be installed here"
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained(sys.argv[1], trust_remote_code=True)
assert type(pipe).__module__.startswith("diffusers_modules.")
"""

WITH_PACKAGE = """
import sys
import hf_vqdit
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained(sys.argv[1])
assert type(pipe) is type(hf_vqdit.VQDiTPipeline.from_pretrained(sys.argv[1])) is hf_vqdit.VQDiTPipeline
assert not [name for name in sys.modules if name.startswith("diffusers_modules.")]
"""

SAVE_RESULT = """
import json
import numpy as np
images, texts = generate(pipe)
np.savez(sys.argv[2], images=images, texts=json.dumps(texts))
"""


def run_python(python, code, *arguments, cwd, **environment):
    """Runs code in a clean process with caches of its own, and no network but `HF_ENDPOINT`."""
    environment = {**os.environ, "HF_HOME": str(cwd / "hf_home"), "HF_HUB_DISABLE_XET": "1", **environment}
    command = [*python, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory):
    """A virtual environment with every package of this one but hf_vqdit, whose editable install is a `.pth` file."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, with_pip=False, symlinks=True)
    paths = {"base": str(folder), "platbase": str(folder)}
    site_packages = Path(sysconfig.get_path("purelib", "venv", vars=paths))
    (site_packages / "other_packages.pth").write_text(sysconfig.get_path("purelib"))  # not read recursively
    return [str(Path(sysconfig.get_path("scripts", "venv", vars=paths)) / "python"), "-I"]


@pytest.fixture(scope="module")
def expected(saved_pipeline):
    images, texts = generate(hf_vqdit.VQDiTPipeline.from_pretrained(saved_pipeline))
    assert images.std() > 0
    return images, texts


def assert_equal_result(file, expected):
    with np.load(file) as result:
        assert np.array_equal(result["images"], expected[0])
        assert json.loads(result["texts"].item()) == expected[1]


# The folder


def test_the_code_in_the_folder_is_the_packages_byte_for_byte(saved_pipeline):
    package = Path(hf_vqdit.__file__).parent
    written = {path.relative_to(saved_pipeline).as_posix() for path in Path(saved_pipeline).rglob("*.py")}
    assert written == set(SHIPPED)
    for name, source in SHIPPED.items():
        assert (Path(saved_pipeline) / name).read_bytes() == (package / source).read_bytes()


@pytest.mark.slow
def test_the_folder_loads_in_a_clean_process_with_the_package(saved_pipeline, expected, tmp_path):
    run_python(PYTHON, GENERATE + WITH_PACKAGE + SAVE_RESULT, saved_pipeline, "out.npz", cwd=tmp_path)
    assert_equal_result(tmp_path / "out.npz", expected)


@pytest.mark.slow
def test_the_folder_loads_without_the_package_and_draws_the_same(bare_python, saved_pipeline, expected, tmp_path):
    run_python(bare_python, GENERATE + WITHOUT_PACKAGE + SAVE_RESULT, saved_pipeline, "out.npz", cwd=tmp_path)
    assert_equal_result(tmp_path / "out.npz", expected)


@pytest.mark.slow
def test_a_gaussian_pipeline_loads_in_both_ways_with_schedulers_of_diffusers(bare_python, tiny_pipeline, tmp_path):
    pipeline = make_gaussian_pipeline(tiny_pipeline, DPMSolverMultistepScheduler(), prediction_type="epsilon")
    hf_vqdit.save_pipeline(pipeline, tmp_path / "saved")
    drawn = generate(pipeline)
    for python, load in ((PYTHON, WITH_PACKAGE), (bare_python, WITHOUT_PACKAGE)):
        run_python(python, GENERATE + load + SAVE_RESULT, tmp_path / "saved", "out.npz", cwd=tmp_path)
        assert_equal_result(tmp_path / "out.npz", drawn)
    index = json.loads((tmp_path / "saved" / "model_index.json").read_text())
    assert index["scheduler"] == index["text_scheduler"] == ["diffusers", "DPMSolverMultistepScheduler"]
    assert not (tmp_path / "saved" / "scheduler" / "scheduling_masked_diffusion.py").exists()


def test_a_model_loads_alone_by_the_code_beside_it(saved_pipeline, tmp_path, monkeypatch):
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path))
    model = AutoModel.from_pretrained(f"{saved_pipeline}/transformer", trust_remote_code=True)
    assert type(model) is not hf_vqdit.VQDiTModel and type(model).__name__ == "VQDiTModel"


def test_a_pipeline_of_remote_classes_saves_a_folder_that_loads(tiny_pipeline, tmp_path):
    class VQDiTModel(hf_vqdit.VQDiTModel):
        """The class as remote code would define it: the same name in another module."""

    VQDiTModel.__module__ = "diffusers_modules.local.transformer_vqdit"
    tiny_pipeline.transformer = VQDiTModel.from_config(tiny_pipeline.transformer.config)
    hf_vqdit.save_pipeline(tiny_pipeline, tmp_path)
    assert type(DiffusionPipeline.from_pretrained(tmp_path).transformer) is hf_vqdit.VQDiTModel


def test_another_pipeline_is_refused():
    with pytest.raises(TypeError, match="must be a VQDiTPipeline, got object"):
        hf_vqdit.save_pipeline(object(), "unused")


# Cards


def test_a_card_tells_data_config_figures_picture_and_both_ways_to_load(tmp_path):
    picture = tmp_path / "grid.png"
    picture.write_bytes(b"a picture")
    folder = tmp_path / "pipeline"
    folder.mkdir()
    hf_vqdit.hub.write_model_card(
        folder,
        repo_id="me/my-vqdit",
        dataset="them/pairs",
        config={"learning_rate": 0.001},
        figures={"image_psnr_db": 27.123456},
        image=picture,
        license="apache-2.0",
    )
    card = ModelCard.load(folder / "README.md")
    assert card.data.library_name == "diffusers" and card.data.license == "apache-2.0"
    assert "diffusers-training" in card.data.tags and card.data.datasets == ["them/pairs"]
    for text in (
        'DiffusionPipeline.from_pretrained("me/my-vqdit", trust_remote_code=True)',
        'VQDiTPipeline.from_pretrained("me/my-vqdit")',
        '"learning_rate": 0.001',
        "| `image_psnr_db` | 27.12 |",
        "![Samples](samples.png)",
    ):
        assert text in card.text
    assert (folder / "samples.png").read_bytes() == b"a picture"


def test_a_card_takes_in_an_evaluation_in_the_place_of_an_earlier_one(tmp_path):
    grid = tmp_path / "grid.png"
    grid.write_bytes(b"a grid")
    folder = tmp_path / "pipeline"
    folder.mkdir()
    with pytest.raises(FileNotFoundError, match="no README.md"):
        hf_vqdit.hub.add_evaluation(folder, "# Report", {})
    hf_vqdit.hub.write_model_card(folder, repo_id="me/my-vqdit", config={"seed": 0}, license="mit")
    bare = (folder / "README.md").read_text()
    for chrf in (12, 34):
        hf_vqdit.hub.add_evaluation(folder, f"# Report\n\nchrF {chrf}\n\n## Notes\n\n- few\n", {"Samples": grid})
    card = ModelCard.load(folder / "README.md")
    assert "chrF 34" in card.text and "chrF 12" not in card.text and card.data.license == "mit"
    assert card.text.count("## Evaluation") == 1 and "![Samples](grid.png)" in card.text
    assert (folder / "grid.png").read_bytes() == b"a grid"
    # All else stays as it was
    start, end = card.text.index("## Evaluation"), card.text.index("## Training")
    assert card.text[:start] + card.text[end:] == ModelCard(bare).text


@pytest.mark.parametrize("template", hf_vqdit.hub.CARD_TEMPLATES)
def test_a_card_of_nothing_but_a_name_has_no_empty_parts(template, tmp_path):
    card = hf_vqdit.hub.write_model_card(tmp_path, template=template, repo_id="me/mine")
    assert not [part for part in ("None", "{{", "{%", "## Figures", "![") if part in card.text]


def test_an_unknown_card_template_is_refused(tmp_path):
    with pytest.raises(ValueError, match="must be one of .* got 'poem'"):
        hf_vqdit.hub.write_model_card(tmp_path, template="poem")


# The Hub


class HubHandler(BaseHTTPRequestHandler):
    """As much of the Hub's protocol as uploading and downloading one repository takes; files are kept in memory."""

    protocol_version = "HTTP/1.1"
    files: dict[str, bytes]
    repo_id = "me/my-vqdit"
    commit = "0" * 40

    def log_message(self, *arguments):
        pass

    def respond(self, body, **headers):
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(200)
        for name, value in {"Content-Length": len(body), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def not_found(self, code):
        self.send_response(404)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        api, resolve = f"/api/models/{self.repo_id}", f"/{self.repo_id}/resolve/"
        if path.startswith(resolve):
            name = path.removeprefix(resolve).partition("/")[2]
            if name not in self.files:
                return self.not_found("EntryNotFound")
            content = self.files[name]
            return self.respond(content, ETag=f'"{hashlib.sha1(content).hexdigest()}"', X_Repo_Commit=self.commit)
        if path.startswith(f"{api}/tree/"):
            return self.respond([self.describe(name) for name in sorted(self.files)])
        if path == api or path.startswith(f"{api}/revision/"):
            siblings = [{"rfilename": name} for name in sorted(self.files)]
            return self.respond(
                {"id": self.repo_id, "modelId": self.repo_id, "sha": self.commit, "siblings": siblings}
            )
        return self.not_found("RepoNotFound")

    do_HEAD = do_GET

    def describe(self, name):
        content = self.files[name]
        return {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        path = urlsplit(self.path).path
        repo_url = f"http://{self.headers['Host']}/{self.repo_id}"
        if path == "/api/repos/create":
            return self.respond({"url": repo_url})
        if path == "/api/validate-yaml":
            return self.respond({"errors": [], "warnings": []})
        if "/preupload/" in path:
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            return self.respond({"files": files})
        if "/commit/" in path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            commit = {"commitUrl": f"{repo_url}/commit/{self.commit}", "commitOid": self.commit, "success": True}
            return self.respond(commit)
        return self.not_found("RepoNotFound")


@pytest.fixture
def hub():
    """A Hub on this machine: its address and the files that it holds."""
    handler = type("Handler", (HubHandler,), {"files": {}})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", handler.files
        server.shutdown()


@pytest.mark.slow
def test_what_is_pushed_to_the_hub_loads_from_there_in_both_ways(hub, bare_python, saved_pipeline, expected, tmp_path):
    address, files = hub
    online = {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_for_this_test"}
    push = "hf_vqdit.hub.push_to_hub(sys.argv[3], sys.argv[1])\n"
    push_and_load = GENERATE + "import sys, hf_vqdit\n" + push + WITH_PACKAGE + SAVE_RESULT
    run_python(PYTHON, push_and_load, "me/my-vqdit", "with.npz", saved_pipeline, cwd=tmp_path, **online)
    saved = [path for path in Path(saved_pipeline).rglob("*") if path.is_file()]
    assert saved and all(files[path.relative_to(saved_pipeline).as_posix()] == path.read_bytes() for path in saved)
    assert_equal_result(tmp_path / "with.npz", expected)

    without_package = GENERATE + WITHOUT_PACKAGE + SAVE_RESULT
    run_python(bare_python, without_package, "me/my-vqdit", "without.npz", cwd=tmp_path, **online)
    assert_equal_result(tmp_path / "without.npz", expected)
