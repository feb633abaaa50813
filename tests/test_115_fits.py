"""What fits: the largest micro-batch on a card or here, --B auto, and the disk."""

import os

import pytest
import torch
from helpers import TINY, free_port, main_here, stream_of, together, write_shards
from test_114_plan import plan_of, table

import nanogpt.plan
import train_gpt2
from nanogpt.cards import SHEETS, find_card
from nanogpt.memory import Memory
from nanogpt.plan import Place
from nanogpt.ranks import init_ranks
from nanogpt.report import PEAK_TFLOPS, read_log


def test_largest_batch_is_what_a_search_finds():
    """Among all that divide the 96 rows of a rank, by trying every one; with room for none, 0."""
    config = train_gpt2.TrainConfig(n_layer=2, n_head=2, n_embd=32, vocab_size=257, T=16,
                                    total_batch_size=2 * 96 * 16)
    with torch.device("meta"):
        net = train_gpt2.init_model(config)
    needs = {B: Memory(train_gpt2.replace(config, B=B), net, 2).peak()
             for B in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 96)}
    for room in [0, *needs.values(), *(need + 1 for need in needs.values()), 1e12]:
        fits = [B for B, need in needs.items() if need <= room]
        found = Place(2, room, 4, True).largest_batch(config, net)
        assert found == (fits[-1] if fits else 0), room


def test_the_video_filled_its_card(monkeypatch, capsys):
    """64 rows on 80 GB, as in the video; 24 GB hold fewer; and what is divided leaves more room."""
    found = {card: table(plan_of(monkeypatch, capsys, "--card", card, "--ranks", 8))
             for card in ("A100-80GB", "4090", "T4")}
    assert found["A100-80GB"]["as given"]["largest_B"] == 64
    for lines in found.values():
        largest = {name: line["largest_B"] for name, line in lines.items()}
        assert all(largest["as given"] <= B for B in largest.values())
    assert [found[card]["as given"]["largest_B"] for card in ("4090", "T4")] == [16, 8]


def with_another_batch(rank, world, port):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank),
                      LOCAL_RANK=str(rank), WORLD_SIZE=str(world))
    ranks, config = init_ranks("cpu"), train_gpt2.PRESETS["laptop"]
    config = train_gpt2.replace(config, B="auto" if rank else 8)
    with pytest.raises(train_gpt2.UserError, match="ranks 0, 1 of 2 differ in --B: "):
        nanogpt.plan.choose_batch(config, None, stream_of([0]), ranks)
    torch.distributed.destroy_process_group()


def test_ranks_with_another_batch_do_not_wait_for_each_other():
    together(with_another_batch, 2, free_port())


def test_what_fits_nowhere(monkeypatch, capsys):
    """GPT-2 XL with AdamW takes 25 GB before it computes; divided among eight, it fits a T4."""
    lines = [text.split() for _, text in plan_of(monkeypatch, capsys, "gpt2-1558M", "--card", "T4",
                                                 "--ranks", 8)]
    largest = {line[0]: line[-1] for line in lines if line[0] in ("as", "--recompute")}
    assert largest == {"as": "none", "--recompute": "none"}
    assert [int(line[-1]) for line in lines if line[:2] == ["--shard", "model"]][0] >= 1


def test_every_card_has_a_speed_too():
    for name in SHEETS:
        card = find_card(name)
        assert card.tflops in PEAK_TFLOPS.values() and card.memory > 10 and card.watts > 50
    assert find_card("A100").tflops == find_card("A100-80GB").tflops == 312
    assert find_card("a100-80gb") == find_card("A100-80GB") != find_card("a100")
    assert (find_card("A10").tflops, find_card("H100").tflops) == (125, 989)


@pytest.mark.parametrize("flags", [["--plan", "--card", "H10O"],
                                   ["--eval-only", "--B", "auto", "--init-from", "x"],
                                   ["--B", "auto", "--total-batch-size", "100"]], ids=str)
def test_refused(flags, monkeypatch):
    words = {"H10O": "did you mean H100", "x": "training", "100": "multiple of B x T"}[flags[-1]]
    with pytest.raises(train_gpt2.UserError, match=words):
        main_here(monkeypatch, *TINY, *flags)


def test_B_auto_takes_what_fits_and_changes_no_result(tmp_path, monkeypatch):
    """The batch has 16 rows. With room for all, B is 16; with less, a smaller divisor; and the
    losses are those of any other B."""
    data, logs, found = write_shards(tmp_path / "shards"), {}, []
    config = train_gpt2.parse_args(TINY)
    need = {B: Memory(train_gpt2.replace(config, B=B), train_gpt2.init_model(config)).peak()
            for B in (1, 2, 4, 8, 16)}
    room = {"plenty": 10 * need[16], "some": (need[4] + need[8]) / 2, "none": 0}
    for name, size in {**room, "eight": None}.items():
        monkeypatch.setattr(nanogpt.plan, "free_memory", lambda device, size=size: size)
        main_here(monkeypatch, *TINY, "--B", "auto" if size is not None else 8, "--max-steps", 4,
                  "--val-tokens", 512, "--sample-tokens", 0, "--data", data, "--out-dir",
                  tmp_path / name)
        logs[name] = read_log(tmp_path / name / "log.txt")
        found.append(logs[name]["run"]["config"]["B"])
        assert f"\nB = {found[-1]}\n" in (tmp_path / name / "config.toml").read_text()
    assert found == [16, 4, 1, 8]
    for name in room:
        assert logs[name]["train"][1] == pytest.approx(logs["eight"]["train"][1], rel=1e-5)


def test_the_disk(tmp_path, monkeypatch, capsys):
    """46,000 tokens of two bytes; and a checkpoint has the bytes that a run then writes."""
    run = tmp_path / "run"
    flags = [*TINY, "--data", write_shards(tmp_path / "shards"), "--out-dir", run, "--max-steps",
             5, "--checkpoint-every", 2, "--sample-tokens", 0, "--val-tokens", 512]
    rows = dict(plan_of(monkeypatch, capsys, *flags))
    assert rows["disk"].startswith("9.2e-05 GB of shards, measured in")
    main_here(monkeypatch, *flags)
    folders = list(run.glob("checkpoint_*"))
    size = sum(file.stat().st_size for file in folders[0].glob("*.safetensors")) / 1e9
    n, each = rows["disk"].split("checkpoints: ")[1].split(" GB")[0].split(" x ")
    assert int(n) == len(folders) == 3
    assert float(each) == pytest.approx(size, rel=0.1)  # names, and the generator's state
    kept = dict(plan_of(monkeypatch, capsys, *flags, "--keep", 1))
    assert "checkpoints: 1 x" in kept["disk"]


def test_free_memory_is_shared_by_the_processes_of_a_machine(monkeypatch):
    cpu, free = torch.device("cpu"), 6e9
    monkeypatch.setattr(nanogpt.plan, "linux_bytes", lambda *args: free)
    for name in "WORLD_SIZE", "LOCAL_WORLD_SIZE":
        monkeypatch.delenv(name, raising=False)
    alone = nanogpt.plan.free_memory(cpu)
    assert alone < free
    monkeypatch.setenv("WORLD_SIZE", "6")
    assert nanogpt.plan.free_memory(cpu) == pytest.approx(alone / 6)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert nanogpt.plan.free_memory(cpu) == pytest.approx(alone / 2)
