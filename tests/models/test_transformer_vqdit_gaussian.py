# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""The transformer over noisy vectors of codes: what it reads and predicts, and what of it is given."""

import pytest
import torch
from diffusers.training_utils import EMAModel
from seeded import wake

from hf_vqdit.models.transformer_vqdit import PREDICTION_TYPES, VQDiTModel

C_X, C_Y = 3, 5


def make_model(**config) -> VQDiTModel:
    torch.manual_seed(0)
    defaults = dict(
        process="gaussian",
        image_code_dim=C_X,
        text_code_dim=C_Y,
        sample_size=4,
        text_length=3,
        text_num_groups=2,
        patch_size=2,
        hidden_size=32,
        num_layers=2,
        num_attention_heads=2,
    )
    return VQDiTModel(**defaults | config).eval()


def make_inputs(batch_size=3, h=4, w=4, length=3, groups=2, seed=0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return dict(
        image_latents=torch.randn(batch_size, C_X, h, w, generator=generator),
        text_latents=torch.randn(batch_size, C_Y, length, groups, generator=generator),
        image_timestep=torch.rand(batch_size, generator=generator),
        text_timestep=torch.rand(batch_size, generator=generator),
    )


def watch_rows(model: VQDiTModel) -> list[torch.Tensor]:
    """Which modulation row each token takes, of every call from now on: text given, unknown, image given, unknown."""
    seen = []
    model.transformer_blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args[2] % 4))
    return seen


# What goes in and out


def test_predictions_are_exactly_zero_at_the_start():
    output = make_model(learn_sigma=True)(**make_inputs())
    assert output.image_sample.abs().max() == output.text_sample.abs().max() == 0


@pytest.mark.parametrize("learn_sigma", (False, True))
@pytest.mark.parametrize("autocast", (False, True))
@pytest.mark.parametrize(("h", "w", "length"), ((4, 4, 3), (2, 6, 3), (8, 4, 5)))
def test_predictions_have_the_shape_of_the_vectors_and_are_float32_at_any_size(h, w, length, autocast, learn_sigma):
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        output = wake(make_model(learn_sigma=learn_sigma))(**make_inputs(h=h, w=w, length=length))
    factor = 1 + learn_sigma  # the variance comes in the second half of the channels
    assert output.image_sample.shape == (3, factor * C_X, h, w) and output.image_sample.dtype == torch.float32
    assert output.text_sample.shape == (3, factor * C_Y, length, 2) and output.text_sample.dtype == torch.float32


def test_a_tuple_is_returned_on_request():
    model, inputs = wake(make_model()), make_inputs()
    image, text = model(**inputs, return_dict=False)
    output = model(**inputs)
    assert torch.equal(image, output.image_sample) and torch.equal(text, output.text_sample)


def test_every_parameter_learns_but_those_that_are_fixed():
    model = wake(make_model(learn_sigma=True))
    output = model(**make_inputs(), image_given_mask=torch.arange(48).view(3, 4, 4) < 24)
    inputs = make_inputs() | {"text_timestep": torch.zeros(3)}
    given = model(**inputs)
    sums = [x.square().sum() for x in (*output.values(), *given.values())]
    sum(sums).backward()
    still = [name for name, p in model.named_parameters() if p.grad is None or p.grad.abs().max() == 0]
    assert still == ["text_pad_vector", "image_log_prior", "text_log_prior"]
    assert all(p.requires_grad == (name not in still) for name, p in model.named_parameters())


def test_vectors_are_read_and_predicted_at_their_own_places():
    # Without blocks a token knows its own patch only: one vector reaches the predictions of its patch, and no others.
    model, inputs = wake(make_model(num_layers=0)), make_inputs(h=4, w=6)
    before = model(**inputs)
    inputs["image_latents"][:, 0, 2, 5] += 1
    inputs["text_latents"][:, 0, 1, 1] += 1
    after = model(**inputs)
    changed = (after.image_sample != before.image_sample).any(dim=1)[0]
    assert changed.nonzero().tolist() == [[2, 4], [2, 5], [3, 4], [3, 5]]
    changed = (after.text_sample != before.text_sample).any(dim=1)[0]
    assert changed.nonzero().tolist() == [[1, 0], [1, 1]]


def test_each_modality_is_a_condition_of_the_other():
    model, inputs = wake(make_model()), make_inputs()
    before = model(**inputs)
    assert not torch.equal(
        before.image_sample, model(**inputs | {"text_latents": inputs["text_latents"] + 1}).image_sample
    )
    assert not torch.equal(
        before.text_sample, model(**inputs | {"image_latents": inputs["image_latents"] + 1}).text_sample
    )


# Times and what is given


def test_time_zero_means_given_and_any_other_time_does_not():
    model = wake(make_model())
    rows, inputs = watch_rows(model), make_inputs()
    inputs["image_timestep"] = torch.tensor([0.0, 1e-6, 1.0])
    inputs["text_timestep"] = torch.tensor([1.0, 0.0, 1e-6])
    model(**inputs)
    assert rows[0].tolist() == [[1] * 3 + [2] * 4, [0] * 3 + [3] * 4, [1] * 3 + [3] * 4]


def test_patches_and_positions_are_given_where_all_their_vectors_are():
    model = wake(make_model())
    rows = watch_rows(model)
    image_given = torch.zeros(3, 4, 4, dtype=torch.bool)
    image_given[:, :2, :3] = True  # one patch and half of another
    text_given = torch.tensor([[True, True], [True, False], [False, False]]).expand(3, 3, 2)
    model(**make_inputs(), image_given_mask=image_given, text_given_mask=text_given)
    assert rows[0].tolist() == [[0, 1, 1] + [2, 3, 3, 3]] * 3


@pytest.mark.parametrize("modality", ("image", "text"))
def test_times_one_level_apart_are_told_apart_in_bfloat16(modality, tmp_path):
    wake(make_model()).save_pretrained(tmp_path)
    model = VQDiTModel.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    times = torch.arange(1, 1001) / 1000  # a thousand levels, of which bfloat16 itself holds half
    inputs = {name: x.expand(1000, *x.shape[1:]) for name, x in make_inputs(batch_size=1).items()}
    seen = []
    model.time_embed.register_forward_hook(lambda _, args, output: seen.append(output.unflatten(0, (1000, 2))))
    model(**inputs | {f"{modality}_timestep": times})
    embedded = seen[0][:, 1 if modality == "image" else 0]
    assert (embedded[1:] != embedded[:-1]).any(dim=1).all()


# The ecosystem's contracts


@pytest.mark.parametrize("config", ({}, {"learn_sigma": True, "prediction_type": "epsilon"}))
def test_save_and_load_are_bit_equal_and_keep_the_vector_of_padding(tmp_path, config):
    model, inputs = wake(make_model(**config)), make_inputs()
    model.text_pad_vector.data = torch.arange(5.0)
    model.save_pretrained(tmp_path / "model")
    EMAModel(model.parameters(), model_cls=VQDiTModel, model_config=model.config).save_pretrained(tmp_path / "ema")
    for folder in ("model", "ema"):
        loaded = VQDiTModel.from_pretrained(tmp_path / folder)
        for x, y in zip(model(**inputs).values(), loaded(**inputs).values(), strict=True):
            assert torch.equal(x, y)
        assert loaded.text_pad_vector.tolist() == [0, 1, 2, 3, 4] and not loaded.text_pad_vector.requires_grad
        assert all(loaded.config[name] == model.config[name] for name in ("process", "prediction_type", "learn_sigma"))


@pytest.mark.parametrize("autocast", (False, True))
def test_gradient_checkpointing_changes_nothing(autocast):
    gradients = []
    for checkpointing in (False, True):
        model = wake(make_model()).train()
        if checkpointing:
            model.enable_gradient_checkpointing()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            output = model(**make_inputs())
        sum(x.square().mean() for x in output.values()).backward()
        gradients.append([parameter.grad for parameter in model.parameters() if parameter.requires_grad])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


def test_layerwise_casting_leaves_what_is_sensitive_alone():
    model, inputs = wake(make_model()), make_inputs()
    before = model(**inputs)
    model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    after = model(**inputs)
    for x, y in zip(before.values(), after.values(), strict=True):
        assert 0 < (x - y).abs().max() < 0.2 * x.abs().max()


# The U-Net in the transformer's place

UNET = {"block_out_channels": (32, 64), "norm_num_groups": 8, "layers_per_block": 1}
UNET |= {"down_block_types": ("DownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "UpBlock2D")}


@pytest.mark.parametrize("learn_sigma", (False, True))
def test_a_unet_predicts_pictures_alone(learn_sigma, tmp_path):
    model, inputs = make_model(unet_kwargs=UNET, learn_sigma=learn_sigma), make_inputs()
    output = model(**inputs)
    factor = 1 + learn_sigma
    assert output.image_sample.shape == (3, factor * C_X, 4, 4) and output.image_sample.dtype == torch.float32
    assert output.text_sample.shape == (3, factor * C_Y, 3, 2) and output.text_sample.abs().max() == 0
    other = model(**inputs | {"text_latents": inputs["text_latents"] + 1, "text_timestep": torch.ones(3)})
    assert torch.equal(output.image_sample, other.image_sample)
    assert not torch.equal(output.image_sample, model(**inputs | {"image_timestep": torch.ones(3)}).image_sample)
    assert model.config.patch_size == 2  # what its pictures have to be multiples of
    model.save_pretrained(tmp_path)
    loaded = VQDiTModel.from_pretrained(tmp_path)
    assert torch.equal(loaded(**inputs).image_sample, output.image_sample) and loaded.config.patch_size == 2


def test_a_unet_of_codes_is_refused():
    with pytest.raises(ValueError, match="`unet_kwargs` needs `process=\"gaussian\"`.*'masked'"):
        make_model(process="masked", unet_kwargs=UNET)


# Bad input


@pytest.mark.parametrize(
    ("config", "message"),
    (
        ({"prediction_type": "noise"}, f"`prediction_type` must be one of .*{PREDICTION_TYPES[0]}.* but is 'noise'"),
        (
            {"learn_sigma": True, "prediction_type": "flow_prediction"},
            "`learn_sigma`.*'gaussian' and 'flow_prediction'",
        ),
        ({"learn_sigma": True, "process": "masked"}, "`learn_sigma` needs `process=\"gaussian\"`.*'masked'"),
    ),
)
def test_a_config_that_does_not_fit_is_refused(config, message):
    with pytest.raises(ValueError, match=message):
        make_model(**config)


@pytest.mark.parametrize(
    ("change", "message"),
    (
        ({"image_latents": torch.zeros(3, C_X, 4, 5)}, r"`patch_size` 2 .*`image_latents` is \(4, 5\)"),
        (
            {"image_latents": torch.zeros(3, 4, 4, 4)},
            r"`image_latents`.*`image_code_dim` = 3 channels.*\(3, 4, 4, 4\)",
        ),
        ({"image_latents": torch.zeros(3, C_X, 4)}, "`image_latents`.*4 axes"),
        ({"text_latents": torch.zeros(3, 3, 2, C_Y)}, "`text_latents`.*`text_code_dim` = 5 channels"),
        ({"text_latents": torch.zeros(3, C_Y, 3, 1)}, "`text_num_groups` = 2 codes a position, but has 1"),
        ({"text_latents": torch.zeros(3, C_Y, 3, 2, dtype=torch.long)}, "floating-point.*int64"),
        ({"text_latents": torch.zeros(2, C_Y, 3, 2)}, "batch size"),
        ({"image_timestep": torch.tensor(0.5)}, "one axis"),
        ({"text_timestep": None}, "'gaussian' needs.*`text_timestep`"),
        (
            {"image_given_mask": torch.zeros(3, 2, 2, dtype=torch.bool)},
            r"`image_given_mask`.*\(3, 4, 4\).*\(3, 2, 2\)",
        ),
    ),
)
def test_an_input_that_does_not_fit_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        make_model()(**make_inputs() | change)


def test_inputs_of_the_other_process_are_refused():
    codes = dict(image_codes=torch.zeros(1, 4, 4, dtype=torch.long), text_codes=torch.zeros(1, 3, 2, dtype=torch.long))
    times = dict(image_timestep=torch.ones(1), text_timestep=torch.ones(1))
    with pytest.raises(ValueError, match="'gaussian' needs `image_latents`"):
        make_model()(**codes, **times)
    with pytest.raises(ValueError, match="'masked' needs `image_codes`"):
        make_model(process="masked")(**make_inputs())
    with pytest.raises(ValueError, match="'masked' takes none"):
        make_model(process="masked")(**codes, **times, image_given_mask=torch.zeros(1, 4, 4, dtype=torch.bool))
