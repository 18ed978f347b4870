# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""The settings of the scripts: typed dataclasses, defaults from a YAML file, and the command line, which wins."""

import argparse
import inspect
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from diffusers import SchedulerMixin
from transformers import HfArgumentParser

from hf_vqdit.models.autoencoder_vqvae import MultimodalVQVAE
from hf_vqdit.models.transformer_vqdit import VQDiTModel
from hf_vqdit.pipelines.pipeline_vqdit import VQDiTPipeline
from hf_vqdit.training.adversarial import AdversarialTrainer
from hf_vqdit.training.argument_groups import (
    DataArguments,
    HubArguments,
    Keywords,
    LoopArguments,
    OptimizationArguments,
    TrainedTokenizerArguments,
    about,
    check_known,
)
from hf_vqdit.training.codebook import CodebookTrainer
from hf_vqdit.training.distillation import DistillationConfig
from hf_vqdit.training.losses import TOKENIZER_LOSS_WEIGHTS, check_loss_weights
from hf_vqdit.training.processes import LOSS_CONFIGS, PICTURES_ALONE, UNET_KWARGS, check_process, scheduler_class
from hf_vqdit.training.times import TimeMixture

CONFIG_FORMAT_VERSION = 1  # of the YAML files; a change that would misread older files raises it
SECTIONS = ("common", "inspect", "vqvae", "dit", "codes", "evaluate")
# What a call of the pipeline takes where it is told nothing.
CALL_DEFAULTS = {name: own.default for name, own in inspect.signature(VQDiTPipeline.__call__).parameters.items()}

Arguments = TypeVar("Arguments")


@dataclass(kw_only=True)
class TrainVQVAEArguments(HubArguments, LoopArguments, OptimizationArguments, DataArguments):
    """Settings of `training_scripts/train_vqvae.py`."""

    pretrained_model_name_or_path: str | None = field(
        default=None, metadata=about("Fine-tune this: a folder or repository with `vqvae` and `tokenizer` inside.")
    )
    vq_model_name_or_path: str | None = field(
        default=None,
        metadata=about(
            "Take the image codec of this `VQModel` of diffusers: a folder or repository; the text codec is new."
        ),
    )
    model_init_kwargs: Keywords = field(
        default_factory=Keywords,
        metadata=about("Arguments of a new `MultimodalVQVAE`, as JSON; laid over those of the YAML."),
    )
    tokenizer_name_or_path: str | None = field(
        default=None, metadata=about("Caption tokenizer to use; by default one is trained on the captions.")
    )
    vocab_size: int = field(default=512, metadata=about("Most tokens of a caption tokenizer trained here."))
    model_max_length: int = field(
        default=16, metadata=about("Tokens a caption, the end token included; r divides it.")
    )
    train_modalities: str = field(default="image,text", metadata=about('"image,text", "image" or "text".'))
    quantizer_start_step: int = field(
        default=100, metadata=about("Optimizer steps without quantization, before the codebooks start by k-means.")
    )
    gradient_estimator: Literal["straight_through", "rotation_trick"] = field(
        default="straight_through", metadata=about("How the decoders' gradient passes the quantization.")
    )
    codebook_update: Literal["ema", "gradient"] = field(
        default="ema", metadata=about("How codes follow their vectors: by a moving average, or by Adam.")
    )
    codebook_kwargs: Keywords = field(
        default_factory=Keywords,
        metadata=about("Further arguments of `CodebookTrainer`, as JSON; laid over those of the YAML."),
    )
    loss_weights: Keywords = field(
        default_factory=Keywords,
        metadata=about(f"Weights of the loss terms, as JSON, laid over {TOKENIZER_LOSS_WEIGHTS}."),
    )
    perceptual_model_name_or_path: str | None = field(
        default=None,
        metadata=about("Vision network of `image_perceptual`: a folder or repository. None by itself."),
    )
    discriminator_kwargs: Keywords = field(
        default_factory=Keywords,
        metadata=about("Arguments of `AdversarialTrainer`, for `image_adversarial`, as JSON; over the YAML's."),
    )
    alignment_ramp_steps: int = field(
        default=500,
        metadata=about("Optimizer steps over which the weight of `alignment` rises, from `quantizer_start_step` on."),
    )

    def __post_init__(self) -> None:
        if not self.modalities <= {"image", "text"}:
            raise ValueError(f'`train_modalities` is {self.train_modalities!r}; give "image,text", "image" or "text".')
        self.model_init_kwargs.check("model_init_kwargs", MultimodalVQVAE)
        self.codebook_kwargs.check("codebook_kwargs", CodebookTrainer)
        self.discriminator_kwargs.check("discriminator_kwargs", AdversarialTrainer)
        self.loss_weights.check("loss_weights", TOKENIZER_LOSS_WEIGHTS)
        self.loss_weights = Keywords(TOKENIZER_LOSS_WEIGHTS | self.loss_weights)
        check_loss_weights(
            self.loss_weights, self.modalities, self.perceptual_model_name_or_path, self.discriminator_kwargs
        )
        if self.vq_model_name_or_path is not None:
            if self.pretrained_model_name_or_path is not None or "image" not in self.modalities:
                raise ValueError(
                    f"`vq_model_name_or_path` is {self.vq_model_name_or_path!r}, the image codec of a new tokenizer: "
                    "leave `pretrained_model_name_or_path` out, and image among `train_modalities`."
                )

    @property
    def modalities(self) -> set[str]:
        """The modalities to train."""
        return {name.strip() for name in self.train_modalities.split(",")}


@dataclass(kw_only=True)
class TrainDiTArguments(HubArguments, LoopArguments, OptimizationArguments, TrainedTokenizerArguments, DataArguments):
    """Settings of `training_scripts/train_dit.py`."""

    pretrained_model_name_or_path: str | None = field(
        default=None, metadata=about("Fine-tune this pipeline; its tokenizer is used too.")
    )
    distill_from: str | None = field(
        default=None,
        metadata=about(
            "Train a student of few passes: the pipeline that it starts as, learns from and shares codes with."
        ),
    )
    distill_config: Keywords = field(
        default_factory=Keywords,
        metadata=about("Steps, guidance and divergence (`DistillationConfig`), as JSON; over the YAML's."),
    )
    process: Literal["masked", "gaussian"] = field(
        default="masked",
        metadata=about("What is diffused: codes that are hidden, or their vectors, which are noised."),
    )
    backbone: Literal["dit", "unet"] = field(
        default="dit",
        metadata=about(
            "The network: the transformer, or for comparison the U-Net of diffusers (`unet_kwargs` of "
            "`model_init_kwargs`) over pictures alone: of `time_mixture` no other task is trained."
        ),
    )
    noise_scheduler: str | None = field(
        default=None,
        metadata=about(
            "Scheduler of the Gaussian process, a class of diffusers: by default that of the pipeline to fine-tune, "
            "or else DDPMScheduler, and for flow_prediction FlowMatchEulerDiscreteScheduler."
        ),
    )
    codes_dir: str | None = field(
        default=None, metadata=about("What `encode_codes.py` wrote. Otherwise pictures are encoded on the fly.")
    )
    model_init_kwargs: Keywords = field(
        default_factory=Keywords,
        metadata=about("Arguments of a new `VQDiTModel`, as JSON; laid over those of the YAML."),
    )
    embed_by_vectors: bool = field(
        default=False,
        metadata=about(
            "Let the embeddings of image codes of a new masked model start as the codes' vectors. Where many codes "
            "are rare, as of a few thousand varied pictures, held-out pictures then cost fewer bits."
        ),
    )
    scheduler_kwargs: Keywords = field(
        default_factory=Keywords,
        metadata=about("Arguments of the image scheduler, as JSON; laid over those of the YAML."),
    )
    text_scheduler_kwargs: Keywords = field(
        default_factory=Keywords,
        metadata=about("Arguments of the text scheduler, as JSON; laid over those of the YAML."),
    )
    time_mixture: Keywords = field(
        default_factory=Keywords,
        metadata=about("How often each kind of task is trained (`TimeMixture`), as JSON; over the YAML's."),
    )
    loss_config: Keywords = field(
        default_factory=Keywords,
        metadata=about("Weights of the loss (`MaskedLossConfig` or `GaussianLossConfig`), as JSON; over the YAML's."),
    )
    validation_prompts: list[str] | None = field(
        default=None, metadata=about("Prompts of the sample grids; by default held-out captions.")
    )
    num_inference_steps: int | None = field(
        default=None,
        metadata=about("Sampling steps of the sample grids: by default the pipeline's, for a student its own number."),
    )
    guidance_scale: float | None = field(
        default=None,
        metadata=about("Guidance of the sample grids: by default the pipeline's, for a student 1, which is none."),
    )
    num_bound_samples: int = field(
        default=1, metadata=about("Draws a pair for the bounds of the validation; 0 for none.")
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.model_init_kwargs.check("model_init_kwargs", VQDiTModel)
        check_process(self.process, self.backbone, self.model_init_kwargs, self.loss_config, self.distill_from)
        if self.embed_by_vectors and self.process != "masked":
            raise ValueError(
                f"`embed_by_vectors` is for the embeddings of codes, and `process` {self.process!r} reads vectors "
                "themselves: leave it out."
            )
        if self.backbone == "unet":
            self.model_init_kwargs["unet_kwargs"] = UNET_KWARGS | self.model_init_kwargs.get("unet_kwargs", {})
            self.time_mixture = Keywords(PICTURES_ALONE)
        if self.scheduler_class is not None:
            self.scheduler_kwargs.check("scheduler_kwargs", self.scheduler_class)
            self.text_scheduler_kwargs.check("text_scheduler_kwargs", self.scheduler_class)
        self.time_mixture.check("time_mixture", TimeMixture)
        self.loss_config.check("loss_config", LOSS_CONFIGS[self.process])
        self.distill_config.check("distill_config", DistillationConfig)
        if self.streaming and self.codes_dir is not None:
            raise ValueError(
                f"`streaming` and `codes_dir` ({self.codes_dir}) exclude each other: codes are on the disk. Leave one "
                "of them out."
            )
        if self.codes_dir is not None and (self.random_flip or self.random_shift):
            raise ValueError(
                "`random_flip` and `random_shift` need pictures encoded on the fly, and `codes_dir` "
                f"({self.codes_dir}) has each encoded once. Leave one of them out."
            )
        if self.distill_from is not None:
            self._check_distillation()
        elif self.distill_config:
            raise ValueError("`distill_config` needs a teacher: name its pipeline as `distill_from`.")
        elif self.vqvae_model_name_or_path is None and self.pretrained_model_name_or_path is None:
            raise ValueError(
                "Which tokenizer? Give `vqvae_model_name_or_path`, what train_vqvae.py left in its `output_dir`, or "
                "the pipeline to fine-tune as `pretrained_model_name_or_path`."
            )
        sampling = {name: CALL_DEFAULTS[name] for name in ("num_inference_steps", "guidance_scale")}
        if self.distill_from is not None:
            sampling = DistillationConfig(**self.distill_config).call_arguments
        for name, value in sampling.items():
            if getattr(self, name) is None:
                setattr(self, name, value)

    @property
    def scheduler_class(self) -> type[SchedulerMixin] | None:
        """What `scheduler_kwargs` and `text_scheduler_kwargs` are the arguments of; `None` where a pipeline says."""
        if self.pretrained_model_name_or_path is not None and (self.process, self.noise_scheduler) == (
            "gaussian",
            None,
        ):
            return None
        return scheduler_class(self.process, self.noise_scheduler, self.model_init_kwargs.get("prediction_type"))

    def _check_distillation(self) -> None:
        for name in ("pretrained_model_name_or_path", "vqvae_model_name_or_path", "model_init_kwargs"):
            if getattr(self, name):
                raise ValueError(
                    f"`distill_from` ({self.distill_from}) and `{name}` ({getattr(self, name)}) exclude each other: a "
                    f"student starts as its teacher and has its tokenizer. Leave `{name}` out, or fine-tune first and "
                    "distil the result."
                )
        if self.loss_config.get("label_smoothing"):
            raise ValueError("`distill_from` excludes `label_smoothing`: a teacher's targets are soft already.")


@dataclass(kw_only=True)
class EncodeCodesArguments(TrainedTokenizerArguments, DataArguments):
    """Settings of `training_scripts/encode_codes.py`."""

    output_dir: str = field(metadata=about("Where the codes go."))
    train_batch_size: int = field(default=256, metadata=about("Pairs encoded at a time."))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.vqvae_model_name_or_path is None:
            raise ValueError(
                "Which tokenizer? Give `vqvae_model_name_or_path`, what train_vqvae.py left in its `output_dir`."
            )
        if self.streaming:
            raise ValueError(
                "`streaming` is for pairs that are encoded on the fly: codes are written once, of a data set that has "
                "an end. Leave it out here, or train with train_dit.py --streaming and without `codes_dir`."
            )


SCRIPT_ARGUMENTS = (TrainVQVAEArguments, TrainDiTArguments, EncodeCodesArguments)


def parse_arguments(arguments_class: type[Arguments], section: str, argv: Sequence[str] | None = None) -> Arguments:
    """Reads the settings of one script from `--config` (a YAML file) and the command line, which wins.

    The file holds `format_version: 1`, one mapping for each script, and `common` for all of them. Keys are the fields
    of the script's dataclass; null leaves the default. A key of `common` is used where it is known, and has to be
    known to this script or to one that trains or encodes. A setting that is a mapping is JSON on the command line,
    laid key by key over the file's.

    Args:
        arguments_class (`type`): A dataclass of settings.
        section (`str`): The script's section of the file.
        argv (`Sequence[str]`, *optional*): The command line; by default the process's own.

    Returns:
        An instance of `arguments_class`.

    Raises:
        ValueError: If a key or flag is unknown, or the file is of another format version.
    """
    parser = HfArgumentParser(arguments_class, allow_abbrev=False)
    parser.add_argument("--config", type=str, default=None, help="YAML file with the defaults of this run.")
    config_parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    config_parser.add_argument("--config", type=str, default=None)
    config, argv = config_parser.parse_known_args(sys.argv[1:] if argv is None else list(argv))

    names = {item.name for item in fields(arguments_class)}
    settings = read_config(config.config, section, names) if config.config is not None else {}
    mappings = {name: value for name, value in settings.items() if isinstance(value, dict)}

    # The file is read as a command line before the real one: same types, same checks, and the last wins.
    tokens = [token for name, value in settings.items() if name not in mappings for token in _to_tokens(name, value)]
    namespace, unknown = parser.parse_known_args(tokens + argv)
    check_known([token[2:].split("=")[0] for token in unknown if token.startswith("--")], names, "The command line")
    if unknown:
        raise ValueError(f"The command line has {unknown[0]!r}, which belongs to no flag.")
    values = {name: value for name, value in vars(namespace).items() if name in names}
    for name, mapping in mappings.items():
        if not isinstance(values[name], Keywords):
            raise ValueError(f"`{name}` in {config.config} is a mapping; it must be a single value.")
        values[name] = Keywords(mapping | values[name])
    return arguments_class(**values)


def read_config(path: str | Path, section: str, names: Iterable[str]) -> dict[str, Any]:
    """Settings of one script from a YAML file: `common`, and its own section over it.

    Args:
        path (`str`): The file.
        section (`str`): The script's section.
        names (`Iterable[str]`): The settings that the script knows.

    Returns:
        `dict[str, Any]`: Values by name, as they stand in the file.

    Raises:
        ValueError: If a key is unknown or the format version differs.
    """
    content = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    if not isinstance(content, dict) or content.pop("format_version", None) != CONFIG_FORMAT_VERSION:
        raise ValueError(
            f"{path} must hold `format_version: {CONFIG_FORMAT_VERSION}`, the version that this hf_vqdit reads: bring "
            "the file to it, or use the version of hf_vqdit that the file was made for."
        )
    check_known(content, SECTIONS, path)
    common, own = content.get("common") or {}, content.get(section) or {}
    names = set(names)
    known_somewhere = names.union(*({item.name for item in fields(cls)} for cls in SCRIPT_ARGUMENTS))
    check_known(common, known_somewhere, f"`common` in {path}")
    check_known(own, names, f"`{section}` in {path}")
    settings = {name: value for name, value in common.items() if name in names} | own
    return {name: value for name, value in settings.items() if value is not None}


def write_config(arguments: Any, section: str, path: str | Path) -> None:
    """Writes the settings of a run as a YAML file that `--config` reads again."""
    settings = {item.name: getattr(arguments, item.name) for item in fields(arguments)}
    settings = {name: dict(value) if isinstance(value, Keywords) else value for name, value in settings.items()}
    content = {"format_version": CONFIG_FORMAT_VERSION, section: settings}
    Path(path).write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")


def _to_tokens(name: str, value: Any) -> list[str]:
    """A setting as it would stand on the command line."""
    if isinstance(value, list):
        return [f"--{name}", *map(str, value)]
    return [f"--{name}={value}"]
