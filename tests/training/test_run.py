# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""What the scripts share: checkpoints that are whole or not there, averaged weights, precision, the NaN stop."""

import json
import re

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from datasets import Dataset
from datasets import Image as ImageFeature
from diffusers.training_utils import EMAModel
from pair_files import draw_pixels, encode

from hf_vqdit import MultimodalVQVAE
from hf_vqdit.data import PairDataset, PairReader, collate_pairs, train_caption_tokenizer
from hf_vqdit.training.arguments import TrainVQVAEArguments
from hf_vqdit.training.checkpoints import STATE_FILE, find_checkpoint, list_checkpoints, publish, read_state
from hf_vqdit.training.precision import choose_precision
from hf_vqdit.training.run import TrainingRun, check_finite, make_optimizer


@pytest.fixture
def make_run(tmp_path):
    """Makes runs in a folder of their own, and leaves accelerate as if there had been none."""

    def make(**settings) -> TrainingRun:
        settings = {"output_dir": str(tmp_path / "run"), "report_to": "none", "mixed_precision": "no", **settings}
        return TrainingRun(TrainVQVAEArguments(**settings), "vqvae")

    yield make
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def make_model() -> MultimodalVQVAE:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MultimodalVQVAE(
            block_out_channels=(8, 8),
            norm_num_groups=4,
            image_codebook_size=16,
            code_dim=4,
            vocab_size=12,
            text_codebook_size=16,
            text_code_dim=4,
            text_width=16,
            num_text_decoder_layers=1,
        )


def write_checkpoint(folder, step: int = 0) -> None:
    folder.mkdir(parents=True)
    (folder / STATE_FILE).write_text(json.dumps({"format_version": 1, "step": step}))


# Checkpoints


def test_latest_is_the_one_of_the_highest_step_that_is_whole(tmp_path):
    for name in ("checkpoint-9", "checkpoint-10", "checkpoint-200.tmp", "samples"):
        write_checkpoint(tmp_path / name)
    assert [folder.name for folder in list_checkpoints(tmp_path)] == ["checkpoint-9", "checkpoint-10"]
    assert find_checkpoint(tmp_path, "latest") == tmp_path / "checkpoint-10"
    assert find_checkpoint(tmp_path, "checkpoint-9") == tmp_path / "checkpoint-9"
    assert find_checkpoint(tmp_path / "other", str(tmp_path / "checkpoint-9")) == tmp_path / "checkpoint-9"


def test_latest_starts_anew_where_there_is_none_and_a_name_that_is_not_there_is_an_error(tmp_path):
    assert find_checkpoint(tmp_path / "new", "latest") is None and find_checkpoint(tmp_path / "new", None) is None
    write_checkpoint(tmp_path / "checkpoint-3")
    with pytest.raises(ValueError, match="checkpoint-4.*checkpoint-3"):
        find_checkpoint(tmp_path, "checkpoint-4")


def test_a_run_does_not_start_anew_over_the_checkpoints_of_another(make_run, tmp_path):
    write_checkpoint(tmp_path / "run" / "checkpoint-3")
    with pytest.raises(ValueError, match="resume_from_checkpoint latest"):
        make_run()


def test_a_checkpoint_of_another_format_version_is_refused(tmp_path):
    folder = tmp_path / "checkpoint-3"
    write_checkpoint(folder)
    assert read_state(folder)["step"] == 0
    (folder / STATE_FILE).write_text(json.dumps({"format_version": 99, "step": 0}))
    with pytest.raises(ValueError, match="format version 99.*reads version 1"):
        read_state(folder)
    (folder / STATE_FILE).unlink()
    with pytest.raises(ValueError, match=f"no checkpoint.*{re.escape(STATE_FILE)}"):
        read_state(folder)


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    for step in (1, 2, 3):
        (tmp_path / "aside").mkdir()
        publish(tmp_path / "aside", tmp_path / f"checkpoint-{step}", {"step": step}, total_limit=2)
    assert [folder.name for folder in list_checkpoints(tmp_path)] == ["checkpoint-2", "checkpoint-3"]
    (tmp_path / "aside").mkdir()
    publish(tmp_path / "aside", tmp_path / "checkpoint-3", {"step": 3, "again": True}, total_limit=None)
    assert read_state(tmp_path / "checkpoint-3")["again"] and len(list_checkpoints(tmp_path)) == 2


def test_a_crash_while_saving_leaves_no_checkpoint_and_the_next_save_works(make_run):
    run, model = make_run(), make_model()

    class Broken:
        def save_pretrained(self, folder):
            raise OSError("the disk is full")

    run.register("vqvae", model, None, tokenizer=Broken())
    with pytest.raises(OSError, match="full"):
        run.save_checkpoint(1)
    assert list_checkpoints(run.output_dir) == []
    assert (run.output_dir / "checkpoint-1.tmp").is_dir()
    run.companions.clear()
    run.save_checkpoint(1)
    assert [folder.name for folder in list_checkpoints(run.output_dir)] == ["checkpoint-1"]
    assert not (run.output_dir / "checkpoint-1.tmp").exists()


def test_the_folders_of_a_checkpoint_load_with_from_pretrained(make_run):
    run, model = make_run(), make_model()
    ema = EMAModel(model.parameters(), decay=0.9, foreach=True)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)  # the codebook too, which is no parameter that an optimizer moves
    for _ in range(3):
        ema.step(model.parameters())
    run.register("vqvae", model, ema)
    run.save_checkpoint(1)
    for subfolder, expected in (("vqvae", list(model.parameters())), ("vqvae_ema", ema.shadow_params)):
        loaded = MultimodalVQVAE.from_pretrained(run.output_dir / "checkpoint-1", subfolder=subfolder)
        for parameter, other in zip(loaded.parameters(), expected, strict=True):
            assert torch.equal(parameter.nan_to_num(7.0), other.nan_to_num(7.0))  # statistics not measured are NaN
    codebook = MultimodalVQVAE.from_pretrained(run.output_dir / "checkpoint-1", subfolder="vqvae_ema").image_quantizer
    assert torch.equal(codebook.codebook, model.image_quantizer.codebook) and not codebook.codebook.requires_grad


def test_averaged_weights_are_in_the_model_for_the_block_alone(make_run):
    run, model = make_run(), make_model()
    ema = EMAModel(model.parameters(), foreach=True)
    weight = model.text_encoder.proj_out.weight
    averaged, trained = weight.detach().clone(), weight.detach() + 1
    weight.data.copy_(trained)
    run.register("vqvae", model, ema)
    with pytest.raises(KeyError), run.averaged_weights():
        assert torch.equal(weight, averaged)
        raise KeyError
    assert torch.equal(weight, trained)


def test_a_resume_keeps_the_precision_that_was_chosen(make_run, tmp_path):
    folder = tmp_path / "run" / "checkpoint-3"
    folder.mkdir(parents=True)
    state = {"format_version": 1, "step": 3, "mixed_precision": "bf16", "arguments": {}}
    (folder / STATE_FILE).write_text(json.dumps(state))
    run = make_run(mixed_precision="auto", resume_from_checkpoint="latest")
    assert run.accelerator.mixed_precision == "bf16" and run.first_step == 3


def test_what_is_pinned_may_not_differ_when_a_run_is_resumed(make_run):
    run = make_run()
    run.register("vqvae", make_model(), None)
    run.pin("tokenizer", "one")
    run.save_checkpoint(1)
    resumed = make_run(resume_from_checkpoint="latest")
    resumed.pin("tokenizer", "one")
    with pytest.raises(ValueError, match="tokenizer.*another"):
        resumed.pin("tokenizer", "another")


# Records


def pairs_of_a_run(num_bad: int) -> PairDataset:
    """Eight pairs, of which the first pictures are bad."""
    pictures = [{"bytes": b"bad" if i < num_bad else encode(draw_pixels(i, 8, 8)), "path": None} for i in range(8)]
    columns = {"image": pictures, "caption": [["words"]] * 8}
    tokenizer = train_caption_tokenizer(["words"], vocab_size=300, model_max_length=8)
    return PairDataset(
        Dataset.from_dict(columns).cast_column("image", ImageFeature(decode=False)), PairReader(tokenizer, 8)
    )


def test_a_record_counts_once_an_epoch_and_a_held_out_one_once_a_run(make_run):
    settings = {"train_batch_size": 4, "max_train_steps": 4, "max_bad_fraction": 1.0}
    train_set, held_out = pairs_of_a_run(num_bad=3), pairs_of_a_run(num_bad=2)
    for epoch in range(2):  # of two steps each
        run = make_run(**settings, resume_from_checkpoint="latest" if epoch else None)
        run.register("vqvae", make_model(), None)
        batches = run.batches(train_set, collate_pairs)
        for step in (2 * epoch, 2 * epoch + 1):
            run.next_batch(batches)
            for dataset in (train_set, held_out):  # statistics, and a validation after each step
                assert sum(len(batch["row"]) for batch in run.some_batches(dataset, collate_pairs, 8)) == 8
            run.save_checkpoint(step + 1)
        report = run.records.report()
        assert (report["read"], report["bad"]) == (8 * (epoch + 2), 3 * (epoch + 1) + 2)
        assert report["bad_by_kind"]["picture_unreadable"]["count"] == report["bad"]


# The loop's numbers


def test_averages_are_over_all_rows_that_have_a_number(make_run):
    run = make_run()

    def gather(**terms):
        run.gather({name: torch.tensor(rows, device=run.accelerator.device) for name, rows in terms.items()})

    gather(a=[1.0, 2.0], bin=[4.0], empty=[])
    gather(a=[3.0, 6.0], bin=[1.0, 1.0], empty=[])
    assert run.averages(1) == {"a": 3.0, "bin": 2.0}
    gather(a=[5.0])
    assert run.averages(2) == {"a": 5.0}


def test_a_loss_that_is_not_finite_names_step_and_parts(make_run):
    run = make_run()
    losses = {"loss": torch.tensor([float("nan"), 1.0]), "image_l1": torch.tensor([0.25])}
    run.gather({name: rows.to(run.accelerator.device) for name, rows in losses.items()})
    with pytest.raises(FloatingPointError, match=r"step 7.*loss nan.*image_l1 0.25.*learning_rate"):
        run.averages(7)
    with pytest.raises(FloatingPointError, match="inf"):
        check_finite({"loss": float("inf")}, 1)


def test_what_is_due_is_due_every_so_often_and_at_the_end(make_run):
    run = make_run(max_train_steps=10)
    assert [step for step in range(1, 11) if run.is_due(4, step)] == [4, 8, 10]
    assert not any(run.is_due(0, step) for step in range(1, 11))


def test_epochs_become_steps(make_run):
    run = make_run(num_train_epochs=2.0, train_batch_size=4, gradient_accumulation_steps=2)
    assert run.global_batch_size == 8
    batches = run.batches(torch.utils.data.TensorDataset(torch.zeros(17)), list)
    assert run.arguments.max_train_steps == 5  # 34 rows, 8 at a time
    assert batches is not None


# Precision and optimizer


def test_the_precision_is_one_that_the_processor_is_fast_at():
    assert choose_precision(torch.device("cpu")) in ("bf16", "no")
    assert choose_precision(torch.device("meta")) == "no"


def test_weight_decay_is_for_matrices_and_nothing_without_gradient_is_optimized():
    model = make_model()
    optimizer = make_optimizer(model, TrainVQVAEArguments(output_dir="x", adam_weight_decay=0.5))
    decayed, free = ({id(p) for p in group["params"]} for group in optimizer.param_groups)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.5, 0.0]
    for name, parameter in model.named_parameters():
        assert (id(parameter) in decayed | free) == parameter.requires_grad, name
        if parameter.ndim < 2 or "embedding" in name:
            assert id(parameter) not in decayed, name
    assert id(model.text_encoder.proj_out.weight) in decayed and id(model.token_embedding.weight) in free
