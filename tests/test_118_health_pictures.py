"""Notes about blocks, read from a log and drawn."""

import matplotlib.image
import pytest
from helpers import TINY, main_here, write_shards
from matplotlib.figure import Figure

from nanogpt.health import KINDS, draw_health, read_health
from nanogpt.report import Log, save_curves

CONFIG = dict(vocab_size=257, hellaswag="none")


def numbers(step, blocks=3):
    return {kind: [0.01 * (step + 1) * (block + 1) for block in range(blocks)] for kind in KINDS}


def a_log(path, steps, **more):
    log = Log(path, master_process=True)
    log.note(config=CONFIG | more)
    for step in steps:
        log.value(step, "train", 5.0)
        log.value(step, "val", 5.0)
        log.note(step=step, health=numbers(step))
        log.note(step=step, batch=128)
    return path


def test_the_last_run_is_read(tmp_path):
    """Its configuration has a setting of that name, too; a resumed run goes on."""
    path = a_log(tmp_path / "log.txt", [0, 10, 20], health=10)
    first = path.stat().st_size
    Log(path, master_process=True).note(resumed=20, changed={"health": [10, 5]})
    assert read_health(path) == {step: numbers(step) for step in (0, 10, 20)}
    a_log(path, [0, 5])
    assert list(read_health(path)) == [0, 5] and list(read_health(path, first)) == [0, 10, 20]


def test_each_kind_is_drawn_block_by_block(tmp_path):
    axes = Figure().subplots(2, 3)
    draw_health(read_health(a_log(tmp_path / "log.txt", [0, 10, 20])), axes)
    for ax in axes.flat:
        assert len(ax.lines) == 3
        for block, line in enumerate(ax.lines):
            assert list(line.get_xdata()) == [0, 10, 20]
            assert list(line.get_ydata()) == pytest.approx(
                [0.01 * (step + 1) * (block + 1) for step in (0, 10, 20)])
    assert [text.get_text() for text in axes[0, 0].get_legend().get_texts()] == [
        "block 0", "block 2"]


@pytest.mark.parametrize("steps, height", [([], 480), ([0, 10], 1080)])
def test_they_are_below_the_curves(steps, height, tmp_path):
    save_curves(a_log(tmp_path / "log.txt", steps), tmp_path / "curves.png")
    assert matplotlib.image.imread(tmp_path / "curves.png").shape[:2] == (height, 1200)


def test_a_run_draws_them(tmp_path, monkeypatch):
    main_here(monkeypatch, *TINY, "--data", write_shards(tmp_path / "shards"), "--val-tokens", 512,
              "--sample-tokens", 0, "--max-steps", 3, "--health", 1, "--out-dir", tmp_path / "run")
    assert matplotlib.image.imread(tmp_path / "run" / "curves.png").shape[0] == 1080
    assert list(read_health(tmp_path / "run" / "log.txt")) == [0, 1, 2]
