"""wte and lm_head are one matrix; GPT-2 has 124,439,808 parameters."""

import torch
from helpers import small_gpt

from train_gpt2 import GPT, GPTConfig


def test_one_tensor():
    model = small_gpt()
    assert model.lm_head.weight is model.transformer.wte.weight


def test_gradient_flows_from_both_ends():
    """The matrix gets the sum of what reading and writing would each give it."""
    model = small_gpt()
    idx, targets = torch.tensor([[3]]), torch.tensor([[9]])
    model(idx, targets)[1].backward()
    shared = model.transformer.wte.weight.grad.clone()
    model.zero_grad()
    apart = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    model.lm_head.weight = apart
    model(idx, targets)[1].backward()
    torch.testing.assert_close(shared, model.transformer.wte.weight.grad + apart.grad)


def test_number_of_parameters():
    with torch.device("meta"):
        model = GPT(GPTConfig())
    assert model.num_params() == sum(p.numel() for p in model.parameters()) == 124_439_808
