"""A tiny CLIP text encoder with random weights and a vocabulary of letters and digits."""

import string

import pytest
import torch

LENGTH, WIDTH = 10, 16


def tiny_clip(path, width=WIDTH, seed=0):
    """Writes the folder and returns it; the test is skipped where transformers is not installed."""
    transformers = pytest.importorskip("transformers")
    letters = [*string.ascii_lowercase, *string.digits]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "re", "red</w>"]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {token: i for i, token in enumerate(tokens)}
    config = transformers.CLIPTextConfig(
        vocab_size=len(vocab),
        hidden_size=width,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
        bos_token_id=len(vocab) - 2,
        eos_token_id=len(vocab) - 1,
        pad_token_id=len(vocab) - 1,
    )
    transformers.utils.logging.disable_progress_bar()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = transformers.CLIPTextModel(config)
    network.save_pretrained(path)
    merges = [("r", "e"), ("re", "d</w>")]
    transformers.CLIPTokenizer(vocab=vocab, merges=merges).save_pretrained(path)
    return str(path)
