# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
import json

import pytest
import torch
from diffusers import FirstBlockCacheConfig
from diffusers.training_utils import EMAModel
from seeded import wake

from hf_vqdit.models.transformer_vqdit import VQDiTModel, default_axes_dims_rope

V_X, V_Y = 11, 7
MASK_X, PAD, MASK_Y = V_X, V_Y, V_Y + 1


def make_model(**config) -> VQDiTModel:
    torch.manual_seed(0)
    defaults = dict(
        image_codebook_size=V_X,
        text_codebook_size=V_Y,
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
        image_codes=torch.randint(0, V_X + 1, (batch_size, h, w), generator=generator),
        text_codes=torch.randint(0, V_Y + 2, (batch_size, length, groups), generator=generator),
        image_timestep=torch.rand(batch_size, generator=generator),
        text_timestep=torch.rand(batch_size, generator=generator),
    )


def distance(output, other) -> float:
    return max((output[name] - other[name]).abs().max().item() for name in ("image_logits", "text_logits"))


# The start


def test_logits_are_exactly_zero_at_the_start():
    output = make_model()(**make_inputs())
    assert output.image_logits.abs().max() == 0
    assert output.text_logits.abs().max() == 0


def test_blocks_are_the_identity_at_the_start():
    model = make_model()
    seen = []
    for block in model.transformer_blocks:
        block.register_forward_hook(lambda _, inputs, output: seen.append(torch.equal(inputs[0], output)))
    model(**make_inputs())
    assert seen == [True, True]
    seen.clear()
    wake(model)(**make_inputs())
    assert seen == [False, False]


def test_blocks_read_plain_normalised_tokens_at_the_start():
    model = make_model()
    inputs, normed = [], []
    model.transformer_blocks[0].register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    model.transformer_blocks[0].attn.register_forward_pre_hook(lambda _, args: normed.append(args[0]))
    model(**make_inputs())
    reference = inputs[0] / inputs[0].square().mean(dim=-1, keepdim=True).sqrt()
    assert torch.allclose(normed[0], reference, rtol=0.01)


def test_every_parameter_learns_once_the_head_has_moved():
    model = wake(make_model())
    output = model(**make_inputs())
    (output.image_logits.square().sum() + output.text_logits.square().sum()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or p.grad.abs().max() == 0] == []


# What goes in and out


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize(("h", "w", "length"), [(4, 4, 3), (2, 6, 3), (8, 4, 5)])
def test_logits_have_the_shape_of_the_codes_and_are_float32_at_any_size(h, w, length, autocast):
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        output = wake(make_model())(**make_inputs(h=h, w=w, length=length))
    assert output.image_logits.shape == (3, h, w, V_X) and output.image_logits.dtype == torch.float32
    assert output.text_logits.shape == (3, length, 2, V_Y + 1) and output.text_logits.dtype == torch.float32


def test_ids_are_those_of_the_borders_page():
    model = make_model()
    assert (model.image_mask_id, model.text_pad_id, model.text_mask_id) == (MASK_X, PAD, MASK_Y)
    output = model(**make_inputs())
    assert output.image_logits.shape[-1] == model.image_mask_id
    assert output.text_logits.shape[-1] == model.text_mask_id


def test_a_tuple_is_returned_on_request():
    model, inputs = wake(make_model()), make_inputs()
    image_logits, text_logits = model(**inputs, return_dict=False)
    output = model(**inputs)
    assert torch.equal(image_logits, output.image_logits) and torch.equal(text_logits, output.text_logits)


def test_rows_do_not_see_each_other():
    model, inputs = wake(make_model()).double(), make_inputs()
    whole = model(**inputs)
    alone = model(**{name: tensor[1:2] for name, tensor in inputs.items()})
    assert distance(alone, {name: logits[1:2] for name, logits in whole.items()}) < 1e-5


def test_patches_hold_neighbouring_codes_and_predict_the_same_places():
    # Without blocks a token knows its own codes only: a change of one code reaches the logits of its patch, no others.
    model = wake(make_model(num_layers=0))
    inputs = make_inputs(h=4, w=6)
    inputs["image_codes"] %= V_X
    before = model(**inputs).image_logits
    inputs["image_codes"][:, 2, 5] += 1
    inputs["image_codes"] %= V_X
    changed = (model(**inputs).image_logits != before).any(dim=-1)[0]
    assert changed.nonzero().tolist() == [[2, 4], [2, 5], [3, 4], [3, 5]]


# Conditioning


def test_the_four_rows_are_gathered_by_modality_and_by_what_is_given():
    model = wake(make_model(num_layers=1))
    seen = []
    model.transformer_blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args[2]))
    image_codes = torch.zeros(2, 4, 4, dtype=torch.long)
    image_codes[0, 3, 3] = MASK_X  # the last patch of the first item
    text_codes = torch.full((2, 3, 2), PAD)
    text_codes[1, 0, 1] = MASK_Y  # one group of the first position of the second item
    model(image_codes, text_codes, torch.rand(2), torch.rand(2))
    text_given, text_unknown, image_given, image_unknown = range(4)
    first = [text_given] * 3 + [image_given] * 3 + [image_unknown]
    second = [text_unknown, text_given, text_given] + [image_given] * 4
    assert seen[0].tolist() == [first, [4 + row for row in second]]


@pytest.mark.parametrize(("row", "name"), [(0, "text"), (1, "text"), (2, "image"), (3, "image")])
def test_a_row_of_the_modulation_reaches_its_own_tokens_alone(row, name):
    # Without blocks nothing mixes tokens; the rows differ by `given_embed`.
    model = wake(make_model(num_layers=0))
    inputs = make_inputs(batch_size=8)
    before = model(**inputs)
    with torch.no_grad():
        model.given_embed[row] += 1
    after = model(**inputs)
    has_mask = {
        "text": (inputs["text_codes"] == MASK_Y).any(dim=-1),  # (B, S/r)
        "image": (inputs["image_codes"] == MASK_X).unfold(1, 2, 2).unfold(2, 2, 2).any(dim=-1).any(dim=-1),
    }
    has_mask["image"] = has_mask["image"].repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)
    for modality in ("text", "image"):
        logits = f"{modality}_logits"
        changed = (before[logits] != after[logits]).any(dim=-1)
        changed = changed.any(dim=-1) if modality == "text" else changed
        takes_row = has_mask[modality] == bool(row % 2) if modality == name else torch.zeros_like(changed)
        assert torch.equal(changed, takes_row)


def test_each_modality_feels_its_own_time():
    model, inputs = wake(make_model(num_layers=0)), make_inputs()
    before = model(**inputs)
    after = model(**inputs | {"image_timestep": 1 - inputs["image_timestep"]})
    assert not torch.equal(before.image_logits, after.image_logits)
    assert torch.equal(before.text_logits, after.text_logits)


def test_text_is_a_condition_of_the_image_and_the_image_of_the_text():
    model, inputs = wake(make_model()), make_inputs()
    before = model(**inputs)
    other_text = model(**inputs | {"text_codes": (inputs["text_codes"] + 1) % V_Y})
    other_image = model(**inputs | {"image_codes": (inputs["image_codes"] + 1) % V_X})
    assert not torch.equal(before.image_logits, other_text.image_logits)
    assert not torch.equal(before.text_logits, other_image.text_logits)


def test_mask_rates_one_code_apart_are_told_apart_in_bfloat16(tmp_path):
    wake(make_model()).save_pretrained(tmp_path)
    model = VQDiTModel.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    rates = torch.arange(257) / 256
    inputs = make_inputs(batch_size=1)
    inputs = {name: tensor.expand(257, *tensor.shape[1:]) for name, tensor in inputs.items()}
    logits = model(**inputs | {"image_timestep": rates}).image_logits.flatten(1)
    assert (logits[1:] - logits[:-1]).abs().amax(dim=1).min() > 0


# Positions


def test_attention_sees_where_codes_are():
    # The same codes elsewhere: moved by a row, by a column, or transposed.
    model, inputs = wake(make_model(patch_size=1)), make_inputs(h=3, w=3)
    before = model(**inputs).image_logits
    for move in (lambda x: x.roll(1, 1), lambda x: x.roll(1, 2), lambda x: x.transpose(1, 2)):
        after = model(**inputs | {"image_codes": move(inputs["image_codes"])}).image_logits
        assert (after - move(before)).abs().max() > 1e-3


def test_attention_depends_on_relative_positions_alone():
    model = wake(make_model())
    codes = torch.zeros(1, 3, 2, dtype=torch.long), torch.zeros(1, 16, 16, dtype=torch.long)
    grid = model._rotary_emb(*codes)[:, 3:].unflatten(1, (8, 8))  # (1, rows, columns, K / 2)
    hidden_states = torch.randn(1, 9, 32, generator=torch.Generator().manual_seed(0))

    def attend(rotary_emb: torch.Tensor) -> torch.Tensor:
        return model.transformer_blocks[0].attn(hidden_states, rotary_emb.flatten(1, 2))

    corner, elsewhere, stretched = grid[:, :3, :3], grid[:, 2:5, 4:7], grid[:, :6:2, :3]
    assert torch.allclose(attend(corner), attend(elsewhere), atol=1e-5)
    assert (attend(corner) - attend(stretched)).abs().max() > 1e-3


@pytest.mark.parametrize("head_dim", range(4, 130, 2))
def test_default_rotary_axes_are_even_and_fill_the_head(head_dim):
    time, row, column = default_axes_dims_rope(head_dim)
    assert time + row + column == head_dim
    assert row == column >= 2 and time >= 0
    assert time % 2 == row % 2 == 0


# The ecosystem's contracts


@pytest.mark.parametrize("config", [{}, {"axes_dims_rope": (4, 8, 4), "sample_size": (4, 6), "rope_theta": 100.0}])
def test_save_and_load_are_bit_equal(tmp_path, config):
    model, inputs = wake(make_model(**config)), make_inputs()
    model.save_pretrained(tmp_path)
    loaded = VQDiTModel.from_pretrained(tmp_path)
    assert distance(model(**inputs), loaded(**inputs)) == 0
    assert dict(VQDiTModel.from_config(loaded.config).config) == dict(loaded.config)


def test_a_masked_checkpoint_of_before_there_was_another_process_loads(tmp_path):
    model, inputs = wake(make_model()), make_inputs()
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for name in ("image_code_dim", "text_code_dim", "prediction_type", "learn_sigma"):
        del config[name]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert distance(model(**inputs), VQDiTModel.from_pretrained(tmp_path)(**inputs)) == 0


def test_averaged_weights_save_and_load(tmp_path):
    model = wake(make_model())
    EMAModel(model.parameters(), model_cls=VQDiTModel, model_config=model.config).save_pretrained(tmp_path)
    assert distance(VQDiTModel.from_pretrained(tmp_path)(**make_inputs()), model(**make_inputs())) == 0


@pytest.mark.filterwarnings("ignore:There are modules")
def test_bfloat16_and_autocast_stay_near_float32(tmp_path):
    model, inputs = wake(make_model()), make_inputs()
    reference = model(**inputs)
    scale = reference.image_logits.abs().max().item()
    with torch.autocast("cpu", torch.bfloat16):
        assert 0 < distance(model(**inputs), reference) < 0.05 * scale
    model.save_pretrained(tmp_path)
    loaded = VQDiTModel.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    assert 0 < distance(loaded(**inputs), reference) < 0.05 * scale
    assert 0 < distance(model.to(torch.bfloat16)(**inputs), reference) < 0.05 * scale


@pytest.mark.parametrize("autocast", [False, True])
def test_gradient_checkpointing_changes_nothing(autocast):
    gradients, calls = [], []
    for checkpointing in (False, True):
        model = wake(make_model(dropout=0.2)).train()
        model.transformer_blocks[0].register_forward_pre_hook(lambda *_: calls.append(1))
        if checkpointing:
            model.enable_gradient_checkpointing()
        torch.manual_seed(3)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            output = model(**make_inputs())
        (output.image_logits.square().mean() + output.text_logits.square().mean()).backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert len(calls) == 1 + 2  # once; forward and again on the way back
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


def test_dropout_acts_in_training_alone():
    model, inputs = wake(make_model(dropout=0.5)), make_inputs()
    assert distance(model(**inputs), model(**inputs)) == 0
    model.train()
    assert distance(model(**inputs), model(**inputs)) > 0


def test_fused_projections_change_nothing():
    model, inputs = wake(make_model()), make_inputs()
    before = model(**inputs)
    model.fuse_qkv_projections()
    assert model.transformer_blocks[0].attn.fused_projections
    assert distance(model(**inputs), before) < 1e-5
    model.unfuse_qkv_projections()
    assert distance(model(**inputs), before) == 0


def test_the_first_block_cache_skips_the_rest_for_an_equal_input():
    model, inputs = wake(make_model(num_layers=3)), make_inputs()
    before = model(**inputs)
    calls = []
    model.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    model.transformer_blocks[1].ff.register_forward_hook(lambda *_: calls.append(1))
    with model.cache_context("cond"):
        first, second = model(**inputs), model(**inputs)
    assert calls == [1]
    assert distance(first, before) == 0
    assert distance(second, before) < 1e-5
    model.disable_cache()
    assert distance(model(**inputs), before) == 0


def test_layerwise_casting_leaves_what_is_sensitive_alone():
    model, inputs = wake(make_model()), make_inputs()
    before = model(**inputs)
    model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    assert model.transformer_blocks[0].attn.to_q.weight.dtype == torch.float8_e4m3fn
    assert model.modulation_proj.weight.dtype == torch.float32
    assert distance(model(**inputs), before) < 0.2 * before.image_logits.abs().max()


# Bad input


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"process": "uniform"}, r"\('masked', 'gaussian'\), but is 'uniform'"),
        ({"num_attention_heads": 3}, "num_attention_heads"),
        ({"num_attention_heads": 16}, "at least 4"),
        ({"axes_dims_rope": (4, 4, 4)}, "sum to the head dimension 16"),
        ({"axes_dims_rope": (5, 5, 6)}, "even"),
        ({"axes_dims_rope": (-4, 12, 8)}, "even"),
        ({"axes_dims_rope": (8, 8)}, "three"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(config, message):
    with pytest.raises(ValueError, match=message):
        make_model(**config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_codes": torch.zeros(3, 4, 5, dtype=torch.long)}, "patch_size"),
        ({"image_codes": torch.zeros(3, 16, dtype=torch.long)}, "3 axes"),
        ({"image_codes": torch.zeros(3, 4, 4)}, "int64"),
        ({"text_codes": torch.zeros(3, 3, 1, dtype=torch.long)}, "text_num_groups"),
        ({"text_codes": torch.zeros(2, 3, 2, dtype=torch.long)}, "batch size"),
        ({"image_timestep": torch.tensor(0.5)}, "one axis"),
        ({"text_timestep": torch.zeros(2)}, "batch size"),
    ],
)
def test_an_input_that_does_not_fit_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        make_model()(**make_inputs() | change)
