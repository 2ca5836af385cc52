"""A batch's way to the device; there is no card here, on which it is page-locked."""

from __future__ import annotations

import torch

from raymed.recipes.recipe import Batch
from raymed.training.feed import Feed


def test_a_cpu_is_fed_what_was_encoded_and_no_copy_of_it() -> None:
    feed, batch = Feed(torch.device("cpu")), Batch({"x": torch.ones(2)}, {"loss": 2.0}, ["a", "b"])
    assert feed.prepare(batch).tensors["x"] is batch.tensors["x"]


def test_what_is_left_for_the_device_is_done_by_the_thread_that_encodes_for_a_cpu() -> None:
    batch = Batch({"x": torch.ones(2)}, {"loss": 2.0}, ["a", "b"], on_arrival=lambda tensors: {"x": tensors["x"] + 1})
    feed = Feed(torch.device("cpu"))
    assert feed.deliver(feed.prepare(batch)).tensors["x"].tolist() == [2, 2]
