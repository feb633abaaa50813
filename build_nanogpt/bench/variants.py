"""The program with some of its choices taken back, and networks of the bench's sizes."""

import contextlib

import torch
from torch.nn import functional as F

import train_gpt2
from nanogpt.cpu import choose_products, quicken
from nanogpt.ranks import compile_model
from nanogpt.trial import try_products


def written_out_attention(self, x, cache=None, mask=None):
    """The attention of the video's first half: the (T, T) matrix is made, masked and kept."""
    B, T, C = x.size()
    q, k, v = (t.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
               for t in self.c_attn(x).split(C, dim=2))
    scores = q @ k.transpose(-2, -1) * k.size(-1) ** -0.5
    past = torch.ones(T, T, dtype=torch.bool, device=x.device).tril()
    y = F.softmax(scores.masked_fill(~past, float("-inf")), dim=-1) @ v
    return self.c_proj(y.transpose(1, 2).contiguous().view(B, T, C))


@contextlib.contextmanager
def variant(flash=True, tf32=None, **attributes):
    """The program with some of its choices taken back, and attributes of GPT set, as loss_rows."""
    attention, network = train_gpt2.CausalSelfAttention, train_gpt2.GPT
    before = {name: getattr(network, name) for name in attributes}
    forward, precision = attention.forward, torch.get_float32_matmul_precision()
    tf32 = torch.cuda.is_available() if tf32 is None else tf32
    try:
        if not flash:
            attention.forward = written_out_attention
        for name, value in attributes.items():
            setattr(network, name, value)
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        yield
    finally:
        attention.forward = forward
        for name, value in before.items():
            setattr(network, name, value)
        torch.set_float32_matmul_precision(precision)


def as_in_a_run(model, device, rows, products="auto"):
    """What main() does to a network on this device: in place. rows: B T. Returns the libraries of
    its products."""
    if device.type == "cuda":
        model.vocab_multiple = 64
    if device.type != "cpu":
        return {}
    chosen = try_products(model, rows) if products == "auto" else choose_products(products)
    quicken(model, chosen)
    return chosen


def random_gpt(config, device, block_size=0):
    """The program's network of the flags' sizes, the same every time."""
    torch.manual_seed(0)
    return train_gpt2.GPT(train_gpt2.GPTConfig(
        block_size or config.T, config.vocab_size, config.n_layer, config.n_head, config.n_embd)
    ).to(device)


def sizes(config):
    return f"{config.n_layer} layers, {config.n_embd} channels, B={config.B}, T={config.T}"


def can_compile(device):
    """Whether torch.compile works here; said aloud if not."""
    def something(x):
        return x

    return compile_model(something, device, wanted=True) is not something
