# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""The rules of the house (CONTRIBUTING.md), and prose that would rot if nobody ran it."""

import ast
import dataclasses
import functools
import importlib.util
import inspect
import re
import sys
import tomllib
import types
from pathlib import Path

import pytest
import torch
import yaml
from packaging.requirements import Requirement

import hf_vqdit
from hf_vqdit.training.arguments import parse_arguments

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PACKAGE_FILES = sorted((ROOT / "hf_vqdit").rglob("*.py"))
SCRIPTS = sorted((ROOT / "training_scripts").glob("*.py"))
CONFIGS = sorted((ROOT / "training_scripts" / "configs").glob("*.yaml"))
BENCHMARKS = sorted((ROOT / "benchmarks").glob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
CODE_FILES = [*PACKAGE_FILES, *SCRIPTS, *BENCHMARKS, *TESTS, *(ROOT / "model_cards").glob("*.py")]
SHIPPED_FILES = [
    ROOT / "hf_vqdit" / name
    for name in (
        "models/autoencoder_vqvae.py",
        "models/transformer_vqdit.py",
        "schedulers/scheduling_masked_diffusion.py",
        "pipelines/pipeline_vqdit.py",
    )
]
SHIPPED_MAY_IMPORT = {
    "torch",
    "numpy",
    "PIL",
    "diffusers",
    "transformers",
    "huggingface_hub",
} | sys.stdlib_module_names

# What each part of the package may import of the others.
COMPONENTS = {"models", "schedulers", "pipelines"}
MAY_IMPORT = {
    "models": set(),
    "schedulers": set(),
    "pipelines": {"models", "schedulers"},
    "registration": COMPONENTS,
    "hub": COMPONENTS | {"registration"},
    "data": set(),
    "evaluation": COMPONENTS | {"registration", "data"},
    "training": COMPONENTS | {"registration", "hub", "data", "evaluation"},
    "__init__": COMPONENTS | {"registration", "hub"},
}


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imported_modules(path: Path) -> set[str]:
    """Absolute names of all modules that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = relative(path.parents[node.level - 1]).replace("/", ".") if node.level else ""
            module = ".".join(part for part in (package, node.module) if part)
            names |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return names


# Files


@pytest.mark.parametrize("path", CODE_FILES, ids=relative)
def test_every_file_bears_the_licence_and_has_a_readable_length(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0."
    limit = 900 if path in SHIPPED_FILES else 500
    assert len(lines) < limit, f"{relative(path)} has {len(lines)} lines; the limit is {limit}"


@pytest.mark.parametrize("path", SHIPPED_FILES, ids=relative)
def test_a_file_that_ships_is_self_contained(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        assert not (isinstance(node, ast.ImportFrom) and node.level), f"relative import in {relative(path)}"
    foreign = {name.split(".")[0] for name in imported_modules(path)} - SHIPPED_MAY_IMPORT
    assert not foreign, f"{relative(path)} imports {foreign}"


@pytest.mark.parametrize("path", PACKAGE_FILES, ids=relative)
def test_imports_flow_downward(path):
    part = path.relative_to(ROOT / "hf_vqdit").parts[0].removesuffix(".py")
    modules = imported_modules(path)
    assert not {name for name in modules if name.split(".")[0] in ("training_scripts", "benchmarks", "tests")}
    parts = {name.split(".")[1] for name in modules if name.startswith("hf_vqdit.")}
    submodules = {p.stem if p.suffix else p.name for p in (ROOT / "hf_vqdit").iterdir()}
    upward = (parts & submodules) - MAY_IMPORT[part] - {part}
    assert not upward, f"{relative(path)} imports {upward}"


@pytest.mark.parametrize("path", BENCHMARKS, ids=relative)
def test_a_benchmark_measures_the_package_and_no_script(path):
    assert not {name for name in imported_modules(path) if name.split(".")[0] in ("training_scripts", "tests")}


def test_the_distribution_holds_every_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    packages = {relative(path.parent).replace("/", ".") for path in PACKAGE_FILES if path.name == "__init__.py"}
    assert set(project["tool"]["setuptools"]["packages"]) == packages | {"hf_vqdit.model_cards"}


def test_every_dependency_is_pinned_within_its_range():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    requirements = map(Requirement, project["dependencies"] + [line for lines in extras.values() for line in lines])
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = {pin.name: next(iter(pin.specifier)).version for pin in map(Requirement, filter(None, map(_code, lines)))}
    wanted = {requirement.name: requirement.specifier for requirement in requirements}
    assert set(pins) == set(wanted)
    for name, specifier in wanted.items():
        assert pins[name] in specifier, f"{name} is pinned to {pins[name]}, outside {specifier}"


def _code(line: str) -> str:
    return line.partition("#")[0].strip()


# Docstrings


def public_objects():
    """Public functions, classes and methods of the package, as (name, object, the function whose signature it has)."""
    for path in PACKAGE_FILES:
        if path.name == "__init__.py":
            continue
        module_name = relative(path).removesuffix(".py").replace("/", ".")
        module = importlib.import_module(module_name)
        for name, value in vars(module).items():
            if name.startswith("_") or getattr(value, "__module__", None) != module_name:
                continue
            if inspect.isclass(value):
                yield f"{module_name}.{name}", value, value.__init__
                for method_name, method in vars(value).items():
                    function = inspect.unwrap(getattr(method, "__func__", method))
                    if not method_name.startswith("_") and inspect.isfunction(function):
                        yield f"{module_name}.{name}.{method_name}", function, function
            elif inspect.isfunction(value):
                yield f"{module_name}.{name}", value, inspect.unwrap(value)


def documented_arguments(docstring: str) -> dict[str, str]:
    """Name -> what stands in the parentheses of the entries of an `Args:` section."""
    section = re.search(r"^Args:\n(.*?)(?=^\S|\Z)", inspect.cleandoc(docstring), flags=re.MULTILINE | re.DOTALL)
    if section is None:
        return {}
    entries = re.findall(r"^    (\*{0,2}\w+(?:, \w+)*)(?: \((.*?)\))?:(?:\s|$)", section[1], flags=re.MULTILINE)
    return {name.strip(): described for names, described in entries for name in names.split(",")}


PUBLIC_OBJECTS = {name: (value, function) for name, value, function in public_objects()}


def test_everything_public_has_a_docstring():
    nameless = {"forward", "__call__"}  # of the inner layers, whose class says what they compute
    missing = [
        name
        for name, (value, _) in PUBLIC_OBJECTS.items()
        if not (value.__doc__ or "").strip() and name.rpartition(".")[2] not in nameless
    ]
    assert not missing


@pytest.mark.parametrize(
    "name", [name for name, (value, _) in PUBLIC_OBJECTS.items() if "Args:" in (value.__doc__ or "")]
)
def test_documented_arguments_and_defaults_equal_the_signature(name):
    value, function = PUBLIC_OBJECTS[name]
    documented = documented_arguments(value.__doc__)
    parameters = {n: p for n, p in inspect.signature(function).parameters.items() if n != "self"}
    keywords = {n for n, p in parameters.items() if p.kind is p.VAR_KEYWORD}
    differing = {n.lstrip("*") for n in documented} ^ set(parameters)
    assert not differing - keywords, f"`Args:` of {name} and its signature differ in {differing}"
    for argument, described in documented.items():
        default = parameters[argument].default if argument in parameters else inspect.Parameter.empty
        match = re.search(r"defaults to `?(.+?)`?$", described, flags=re.DOTALL)
        if match:
            assert _same_default(match[1], default), (
                f"{name}: `{argument}` is said to be {match[1]}, but is {default!r}"
            )
        elif "*optional*" not in described:
            assert default in (inspect.Parameter.empty, None) or isinstance(default, dataclasses.Field), (
                f"{name}: `{argument}` has the default {default!r}, which its docstring does not tell"
            )


def _same_default(written: str, default: object) -> bool:
    try:
        return ast.literal_eval(written) == default
    except (ValueError, SyntaxError):  # the name of a constant
        return written.rpartition(".")[2] == getattr(default, "name", str(default).rpartition(".")[2])


# README


def fenced_blocks(language: str, *, also_not_run: bool = True) -> list[str]:
    """The fenced blocks of one language, in order, with or without those that follow `<!-- not run: reason -->`."""
    pattern = rf"(<!-- not run: [^>]+ -->\n)?```{language}\n(.*?)```"
    return [code for mark, code in re.findall(pattern, README, flags=re.DOTALL) if also_not_run or not mark]


def test_the_python_of_the_readme_runs(saved_pipeline, tmp_path, monkeypatch):
    for name in ("quickstart", "quickstart-distill"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "pipeline").symlink_to(saved_pipeline, target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    blocks = fenced_blocks("python", also_not_run=False)
    assert blocks
    namespace = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), namespace)


def test_the_file_map_of_the_readme_equals_the_tree():
    section = README.split("## File map", 1)[1]
    mapped, folder = set(), ""
    for line in re.search(r"```text\n(.*?)```", section, flags=re.DOTALL)[1].splitlines():
        name = line.split()[0]
        if not line.startswith(" "):
            folder = name if name.endswith("/") and not line.removeprefix(name).strip() else ""
            if folder:
                continue
            mapped.add(name)
        else:
            mapped.add(folder + name)
    for name in mapped:
        assert (ROOT / name).exists(), f"the file map lists {name}, which does not exist"
    folders = tuple(name for name in mapped if name.endswith("/"))
    ignored = {"runs", "build", "dist", "shared"}
    for top in ROOT.iterdir():
        if top.name.startswith(".") or top.name in ignored or top.name.endswith(".egg-info"):
            continue
        for path in [top] if top.is_file() else top.rglob("*.*"):
            name = relative(path)
            unmapped = path.name in ("__init__.py", "README.md", "LICENSE") or "__pycache__" in name or path.is_dir()
            assert unmapped or name in mapped or name.startswith(folders), f"the file map does not list {name}"


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", *map(relative, sorted(ROOT.glob("docs/*.md")))])
def test_every_link_and_picture_of_a_document_exists(document):
    path = ROOT / document
    links = re.findall(r"\]\(([^)#]+)", path.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (path.parent / link).exists()]
    assert not missing, f"{document} links to {missing}"


# Scripts and their configurations


def settings_of(script: Path) -> tuple[type, str]:
    """The dataclass of a script's settings, and its section of a YAML file."""
    name, section = re.search(r"parse_arguments\((\w+), \"(\w+)\"", script.read_text(encoding="utf-8")).groups()
    return getattr(load_script(script), name), section


@functools.cache
def load_script(script: Path) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(script.stem, script)
    module = importlib.util.module_from_spec(spec)
    sys.modules[script.stem] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


def commands() -> list[tuple[str, str]]:
    """Every command that somebody is told to type, or that make runs: (the file, the command)."""
    documents = {"README.md": "\n".join(fenced_blocks("bash"))}
    for path in [ROOT / "Makefile", *SCRIPTS, *CONFIGS]:
        documents[relative(path)] = path.read_text(encoding="utf-8")
    return [
        (name, command)
        for name, text in documents.items()
        for command in re.sub(r"\\\n#?\s*", " ", text).splitlines()
        if re.search(r"training_scripts/\w+\.py +--", command)
    ]


def test_every_command_names_files_and_flags_that_exist():
    found = commands()
    assert {name for name, _ in found} >= {"README.md", "Makefile", *map(relative, SCRIPTS), *map(relative, CONFIGS)}
    for name, command in found:
        for path in re.findall(r"training_scripts/[\w/]+\.\w+", command):
            assert (ROOT / path).is_file(), f"{name} names {path}, which does not exist"
        arguments_class, _ = settings_of(ROOT / re.search(r"training_scripts/\w+\.py", command)[0])
        flags = {field.name for field in dataclasses.fields(arguments_class)} | {"config"}
        unknown = set(re.findall(r"--(\w+)", command.partition(".py")[2])) - flags
        assert not unknown, f"{name} uses the flags {unknown}, which the script does not know: {command}"


@pytest.mark.parametrize("config", CONFIGS, ids=relative)
def test_every_configuration_is_known_to_the_scripts_and_builds_its_models(config, tiny_pipeline):
    sections, arguments = yaml.safe_load(config.read_text(encoding="utf-8")), {}
    for script in SCRIPTS:
        arguments_class, section = settings_of(script)
        if section in sections:
            arguments[script.stem] = parse_arguments(arguments_class, section, ["--config", str(config)])
    assert {"train_dit", "evaluate"} <= set(arguments)
    if arguments["train_dit"].distill_from is not None:  # what it builds is what another configuration leaves
        others = [yaml.safe_load(other.read_text(encoding="utf-8")) for other in CONFIGS if other != config]
        assert arguments["train_dit"].distill_from in [other["dit"]["output_dir"] for other in others]
        return
    assert len(arguments) == len(SCRIPTS)
    train_vqvae, train_dit = (
        load_script(ROOT / "training_scripts" / f"{name}.py") for name in ("train_vqvae", "train_dit")
    )
    with torch.device("meta"):
        vqvae = train_vqvae.make_model(arguments["train_vqvae"], tiny_pipeline.tokenizer)
        side = arguments["train_dit"].resolution // vqvae.image_downsample_factor
        text_length = arguments["train_vqvae"].model_max_length // vqvae.text_downsample_factor
        codes = {
            "image_codes": torch.zeros(1, side, side, dtype=torch.long),
            "text_codes": torch.zeros(1, text_length, vqvae.config.text_num_groups, dtype=torch.long),
        }
        transformer, schedulers = train_dit.make_model(arguments["train_dit"], vqvae, codes)
    assert vqvae.device.type == transformer.device.type == "meta"
    hf_vqdit.VQDiTPipeline(vqvae, transformer, tiny_pipeline.tokenizer, *schedulers)


def test_every_make_target_that_is_spoken_of_exists():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^(\w+):", makefile, flags=re.MULTILINE))
    documents = README + (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    documents += (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    spoken_of = set(re.findall(r"(?:^|`)make (\w+)", documents, flags=re.MULTILINE))
    assert {"quickstart", "test", "style", "quality"} <= spoken_of
    assert spoken_of <= targets
