"""The programs under examples/, the notebooks, and the Python in docs/python.md."""

import importlib.util
import re
import shutil
import subprocess
import sys

import nbformat
import pytest
import torch
from helpers import (
    CPU, ROOT, bytes_encoded, four_endings, lively_gpt, one_row_at_a_time,
)
from nbclient import NotebookClient
from test_77_cache import whole_each_time
from torch.utils.flop_counter import FlopCounterMode

import hellaswag
from nanogpt.common import UserError
from train_gpt2 import GPT, PRESETS, GPTConfig

LENGTHS = {"adder": 80, "sort": 80, "positions": 150}


def example(name):
    """examples/NAME.py as a module."""
    path = sys.path[:]
    spec = importlib.util.spec_from_file_location(f"example_{name}", ROOT / f"examples/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.path[:] = path
    return module


def play(module, monkeypatch, *args):
    """Its main() with these arguments, in this process. Returns the exit status."""
    monkeypatch.setattr(sys, "argv", [module.__file__, *map(str, args)])
    try:
        module.main()
    except SystemExit as stop:
        return int(stop.code)
    return 0


def test_they_are_short():
    assert {path.stem for path in ROOT.glob("examples/*.py")} == LENGTHS.keys()
    for name, most in LENGTHS.items():
        assert (ROOT / f"examples/{name}.py").read_text().count("\n") <= most, name


def test_a_clone_that_is_not_installed(tmp_path):
    """Each takes its own clone's train_gpt2.py, even where another clone is installed."""
    for name in "examples", "nanogpt":
        shutil.copytree(ROOT / name, tmp_path / "clone" / name)
    for name in "train_gpt2.py", "hellaswag.py", "fineweb.py":
        shutil.copy(ROOT / name, tmp_path / "clone")
    code = ("import runpy, sys\n"
            "for path in sys.argv[1:]:\n"
            "    before = [*sys.path]\n"
            "    runpy.run_path(path)\n"
            "    print(sys.modules.pop('train_gpt2').__file__)\n"
            "    sys.path[:] = before")
    paths = [tmp_path / f"clone/examples/{name}.py" for name in LENGTHS]
    done = subprocess.run([sys.executable, "-c", code, *paths], cwd=tmp_path, capture_output=True,
                          text=True)
    assert done.stdout == 3 * f"{tmp_path / 'clone/train_gpt2.py'}\n" and not done.stderr


# addition and sorting


def test_sums_are_those_of_python():
    adder, found = example("adder"), set()
    for row in adder.all_sums().tolist():
        question, answer = "".join(adder.CHARS[i] for i in row).split("=")
        assert sum(map(int, question.split("+"))) == int(answer[::-1])
        found.add(question)
    assert len(found) == 10_000 and {len(question) for question in found} == {5}


def test_sequences_are_sorted_by_python():
    rows = example("sort").all_sequences().tolist()
    assert len({tuple(row[:6]) for row in rows}) == len(rows) == 3**6
    assert all(row[6:] == [3, *sorted(row[:6])] for row in rows)


class Answers:
    """A network that writes what it is told."""

    def __init__(self, rows):
        self.rows = rows

    def generate(self, idx, max_new_tokens, temperature):
        assert temperature == 0 and idx.size(1) + max_new_tokens == self.rows.size(1)
        assert torch.equal(idx, self.rows[:, : idx.size(1)])
        return self.rows

    def eval(self):
        return self

    train = eval


@pytest.mark.parametrize("name, rows", [("adder", "all_sums"), ("sort", "all_sequences")])
def test_one_wrong_digit_is_a_wrong_answer(name, rows):
    module = example(name)
    rows = getattr(module, rows)()
    assert module.count_right(Answers(rows), rows) == len(rows)
    wrong = rows.clone()
    wrong[3, -1] += 1
    wrong[5, -2:] += 1
    assert module.count_right(Answers(wrong), rows[: len(rows)]) == len(rows) - 2


@pytest.mark.parametrize("name, steps, of, least", [("adder", 80, 5000, 200),
                                                    ("sort", 80, 364, 200)])
def test_short_form(name, steps, of, least, monkeypatch, capsys):
    """Guessing answers one sum of a thousand, and one sequence of 729."""
    status = play(example(name), monkeypatch, "--steps", steps)
    *_, counts, score = capsys.readouterr().out.splitlines()
    right, unseen = (int(n.replace(",", ""))
                     for n in re.search(r"([\d,]+) of ([\d,]+) unseen", counts).groups())
    assert unseen == of and least < right <= of
    assert score == f"score {right / of:.2%}" and status == (right < of)


@pytest.mark.parametrize("name", ["adder", "sort"])
def test_what_is_not_perfect_has_status_1(name, monkeypatch, capsys):
    assert play(example(name), monkeypatch, "--steps", 1) == 1
    assert "score 100.00%" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["adder", "sort"])
def test_what_is_unseen_is_not_trained_on(name, monkeypatch):
    """Neither does a question count: the rows of every batch, and the targets in them."""
    module, batches, tested = example(name), [], []

    class Spy(module.GPT):
        def forward(self, idx, targets=None):
            batches.append((idx, targets))
            return super().forward(idx, targets)

    monkeypatch.setattr(module, "GPT", Spy)
    monkeypatch.setattr(module, "count_right", lambda model, rows: tested.append(rows) or 1)
    play(module, monkeypatch, "--steps", 12)
    (unseen,), answer = tested, {"adder": 3, "sort": 6}[name]
    questions = {tuple(row) for row in unseen[:, :-answer].tolist()}
    for x, y in batches:
        assert not questions & {tuple(row[: -answer + 1 or None]) for row in x.tolist()}
        assert (y[:, :-answer] == -100).all()
        assert torch.equal(y[:, -answer:-1], x[:, 1 - answer :])


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("name", ["adder", "sort"])
def test_all_that_is_unseen(name, seed, request, monkeypatch, capsys):
    if not request.config.getoption("--runslow"):
        pytest.skip("a minute (--runslow)")
    assert play(example(name), monkeypatch, "--seed", seed) == 0
    assert capsys.readouterr().out.endswith("score 100.00%\n")


# positions


def lively(kind, **sizes):
    """A network of that kind with the weights of lively_gpt, and that one."""
    learned = lively_gpt(**sizes)
    net = example("positions").KINDS[kind](learned.config)
    ours = net.state_dict()
    assert learned.state_dict().keys() - ours.keys() == {"transformer.wpe.weight"}
    net.load_state_dict({name: learned.state_dict()[name] for name in ours})
    return net, learned


RELATIVE = pytest.mark.parametrize("kind", ["rotary", "ALiBi"])


@RELATIVE
def test_the_other_weights_are_those_of_gpt(kind):
    torch.manual_seed(1)
    learned = GPT(GPTConfig(16, 257, 2, 2, 32)).state_dict()
    torch.manual_seed(1)
    net = example("positions").KINDS[kind](GPTConfig(16, 257, 2, 2, 32)).state_dict()
    assert all(torch.equal(net[name], learned[name]) for name in net)


def test_rotary_is_that_of_transformers():
    """Llama's, which also pairs channels i and i + hs / 2; values are not turned."""
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

    net, learned = lively("rotary", n_head=4, n_embd=64)
    c_attn, x = net.transformer.h[1].attn.c_attn, torch.randn(3, 16, 64)
    pos = torch.stack((torch.arange(16), torch.arange(16) + 900, torch.arange(16).flip(0)))
    net.transformer.wpe(pos)
    q, k, v = (t.unflatten(2, (4, 16)).transpose(1, 2)
               for t in learned.transformer.h[1].attn.c_attn(x).chunk(3, dim=2))
    theirs = LlamaRotaryEmbedding(LlamaConfig(hidden_size=64, num_attention_heads=4))
    expected = [*apply_rotary_pos_emb(q, k, *theirs(x, pos)), v]
    for found, each in zip(c_attn(x).chunk(3, dim=2), expected, strict=True):
        found = found.unflatten(2, (4, 16)).transpose(1, 2)
        # an angle of 900 has an error of 3e-5 in float32
        assert torch.allclose(found, each, atol=1e-3) and torch.allclose(found[0], each[0],
                                                                         atol=1e-5)
    assert not torch.allclose(expected[0], q, atol=1e-2)


def test_alibi_in_closed_form():
    """Slopes 1/4, 1/16, 1/64, 1/256 for four heads; the future stays hidden."""
    net, _ = lively("ALiBi", n_head=4)
    seen = []
    net.transformer.h[0].register_forward_pre_hook(lambda module, args: seen.append(args[2]))
    net(torch.arange(6)[None])
    for head, slope in enumerate((1 / 4, 1 / 16, 1 / 64, 1 / 256)):
        for i in range(6):
            assert seen[0][0, head, i].tolist() == [
                slope * (j - i) if j <= i else float("-inf") for j in range(6)]


def test_alibi_is_that_of_transformers():
    """Bloom adds the same but for a constant in each row, which softmax does not see."""
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor

    net, _ = lively("ALiBi", n_head=8)
    pos = torch.arange(16)[None]
    bias = net.bias(pos, pos)[0]  # (nh, T, T)
    theirs = build_alibi_tensor(torch.ones(1, 16), 8, torch.float32)  # (nh, 1, T)
    assert torch.allclose(bias - bias[..., :1], (theirs - theirs[..., :1]).expand_as(bias),
                          atol=1e-6)


@RELATIVE
@torch.no_grad()
def test_only_distances_count(kind):
    """In float64: the same logits 40 positions later. Learned positions give others."""
    net, learned = lively(kind, block_size=64)
    idx, pos = torch.randint(257, (2, 20)), torch.arange(20)[None] + torch.tensor([[0], [40]])
    mask = torch.ones(2, 1, 20, 20).tril().bool()
    for model, same in (net.double(), True), (learned.double(), False):
        expected = model.hidden(idx)
        for shifted in (pos, pos.flip(0)):
            found = model.hidden(idx, pos=shifted, mask=mask)
            assert torch.allclose(found, expected, atol=1e-9, rtol=0) == same


@RELATIVE
@torch.no_grad()
def test_order_counts(kind):
    """The last position sees the same tokens in another order, and predicts something else."""
    net, _ = lively(kind, n_layer=1)
    idx = torch.tensor([[5, 6, 7, 8, 9]])
    found = [net(each)[0][:, -1] for each in (idx, idx[:, [1, 0, 3, 2, 4]])]
    assert not torch.allclose(*found, atol=1e-3)


@RELATIVE
@pytest.mark.parametrize("length", [1, 5, 16, 30])
def test_the_cache_gives_the_same_tokens(kind, length):
    net, _ = lively(kind)
    idx = torch.randint(257, (3, length), generator=torch.Generator().manual_seed(length))
    assert torch.equal(net.generate(idx, 25, temperature=0), whole_each_time(net, idx, 25))


@RELATIVE
def test_packed_hellaswag_is_one_row_at_a_time(kind):
    net, _ = lively(kind, block_size=64)
    examples = four_endings(12)
    sums, _ = hellaswag.score_packed(net, bytes_encoded(examples, 64), CPU.device)
    expected = torch.tensor([one_row_at_a_time(net, example, 64)[0] for example in examples])
    assert torch.allclose(sums.double(), expected.double(), rtol=1e-4)


@RELATIVE
def test_transformers_layout_is_refused_in_one_line(kind, tmp_path):
    from safetensors.torch import load_model, save_model

    net, learned = lively(kind)
    with pytest.raises(UserError, match="learned positions") as caught:
        net.save_pretrained(tmp_path / "out")
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()
    learned.save_pretrained(tmp_path / "gpt2")
    with pytest.raises(UserError, match="learned positions") as caught:
        type(net).from_pretrained(tmp_path / "gpt2")
    assert "\n" not in str(caught.value)

    save_model(net, tmp_path / "weights.safetensors")  # the way out that it names
    again = type(net)(net.config)
    load_model(again, tmp_path / "weights.safetensors")
    assert torch.equal(again(torch.arange(9)[None])[0], net(torch.arange(9)[None])[0])


def test_rotary_needs_pairs_of_channels():
    with pytest.raises(UserError, match="n_embd 6 / n_head 2 is odd"):
        example("positions").Rotary(GPTConfig(8, 9, 1, 2, 6))


def test_all_kinds_train(monkeypatch, capsys):
    """A few steps: the losses are those of different networks on the same text."""
    play(example("positions"), monkeypatch, "--seeds", 1, "--steps", 3)
    said = capsys.readouterr().out
    losses = re.findall(r"seed 0 \| (\S+) +\| val (\d\.\d{4})", said)
    assert [kind for kind, _ in losses] == ["learned", "rotary", "ALiBi"]
    assert len({loss for _, loss in losses}) == 3 and all(3 < float(x) < 6 for _, x in losses)
    learned, alibi = float(losses[0][1]), float(losses[2][1])
    gain = re.search(r"ALiBi +\| mean .*gain over learned: mean (-?\d\.\d{4})", said)[1]
    assert float(gain) == pytest.approx(learned - alibi, abs=1.5e-4)


# docs/python.md and the notebooks


def test_the_page_runs_as_it_is(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = "To be, or not to be, that is the question: " * 9
    (tmp_path / "my.txt").write_text(text, encoding="utf-8")
    page = (ROOT / "docs/python.md").read_text(encoding="utf-8")
    blocks, names = re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE), {}
    assert len(blocks) == 6
    for block in blocks:
        exec(block, names)
    said = capsys.readouterr().out
    assert "[[3, 1, 4, 1, 5, 5, 1, 4, 1, 3]]" in said  # learned
    assert said.splitlines()[-1] in text * 2
    assert names["y"][0, :-1].equal(names["x"][0, 1:])
    from transformers import GPT2LMHeadModel
    theirs = GPT2LMHeadModel.from_pretrained(tmp_path / "backwards")
    idx = torch.tensor([[3, 1, 4, 1, 5]])
    assert torch.allclose(theirs(idx).logits, names["model"](idx)[0], atol=1e-4)


def printed(name, monkeypatch):
    """What the cells of examples/NAME.ipynb print, and how many pictures they show."""
    notebook = nbformat.read(ROOT / f"examples/{name}.ipynb", as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in cells)  # none is stored
    monkeypatch.delenv("PYTHONPATH", raising=False)
    NotebookClient(notebook, timeout=300,
                   resources={"metadata": {"path": ROOT / "examples"}}).execute()
    outputs = [output for cell in cells for output in cell.outputs]
    said = "".join(output.text for output in outputs if output.output_type == "stream")
    return said, len([output for output in outputs if "image/png" in output.get("data", {})])


def test_the_notebook_runs_from_top_to_bottom(monkeypatch):
    said, pictures = printed("use_it", monkeypatch)
    assert "1000 of 1000 right" in said and pictures == 2


def test_sizing_says_what_readme_and_published_models_say(monkeypatch):
    """Its own cells fail where a formula and a count differ; here are numbers from elsewhere."""
    said, _ = printed("sizing", monkeypatch)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in PRESETS:
        rows = re.findall(rf"^{name} +(.*)", said, re.MULTILINE)
        parameters = rows[0].split()[-1]
        assert len(rows) == 4, name  # tables
        assert re.search(rf"^\| `{name}`.*\| {parameters} \|", readme, re.MULTILINE)
    # the largest by transformers' own count, and a step's FLOPs by torch's on the CPU, whose
    # attention it leaves out
    from transformers import GPT2Config, GPT2LMHeadModel
    with torch.device("meta"):
        theirs = GPT2LMHeadModel(GPT2Config(n_layer=48, n_head=25, n_embd=1600))
    assert f"{theirs.num_parameters():,}" in said
    net, idx = GPT(GPTConfig(128, 257, 2, 4, 128)), torch.zeros(2, 128, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        net(idx, idx)[1].backward()
    products = sum(n for op, n in counter.get_flop_counts()["Global"].items() if "mm" in str(op))
    assert re.search(rf"^laptop +{products // 256:,} ", said, re.MULTILINE)


def test_scaling_draws_the_runs_and_says_what_they_predict(monkeypatch):
    said, pictures = printed("scaling", monkeypatch)
    assert pictures == 2
    rows = (ROOT / "runs/scaling/rows.jsonl").read_text(encoding="utf-8").splitlines()
    n = sum('"seed": 1' in row for row in rows)
    assert f"\n{n} runs, N 25,472 to 793,344" in said
    table = re.findall(r"^\dx\d+ +[\d,]+ +[\d,]+ +\S+e\+\d\d +\d\.\d{4}$", said, re.MULTILINE)
    assert len(table) == n
    assert re.search(r"^124M on 10B of GPT-2's tokens: \d\.\d\d nats", said, re.MULTILINE)
