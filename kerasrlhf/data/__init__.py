"""Demonstrations, preferences and prompts as batched token ids."""

from kerasrlhf.data import dialogue, records
from kerasrlhf.data.auditing.checks import audit
from kerasrlhf.data.auditing.cleaning import Cleaned, CleanReport, clean
from kerasrlhf.data.auditing.findings import Finding
from kerasrlhf.data.auditing.noise import LabelNoise, label_noise
from kerasrlhf.data.auditing.report import AuditReport
from kerasrlhf.data.augmenting.augment import augment
from kerasrlhf.data.augmenting.comparisons import comparisons
from kerasrlhf.data.augmenting.report import Augmented, AugmentReport
from kerasrlhf.data.batches import demonstrations, preferences, prompts
from kerasrlhf.data.labeling.label import label
from kerasrlhf.data.labeling.session import Labeling
from kerasrlhf.data.preparing import to_tfds
from kerasrlhf.data.rows import Report
from kerasrlhf.data.sources import read
from kerasrlhf.data.splitting import mix, split
from kerasrlhf.data.steps import stepwise
from kerasrlhf.data.streams import Stream
from kerasrlhf.data.templates import ChatTemplate
from kerasrlhf.data.tokenized import TokenizedDataset
from kerasrlhf.data.unpaired import unpaired_preferences
from kerasrlhf.tokens import detokenize, tokenize

__all__ = [
    "AuditReport",
    "AugmentReport",
    "Augmented",
    "ChatTemplate",
    "CleanReport",
    "Cleaned",
    "Finding",
    "LabelNoise",
    "Labeling",
    "Report",
    "Stream",
    "TokenizedDataset",
    "audit",
    "augment",
    "clean",
    "comparisons",
    "demonstrations",
    "detokenize",
    "dialogue",
    "label",
    "label_noise",
    "mix",
    "preferences",
    "prompts",
    "read",
    "records",
    "split",
    "stepwise",
    "to_tfds",
    "tokenize",
    "unpaired_preferences",
]
