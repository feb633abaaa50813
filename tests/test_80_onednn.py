"""A CPU multiplies float32 matrices with oneDNN: the same numbers, from the intended library."""

import threading

import pytest
import torch
from helpers import TINY, lively_gpt, main_here, write_shards
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import train_gpt2
from nanogpt import cpu
from nanogpt.cpu import choose_products, keeps_fp32, onednn, quicken
from nanogpt.common import UserError

MATMUL = torch.backends.mkldnn.matmul
RUN = [*TINY, "--max-steps", 1, "--val-tokens", 512, "--sample-tokens", 0]


class Products(TorchDispatchMode):
    """Under which precision setting each operation with one of the given names was computed."""

    def __init__(self, *names):
        super().__init__()
        self.names, self.seen = names, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in self.names:
            self.seen.append(MATMUL.fp32_precision)
        return func(*args, **(kwargs or {}))


def quick_gpt(**sizes):
    model = lively_gpt(**sizes)
    quicken(model, {"forward": "onednn"})
    return model


def test_what_torch_was_told_before_holds_again():
    before = MATMUL.fp32_precision
    with onednn():
        assert MATMUL.fp32_precision == "bf16"
        with onednn():
            assert MATMUL.fp32_precision == "bf16"
        assert MATMUL.fp32_precision == "bf16"
    assert MATMUL.fp32_precision == before
    with pytest.raises(ZeroDivisionError), onednn():
        raise ZeroDivisionError
    assert MATMUL.fp32_precision == before


def test_two_threads_that_multiply_leave_nothing_behind():
    """The second arrives while the first is inside and must wait: otherwise it would take the
    first one's setting for the original, and restore that."""
    before, inside, seen = MATMUL.fp32_precision, threading.Event(), []

    def second():
        inside.wait()
        with onednn():
            seen.append(MATMUL.fp32_precision)

    thread = threading.Thread(target=second)
    thread.start()
    with onednn():
        inside.set()
        thread.join(0.2)
        assert not seen  # it waits
    thread.join()
    assert seen == ["bf16"] and MATMUL.fp32_precision == before


def test_rounding_would_be_noticed(monkeypatch):
    def rounded(a, b, product=torch.Tensor.__matmul__):
        return product(a.bfloat16().float(), b.bfloat16().float())

    monkeypatch.setattr(torch.Tensor, "__matmul__", rounded)
    assert not keeps_fp32.__wrapped__()


def test_it_may_be_asked_under_autocast_first():
    """The cached answer is about float32."""
    with torch.autocast("cpu", torch.bfloat16):
        assert keeps_fp32.__wrapped__() == keeps_fp32()


@pytest.mark.parametrize("wanted", [True, False])
def test_onednn_only_where_it_keeps_float32(wanted, monkeypatch):
    monkeypatch.setattr(cpu, "keeps_fp32", lambda: wanted)
    assert choose_products("plain")["forward"] == "plain"
    if wanted:
        assert choose_products("onednn")["forward"] == "onednn"
    else:
        with pytest.raises(UserError, match="--products onednn.*use --products plain"):
            choose_products("onednn")


@pytest.mark.parametrize("rows", [1, 8, 300])
def test_products_are_as_exact_as_float32_is(rows):
    """Sums of 768 products of about 1 against float64: float32 errs by 1e-4, bfloat16 by 0.2."""
    if not keeps_fp32():
        pytest.skip("oneDNN rounds on this CPU, and is not asked")
    x, layer = torch.randn(2, rows, 768), torch.nn.Linear(768, 500)
    exact = F.linear(x.double(), layer.weight.double(), layer.bias.double())
    quicken(layer, {"forward": "onednn"})
    with torch.no_grad():
        assert (layer(x) - exact).abs().max() < 5e-4


def test_every_product_of_the_network_is_one_of_them():
    """Four per block and the vocabulary's; attention is left alone."""
    model, idx = quick_gpt(), torch.randint(257, (2, 16))
    before, attention = MATMUL.fp32_precision, "_scaled_dot_product_flash_attention_for_cpu"
    with torch.no_grad(), Products("addmm", "mm") as products, Products(attention) as others:
        model(idx)
        model.generate(idx, 3, temperature=0.0)
    n_layer, passes = model.config.n_layer, 4
    assert products.seen == ["bf16"] * passes * (4 * n_layer + 1)
    assert others.seen == [before] * passes * n_layer


def test_plain_is_the_network_as_it_was():
    model = lively_gpt()
    quicken(model, {"forward": "plain"})
    assert {type(m) for m in model.modules() if isinstance(m, torch.nn.Linear)} == {torch.nn.Linear}


def test_it_is_the_same_network():
    """The same parameters under the same names, still tied, and the same logits in float32."""
    model, idx = lively_gpt(), torch.randint(257, (2, 16))
    with torch.no_grad():
        expected, names = model(idx)[0], list(model.state_dict())
        quicken(model, {"forward": "onednn"})
        assert (model(idx)[0] - expected).abs().max() < 1e-4
    assert list(model.state_dict()) == names
    assert model.lm_head.weight is model.transformer.wte.weight


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_numbers_are_left_alone(dtype):
    model = quick_gpt().to(dtype)
    with torch.no_grad(), Products("addmm", "mm") as products:
        model(torch.randint(257, (2, 16)))
    assert "bf16" not in products.seen and len(products.seen) == 9


def test_the_run_has_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cpu, "keeps_fp32", lambda: True)
    data = write_shards(tmp_path / "shards")
    for wanted in "plain", "onednn":
        with Products("addmm", "mm") as products:
            main_here(monkeypatch, *RUN, "--products", wanted, "--data", data, "--out-dir",
                      tmp_path / wanted)
        assert f"products   | forward {wanted}" in capsys.readouterr().out
        assert ("bf16" in products.seen) == (wanted == "onednn")


def test_another_library_is_refused(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["train_gpt2.py", "laptop", "--products", "mkl"])
    with pytest.raises(SystemExit) as stop:
        train_gpt2.main()
    said = capsys.readouterr().err
    assert stop.value.code == 2 and "--products" in said and "mkl" in said
