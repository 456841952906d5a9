"""The bar chart of `loaders.py`."""

from pathlib import Path

from train.figures import log_scale, save

LABELS = {  # how a row is called in a picture
    "resident": "Tenfold resident",
    "ffcv": "FFCV, Tenfold's plan",
    "dali": "DALI, Tenfold's plan",
    "torchvision": "torchvision, Tenfold's plan",
    "reference": "NumPy reference",
    "torchvision-docs": "torchvision, as documented",
    "torchvision-pil-docs": "torchvision on PIL, as documented",
    "ffcv-docs": "FFCV, as documented",
    "dali-docs": "DALI, as documented",
    "record-masks": "speed records' way, masks",
    "record-gather": "speed records' way, compiled",
}
RESIDENT, OURS, PEERS, BOUND = "#cc3311", "#88aacc", "#b8b8b8", "#222222"


def short(number: float) -> str:
    """Three digits, as 1.23k, 12.3k, 123k or 1.23M."""
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= 0.9995 * unit:  # what is less rounds to 999 of the unit below
            return f"{number / unit:.3g}{letter}"
    return f"{number:.0f}"


def colour(name: str) -> str:
    return RESIDENT if name == "resident" else OURS if LABELS[name].endswith("plan") or name == "reference" else PEERS


def loaders(results: list[dict], copies: list[dict], title: str, path: str) -> None:
    """Images/s of every loader on a log axis beside the copy bound, for one batch size and dtype: 512 and float32 if measured."""
    import matplotlib.pyplot as plt  # here: without it the figures are still measured

    settings = [(c["batch_size"], c["dtype"]) for c in copies]
    size, dtype = (512, "float32") if (512, "float32") in settings else settings[0]
    bars = [r for r in results if (r["batch_size"], r["dtype"]) == (size, dtype) and "missing" not in r]
    if not bars:
        return
    bars.sort(key=lambda r: r["images_per_second"].median)
    bound = copies[settings.index((size, dtype))]["copy_gb_per_second"].median * 1e9 / bars[0]["bytes_an_image"]
    speeds = [r["images_per_second"] for r in bars]
    figure, ax = plt.subplots(figsize=(9, 0.42 * len(bars) + 1.5))
    reach = [[s.median - s.least for s in speeds], [s.largest - s.median for s in speeds]]
    names = [LABELS[r["loader"]] for r in bars]
    whisker = {"lw": 1, "capsize": 2, "ecolor": "#555555"}
    ax.barh(names, [s.median for s in speeds], height=0.72, color=[colour(r["loader"]) for r in bars], xerr=reach, error_kw=whisker)
    for i, (row, speed) in enumerate(zip(bars, speeds)):
        bold = "bold" if row["loader"] == "resident" else "normal"
        ax.annotate(short(speed.median), (speed.largest, i), (6, 0), textcoords="offset points", va="center", fontsize=9, fontweight=bold)
    for text, row in zip(ax.get_yticklabels(), bars):
        text.set_fontweight("bold" if row["loader"] == "resident" else "normal")
    ax.axvline(bound, color=BOUND, lw=1.2, ls="--", zorder=0)
    ax.text(bound, len(bars) - 0.35, f"memory copy: {short(bound)}", ha="center", va="bottom", fontsize=9, color=BOUND)
    ax.set(xlabel=f"images/s, log scale (batch {size:,}, {dtype}); median, least and largest", ylim=(-0.6, len(bars) - 0.4))
    ax.set_xlim(10 ** int(len(str(int(speeds[0].least))) - 1) / 2, bound * 4)
    log_scale(ax, lambda value: f"{value:,.0f}")
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(axis="y", length=0)
    ax.set_title(title, fontsize=11, pad=22)
    save(Path(path), figure)
