# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
import copy

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from hf_vqdit.models.autoencoder_vqvae import VectorQuantizer
from hf_vqdit.training.codebook import ADAM_BETAS, CodebookTrainer


def trainer(num_codes: int = 8, dim: int = 3, l2_normalize: bool = False, **options) -> CodebookTrainer:
    torch.manual_seed(0)
    options = {"start_step": 1, "restart_every": 0} | options
    return CodebookTrainer({"image": VectorQuantizer(num_codes, dim, l2_normalize)}, **options)


def vectors(number: int, dim: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.randn(number, dim, generator=torch.Generator().manual_seed(seed))


LEARNING_RATE = 0.02


def observe(codebooks: CodebookTrainer, batch: torch.Tensor) -> None:
    quantizer = codebooks.quantizers["image"]
    batch = quantizer.normalize(batch)
    codebooks.observe("image", batch, quantizer(batch) if codebooks.quantize else None)


def codebook(codebooks: CodebookTrainer) -> torch.Tensor:
    return codebooks.quantizers["image"].codebook


def test_k_means_finds_as_many_distinct_points_as_there_are_codes():
    codebooks = trainer(num_codes=8)
    points = vectors(8)
    observe(codebooks, points.repeat(20, 1))
    assert not codebooks.quantize
    codebooks.step(1)
    assert codebooks.quantize
    assert torch.cdist(points, codebook(codebooks)).amin(1).max() < 1e-5


def test_a_codebook_that_is_taken_as_it_is_waits_for_the_others():
    torch.manual_seed(0)
    codebooks = CodebookTrainer({"image": VectorQuantizer(8, 3), "text": VectorQuantizer(8, 3)}, start_step=2)
    before = codebook(codebooks).clone()
    codebooks.start_from_codes("image")
    for step in (1, 2):
        assert not codebooks.quantize
        for name in ("image", "text"):
            codebooks.observe(name, vectors(20, seed=step))
        codebooks.step(step)
    assert codebooks.quantize and torch.equal(codebook(codebooks), before)


def test_the_start_waits_for_its_step():
    codebooks = trainer(start_step=3)
    before = codebook(codebooks).clone()
    for step in (1, 2):
        observe(codebooks, vectors(50, seed=step))
        codebooks.step(step)
        assert not codebooks.quantize and torch.equal(codebook(codebooks), before)
    observe(codebooks, vectors(50))
    codebooks.step(3)
    assert codebooks.quantize and not torch.equal(codebook(codebooks), before)


def test_right_after_the_start_the_averages_reproduce_the_codes():
    codebooks = trainer(decay=0.999999)
    observe(codebooks, vectors(100))
    codebooks.step(1)
    started = codebook(codebooks).clone()
    observe(codebooks, vectors(100, seed=1))
    codebooks.step(2)
    torch.testing.assert_close(codebook(codebooks), started, atol=1e-3, rtol=1e-3)


def test_without_memory_a_step_is_a_lloyd_step():
    codebooks = trainer(decay=0.0, epsilon=1e-10)
    batch = vectors(200)
    observe(codebooks, batch)
    codebooks.step(1)
    quantizer = codebooks.quantizers["image"]
    quantizer.codebook.data.add_(0.3)
    codes = quantizer(batch)
    error = (batch - quantizer.lookup(codes)).square().sum()
    observe(codebooks, batch)
    codebooks.step(2)
    for code in codes.unique():
        torch.testing.assert_close(codebook(codebooks)[code], batch[codes == code].mean(0), atol=1e-4, rtol=1e-4)
    assert (batch - quantizer.lookup(quantizer(batch))).square().sum() < error


def test_the_mass_of_the_average_is_the_mass_of_the_data():
    codebooks = trainer(decay=0.9)
    observe(codebooks, vectors(64))
    codebooks.step(1)
    state = codebooks.states["image"]
    size, total = state.cluster_size.sum(), state.vector_sum.sum(0)
    batch = vectors(64, seed=1)
    observe(codebooks, batch)
    codebooks.step(2)
    torch.testing.assert_close(state.cluster_size.sum(), 0.9 * size + 0.1 * 64)
    torch.testing.assert_close(state.vector_sum.sum(0), 0.9 * total + 0.1 * batch.sum(0))


def test_codes_stay_on_the_sphere():
    codebooks = trainer(l2_normalize=True)
    for step in range(1, 5):
        observe(codebooks, vectors(60, seed=step))
        codebooks.step(step)
    torch.testing.assert_close(codebook(codebooks).norm(dim=1), torch.ones(8))


# The codebook on the gradient


@pytest.mark.parametrize("l2_normalize", [True, False])
def test_the_gradient_update_is_adam_on_the_codebook_loss(l2_normalize):
    codebooks = trainer(l2_normalize=l2_normalize, update="gradient")
    observe(codebooks, vectors(100))
    codebooks.step(1, LEARNING_RATE)
    quantizer = codebooks.quantizers["image"]
    expected = codebook(codebooks).detach().clone().requires_grad_()
    adam = torch.optim.Adam([expected], lr=LEARNING_RATE, betas=ADAM_BETAS)
    for step in (2, 3, 4):
        batch = quantizer.normalize(vectors(100, seed=step))
        codes = quantizer(batch)
        observe(codebooks, batch)
        codebooks.step(step, LEARNING_RATE)
        adam.zero_grad()
        (batch - quantizer.normalize(expected[codes])).square().mean().backward()
        adam.step()
        expected.data = quantizer.normalize(expected.data)
        torch.testing.assert_close(codebook(codebooks).data, expected.data, atol=1e-5, rtol=1e-4)


def test_the_gradient_update_brings_codes_back_to_their_vectors():
    codebooks, batch = trainer(update="gradient"), vectors(200)
    quantizer = codebooks.quantizers["image"]

    def error() -> torch.Tensor:
        return (batch - quantizer.lookup(quantizer(batch))).square().mean()

    observe(codebooks, batch)
    codebooks.step(1, LEARNING_RATE)
    started = error()  # k-means has found a minimum
    codebook(codebooks).data.add_(0.3)
    assert error() > 1.1 * started
    for step in range(2, 60):
        observe(codebooks, batch)
        codebooks.step(step, LEARNING_RATE)
    assert error() < 1.01 * started
    assert codebook(codebooks).grad is None and not codebook(codebooks).requires_grad


def test_a_restarted_code_has_no_momentum():
    codebooks = trainer(update="gradient", restart_every=3, max_restart_fraction=1.0)
    batch = vectors(100)
    for step in (1, 2):
        observe(codebooks, batch)
        codebooks.step(step, LEARNING_RATE)
    state = codebooks.states["image"]
    codebook(codebooks).data[0] = 100.0  # nobody will choose it
    state.cluster_size[0] = 0.0
    observe(codebooks, batch)
    assert codebooks.step(3, LEARNING_RATE)["image_restarts"] == 1
    moments = state.optimizer.state[codebook(codebooks)]
    assert (moments["exp_avg"][0] == 0).all() and (moments["exp_avg"][1:] != 0).any()
    assert (batch == codebook(codebooks)[0]).all(1).any()


def test_the_gradient_update_wants_a_learning_rate_and_an_update_a_known_name():
    with pytest.raises(ValueError, match="learning_rate"):
        trainer(update="gradient").step(1)
    with pytest.raises(ValueError, match="'sgd'.*ema"):
        trainer(update="sgd")


# Restarts


def test_a_restarted_code_is_a_vector_of_the_data_and_outlives_the_next_step():
    codebooks = trainer(num_codes=8, restart_every=2, max_restart_fraction=1.0, decay=0.99)
    batch = vectors(100)
    observe(codebooks, batch)
    codebooks.step(1)
    state = codebooks.states["image"]
    codebook(codebooks).data[0] = 100.0  # nobody will choose it
    state.cluster_size[0], state.vector_sum[0] = 0.0, 0.0
    observe(codebooks, batch)
    before = codebook(codebooks).clone()
    metrics = codebooks.step(2)
    assert metrics["image_restarts"] == 1
    restarted = codebook(codebooks)[0].clone()
    assert (batch == restarted).all(1).any()
    assert torch.cdist(codebook(codebooks)[1:], before[1:]).diagonal().max() < 0.5  # the living ones only drift
    observe(codebooks, batch)
    assert codebooks.step(3)["image_restarts"] == 0
    assert (codebook(codebooks)[0] - restarted).norm() < 0.1


def test_no_code_restarts_when_all_are_used_or_the_time_for_it_is_over():
    used = trainer(num_codes=2, restart_every=1, restart_threshold=1e-9)
    over = trainer(num_codes=8, restart_every=1, restart_threshold=0.99, restart_until_step=1)
    for codebooks in (used, over):
        for step in (1, 2, 3):
            observe(codebooks, vectors(100))
            metrics = codebooks.step(step)
        assert metrics["image_restarts"] == 0


def test_padding_is_kept_out_of_every_statistic():
    real, padded = trainer(), trainer()
    batch = vectors(40)
    mask = torch.arange(80) % 2 == 0
    with_padding = torch.full((80, 3), 1e3)
    with_padding[mask] = batch
    for step in (1, 2):
        codes = real.quantizers["image"](batch) if real.quantize else None
        real.observe("image", batch, codes)
        all_codes = torch.zeros(80, dtype=torch.long)
        if codes is not None:
            all_codes[mask] = codes
        padded.observe("image", with_padding, all_codes if codes is not None else None, mask)
        real.step(step)
        padded.step(step)
    assert torch.equal(codebook(real), codebook(padded))


def test_micro_batches_equal_one_batch():
    whole, parts = trainer(restart_every=2), trainer(restart_every=2)
    for step in range(1, 6):
        batch = vectors(64, seed=step)
        observe(whole, batch)
        for part in batch.chunk(4):
            observe(parts, part)
        whole.step(step)
        parts.step(step)
    torch.testing.assert_close(codebook(whole), codebook(parts), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("update", ["ema", "gradient"])
def test_a_resumed_trainer_goes_on_bit_for_bit(update):
    through = trainer(restart_every=2, num_codes=16, update=update)
    for step in (1, 2, 3):
        observe(through, vectors(40, seed=step))
        through.step(step, LEARNING_RATE)
    resumed = trainer(restart_every=2, num_codes=16, update=update)
    resumed.load_state_dict(copy.deepcopy(through.state_dict()))
    codebook(resumed).data.copy_(codebook(through))
    for step in (4, 5, 6):
        for codebooks in (through, resumed):
            observe(codebooks, vectors(40, seed=step))
            codebooks.step(step, LEARNING_RATE)
    assert torch.equal(codebook(through), codebook(resumed))


def test_a_checkpoint_of_another_codebook_is_refused():
    with pytest.raises(ValueError, match="has shape"):
        trainer(num_codes=8).load_state_dict(trainer(num_codes=16).state_dict())
    with pytest.raises(ValueError, match="holds codebooks"):
        trainer().load_state_dict({})
    with pytest.raises(ValueError, match="update 'ema'"):
        trainer().load_state_dict(trainer(update="gradient").state_dict())


def _run_rank(rank: int, world_size: int, folder: str, update: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world_size)
    torch.set_num_threads(1)
    codebooks = trainer(restart_every=2, num_codes=16, update=update)
    for step in range(1, 21):
        batch = vectors(66, seed=step)
        observe(codebooks, batch[:40] if rank == 0 else batch[40:])  # ranks of unequal size: captions are
        codebooks.step(step, LEARNING_RATE)
    torch.save(codebook(codebooks).data, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("update", ["ema", "gradient"])
def test_two_processes_hold_bit_equal_codes_and_equal_one_process(update, tmp_path):
    mp.spawn(_run_rank, args=(2, str(tmp_path), update), nprocs=2)
    first, second = torch.load(tmp_path / "0.pt"), torch.load(tmp_path / "1.pt")
    assert torch.equal(first, second)
    single = trainer(restart_every=2, num_codes=16, update=update)
    for step in range(1, 21):
        observe(single, vectors(66, seed=step))
        single.step(step, LEARNING_RATE)
    torch.testing.assert_close(first, codebook(single).data, atol=1e-5, rtol=1e-5)
