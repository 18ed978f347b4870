# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""Codes are written once, so of pictures that stay as they are."""

import pytest
from datasets import Dataset

from hf_vqdit.data import PairDataset, PairReader, RecordCounts, train_caption_tokenizer
from hf_vqdit.training.codes import write_codes

TOKENIZER = train_caption_tokenizer(["words"], vocab_size=300, model_max_length=8)


@pytest.mark.parametrize("augmentation", [{"random_flip": True}, {"random_shift": 0.2}])
def test_pictures_that_change_from_epoch_to_epoch_are_not_written_once(tmp_path, augmentation):
    pairs = Dataset.from_list([{"image": None, "caption": ["words"]}])
    dataset = PairDataset(pairs, PairReader(TOKENIZER, 8, **augmentation))
    with pytest.raises(ValueError, match="`random_flip` and `random_shift` need pictures encoded on the fly"):
        write_codes(tmp_path / "codes", None, dataset, batch_size=2, records=RecordCounts())
    assert not (tmp_path / "codes").exists()
