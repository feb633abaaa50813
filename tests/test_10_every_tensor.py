"""Every tensor of a file is used once, or the file is refused and the tensor named as in it."""

import pytest
import torch
from helpers import small_gpt
from transformers import GPT2Config, GPT2LMHeadModel

from nanogpt.common import UserError

WTE, HEAD = "transformer.wte.weight", "lm_head.weight"
LN, FC = "transformer.ln_f.bias", "transformer.h.0.mlp.c_fc.weight"


def theirs():
    """A network of transformers that differs from ours in every tensor."""
    torch.manual_seed(1)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=257, n_positions=16, n_layer=2, n_head=2,
                                       n_embd=32, bos_token_id=256, eos_token_id=256)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0.0, 0.1)
    return model


def short(state):
    """The names as the hub's files have them."""
    return {name.removeprefix("transformer."): t for name, t in state.items()}


def without(state, *names):
    return {name: t for name, t in state.items() if name not in names}


@pytest.mark.parametrize("change", [
    dict, short, lambda t: without(t, HEAD), lambda t: without(t, WTE),
    lambda t: short(without(t, HEAD)), lambda t: dict(reversed(t.items()))],
    ids=["both names", "short names", "wte alone", "lm_head alone", "as on the hub", "any order"])
def test_all_that_holds_the_network_is_taken(change):
    """The shared matrix may be there under one of its names: the logits are transformers'."""
    model, ours = theirs(), small_gpt()
    ours.load_transformers_state(change(model.state_dict()))
    idx = torch.arange(32).view(2, 16)
    with torch.no_grad():
        torch.testing.assert_close(ours(idx)[0], model(idx).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("change, words", [
    (lambda t: t | {HEAD: t[HEAD] + 1e-3}, "lm_head.weight differs from wte.weight"),
    (lambda t: short(t) | {HEAD: t[HEAD].roll(1)}, "lm_head.weight differs from wte.weight"),
    (lambda t: t | {"ln_f.bias": t[LN]}, f"holds {LN} twice"),
    (lambda t: {"wte.weight": t[WTE] + 1} | t, f"holds {WTE} twice"),
    (lambda t: t | {"score.weight": t[WTE][:2]}, "holds score.weight, which GPT-2 does not have"),
    (lambda t: t | {"v_head.summary.bias": t[LN]}, "holds v_head.summary.bias, which"),
    (lambda t: {f"_orig_mod.{k}": t[k] for k in t}, "holds _orig_mod.transformer.wte.weight"),
    (lambda t: t | {"transformer.h.2.ln_1.bias": t[LN]}, "holds transformer.h.2.ln_1.bias"),
    (lambda t: short(t | {LN: t[LN][:5]}), r": ln_f.bias has the shape \(5,\), .* \(32,\)"),
    (lambda t: t | {HEAD: t[HEAD][:200]}, r": lm_head.weight has the shape \(200, 32\)"),
    (lambda t: short(t | {FC: t[FC].t()}), r": h.0.mlp.c_fc.weight has the shape \(128, 32\)"),
    (lambda t: without(t, WTE, HEAD), "lacks weights of its config.json"),
])
def test_anything_else_is_refused_by_its_name(change, words):
    """Without it, the network would be another one; or a part of the file would be lost."""
    ours, before = small_gpt(), small_gpt().state_dict()
    with pytest.raises(UserError, match=words) as error:
        ours.load_transformers_state(change(theirs().state_dict()), "there")
    assert "\n" not in str(error.value) and "there" in str(error.value)
    assert all(torch.equal(t, before[name]) for name, t in ours.state_dict().items())
