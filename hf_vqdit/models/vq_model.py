# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""diffusers' `VQModel` as the image codec of a `MultimodalVQVAE`."""

from typing import Any

import torch
from diffusers import VQModel

from .autoencoder_vqvae import MultimodalVQVAE

# Settings that both classes have, under the same names.
SHARED_SETTINGS = (
    "in_channels",
    "block_out_channels",
    "layers_per_block",
    "norm_num_groups",
    "norm_type",
    "act_fn",
    "mid_block_add_attention",
    "down_block_types",
    "up_block_types",
    "latent_channels",
)
SUBFOLDERS = (None, "vqvae")  # alone in its folder, or part of a pipeline
PARTS = {
    "encoder": "image_encoder.encoder",
    "quant_conv": "image_encoder.quant_conv",
    "post_quant_conv": "image_decoder.post_quant_conv",
    "decoder": "image_decoder.decoder",
}


def load_vq_model(name_or_path: str) -> VQModel:
    """Loads a `VQModel` of its own or out of a pipeline.

    Args:
        name_or_path (`str`): A folder or a repository of the Hub.

    Returns:
        `diffusers.VQModel`, in evaluation mode.

    Raises:
        ValueError: If there is none.
    """
    errors = []
    for subfolder in SUBFOLDERS:
        try:
            config = VQModel.load_config(name_or_path, subfolder=subfolder)
            if config.get("_class_name") == "VQModel":
                return VQModel.from_pretrained(name_or_path, subfolder=subfolder)
            errors.append(f"a {config.get('_class_name')}")
        except OSError as error:
            errors.append(str(error))
    raise ValueError(f"{name_or_path!r} holds no `VQModel`, neither itself nor as `vqvae`: {'; '.join(errors)}")


@torch.no_grad()
def from_vq_model(vq_model: VQModel, **config: Any) -> MultimodalVQVAE:
    """A multimodal tokenizer whose image codec is a trained `VQModel`: the same codes, the same pictures.

    The networks are diffusers' own, so the weights are taken over as they are. The text codec is new.

    Args:
        vq_model (`diffusers.VQModel`): The image tokenizer, say `VQModel.from_pretrained(...)`.
        config: Settings of the text codec, and whatever else of [`MultimodalVQVAE`] the `VQModel` does not settle.

    Returns:
        [`MultimodalVQVAE`]

    Raises:
        ValueError: If the model does not give back as many channels as it takes, or `config` holds a setting that it
            settles.
    """
    theirs = vq_model.config
    if theirs.in_channels != theirs.out_channels:
        raise ValueError(
            f"This `VQModel` makes {theirs.out_channels} channels of {theirs.in_channels}; a tokenizer gives back as "
            "many as it takes."
        )
    settled = {name: theirs[name] for name in SHARED_SETTINGS} | {"patch_size": 1, "linear_shortcut": False}
    settled |= {"image_codebook_size": theirs.num_vq_embeddings, "l2_normalize": False}
    settled["code_dim"] = theirs.vq_embed_dim or theirs.latent_channels
    if settled.keys() & config.keys():
        raise ValueError(f"The `VQModel` settles {sorted(settled.keys() & config.keys())}: leave them out.")
    vqvae = MultimodalVQVAE(**settled, **config)
    for name, part in PARTS.items():
        vqvae.get_submodule(part).load_state_dict(vq_model.get_submodule(name).state_dict())
    vqvae.image_quantizer.codebook.copy_(vq_model.quantize.embedding.weight)
    return vqvae
