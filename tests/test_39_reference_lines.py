"""The scores to cross are drawn only for runs with the same tokenizer and the same task."""

import pytest

from nanogpt.common import UserError
from nanogpt.report import Log, draw_curves, save_curves

LOSS = {"GPT-2 124M, FineWeb-Edu": 3.2924}
HELLA = {"GPT-2 124M": 0.2955, "GPT-3 124M": 0.337}


def a_log(tmp_path, **config):
    log = Log(tmp_path / "log.txt", master_process=True)
    log.note(config=config)
    for step, loss in (0, 10.0), (1, 4.0), (2, float("nan")), (3, 3.0):
        log.value(step, "val", loss)
    log.value(3, "train", 2.0)
    log.value(3, "hella", 0.3)
    return log.path


@pytest.mark.parametrize("vocab_size, hellaswag, expected", [
    (50257, "Rowan/hellaswag", [LOSS, HELLA]), (50257, "h.jsonl", [LOSS, HELLA]),
    (50257, "none", [LOSS, HELLA]), (50257, "heldout", [LOSS, {}]),
    (257, "h.jsonl", [{}, {}]), (257, "heldout", [{}, {}])])
def test_the_lines_to_cross_are_beside_their_like_alone(vocab_size, hellaswag, expected, tmp_path):
    """A loss is per token, so another tokenizer's cannot be compared, nor can an accuracy on
    examples of another kind."""
    from matplotlib.figure import Figure

    axes = Figure().subplots(1, 2)
    draw_curves(a_log(tmp_path, vocab_size=vocab_size, hellaswag=hellaswag), axes)
    drawn = [{line.get_label(): line.get_ydata()[0] for line in ax.lines
              if line.get_linestyle() == "--"} for ax in axes]
    assert drawn == expected
    for ax in axes:  # named in the legend, in colours of their own
        lines = [line for line in ax.lines if line.get_label() != "guessing"]
        assert len({line.get_color() for line in lines}) == len(lines)
        assert {line.get_label() for line in ax.lines} == {
            text.get_text() for text in ax.get_legend().get_texts()}
    assert axes[0].get_ylim() == (0.95 * 2.0, 1.1 * 4.0)  # the lines do not move the limits


@pytest.mark.parametrize("losses, named", [
    ([10.0, 6.0, 5.0], False), ([10.0, 3.6, 3.4], True), ([10.0, 3.4, 3.1], True),
    ([10.0, 2.9, 2.0], False), ([10.0], True)])
def test_a_line_outside_the_picture_is_not_named(losses, named, tmp_path):
    from matplotlib.figure import Figure

    log = Log(tmp_path / "log.txt", master_process=True)
    log.note(config=dict(vocab_size=50257, hellaswag="none"))
    for step, loss in enumerate(losses):
        log.value(step, "val", loss)
        log.value(step, "train", loss)
    axes = Figure().subplots(1, 2)
    draw_curves(log.path, axes)
    texts = [text.get_text() for text in axes[0].get_legend().get_texts()]
    assert texts == ["train", "validation", *LOSS][: 2 + named]


def test_with_lines_it_is_a_picture(tmp_path):
    import matplotlib.image

    save_curves(a_log(tmp_path, vocab_size=50257, hellaswag="h.jsonl"), tmp_path / "curves.png")
    assert matplotlib.image.imread(tmp_path / "curves.png").shape[:2] == (480, 1200)


@pytest.mark.parametrize("header", ["", '# {"config": {"vocab_size": 257}}\n', '# {"config": 5}\n'])
def test_a_log_without_a_header_has_no_lines_to_choose(header, tmp_path):
    from matplotlib.figure import Figure

    (tmp_path / "log.txt").write_text(header + "0 train 1.5\n")
    with pytest.raises(UserError, match="has no line with the run's configuration"):
        draw_curves(tmp_path / "log.txt", Figure().subplots(1, 2))
