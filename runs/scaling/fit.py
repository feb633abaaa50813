"""Fit a scaling law to rows.jsonl, say what it predicts and how sure that is, and draw it.

    python runs/scaling/fit.py          # prints the numbers and writes fit.png

L(N, D) = E + A / N^alpha + B / D^beta (Hoffmann et al. 2022, equation 2): E is what no network can
predict, the second term a network that is too small, the third one that has seen too little. N are
the parameters without both embeddings, D the tokens seen. As in their approach 3, the fit minimizes
the Huber loss, delta 1e-3, of log L, from many starting points.
"""

import itertools
import json
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
DELTA = 1e-3  # Hoffmann et al.: errors above a thousandth count by their size, not its square
STARTS = np.array(list(itertools.product((0.0, 5.0), (0.2, 0.6), (0.0, 5.0), (0.2, 0.6),
                                         (-1.0, 0.7))))


def read_rows(path=HERE / "rows.jsonl", seed=1):
    """The rows of that seed; None: all."""
    rows = map(json.loads, Path(path).read_text(encoding="utf-8").splitlines())
    return [row for row in rows if seed in (None, row["seed"])]


def columns(rows, *names):
    return [np.array([row[name] for row in rows], dtype=float) for name in names]


class Law:
    """A fitted law: log A, alpha, log B, beta, log E."""

    def __init__(self, x):
        self.x = x
        log_A, self.alpha, log_B, self.beta, log_E = map(float, x)
        self.A, self.B, self.E = np.exp((log_A, log_B, log_E))

    def __call__(self, N, D):
        return self.E + self.A / N**self.alpha + self.B / D**self.beta

    def best(self, C):
        """N and D of the lowest loss for C = 6 N D FLOPs. Hoffmann et al., equation 4."""
        G = (self.alpha * self.A / (self.beta * self.B)) ** (1 / (self.alpha + self.beta))
        a = self.beta / (self.alpha + self.beta)
        return G * (C / 6) ** a, (C / 6) ** (1 - a) / G


def predict(x, N, D):
    """log L and its derivatives by x (..., 5): (..., n) and (..., n, 5)."""
    log_A, alpha, log_B, beta, log_E = np.moveaxis(x, -1, 0)[..., None]
    log_N, log_D = np.log(N), np.log(D)
    terms = np.stack(np.broadcast_arrays(log_A - alpha * log_N, log_B - beta * log_D, log_E))
    most = terms.max(axis=0)
    log_L = most + np.log(np.exp(terms - most).sum(axis=0))
    n, d, e = np.exp(terms - log_L)  # each term's share of the loss
    return log_L, np.stack((n, -n * log_N, d, -d * log_D, e), axis=-1)


def huber(r):
    r = np.abs(r)
    return np.where(r < DELTA, r**2 / 2, DELTA * (r - DELTA / 2))


def fit_all(N, D, L, starts=STARTS, rounds=300, E=None):
    """Minimize from every start at once: Levenberg-Marquardt, each error weighted so that its
    square is its Huber loss. N, D, L (..., n) -> x (..., 5), the best of the starts. E: hold it."""
    shape = np.shape(L)[:-1]
    N, D, L = (np.asarray(v, dtype=float)[..., None, :] for v in (N, D, L))
    x = np.broadcast_to(starts, (*shape, *starts.shape)).copy()  # (..., starts, 5)
    free = np.ones(5)
    if E is not None:
        x[..., 4], free[4] = np.log(E), 0
    log_L, J = predict(x, N, D)
    loss, damping = huber(log_L - np.log(L)).sum(-1), np.full(x.shape[:-1], 1e-2)
    for _ in range(rounds):
        r = log_L - np.log(L)
        J = J * free
        w = np.minimum(1, DELTA / np.maximum(np.abs(r), 1e-12))
        H = np.einsum("...ni,...n,...nj->...ij", J, w, J)
        g = np.einsum("...ni,...n,...n->...i", J, w, r)
        scale = np.einsum("...ii->...i", H) + 1e-9
        H += (damping[..., None] * scale)[..., None] * np.eye(5)
        new = x - np.linalg.solve(H, g[..., None])[..., 0].clip(-1, 1)
        new[..., [1, 3]] = new[..., [1, 3]].clip(0.01, 3)
        new_L, new_J = predict(new, N, D)
        new_loss = huber(new_L - np.log(L)).sum(-1)
        better = new_loss < loss
        x = np.where(better[..., None], new, x)
        log_L, J = np.where(better[..., None], new_L, log_L), np.where(better[..., None, None],
                                                                       new_J, J)
        loss = np.where(better, new_loss, loss)
        damping = np.clip(np.where(better, damping / 3, damping * 4), 1e-10, 1e10)
    chosen = loss.argmin(-1)[..., None, None]
    return np.take_along_axis(x, chosen, axis=-2)[..., 0, :]


def fit(rows, E=None):
    """The Law of these rows. E: hold it at this."""
    return Law(fit_all(*columns(rows, "N", "D", "loss"), E=E))


def errors(law, rows):
    """By how much the law is off, each as a share of the run's loss."""
    N, D, L = columns(rows, "N", "D", "loss")
    return law(N, D) / L - 1


def bootstrap(rows, n=300, seed=0):
    """Laws of n resamples of the rows, with replacement: how much the fit owes to single runs."""
    drawn = np.random.default_rng(seed).integers(len(rows), size=(n, len(rows)))
    N, D, L = (column[drawn] for column in columns(rows, "N", "D", "loss"))
    near = fit(rows).x + np.random.default_rng(seed).normal(size=(5, 5)) * (1, 0.1, 1, 0.1, 0.3)
    return [Law(x) for x in fit_all(N, D, L, near, rounds=150)]


def interval(values):
    """The middle 90% of them."""
    return tuple(map(float, np.percentile(values, (5, 95))))


def leave_out(rows):
    """(row, what the law of all other rows says about it) for each row."""
    found = []
    for i, row in enumerate(rows):
        law = fit(rows[:i] + rows[i + 1 :])
        found.append((row, float(law(row["N"], row["D"]))))
    return found


def smaller_runs(rows):
    """The largest run, and what the law of the runs with at most half of its FLOPs says of it."""
    last = max(rows, key=lambda row: row["N"] * row["D"])
    small = [row for row in rows if row["N"] * row["D"] <= last["N"] * last["D"] / 2]
    return last, len(small), float(fit(small)(last["N"], last["D"]))


# GPT-2 124M without its embeddings: 12 blocks and the last norm. 10 billion of GPT-2's tokens are
# as much text as 13.98 billion of these: the same documents have 9,978,257 and 13,950,079.
GPT2 = 12 * (12 * 768**2 + 13 * 768) + 2 * 768
TEN_BILLION = 10e9 * 13_950_079 / 9_978_257


def report(rows, laws):
    """The lines that say what was found."""
    law, per_byte = fit(rows), rows[0]["bytes_per_token"]
    yield f"{len(rows)} runs, N {min(r['N'] for r in rows):,} to {max(r['N'] for r in rows):,}, " \
          f"D {min(r['D'] for r in rows):,} to {max(r['D'] for r in rows):,}"
    for name in "E", "A", "alpha", "B", "beta":
        low, high = interval([getattr(each, name) for each in laws])
        yield f"{name:5s} {getattr(law, name):8.4g}   90%: {round(low, 4):.4g} to {high:.4g}"
    off = np.abs(errors(law, rows))
    left = np.array([said / row["loss"] - 1 for row, said in leave_out(rows)])
    yield f"errors: {off.mean():.2%} on average, {off.max():.2%} at most; " \
          f"of a run left out: {np.abs(left).mean():.2%}, {np.abs(left).max():.2%}"
    last, n, said = smaller_runs(rows)
    yield f"the largest run, {last['size']} on {last['D']:,}: {last['loss']:.4f}; the law of the " \
          f"{n} runs of at most half its FLOPs says {said:.4f} ({said / last['loss'] - 1:+.2%})"
    share, *shares = (each.beta / (each.alpha + each.beta) for each in (law, *laws))
    low, high = interval(shares)
    yield f"best N grows as C^{share:.2f} (90%: {low:.2f} to {high:.2f})"
    for C in 1e13, 6 * GPT2 * TEN_BILLION:
        N, D = law.best(C)
        few, many = interval([each.best(C)[0] for each in laws])
        yield f"for {C:.2g} FLOPs: N {N:.3g} (90%: {few:.2g} to {many:.2g}), D {D:.3g}: " \
              f"{D / N:.0f} tokens per parameter"
    L = law(GPT2, TEN_BILLION)
    low, high = interval([each(GPT2, TEN_BILLION) for each in laws])
    bits = 1 / np.log(2) / per_byte
    yield f"124M on 10B of GPT-2's tokens: {L:.2f} nats per token of 1,024 pairs " \
          f"(90%: {low:.2f} to {high:.2f}), {L * bits:.2f} bits per byte ({low * bits:.2f} to " \
          f"{high * bits:.2f})"
    for what, others, N in variants(rows):
        other = fit(others)
        yield f"{what}: alpha {other.alpha:.2f}, beta {other.beta:.2f}, E {other.E:.2f}, and " \
              f"{other(N, TEN_BILLION):.2f} nats for 124M"
    for E in 0.5, 1, 1.5, 2, 2.5:
        held = fit(rows, E)
        yield f"E held at {E}: alpha {held.alpha:.2f}, beta {held.beta:.2f}, errors " \
              f"{np.abs(errors(held, rows)).mean():.2%}, and {held(GPT2, TEN_BILLION):.2f} nats"


def variants(rows):
    """Other choices that one could have made as well: (which, rows, N of GPT-2 124M)."""
    wte = [row | {"N": row["N"] + row["wte"]} for row in rows]
    yield "if N counts wte too", wte, GPT2 + 1024 * 768
    for name, what in ("D", "the shortest runs"), ("N", "the smallest size"):
        least = min(row[name] for row in rows)
        yield f"without {what}", [row for row in rows if row[name] > least], GPT2


def draw(rows, laws, figure):
    """Three panels in a matplotlib figure: the runs and the fit, its errors, the extrapolation."""
    from matplotlib import colormaps

    law, viridis = fit(rows), colormaps["viridis"]
    curves, off, far = figure.subplots(1, 3, width_ratios=(5, 3, 5))
    Ds = np.geomspace(min(r["D"] for r in rows) / 1.3, max(r["D"] for r in rows) * 1.3)
    left = {id(row): said for row, said in leave_out(rows)}
    sizes = sorted({row["N"] for row in rows})
    for N, share in zip(sizes, np.linspace(0, 0.85, len(sizes)), strict=True):
        mine, color = [row for row in rows if row["N"] == N], viridis(share)
        D, L = columns(mine, "D", "loss")
        curves.plot(D / 1e6, L, "o", color=color, markersize=5,
                    label=f"{N / 1e3:,.0f}k ({mine[0]['size'].replace('x', ' x ')})")
        curves.plot(Ds / 1e6, law(N, Ds), color=color, linewidth=1)
        off.plot(D / 1e6, 100 * (law(N, D) / L - 1), "o", color=color, markersize=5)
        off.plot(D / 1e6, [100 * (left[id(row)] / row["loss"] - 1) for row in mine], "o",
                    color=color, markersize=9, fillstyle="none")
        far.plot(6 * N * D, L, "o", color=color, markersize=4)
    curves.set(xscale="log", xlabel="million tokens", ylabel="validation loss (nats per token)",
               title=f"{len(rows)} runs (dots), one law (lines)")
    curves.legend(title="parameters", title_fontsize=8)
    off.axhline(0, color="gray", linewidth=0.8)
    off.plot([], [], "ko", markersize=5, label="in the fit")
    off.plot([], [], "ko", markersize=8, fillstyle="none", label="left out")
    off.set(xscale="log", xlabel="million tokens", ylabel="law - run (%)", title="Errors")
    off.legend()
    for ax in curves, off:
        ax.set_xticks([0.5, 1, 2, 4, 8], ["0.5", "1", "2", "4", "8"])
        ax.minorticks_off()
    extrapolate(rows, laws, far)


def extrapolate(rows, laws, ax):
    """The lowest loss for a number of FLOPs, up to GPT-2 124M's, and how sure it is."""
    law, C = fit(rows), np.geomspace(5e10, 3e19, 100)
    drawn = np.array([one(*one.best(C)) for one in laws])
    ax.fill_between(C, *np.percentile(drawn, (5, 95), axis=0), color="gray", alpha=0.3, linewidth=0,
                    label="90% of the resamples")
    for each, style, name in ((law, "-", "law, best N and D"),
                              (fit(rows, E=1), "--", "E held at 1"), (fit(rows, E=2), ":", "at 2")):
        ax.plot(C, each(*each.best(C)), style, color="black", linewidth=1,
                label=f"{name}: off by {np.abs(errors(each, rows)).mean():.2%}")
    L = law(GPT2, TEN_BILLION)
    low, high = interval([one(GPT2, TEN_BILLION) for one in laws])
    ax.errorbar(6 * GPT2 * TEN_BILLION, L, [[L - low], [high - L]], fmt="s", color="C3", capsize=4,
                markersize=5, label="GPT-2 124M on 10B tokens")
    ax.plot([], [], "o", color="gray", markersize=4, label="runs")
    ax.set(xscale="log", xlabel="FLOPs (6 N D)", ylabel="validation loss (nats per token)",
           title="Beyond the runs", ylim=(0, None))
    ax.set_xticks(10.0 ** np.arange(11, 20, 2))
    ax.minorticks_off()
    ax.legend(loc="upper right")


def main():
    import matplotlib
    from matplotlib.figure import Figure

    rows = read_rows()
    laws = bootstrap(rows)
    for line in report(rows, laws):
        print(line)
    seeds = [row["loss"] for row in read_rows(seed=None) if row["size"] == "2x48"
             and row["steps"] == 500]
    print(f"seeds: {', '.join(f'{loss:.4f}' for loss in seeds)}")
    with matplotlib.rc_context({"legend.fontsize": 8}):
        figure = Figure(figsize=(13, 4.2), layout="constrained")
        draw(rows, laws, figure)
        figure.savefig(HERE / "fit.png", dpi=100)


if __name__ == "__main__":
    main()
