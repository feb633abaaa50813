"""A device is found, or named and there, or refused in one line."""

import pytest
import torch

from nanogpt.common import UserError
from nanogpt.ranks import find_device


def test_auto_prefers_cuda_then_mps(monkeypatch):
    for cuda, mps, expected in (True, True, "cuda"), (False, True, "mps"), (False, False, "cpu"):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=cuda: there)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda there=mps: there)
        assert find_device("auto").type == expected


def test_named_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert find_device("cuda:1") == torch.device("cuda", 1)
    assert find_device("cpu") == torch.device("cpu")
    with pytest.raises(UserError, match="cuda:2"):
        find_device("cuda:2")


@pytest.mark.parametrize("name", ["gpu", "cuda", "mps", "cuda:1", "meta", "cpu:x"])
def test_missing_or_unknown_device(name, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(UserError, match=f"--device {name}"):
        find_device(name)
