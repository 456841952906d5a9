"""The frame of a page that stands alone: its style, tables and pictures. Nothing in it is fetched from anywhere."""

import base64
import io
from collections.abc import Sequence
from html import escape

import numpy as np
from PIL import Image

LARGEST = 96  # pixels a side of a picture on the page
SERIES = tuple(f"c{i}" for i in range(7))  # colours of runs side by side

# colours told apart by colour-blind eyes too (Tol, "Colour schemes", 2021), lighter on a dark page
STYLE = """
:root { color-scheme: light dark; --paper: #fff; --card: #f6f7f9; --ink: #1b1e23; --soft: #5d6570; --rule: #dfe3e8;
  --train: #4477aa; --test: #cc3311; --good: #228833; --part: #ccbb44; --rest: #9aa2ad;
  --c0: #4477aa; --c1: #ee6677; --c2: #228833; --c3: #b8a000; --c4: #2aa5cc; --c5: #aa3377; --c6: #777; }
@media (prefers-color-scheme: dark) { :root { --paper: #15181c; --card: #1e2227; --ink: #e6e9ed; --soft: #9ea6b1; --rule: #333a43;
  --train: #77aadd; --test: #ee7755; --good: #55bb66; --part: #ddcc66; --rest: #6c7480;
  --c0: #77aadd; --c1: #ee8899; --c2: #55bb66; --c3: #ddcc66; --c4: #66ccee; --c5: #dd77aa; --c6: #aaa; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem clamp(.9rem, 4vw, 2.5rem) 4rem; max-width: 72rem; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .3rem; } h2 { font-size: 1.15rem; margin: 2.6rem 0 .6rem; }
p { margin: .4rem 0; } .soft, small { color: var(--soft); } code, pre { font: 13px/1.5 ui-monospace, Menlo, Consolas, monospace; }
pre { background: var(--card); padding: .8rem 1rem; border-radius: 8px; white-space: pre-wrap; overflow-wrap: anywhere; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .7rem; margin: 1.2rem 0; }
.tile { background: var(--card); border-radius: 8px; padding: .7rem .9rem; } .tile b { display: block; font-size: 1.45rem; line-height: 1.25; }
.tile span { color: var(--soft); font-size: .85rem; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(22rem, 100%), 1fr)); gap: 1.2rem 2rem; align-items: start; }
figure { margin: 0; } figcaption { font-weight: 600; margin-bottom: .2rem; }
svg { width: 100%; height: auto; display: block; } svg text { font-size: 11.5px; fill: var(--soft); }
.grid { stroke: var(--rule); } .line { fill: none; stroke-width: 1.8; stroke-linejoin: round; } .line.faint { opacity: .35; stroke-width: 1; } .key.faint::before { opacity: .35; }
.legend { display: flex; flex-wrap: wrap; gap: .1rem 1rem; font-size: .85rem; color: var(--soft); }
.key::before { content: ""; display: inline-block; width: .7em; height: .7em; border-radius: 2px; margin-right: .4em; background: currentColor; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 600; } td, th { padding: .25rem .7rem .25rem 0; border-bottom: 1px solid var(--rule); vertical-align: top; }
td.n, th.n { text-align: right; white-space: nowrap; } th.n:first-child { text-align: left; } td { overflow-wrap: anywhere; }
.bar { display: flex; height: 1.5rem; border-radius: 6px; overflow: hidden; margin: .5rem 0; } .bar i { display: block; min-width: 1px; }
.matrix td, .matrix th { border: 0; padding: .2rem .1rem; font-size: .8rem; text-align: center; }
.matrix td { min-width: 1.9rem; height: 1.9rem; vertical-align: middle; border-radius: 3px; } .matrix th:first-child { text-align: right; padding-right: .5rem; }
.matrix th { vertical-align: bottom; font-weight: 500; } .matrix thead th span { writing-mode: vertical-rl; transform: rotate(180deg); }
@media (max-width: 32rem) { .matrix td, .matrix th { font-size: .68rem; padding: .1rem 0; } .matrix td { min-width: 1.55rem; height: 1.55rem; } }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(max(11rem, 22%), 1fr)); gap: .8rem; }
.card { background: var(--card); border-radius: 8px; padding: .6rem; font-size: .85rem; line-height: 1.35; }
.card div { display: grid; grid-template-columns: repeat(3, 1fr); gap: 4px; margin-bottom: .4rem; }
img { width: 100%; display: block; border-radius: 3px; image-rendering: pixelated; }
.sheet { display: grid; gap: 4px; max-width: 46rem; } .sheet small { text-align: center; line-height: 1.2; font-size: .72rem; }
details { margin: .8rem 0; } summary { cursor: pointer; color: var(--soft); } footer { margin-top: 3rem; color: var(--soft); font-size: .85rem; }
"""
COLOURS = "".join(
    f".{name} {{ color: var(--{name}); stroke: var(--{name}); }} circle.{name} {{ fill: var(--{name}); stroke: none; }}\n"
    for name in ("train", "test", *SERIES)
)


def document(title: str, *parts: str) -> str:
    """A whole HTML page."""
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
    body = "\n".join(parts)
    return f"<!doctype html>\n<html lang=en><head>{head}<title>{escape(title)}</title><style>{STYLE}{COLOURS}</style></head>\n<body>\n{body}\n</body></html>\n"


def table(head: list[str], rows: Sequence[Sequence], kind: str = "") -> str:
    """A table that scrolls by itself where it is wider than the page; columns of figures are set to the right."""
    figures = [all(str(row[i])[:1] in "0123456789-" for row in rows) for i in range(len(rows[0]))] if rows else [False] * len(head)

    def line(values: Sequence, tags: list[str]) -> str:
        cells = (f"<{tag}{' class=n' if right else ''}>{escape(str(value))}</{tag}>" for value, tag, right in zip(values, tags, figures))
        return f"<tr>{''.join(cells)}</tr>"

    top = f"<thead>{line(head, ['th'] * len(head))}</thead>" if head else ""
    body = "".join(line(row, ["th", *["td"] * (len(row) - 1)]) for row in rows)
    return f'<div class=wide><table class="{kind}">{top}<tbody>{body}</tbody></table></div>'


def picture(image_HWC: np.ndarray, label: str, largest: int = LARGEST) -> str:
    """An <img> that carries its pixels, uint8[H,W,C] with one to four channels, shrunk to `largest` pixels a side."""
    made = Image.fromarray(np.ascontiguousarray(image_HWC.squeeze() if image_HWC.shape[-1] == 1 else image_HWC))
    made.thumbnail((largest, largest))
    file = io.BytesIO()
    made.save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode()
    return f'<img src="data:image/png;base64,{data}" alt="{escape(label)}" title="{escape(label)}">'
