"""A model of the patient: its slices are weighed, and it is decided about them together.

Every slice has its patient's label, also where it is healthy, so the mean over slices is watered down by those. Gated
attention (Ilse, Tomczak & Welling 2018, "Attention-based deep multiple instance learning", eq. 9) learns from patients alone
which slices to look at. The network that made the slices' features stays as it is; the head has some thousand weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raymed.systems.lung.settings import HeadSettings


class AttentionPooling(nn.Module):
    """Slices of patients in, logits of the patients out.

    Attributes:
        mean: of the features it was trained on, [width]; likewise `scale`.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, width: int, classes: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))
        self.content, self.gate = nn.Linear(width, hidden), nn.Linear(width, hidden)
        self.weigh = nn.Linear(hidden, 1, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.decide = nn.Linear(width, classes)
        nn.init.zeros_(self.weigh.weight)  # the mean, to begin with

    def forward(self, features: Tensor, owner: Tensor, patients: int) -> tuple[Tensor, Tensor]:
        """Logits [patients, classes], and what each slice weighs, [slices]; a patient's slices together weigh 1.

        Args:
            features: [slices, width].
            owner: which patient each slice is of, int64 [slices], from 0.
            patients: how many there are.
        """
        seen = self.dropout((features - self.mean) / self.scale)
        scores = self.weigh(torch.tanh(self.content(seen)) * torch.sigmoid(self.gate(seen)))[:, 0]
        highest = scores.new_full((patients,), -torch.inf).scatter_reduce(0, owner, scores.detach(), "amax")
        raised = (scores - highest[owner]).exp()
        weights = raised / raised.new_zeros(patients).index_add(0, owner, raised)[owner]
        pooled = seen.new_zeros(patients, seen.shape[1]).index_add(0, owner, weights[:, None] * seen)
        return self.decide(pooled), weights


@dataclass(frozen=True)
class Bags:
    """Patients and their slices.

    Attributes:
        ids: of the patients, sorted, [patients].
        labels: int64 [patients].
        owner: which patient each slice is of, int64 [slices].
        features: float32 [slices, width].
    """

    ids: np.ndarray
    labels: np.ndarray
    owner: np.ndarray
    features: np.ndarray

    @classmethod
    def of(cls, features: np.ndarray, columns: dict[str, np.ndarray]) -> Bags:
        """Args: features: [slices, width]; columns: ``patient`` and ``label`` of the same slices."""
        ids, first, owner = np.unique(columns["patient"].astype(str), return_index=True, return_inverse=True)
        return cls(ids, columns["label"][first].astype(np.int64), owner.astype(np.int64), features)

    def part(self, kept: np.ndarray) -> Bags:
        """Some of the patients: bool [patients]."""
        slices = kept[self.owner]
        place = np.cumsum(kept) - 1
        return Bags(self.ids[kept], self.labels[kept], place[self.owner[slices]], self.features[slices])


def fit(bags: Bags, classes: int, settings: HeadSettings, seed: int = 0) -> AttentionPooling:
    """The head, trained on these patients; the same for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        features, owner = torch.from_numpy(bags.features), torch.from_numpy(bags.owner)
        head = AttentionPooling(features.shape[1], classes, settings.hidden, settings.dropout)
        head.mean.copy_(features.mean(0))
        head.scale.copy_(features.std(0).clamp(min=1e-6))
        optimizer = torch.optim.AdamW(head.parameters(), settings.lr, weight_decay=settings.weight_decay)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.lr, total_steps=settings.steps)
        labels = torch.from_numpy(bags.labels)
        for _ in range(settings.steps):
            logits, _ = head(features, owner, len(labels))
            loss = F.cross_entropy(logits, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return head.eval()


@torch.no_grad()
def decide(head: AttentionPooling, bags: Bags) -> tuple[np.ndarray, np.ndarray]:
    """Logits of the patients, float32 [patients, classes], and what each slice weighs, [slices]."""
    logits, weights = head(torch.from_numpy(bags.features), torch.from_numpy(bags.owner), len(bags.ids))
    return logits.numpy(), weights.numpy()
