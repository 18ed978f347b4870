# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""A tiny pipeline of the Gaussian process, and an exact network for it, for the tests of several parts."""

import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler

import hf_vqdit

MEAN, STD = 0.7, 0.5  # of the vectors that the oracle knows


def measure_codebooks(vqvae):
    """Statistics of an untrained tokenizer: those of its codebooks, as if each code came as often."""
    for name in ("image", "text"):
        codebook = getattr(vqvae, f"{name}_quantizer").codebook
        getattr(vqvae, f"{name}_latents_mean").data = codebook.mean(dim=0)
        getattr(vqvae, f"{name}_latents_std").data = codebook.std(dim=0)


def make_transformer(seed=0, **config):
    """An untrained transformer for the codes of the tiny pipeline, none of whose parts is zero."""
    sizes = dict(image_codebook_size=32, text_codebook_size=48, image_code_dim=4, text_code_dim=4, sample_size=8)
    sizes |= dict(text_length=16, patch_size=2, hidden_size=32, num_layers=2, num_attention_heads=2)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        transformer = hf_vqdit.VQDiTModel(process="gaussian", **sizes | config)
        for parameter in transformer.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.1)
    return transformer.eval()


def make_gaussian_pipeline(pipeline, scheduler=None, text_scheduler=None, **config):
    """The tiny pipeline with a transformer and schedulers of the Gaussian process."""
    measure_codebooks(pipeline.vqvae)
    transformer = make_transformer(**config)
    prediction_type = transformer.config.prediction_type
    if scheduler is None and prediction_type == "flow_prediction":
        scheduler = FlowMatchEulerDiscreteScheduler()
    elif scheduler is None:
        scheduler = DDPMScheduler(prediction_type=prediction_type, clip_sample=False)
    made = hf_vqdit.VQDiTPipeline(pipeline.vqvae, transformer, pipeline.tokenizer, scheduler, text_scheduler)
    made.set_progress_bar_config(disable=True)
    return made


def noise_at(scheduler, prediction_type, time):
    """alpha and sigma at times `(B,)` that may lie between two levels, as `(B, 1, 1, 1)`."""
    time = time.double()
    if prediction_type == "flow_prediction":
        alpha, sigma = 1 - time, time
    else:
        alphas_cumprod = scheduler.alphas_cumprod.double()
        ratios = ((1 - alphas_cumprod) / alphas_cumprod).sqrt()  # sigma / alpha, between whose levels diffusers goes
        index = (time * len(ratios) - 1).clamp(min=0)
        low = index.floor().long()
        share = index - low
        high = ratios[(low + 1).clamp(max=len(ratios) - 1)]
        ratio = torch.where(
            share > 0, (1 - share) * ratios[low] + share * high, ratios[low]
        )  # the last may be infinite
        alpha = 1 / (1 + ratio.square()).sqrt()
        sigma = (1 - alpha.square()).sqrt()
    return alpha[:, None, None, None], sigma[:, None, None, None]


def install_oracle(pipeline, variance=None):
    """
    The exact prediction for vectors that are all N(MEAN, STD^2), in place of the transformer's.

    With `learn_sigma` the variance half is `variance`, the interpolation between beta~_t (-1) and beta_t (1).
    """
    config = pipeline.transformer.config

    def predict(scheduler, x_t, time):
        alpha, sigma = noise_at(scheduler, config.prediction_type, time)
        gain = alpha * STD**2 / (alpha**2 * STD**2 + sigma**2)
        x_0 = MEAN + gain * (x_t.double() - alpha * MEAN)
        noise = (x_t.double() - alpha * x_0) / sigma.clamp(min=1e-12)
        predicted = {
            "epsilon": noise,
            "sample": x_0,
            "v_prediction": alpha * noise - sigma * x_0,
            "flow_prediction": noise - x_0,
        }[config.prediction_type].float()
        return torch.cat([predicted, torch.full_like(predicted, variance)], dim=1) if config.learn_sigma else predicted

    def forward(image_latents, text_latents, image_timestep, text_timestep, return_dict, **given_masks):
        return (
            predict(pipeline.scheduler, image_latents, image_timestep),
            predict(pipeline.text_scheduler, text_latents, text_timestep),
        )

    pipeline.transformer.forward = forward
