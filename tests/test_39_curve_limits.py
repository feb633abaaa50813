"""The loss axis shows what came after the start, and is finite."""

import pytest

from nanogpt.report import Log, draw_curves


def limits(tmp_path, val, train=()):
    from matplotlib.figure import Figure

    log = Log(tmp_path / "log.txt", master_process=True)
    log.note(config={"vocab_size": 257, "hellaswag": "none"})
    for kind, values in ("val", val), ("train", train):
        for step, value in enumerate(values):
            log.value(step, kind, value)
    axes = Figure().subplots(1, 2)
    draw_curves(log.path, axes)
    return axes[0].get_ylim()


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("val, train, low, high", [
    ([10.0, 4.0, 3.0], [2.0], 2.0, 4.0),  # the loss before training would flatten the rest
    ([10.0, 4.0, 3.0], [9.0, 8.0], 3.0, 4.0),
    ([10.0, 4.0, NAN, 3.0], [2.0], 2.0, 4.0),
    ([10.0, NAN, 4.0, INF], [NAN, 5.0, INF], 4.0, 4.0),
    ([10.0, 12.0], [11.0], 11.0, 12.0),
    ([10.0, 5.0, 4.0, 50.0, 3.0, 3.0], [2.0], 2.0, 2 * 4.0)])  # a spike: twice the median
def test_from_the_lowest_to_the_highest_validation_after_the_start(val, train, low, high, tmp_path):
    """A little below the lowest loss, of training or validation, a little above the highest
    validation loss but the first; a loss that is not a number is passed over."""
    assert limits(tmp_path, val, train) == pytest.approx((0.95 * low, 1.1 * high), rel=1e-12)


@pytest.mark.parametrize("val", [[], [10.0], [10.0, NAN]])
def test_without_a_later_validation_matplotlib_decides(val, tmp_path):
    """Everything is visible for a run that stopped before its second evaluation, or blew up."""
    low, high = limits(tmp_path, val, [9.0, 8.0])
    assert low <= 8.0 and high >= max([9.0, *val[:1]])
