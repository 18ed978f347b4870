# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""The caption tokenizer, a byte-level BPE trained on the captions or any fast one by name; captions as token ids."""

from collections.abc import Iterable
from pathlib import Path

import torch
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

PAD_TOKEN, EOS_TOKEN = "[PAD]", "[EOS]"
# It takes the blank before it along: byte-level words carry their own, so "a [MASK] circle" would keep a stray one.
MASK_TOKEN = AddedToken("[MASK]", lstrip=True, special=True)
_SPECIAL_TOKENS = {"pad_token": PAD_TOKEN, "eos_token": EOS_TOKEN, "mask_token": MASK_TOKEN}
_NO_MAXIMUM = 1_000_000  # transformers writes int(1e30) where a tokenizer has no `model_max_length`


def train_caption_tokenizer(
    captions: Iterable[str], vocab_size: int, model_max_length: int
) -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE tokenizer (Sennrich 2016; the bytes as in GPT-2) on captions.

    Every text can be encoded and comes back letter for letter. `[PAD]`, `[EOS]` and `[MASK]` have the ids 0, 1 and 2;
    `[MASK]` is one token and takes the blank before it along. Nothing is added to a text: [`encode_captions`] appends
    EOS and PAD.

    Args:
        captions (`Iterable[str]`): The captions.
        vocab_size (`int`): The most tokens, the 256 bytes and 3 special tokens among them; there are fewer if every
            word has become a token before that.
        model_max_length (`int`): The text context S in tokens, EOS among them.

    Returns:
        `PreTrainedTokenizerFast`: The tokenizer.

    Raises:
        ValueError: If `vocab_size` is below 259, `model_max_length` below 2, or there are no captions.
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    smallest = len(alphabet) + len(_SPECIAL_TOKENS)
    if vocab_size < smallest:
        raise ValueError(
            f"`vocab_size` must be at least {smallest} (the bytes and the special tokens), got {vocab_size}."
        )
    if model_max_length < 2:
        raise ValueError(f"`model_max_length` must be at least 2 (a word and EOS), got {model_max_length}.")
    captions = list(captions)
    if not captions:
        raise ValueError("There are no captions to train on. Check the caption column, or name a trained tokenizer.")
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(_SPECIAL_TOKENS.values()),
        initial_alphabet=alphabet,
        show_progress=False,
    )
    bpe.train_from_iterator(captions, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        model_max_length=model_max_length,
        padding_side="right",
        clean_up_tokenization_spaces=False,
        **_SPECIAL_TOKENS,
    )


def load_caption_tokenizer(
    name_or_path: str | Path, model_max_length: int | None = None, subfolder: str = ""
) -> PreTrainedTokenizerFast:
    """Loads a trained tokenizer and sees to it that it serves captions.

    A special token that it lacks is added (its vocabulary grows: `len(tokenizer)` counts).

    Args:
        name_or_path (`str` or `Path`): A folder or a name on the Hub.
        model_max_length (`int`, *optional*): The text context S in tokens; by default the tokenizer's own.
        subfolder (`str`, *optional*): Where the tokenizer lies inside, `"tokenizer"` in a pipeline's folder.

    Returns:
        `PreTrainedTokenizerFast`: A tokenizer with three distinct special tokens for padding, end and mask.

    Raises:
        ValueError: If there is no such folder and the Hub allows no such name, or the tokenizer is not a fast one, has
            no text context and none is given, uses one token for two purposes, or keeps a stray blank before its mask
            token.
    """
    if not Path(name_or_path).is_dir():
        try:
            validate_repo_id(str(name_or_path))
        except HFValidationError:
            raise ValueError(f"{str(name_or_path)!r} is neither a folder nor a name on the Hub.") from None
    tokenizer = AutoTokenizer.from_pretrained(name_or_path, subfolder=subfolder)
    if not tokenizer.is_fast:
        raise ValueError(
            f"The tokenizer of {str(name_or_path)!r} is not a fast one. Name one that has a `tokenizer.json`."
        )
    if model_max_length is not None:
        tokenizer.model_max_length = model_max_length
    if tokenizer.model_max_length > _NO_MAXIMUM:
        raise ValueError(f"The tokenizer of {str(name_or_path)!r} has no text context. Give a `model_max_length`.")
    missing = {name: token for name, token in _SPECIAL_TOKENS.items() if getattr(tokenizer, name) is None}
    tokenizer.add_special_tokens(missing)
    ids = {name: tokenizer.convert_tokens_to_ids(getattr(tokenizer, name)) for name in _SPECIAL_TOKENS}
    if len(set(ids.values())) < len(ids):
        raise ValueError(
            f"Padding, end and mask must be three tokens, but the tokenizer of {str(name_or_path)!r} has {ids}. Give "
            "it a token for each, for instance `tokenizer.add_special_tokens({'pad_token': '[PAD]'})`, and save it."
        )
    alone = tokenizer("a", add_special_tokens=False).input_ids
    masked = tokenizer(f"a {tokenizer.mask_token}", add_special_tokens=False).input_ids
    if masked != [*alone, ids["mask_token"]]:
        raise ValueError(
            f"The mask token {tokenizer.mask_token!r} of {str(name_or_path)!r} leaves the blank before it as a token "
            f"of its own. Save the tokenizer with the mask token `AddedToken({tokenizer.mask_token!r}, lstrip=True)`."
        )
    return tokenizer


def encode_captions(
    tokenizer: PreTrainedTokenizerBase, captions: list[str], return_truncated: bool = False
) -> torch.LongTensor | tuple[torch.LongTensor, torch.BoolTensor]:
    """Captions as token ids: words, EOS, then PAD up to the text context.

    The name of a special token in a caption is spelled out as ordinary text, so that EOS comes once and `[MASK]`
    never.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): As of [`train_caption_tokenizer`] or [`load_caption_tokenizer`]; its
            `model_max_length` is the text context S.
        captions (`list[str]`): B captions; those of more than S - 1 tokens lose their end.
        return_truncated (`bool`, defaults to `False`): Whether to tell which ones did.

    Returns:
        `torch.LongTensor` of shape `(B, S)`; with `return_truncated` also a `torch.BoolTensor` of shape `(B,)`.
    """
    context = tokenizer.model_max_length
    whole = _to_ids(tokenizer, captions)
    rows = [[*ids[: context - 1], tokenizer.eos_token_id] for ids in whole]
    padded = [row + [tokenizer.pad_token_id] * (context - len(row)) for row in rows]
    input_ids = torch.tensor(padded, dtype=torch.long).view(-1, context)  # (B, S)
    if not return_truncated:
        return input_ids
    return input_ids, torch.tensor([len(ids) >= context for ids in whole], dtype=torch.bool)


def count_tokens(tokenizer: PreTrainedTokenizerBase, captions: list[str]) -> list[int]:
    """How many tokens captions have, EOS among them; those of more than the text context lose their end."""
    return [len(ids) + 1 for ids in _to_ids(tokenizer, captions)] if captions else []


def _to_ids(tokenizer: PreTrainedTokenizerBase, captions: list[str]) -> list[list[int]]:
    return tokenizer(
        captions, add_special_tokens=False, split_special_tokens=True, return_attention_mask=False, verbose=False
    ).input_ids
