"""The curves are the log's values, on two axes and as a picture."""

import pytest
from helpers import TINY, start, write_shards

from nanogpt.report import Log, draw_curves, read_log, save_curves


@pytest.fixture
def log(tmp_path):
    """A run's log with a header as every run writes it."""
    log = Log(tmp_path / "log.txt", master_process=True)
    log.note(config={"vocab_size": 257, "hellaswag": "h.jsonl"})
    return log


def test_the_lines_are_the_logs_values(log):
    """Training and validation loss on the first axes, HellaSwag and guessing on the second."""
    from matplotlib.figure import Figure

    for step in range(20):
        log.value(step, "train", 5.0 - step / 10)
    for step in 0, 10:
        log.value(step, "val", 5.5 - step / 10)
        log.value(step, "hella", 0.25 + step / 100)
    axes = Figure().subplots(1, 2)
    draw_curves(log.path, axes)
    drawn = [{line.get_label(): (list(line.get_xdata()), list(line.get_ydata()))
              for line in ax.lines} for ax in axes]
    assert drawn[0] == {"train": (list(range(20)), [5.0 - step / 10 for step in range(20)]),
                        "validation": ([0, 10], [5.5, 4.5])}
    assert drawn[1]["this run"] == ([0, 10], [0.25, 0.35])
    assert drawn[1]["guessing"][1] == [0.25, 0.25]
    for ax, ylabel in zip(axes, ("loss (nats per token)", "accuracy"), strict=True):
        assert (ax.get_xlabel(), ax.get_ylabel()) == ("step", ylabel)
        labels = {text.get_text() for text in ax.get_legend().get_texts()}
        assert labels == {line.get_label() for line in ax.lines}


@pytest.mark.parametrize("grid", [(1, 2), (2, 1), (2, 2)])
def test_a_run_without_hellaswag_has_one_panel(grid, log):
    """It takes the place of both, and of no other; no line is named that is not there."""
    from matplotlib.figure import Figure

    log.value(0, "train", 5.0)
    figure = Figure()
    axes = figure.subplots(*grid).flatten()
    corners = [ax.get_position() for ax in axes[:2]]
    draw_curves(log.path, axes[:2])
    assert figure.axes == [axes[0], *axes[2:]]
    place = axes[0].get_position()
    assert [place.x0, place.x1] == pytest.approx([corners[0].x0, corners[1].x1])
    assert [place.y0, place.y1] == pytest.approx([corners[1].y0, corners[0].y1])
    assert [text.get_text() for text in axes[0].get_legend().get_texts()] == ["train"]
    assert axes[0].lines[0].get_marker() == "."  # a line of one point cannot be seen


def test_curves_are_a_picture(log, tmp_path):
    import matplotlib.image

    log.value(0, "train", 5.0)
    save_curves(log.path, tmp_path / "curves.png")  # a run without evaluations
    for step in range(1, 20):
        log.value(step, "train", 5.0 - step / 10)
    for step in 0, 10:
        log.value(step, "val", 5.0 - step / 10)
        log.value(step, "hella", 0.25)
    save_curves(log.path, tmp_path / "curves.png")
    picture = matplotlib.image.imread(tmp_path / "curves.png")
    assert picture.shape[:2] == (480, 1200)
    colored = picture[..., :3].max(axis=-1) - picture[..., :3].min(axis=-1) > 0.3
    assert colored[:, :600].any() and colored[:, 600:].any()  # curves; axes are black


@pytest.mark.slow
def test_a_run_leaves_its_curves(tmp_path):
    """One process draws them; the others write nothing."""
    done = start("train_gpt2.py", *TINY, "--data", write_shards(tmp_path / "shards"), "--out-dir",
                 tmp_path / "run", "--max-steps", 1, "--val-tokens", 512, "--sample-tokens", 0,
                 ranks=2)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert read_log(tmp_path / "run" / "log.txt")["val"][0] == [0, 1]
