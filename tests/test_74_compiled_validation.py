"""With compile on, evaluation, HellaSwag, samples and checkpoints compile nothing twice."""

import functools

import pytest
import torch
from helpers import CPU, TINY, lively_gpt, main_here, stream_of, text_tokens, write_shards
from torch._dynamo.utils import counters

import train_gpt2


@pytest.fixture
def dynamo(monkeypatch):
    """torch.compile with the usual guards and graphs, but without generating machine code."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    torch._dynamo.reset()
    counters.clear()
    yield counters
    torch._dynamo.reset()


def test_nothing_is_compiled_after_the_first_evaluation(dynamo, tmp_path, monkeypatch):
    """Five evaluations: validation of whole and of broken batches, endings, samples."""
    graphs, step = [], train_gpt2.train_step

    def counted(*args):
        result = step(*args)
        graphs.append(dynamo["stats"]["unique_graphs"])
        return result

    monkeypatch.setattr(train_gpt2, "train_step", counted)
    main_here(monkeypatch, *TINY, "--compile", "--max-steps", 8, "--eval-every", 2, "--val-tokens",
              512 + 32, "--hellaswag", "heldout", "--hellaswag-limit", 8, "--checkpoint-every", 3,
              "--data", write_shards(tmp_path / "shards"), "--out-dir", tmp_path / "run")
    assert len(graphs) == 8 and graphs[0] == graphs[-1], graphs
    assert dynamo["stats"]["unique_graphs"] == graphs[0]
    assert not dynamo["unimplemented"] and not dynamo["graph_break"], dynamo["graph_break"]


@pytest.mark.parametrize("loss_rows", [0, 16])
def test_validation_runs_what_was_compiled(dynamo, loss_rows):
    """Whole batches run compiled, the rest plain; the loss is the same."""
    if loss_rows and not hasattr(torch.nn, "LinearCrossEntropyOptions"):
        pytest.skip("this torch has no linear_cross_entropy")
    model, calls = lively_gpt(), []
    model.loss_rows = loss_rows
    stream = stream_of(text_tokens(700))
    compiled = torch.compile(model, dynamic=False)

    def forward(idx, targets):
        calls.append(len(idx))
        return compiled(idx, targets)

    arguments = (model, stream, 11 * 16, 4, 16, CPU)
    plain = train_gpt2.validate(*arguments)
    assert train_gpt2.validate(*arguments, compiled=forward) == pytest.approx(plain, abs=1e-6)
    assert calls == [4, 4]  # and three rows are left
    assert dynamo["stats"]["unique_graphs"] == 1
