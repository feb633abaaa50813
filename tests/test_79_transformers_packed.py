"""A GPT-2 of transformers is scored by packed rows too; another network by its four rows."""

import pytest
import torch
from helpers import bytes_encoded, count_by_hand, four_endings, one_row_at_a_time

import hellaswag


def save(folder, kind):
    """A small network of transformers whose choices differ from example to example."""
    import transformers

    torch.manual_seed(0)
    if kind == "gpt2":
        config = transformers.GPT2Config(vocab_size=257, n_positions=64, n_layer=2, n_head=2,
                                         n_embd=32, bos_token_id=256, eos_token_id=256)
        model = transformers.GPT2LMHeadModel(config)
    else:
        config = transformers.GPTNeoXConfig(
            vocab_size=257, max_position_embeddings=64, num_hidden_layers=2, num_attention_heads=2,
            hidden_size=32, intermediate_size=64, bos_token_id=256, eos_token_id=256)
        model = transformers.GPTNeoXForCausalLM(config)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0.0, 0.1)
    model.save_pretrained(folder)
    return hellaswag.load_model(folder, torch.device("cpu"))


@pytest.mark.parametrize("kind", ["gpt2", "gpt-neox"])
def test_scores_and_choices(kind, tmp_path):
    model, examples, rows = save(tmp_path / "model", kind), four_endings(), []
    encoded = bytes_encoded(examples)
    model.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append((kwargs.get("input_ids", *args)).shape[0]),
        with_kwargs=True)
    counts = hellaswag.count_correct(model, encoded, torch.device("cpu"))
    assert sum(rows) == (30 if kind == "gpt2" else 4 * 30)
    assert counts.tolist() == [*count_by_hand(model, examples), 30]
    if kind == "gpt2":
        sums, means = hellaswag.score_packed(model, encoded, torch.device("cpu"))
        for row, example in enumerate(examples):
            expected = torch.tensor(one_row_at_a_time(model, example))
            assert torch.allclose(torch.stack((sums[row], means[row])), expected, rtol=1e-5)
