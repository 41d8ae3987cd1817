"""CLIP's text encoder: from texts to the tokens that a text-conditional network attends to."""

__all__ = ["CLIPText"]

import json
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dtr_lightning.data.pretrained import check_digest, reading, weights_digest
from dtr_lightning.errors import UserError

if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTokenizer


class CLIPText:
    """Transformers' CLIPTextModel with its tokenizer, frozen and in float32.

    A text becomes the last layer's features of its tokens (Radford et al. 2021), as in Stable
    Diffusion: filled up to the encoder's length (77), without a mask; a longer text is cut.

    Args:
        path: folder in transformers' layout, or a name on the Hugging Face hub.
        digest: of the weights and the vocabulary that are wanted; any by default.
    """

    def __init__(self, path: str, digest: str | None = None) -> None:
        self.path, self.wanted = path, digest

    @cached_property
    def parts(self) -> "tuple[CLIPTextModel, CLIPTokenizer]":
        """The encoder and its tokenizer; UserError where they cannot be had or are others."""
        hint = "; --data.clip says where it is" if self.wanted else ""
        try:
            from transformers import CLIPTextModel, CLIPTokenizer
            from transformers.utils import logging
        except ImportError as error:
            raise UserError(
                "captions need transformers: pip install -r requirements-scale.txt"
            ) from error
        logging.set_verbosity_error()  # it tells of the weights of CLIP's other half, one a line
        logging.disable_progress_bar()
        with reading(self.path, "text encoder", hint) as local:
            network, loading = CLIPTextModel.from_pretrained(
                self.path,
                local_files_only=local,
                use_safetensors=True,
                dtype=torch.float32,
                output_loading_info=True,
            )
            tokenizer = CLIPTokenizer.from_pretrained(self.path, local_files_only=local)
        if missing := sorted(loading["missing_keys"]):
            raise UserError(f"{self.path} is no text encoder of CLIP: it has no {missing[0]}{hint}")
        if len(tokenizer) != network.config.vocab_size:
            raise UserError(
                f"the tokenizer at {self.path} has {len(tokenizer):,} tokens, the text encoder "
                f"{network.config.vocab_size:,}; restore its files{hint}"
            )
        if self.wanted:
            digest = _digest(network, tokenizer)
            check_digest(digest, self.wanted, self.path, "text encoder", "captions", hint)
        return network.requires_grad_(False).eval(), tokenizer

    @cached_property
    def digest(self) -> str:
        """Twelve hexadecimal digits of weights and vocabulary, wherever they lie."""
        return self.wanted or _digest(*self.parts)

    @property
    def shape(self) -> tuple[int, int]:
        """(L_text, C_text) of an encoded text."""
        config = self.parts[0].config
        return int(config.max_position_embeddings), int(config.hidden_size)

    def encode(self, texts: Sequence[str], device: torch.device | str = "cpu") -> Tensor:
        """Returns the tokens float32 (N, L_text, C_text) of texts, on a device."""
        return self.features(self.words(texts).to(device))

    def words(self, texts: Sequence[str]) -> Tensor:
        """Returns what texts are to the network: numbers int64 (N, L_text) of a vocabulary."""
        filled = {"padding": "max_length", "truncation": True, "max_length": self.shape[0]}
        return self.parts[1](list(texts), **filled, return_tensors="pt").input_ids

    @torch.no_grad()
    def features(self, words: Tensor) -> Tensor:
        """Returns the tokens float32 (N, L_text, C_text) of numbers (N, L_text), on their device.

        Threads may call it at the same time, as the tokenizer may not be.
        """
        network = self.parts[0].to(words.device)
        with torch.autocast(words.device.type, enabled=False):
            return network(input_ids=words).last_hidden_state


def _digest(network: "CLIPTextModel", tokenizer: "CLIPTokenizer") -> str:
    vocabulary = sorted(tokenizer.get_vocab().items())
    return weights_digest(network, json.dumps(vocabulary).encode())
