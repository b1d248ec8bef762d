"""Demonstrations, preferences and prompts as batched token ids."""

from kerasrlhf.data import dialogue, records
from kerasrlhf.data.batches import demonstrations, preferences, prompts
from kerasrlhf.data.rows import Report
from kerasrlhf.data.sources import read
from kerasrlhf.data.splitting import mix, split
from kerasrlhf.data.steps import stepwise
from kerasrlhf.data.templates import ChatTemplate
from kerasrlhf.data.tokenized import TokenizedDataset
from kerasrlhf.data.unpaired import unpaired_preferences
from kerasrlhf.tokens import detokenize, tokenize

__all__ = [
    "ChatTemplate",
    "Report",
    "TokenizedDataset",
    "demonstrations",
    "detokenize",
    "dialogue",
    "mix",
    "preferences",
    "prompts",
    "read",
    "records",
    "split",
    "stepwise",
    "tokenize",
    "unpaired_preferences",
]
