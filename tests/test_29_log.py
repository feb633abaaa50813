"""The log: one writer, appended to, read back; curves are drawn from it."""

import json

from helpers import TINY, start, write_shards

from train_gpt2 import Log, draw_curves, read_log, save_curves


def test_written_and_read_back(tmp_path):
    log = Log(tmp_path / "log.txt", master_process=True)
    log.note(config={"vocab_size": 257}, torch="2")
    log.value(0, "val", 5.5)
    log.value(0, "train", 1 / 3)
    log.value(1, "train", 0.1)
    log.value(1, "hella", 0.25)
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert lines[1:] == ["0 val 5.5", "0 train 0.3333333333333333", "1 train 0.1", "1 hella 0.25"]
    assert json.loads(lines[0].removeprefix("# ")) == {"config": {"vocab_size": 257}, "torch": "2"}
    found = read_log(tmp_path / "log.txt")
    assert found["train"] == ([0, 1], [1 / 3, 0.1])  # to the last digit
    assert found["val"] == ([0], [5.5]) and found["hella"] == ([1], [0.25])
    assert found["run"]["torch"] == "2"


def test_appended_never_truncated_and_the_last_run_is_read(tmp_path):
    for value in 1.0, 2.0:
        log = Log(tmp_path / "log.txt", master_process=True)
        log.note(config={"vocab_size": 257})
        log.value(0, "train", value)
    assert (tmp_path / "log.txt").read_text().count("config") == 2
    assert read_log(tmp_path / "log.txt")["train"] == ([0], [2.0])


def test_other_ranks_do_not_write(tmp_path):
    log = Log(tmp_path / "log.txt", master_process=False)
    log.note(config={})
    log.value(0, "train", 1.0)
    assert not (tmp_path / "log.txt").exists()


def test_a_run_writes_what_is_needed_to_repeat_it(tmp_path):
    folder = write_shards(tmp_path / "shards")
    done = start("train_gpt2.py", *TINY, "--data", folder, "--out-dir", tmp_path / "run",
                 "--max-steps", 3, "--seed", 7, ranks=2)
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "run" / "log.txt").read_text().splitlines()
    found = read_log(tmp_path / "run" / "log.txt")
    run = found["run"]
    assert run["config"]["seed"] == 7 and run["config"]["max_lr"] == 3e-3
    assert run["ranks"] == 2 and run["device"] == "cpu"
    assert {"torch", "python", "system", "parameters", "max_steps"} <= run.keys()
    # one writer: with two, the header and every line would be there twice
    assert len(lines) == 1 + 3 + 2 and found["train"][0] == [0, 1, 2]
    assert found["val"][0] == [0, 3]


def test_curves_are_a_picture(tmp_path):
    import matplotlib.image

    for vocab_size, name in (257, "bytes"), (50257, "gpt2"):
        log = Log(tmp_path / f"{name}.txt", master_process=True)
        log.note(config={"vocab_size": vocab_size, "hellaswag": "h.jsonl"})
        log.value(0, "train", 5.0)
        save_curves(log.path, tmp_path / f"{name}.png")  # a run without evaluations
        for step in range(1, 20):
            log.value(step, "train", 5.0 - step / 10)
        for step in 0, 10:
            log.value(step, "val", 5.0 - step / 10)
            log.value(step, "hella", 0.25)
        save_curves(log.path, tmp_path / f"{name}.png")
        picture = matplotlib.image.imread(tmp_path / f"{name}.png")
        assert picture.shape[:2] == (480, 1200)
        assert picture[..., :3].std() > 0.05  # not blank


def lines_beside(tmp_path, **config):
    from matplotlib.figure import Figure

    log = Log(tmp_path / "log.txt", master_process=True)
    log.note(config=config)
    for step, loss in (0, 10.0), (1, 4.0), (2, float("nan")), (3, 3.0):
        log.value(step, "val", loss)
    log.value(3, "train", 2.0)
    axes = Figure().subplots(1, 2)
    draw_curves(log.path, axes)
    assert axes[0].get_ylim() == (0.95 * 2.0, 1.1 * 4.0)  # what came after the start, and is finite
    return [{line.get_label(): line.get_ydata()[0] for line in ax.lines
             if line.get_linestyle() == "--"} for ax in axes]


def test_the_lines_to_cross_are_beside_their_like_alone(tmp_path):
    loss = {"GPT-2 124M, FineWeb-Edu": 3.2924}
    hella = {"GPT-2 124M": 0.2955, "GPT-3 124M": 0.337}
    assert lines_beside(tmp_path, vocab_size=50257, hellaswag="h.jsonl") == [loss, hella]
    assert lines_beside(tmp_path, vocab_size=50257, hellaswag="heldout") == [loss, {}]
    assert lines_beside(tmp_path, vocab_size=257, hellaswag="h.jsonl") == [{}, {}]
