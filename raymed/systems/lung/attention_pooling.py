"""A model of the patient: its slices are weighed, and it is decided about them together.

Every slice has its patient's label, also where it is healthy, so the mean over slices is watered down by those. Gated
attention (Ilse, Tomczak & Welling 2018, "Attention-based deep multiple instance learning", eq. 9) learns from patients alone
which slices to look at. What is weighed are the slices' probabilities: a head that decides anew by the features of patients
who trained these had a surely higher loss than the mean (docs/log.md), and this one begins as the mean.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from raymed.evaluation.patients import softmax
from raymed.evaluation.scores import SMALLEST_PROBABILITY
from raymed.systems.lung.settings import HeadSettings
from raymed.systems.lung.slice_features import SliceFeatures


class SliceAttention(nn.Module):
    """How much each slice of a patient weighs.

    Attributes:
        mean: of the features it was trained on, [width]; likewise `scale`.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))
        self.content, self.gate = nn.Linear(width, hidden), nn.Linear(width, hidden)
        self.weigh = nn.Linear(hidden, 1, bias=False)
        self.dropout = nn.Dropout(dropout)
        nn.init.zeros_(self.weigh.weight)  # all alike, to begin with

    def forward(self, features: Tensor, owner: Tensor, patients: int) -> Tensor:
        """What each slice weighs, [slices]; a patient's slices together weigh 1.

        Args:
            features: [slices, width].
            owner: which patient each slice is of, int64 [slices], from 0.
            patients: how many there are.
        """
        seen = self.dropout((features - self.mean) / self.scale)
        scores = self.weigh(torch.tanh(self.content(seen)) * torch.sigmoid(self.gate(seen)))[:, 0]
        highest = scores.new_full((patients,), -torch.inf).scatter_reduce(0, owner, scores.detach(), "amax")
        raised = (scores - highest[owner]).exp()
        return raised / raised.new_zeros(patients).index_add(0, owner, raised)[owner]


@dataclass(frozen=True)
class Bags:
    """Patients and their slices.

    Attributes:
        ids: of the patients, sorted, [patients].
        labels: int64 [patients].
        owner: which patient each slice is of, int64 [slices].
        features: float32 [slices, width].
        probabilities: what the network says of each slice, float32 [slices, classes].
    """

    ids: np.ndarray
    labels: np.ndarray
    owner: np.ndarray
    features: np.ndarray
    probabilities: np.ndarray

    @classmethod
    def of(cls, seen: SliceFeatures) -> Bags:
        """The patients of some slices."""
        ids, first, owner = np.unique(seen.columns["patient"].astype(str), return_index=True, return_inverse=True)
        labels = seen.columns["label"][first].astype(np.int64)
        return cls(ids, labels, owner.astype(np.int64), seen.features, softmax(seen.logits).astype(np.float32))


def fit(bags: Bags, settings: HeadSettings, seed: int = 0) -> SliceAttention:
    """The head with the lowest log loss of these patients, as far as its steps lead; the same for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        features, labels = torch.from_numpy(bags.features), torch.from_numpy(bags.labels)
        head = SliceAttention(features.shape[1], settings.hidden, settings.dropout)
        head.mean.copy_(features.mean(0))
        head.scale.copy_(features.std(0).clamp(min=1e-6))
        optimizer = torch.optim.AdamW(head.parameters(), settings.lr, weight_decay=settings.weight_decay)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.lr, total_steps=settings.steps)
        for _ in range(settings.steps):
            pooled, _ = _pooled(head, bags)
            own = pooled.gather(1, labels[:, None]).clamp(min=SMALLEST_PROBABILITY)
            loss = -own.log().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return head.eval()


@torch.no_grad()
def decide(head: SliceAttention, bags: Bags) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of the patients, float32 [patients, classes], and what each slice weighs, [slices]."""
    pooled, weights = _pooled(head, bags)
    return pooled.numpy(), weights.numpy()


def _pooled(head: SliceAttention, bags: Bags) -> tuple[Tensor, Tensor]:
    owner, probabilities = torch.from_numpy(bags.owner), torch.from_numpy(bags.probabilities)
    weights = head(torch.from_numpy(bags.features), owner, len(bags.ids))
    pooled = weights.new_zeros(len(bags.ids), probabilities.shape[1])
    return pooled.index_add(0, owner, weights[:, None] * probabilities), weights
