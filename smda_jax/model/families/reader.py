"""Reading a `config.json`: every key is asked for by somebody, or known to change nothing."""

from collections.abc import Mapping
from typing import Any

from smda_jax.errors import InputError

# Keys that change nothing of a forward pass (training, generation, bookkeeping).
_WITHOUT_EFFECT = {
    "architectures",
    "model_type",
    "torch_dtype",
    "dtype",
    "transformers_version",
    "use_cache",
    "initializer_range",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "return_dict",
    "output_hidden_states",
    "output_attentions",
    "torchscript",
    "id2label",
    "label2id",
    "problem_type",
    "is_encoder_decoder",
    "is_decoder",
    "chunk_size_feed_forward",
    "name_or_path",
    "use_return_dict",
    "task_specific_params",
    "vocab_file",
    "finetuning_task",
    "prefix",
    "tokenizer_class",
    "add_cross_attention",
    "cross_attention_hidden_size",
    "auto_map",
    "max_position_embeddings",
    "cache_implementation",
    "use_bfloat16",
    "pruned_heads",
    "attn_implementation",
    "num_labels",
    "tie_last_hidden_states",
    "experts_implementation",
    "temperature",
    "top_k",
    "top_p",
    "do_sample",
    "max_length",
    "max_new_tokens",
    "repetition_penalty",
}


class Reader:
    """A `config.json`, of which every key that is read is remembered.

    A key that nobody read, that is not known to change nothing, and that is set, is refused by
    name: it may change the forward pass.
    """

    def __init__(self, raw: Mapping[str, Any], where: object):
        self.raw, self.where = raw, where
        self._read: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key; the default where it is missing or null."""
        self._read.add(key)
        value = self.raw.get(key)
        return default if value is None else value

    def need(self, key: str) -> Any:
        """The value of a key.

        Raises:
            InputError: it is missing.
        """
        if self.get(key) is None:
            remedy = "the checkpoint's own config.json has it"
            raise InputError(self.where, f"{key} is missing", remedy)
        return self.raw[key]

    def refusal(self, key: str) -> InputError:
        """Says that what a key asks for is not implemented."""
        what = f"{key} = {self.raw.get(key)!r} is not implemented"
        return InputError(self.where, what, "use a plain checkpoint of the family")

    def only(self, key: str, *allowed: Any) -> None:
        """Raises InputError if a key has another value than these, or none."""
        if self.get(key, allowed[0]) not in allowed:
            raise self.refusal(key)

    def ignore(self, *keys: str) -> None:
        """Keys that change nothing in this family."""
        self._read.update(keys)

    def refuse_unread(self) -> None:
        """Raises InputError for a key that is set and that nobody read."""
        for key, value in self.raw.items():
            known = key in self._read | _WITHOUT_EFFECT or key.startswith(("_", "unsloth"))
            if not known and value not in (None, False, 0, {}, []):
                raise self.refusal(key)
