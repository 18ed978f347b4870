# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""Settings: a YAML file gives defaults, the command line wins, and a mistake in either is named."""

import dataclasses
from pathlib import Path

import pytest
import yaml

from hf_vqdit.data import train_caption_tokenizer
from hf_vqdit.training.arguments import (
    SCRIPT_ARGUMENTS,
    EncodeCodesArguments,
    TrainDiTArguments,
    TrainVQVAEArguments,
    parse_arguments,
    write_config,
)
from hf_vqdit.training.losses import TOKENIZER_LOSS_WEIGHTS

CONTENT = {
    "format_version": 1,
    "common": {"dataset_name": "shapes", "resolution": 64, "codes_dir": "codes"},
    "vqvae": {
        "output_dir": "tokenizer",
        "resolution": 16,
        "learning_rate": "1e-4",  # YAML reads a float without a point as a string
        "use_ema": False,
        "num_train_epochs": None,
        "model_init_kwargs": {"code_dim": 4, "text_codec": "identity"},
    },
    "dit": {
        "output_dir": "transformer",
        "vqvae_model_name_or_path": "tokenizer",
        "validation_prompts": ["a red circle", "a blue star"],
    },
}


@pytest.fixture
def config(tmp_path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(CONTENT))
    return path


def write(path: Path, **changes) -> Path:
    path.write_text(yaml.safe_dump(CONTENT | changes))
    return path


def test_the_file_gives_defaults_and_its_own_section_wins_over_the_common_one(config):
    arguments = parse_arguments(TrainVQVAEArguments, "vqvae", ["--config", str(config)])
    assert (arguments.dataset_name, arguments.resolution, arguments.output_dir) == ("shapes", 16, "tokenizer")
    assert arguments.learning_rate == 1e-4 and arguments.use_ema is False
    assert arguments.num_train_epochs is None and arguments.train_batch_size == 32


def test_the_command_line_wins_over_the_file(config):
    flags = ["--resolution", "8", "--use_ema", "--config", str(config), "--learning_rate=0.5"]
    arguments = parse_arguments(TrainVQVAEArguments, "vqvae", flags)
    assert (arguments.resolution, arguments.use_ema, arguments.learning_rate) == (8, True, 0.5)


def test_mappings_of_the_command_line_are_laid_over_those_of_the_file_key_by_key(config):
    flags = ["--config", str(config), "--model_init_kwargs", '{"code_dim": 16}', "--loss_weights", '{"image_l2": 0.5}']
    arguments = parse_arguments(TrainVQVAEArguments, "vqvae", flags)
    assert arguments.model_init_kwargs == {"code_dim": 16, "text_codec": "identity"}
    assert arguments.loss_weights == TOKENIZER_LOSS_WEIGHTS | {"image_l2": 0.5}


def test_lists_come_from_the_file_and_from_the_command_line(config):
    assert parse_arguments(TrainDiTArguments, "dit", ["--config", str(config)]).validation_prompts == [
        "a red circle",
        "a blue star",
    ]
    flags = ["--config", str(config), "--validation_prompts", "one", "two", "three"]
    assert parse_arguments(TrainDiTArguments, "dit", flags).validation_prompts == ["one", "two", "three"]


def test_without_a_file_the_command_line_is_enough():
    arguments = parse_arguments(TrainVQVAEArguments, "vqvae", ["--output_dir", "somewhere"])
    assert arguments.output_dir == "somewhere" and arguments.modalities == {"image", "text"}


def test_an_unknown_key_of_the_file_is_named_with_what_is_near(tmp_path):
    config = write(tmp_path / "c.yaml", vqvae={"output_dir": "x", "learning_rat": 1.0})
    with pytest.raises(ValueError, match=r"`vqvae`.*'learning_rat'.*learning_rate"):
        parse_arguments(TrainVQVAEArguments, "vqvae", ["--config", str(config)])
    with pytest.raises(ValueError, match=r"`common`.*'resolutoin'.*resolution"):
        config = write(tmp_path / "c.yaml", common={"resolutoin": 8})
        parse_arguments(TrainVQVAEArguments, "vqvae", ["--config", str(config)])
    with pytest.raises(ValueError, match=r"'vqvea'.*vqvae"):
        config = write(tmp_path / "c.yaml", vqvea={})
        parse_arguments(TrainVQVAEArguments, "vqvae", ["--config", str(config)])


def test_an_unknown_flag_is_named_with_what_is_near_and_not_taken_for_an_abbreviation():
    for flag in ("--max_train_step", "--max_train_step=4"):
        with pytest.raises(ValueError, match=r"'max_train_step'.*max_train_steps"):
            parse_arguments(TrainVQVAEArguments, "vqvae", ["--output_dir", "x", flag, "4"])


def test_an_unknown_key_of_a_mapping_is_named_with_what_is_near():
    flags = ["--output_dir", "x", "--model_init_kwargs", '{"codedim": 4}']
    with pytest.raises(ValueError, match=r"`model_init_kwargs`.*'codedim'.*code_dim"):
        parse_arguments(TrainVQVAEArguments, "vqvae", flags)
    flags = ["--output_dir", "x", "--loss_weights", '{"image_l3": 4}']
    with pytest.raises(ValueError, match=r"`loss_weights`.*'image_l3'.*image_l[12]"):
        parse_arguments(TrainVQVAEArguments, "vqvae", flags)


@pytest.mark.parametrize("version", [None, 2])
def test_a_file_of_another_format_version_is_refused(tmp_path, version):
    config = write(tmp_path / "c.yaml", format_version=version)
    with pytest.raises(ValueError, match="format_version: 1"):
        parse_arguments(TrainVQVAEArguments, "vqvae", ["--config", str(config)])


def test_a_value_of_the_wrong_type_is_refused_in_the_file_as_on_the_command_line(tmp_path, capsys):
    config = write(tmp_path / "c.yaml", vqvae={"output_dir": "x", "resolution": "big"})
    for flags in (["--config", str(config)], ["--output_dir", "x", "--resolution", "big"]):
        with pytest.raises(SystemExit):
            parse_arguments(TrainVQVAEArguments, "vqvae", flags)
        assert "--resolution: invalid int value: 'big'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        parse_arguments(TrainVQVAEArguments, "vqvae", ["--output_dir", "x", "--model_init_kwargs", "code_dim=4"])
    assert "not a mapping in JSON" in capsys.readouterr().err


def test_a_transformer_without_a_tokenizer_is_refused():
    with pytest.raises(ValueError, match="vqvae_model_name_or_path"):
        parse_arguments(TrainDiTArguments, "dit", ["--output_dir", "x"])


@pytest.mark.parametrize("flags", [["--random_flip"], ["--random_shift", "0.1"]])
def test_codes_that_were_written_once_exclude_augmentation(flags):
    flags = ["--output_dir", "x", "--vqvae_model_name_or_path", "y", "--codes_dir", "z", *flags]
    with pytest.raises(ValueError, match=r"need pictures encoded on the fly, and `codes_dir` \(z\)"):
        parse_arguments(TrainDiTArguments, "dit", flags)


def test_pictures_are_augmented_for_training_alone():
    args = parse_arguments(
        TrainVQVAEArguments, "vqvae", ["--output_dir", "x", "--random_flip", "--random_shift", "0.1"]
    )
    tokenizer = train_caption_tokenizer(["words"], vocab_size=300, model_max_length=8)
    assert args.reader(tokenizer, augment=True).augments and not args.reader(tokenizer).augments


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--pretrained_model_name_or_path", "other"], "`distill_from` .*`pretrained_model_name_or_path`.*exclude"),
        (["--vqvae_model_name_or_path", "other"], "`distill_from` .*`vqvae_model_name_or_path`.*exclude"),
        (["--model_init_kwargs", '{"num_layers": 3}'], "`distill_from` .*`model_init_kwargs`.*exclude"),
        (["--loss_config", '{"label_smoothing": 0.1}'], "label_smoothing"),
        (["--distill_config", '{"num_teacher_steps": 10}'], "multiple of `num_student_steps` = 4.* got 10: try 8"),
        (["--distill_config", '{"num_steps": 10}'], "`distill_config`.*'num_steps'.*num_student_steps"),
    ],
)
def test_settings_that_do_not_go_with_a_teacher_are_refused(flags, message):
    with pytest.raises(ValueError, match=message):
        parse_arguments(TrainDiTArguments, "dit", ["--output_dir", "x", "--distill_from", "teacher", *flags])


def test_settings_of_a_student_need_a_teacher():
    flags = ["--output_dir", "x", "--vqvae_model_name_or_path", "y", "--distill_config", '{"num_student_steps": 2}']
    with pytest.raises(ValueError, match="`distill_config` needs a teacher.*`distill_from`"):
        parse_arguments(TrainDiTArguments, "dit", flags)


def test_sample_grids_are_drawn_as_the_model_is_meant_to_be_called():
    flags = {"new": ["--vqvae_model_name_or_path", "y"], "student": ["--distill_from", "y"]}
    flags["shorter"] = [*flags["student"], "--distill_config", '{"num_student_steps": 2}']
    flags["as told"] = [*flags["student"], "--num_inference_steps", "7", "--guidance_scale", "4"]
    found = {}
    for name, extra in flags.items():
        arguments = parse_arguments(TrainDiTArguments, "dit", ["--output_dir", "x", *extra])
        found[name] = (arguments.num_inference_steps, arguments.guidance_scale)
    assert found == {"new": (12, 2.0), "student": (4, 1.0), "shorter": (2, 1.0), "as told": (7, 4.0)}


def test_modalities_that_do_not_exist_are_refused():
    with pytest.raises(ValueError, match="train_modalities"):
        parse_arguments(TrainVQVAEArguments, "vqvae", ["--output_dir", "x", "--train_modalities", "image,sound"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--loss_weights", '{"image_perceptual": 1}'], "`perceptual_model_name_or_path` is None: give both"),
        (["--perceptual_model_name_or_path", "net"], "image_perceptual 0.0 and .*'net': give both"),
        (["--discriminator_kwargs", '{"width": 8}'], "no effect without .*image_adversarial"),
        (["--loss_weights", '{"image_adversarial": 1}', "--train_modalities", "text"], r"needs \['image'\]"),
        (["--loss_weights", '{"alignment": 0.1}', "--train_modalities", "image"], r"needs \['image', 'text'\]"),
    ],
)
def test_a_loss_and_what_it_needs_go_together(flags, message):
    with pytest.raises(ValueError, match=message):
        parse_arguments(TrainVQVAEArguments, "vqvae", ["--output_dir", "x", *flags])


@pytest.mark.parametrize("flags", [["--train_modalities", "text"], ["--pretrained_model_name_or_path", "other"]])
def test_an_image_codec_is_that_of_a_new_tokenizer_of_pictures(flags):
    with pytest.raises(ValueError, match="`vq_model_name_or_path` is 'codec', the image codec of a new tokenizer"):
        parse_arguments(
            TrainVQVAEArguments, "vqvae", ["--output_dir", "x", "--vq_model_name_or_path", "codec", *flags]
        )


def test_the_resolved_settings_are_a_file_that_gives_the_same_settings(config, tmp_path):
    for arguments_class, section in ((TrainVQVAEArguments, "vqvae"), (TrainDiTArguments, "dit")):
        arguments = parse_arguments(arguments_class, section, ["--config", str(config), "--seed", "7"])
        write_config(arguments, section, tmp_path / "resolved.yaml")
        assert parse_arguments(arguments_class, section, ["--config", str(tmp_path / "resolved.yaml")]) == arguments


@pytest.mark.parametrize("arguments_class", SCRIPT_ARGUMENTS)
def test_every_setting_has_a_help_text_and_none_holds_a_token(arguments_class):
    for item in dataclasses.fields(arguments_class):
        assert item.metadata["help"], item.name
        assert "hub_token" not in item.name


def test_the_help_of_each_script_can_be_shown(capsys):
    for arguments_class in SCRIPT_ARGUMENTS:
        with pytest.raises(SystemExit) as exit_info:
            parse_arguments(arguments_class, "vqvae", ["--help"])
        assert exit_info.value.code == 0 and "--output_dir" in capsys.readouterr().out


def test_the_pairs_settings_are_those_of_the_loader():
    arguments = parse_arguments(
        EncodeCodesArguments, "codes", ["--output_dir", "x", "--vqvae_model_name_or_path", "y", "--seed", "3"]
    )
    assert arguments.pairs["seed"] == 3 and "output_dir" not in arguments.pairs
