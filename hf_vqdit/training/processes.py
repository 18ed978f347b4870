# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""What goes with each process: its loss, its schedulers, the vectors that it noises, and the U-Net to compare with."""

import inspect
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any

import diffusers
import torch
from diffusers import SchedulerMixin

from hf_vqdit.models.autoencoder_vqvae import MultimodalVQVAE
from hf_vqdit.models.transformer_vqdit import VQDiTModel
from hf_vqdit.pipelines.pipeline_vqdit import GAUSSIAN_SCHEDULERS, VQDiTPipeline
from hf_vqdit.schedulers.scheduling_masked_diffusion import MaskedDiffusionScheduler

from .codes import encode_batch, weights_digest
from .gaussian import GaussianLossConfig
from .masked import MaskedLossConfig
from .times import TimeMixture

logger = logging.getLogger(__name__)

LOSS_CONFIGS = {"masked": MaskedLossConfig, "gaussian": GaussianLossConfig}
UNET_KWARGS = {  # two levels, with attention at the lower one
    "block_out_channels": [96, 192],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
}
EMBEDDING_STD = 0.3  # far more than steps of AdamW change at first, or the start would be forgotten at once
PICTURES_ALONE = {field.name: float(field.name == "image") for field in fields(TimeMixture)}


def scheduler_class(process: str, noise_scheduler: str | None, prediction_type: str | None) -> type[SchedulerMixin]:
    """
    The class of the schedulers that training reads the noise off, and that the pipeline is saved with.

    Args:
        process (`str`):
            `"masked"` or `"gaussian"`.
        noise_scheduler (`str`, *optional*):
            The name of a class of diffusers.
        prediction_type (`str`, *optional*):
            That of the model; of a flow the default is another class.

    Returns:
        `type`

    Raises:
        `ValueError`: There is no such scheduler for the process.
    """
    if process == "masked":
        if noise_scheduler is not None:
            raise ValueError(
                f'`noise_scheduler` is for `process="gaussian"`, as codes are hidden by ours: got {noise_scheduler!r}.'
            )
        return MaskedDiffusionScheduler
    default = "FlowMatchEulerDiscreteScheduler" if prediction_type == "flow_prediction" else "DDPMScheduler"
    if (name := noise_scheduler or default) not in GAUSSIAN_SCHEDULERS:
        raise ValueError(f"`noise_scheduler` must be one of {', '.join(GAUSSIAN_SCHEDULERS)}, got {name!r}.")
    return getattr(diffusers, name)


def load_scheduler(
    source: str, name: str, scheduler_class: type[SchedulerMixin] | None, settings: Mapping[str, Any]
) -> SchedulerMixin:
    """
    The scheduler of a saved pipeline, with other settings.

    Args:
        source (`str`):
            The pipeline's folder or repository.
        name (`str`):
            `"scheduler"` or `"text_scheduler"`.
        scheduler_class (`type`, *optional*):
            The class to load it as; by default its own, one of diffusers.
        settings (`Mapping[str, Any]`):
            What is changed in its configuration.

    Returns:
        `SchedulerMixin`

    Raises:
        `ValueError`: A setting is unknown to the class.
    """
    if scheduler_class is None:
        _, class_name = VQDiTPipeline.load_config(source)[name]
        scheduler_class = getattr(diffusers, class_name)
    known = inspect.signature(scheduler_class.__init__).parameters
    unknown = [key for key in settings if key not in known]
    if unknown:
        raise ValueError(
            f"`{name}_kwargs` has the unknown key {unknown[0]!r}: {scheduler_class.__name__} of {source}."
        )
    return scheduler_class.from_pretrained(source, subfolder=name, **settings)


def check_sizes(model: VQDiTModel, sizes: Mapping[str, Any], flag: str) -> None:
    """
    Refuse a trained model for other codes than those it knows.

    Args:
        model (`VQDiTModel`):
            The model.
        sizes (`Mapping[str, Any]`):
            The arguments of a `VQDiTModel` that follow from the codes, by name.
        flag (`str`):
            The setting that named the model, for the error.

    Raises:
        `ValueError`: The model was made with others.
    """
    compared = {name: (model.config[name], size) for name, size in sizes.items()}
    if "sample_size" in compared:
        compared["sample_size"] = tuple(map(_to_pair, compared["sample_size"]))
    wrong = [f"`{name}` is {own} and would have to be {size}" for name, (own, size) in compared.items() if own != size]
    if wrong:
        raise ValueError(
            f"The model of `{flag}` is made for codes of other sizes than the data's: {', '.join(wrong)}. Name data "
            "and a tokenizer like those that it was trained on."
        )


def _to_pair(size: int | Sequence[int]) -> tuple[int, ...]:
    return (size, size) if isinstance(size, int) else tuple(size)


def check_process(
    process: str,
    backbone: str,
    model_init_kwargs: Mapping[str, Any],
    loss_config: Mapping[str, Any],
    distill_from: str | None,
) -> None:
    """
    Refuse what does not go with a process, or with a U-Net over pictures alone.

    Args:
        process (`str`):
            `"masked"` or `"gaussian"`.
        backbone (`str`):
            `"dit"` or `"unet"`.
        model_init_kwargs (`Mapping[str, Any]`):
            Arguments of the model.
        loss_config (`Mapping[str, Any]`):
            Arguments of the loss.
        distill_from (`str`, *optional*):
            The teacher.

    Raises:
        `ValueError`: one of them does not go with the others.
    """
    if "process" in model_init_kwargs:
        raise ValueError("`model_init_kwargs` must not hold `process`, which is a flag of its own.")
    if distill_from is not None and process != "masked":
        raise ValueError(f'`distill_from` is for the masked process: `process` must be "masked", got {process!r}.')
    if backbone != "unet":
        if "unet_kwargs" in model_init_kwargs:
            raise ValueError(f'`unet_kwargs` of `model_init_kwargs` needs `backbone` "unet", got {backbone!r}.')
        return
    if process != "gaussian":
        raise ValueError(f'`backbone` "unet" needs `process` "gaussian", got {process!r}.')
    if loss_config.get("region_fraction"):
        raise ValueError('`backbone` "unet" is not told what is given: set `region_fraction` of `loss_config` to 0.')


def warn_of_another_tokenizer(vqvae: MultimodalVQVAE, source: str) -> None:
    """Warn if the tokenizer that was named is not the one whose codes the pipeline `source` knows."""
    if weights_digest(MultimodalVQVAE.from_pretrained(source, subfolder="vqvae")) != weights_digest(vqvae):
        logger.warning(
            "`vqvae_model_name_or_path` is another tokenizer than that of %s, so its transformer has to learn codes "
            "anew that mean something else; to go on with its own: `--vqvae_model_name_or_path %s`.",
            source,
            source,
        )


def warn_of_unused_settings(model: VQDiTModel, model_init_kwargs: Mapping[str, Any], source: str) -> None:
    """Warn of each setting for a new model that differs from the one of the pipeline `source`, which stays."""
    for name, value in model_init_kwargs.items():
        own = model.config[name]
        if name != "unet_kwargs" and own != (tuple(value) if isinstance(own, tuple) else value):
            logger.warning("`%s` is %s as in %s; %s is for a new model.", name, own, source, value)


def embed_by_vectors(vqvae: MultimodalVQVAE, model: VQDiTModel) -> None:
    """
    Let the embeddings of image codes start as their vectors, standardized over the codes, turned into the width of a
    model of the masked process, and scaled to a standard deviation of `EMBEDDING_STD`.

    Codes that look alike then start alike, and what is learned of one holds for its neighbors. Held-out emoji cost 13
    percent fewer bits after 500 steps; where training has seen each code often it gains nothing. Text codes keep their
    random start, since their vectors tell spelling and not meaning.

    Args:
        vqvae (`MultimodalVQVAE`):
            The tokenizer.
        model (`VQDiTModel`):
            Its `image_embed` is set, except for MASK.
    """
    table = model.image_embed.weight
    # Not `normalized_codebook`, which needs statistics that only the Gaussian process asks of a tokenizer.
    vectors = vqvae.image_quantizer.lookup(torch.arange(vqvae.image_codebook_size, device=vqvae.device)).float()
    vectors = (vectors - vectors.mean(dim=0)) / vectors.std(dim=0).clamp(min=1e-6)  # (V, C)
    turn = torch.nn.init.orthogonal_(torch.empty(table.shape[1], vectors.shape[1])).to(vectors)  # keeps angles
    embedded = vectors @ turn.T
    with torch.no_grad():
        table[: len(vectors)] = embedded * (EMBEDDING_STD / embedded.std())


def measure_priors(vqvae: MultimodalVQVAE, model: VQDiTModel, batches: Iterable[dict[str, Any]]) -> None:
    """
    Measure how often codes come, into a model of the Gaussian process, which needs it for the bound alone.

    Args:
        vqvae (`MultimodalVQVAE`):
            The tokenizer.
        model (`VQDiTModel`):
            Its `image_log_prior` and `text_log_prior` are set.
        batches (`Iterable[dict]`):
            Training pairs or codes of them.
    """
    priors = {"image": model.image_log_prior, "text": model.text_log_prior}
    counts = {
        name: torch.ones_like(prior, dtype=torch.float64) for name, prior in priors.items()
    }  # none is impossible
    for batch in batches:
        batch = encode_batch(vqvae, batch)
        for name, own in counts.items():
            codes = batch[f"{name}_codes"][batch[f"has_{name}"]].flatten()
            own += torch.bincount(codes, minlength=len(own)).to(own.device)
    for name, prior in priors.items():
        prior.data.copy_((counts[name] / counts[name].sum()).log())


def scheduler_settings(model: VQDiTModel, scheduler_class: type[SchedulerMixin]) -> dict[str, Any]:
    """
    What the settings of a scheduler have to be for a model of the Gaussian process.

    Args:
        model (`VQDiTModel`):
            The model.
        scheduler_class (`type`):
            A scheduler of diffusers.

    Returns:
        `dict[str, Any]`: Those settings that differ from the scheduler's defaults, or may.
    """
    is_flow = model.config.prediction_type == "flow_prediction"
    settings = {"prediction_type": model.config.prediction_type, "use_flow_sigmas": is_flow, "clip_sample": False}
    if model.config.learn_sigma and scheduler_class.__name__.startswith("DDPM"):
        settings["variance_type"] = "learned_range"
    known = inspect.signature(scheduler_class.__init__).parameters
    return {name: value for name, value in settings.items() if name in known}
