"""Records what a terminal shows of a deployment: .venv/bin/python -m bench.recording FILE [HOST]

FILE gets a picture that moves (SVG with CSS animations): FRAMES of them, at equal times. HOST
(demo) is deployed to its local VM, as `./inv demo` does it. Your home is shown as ~.
"""

import io
import os
import sys
import time
from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import escape

from rich.console import Group

from anemos import log
from anemos.workstation import hosts
from anemos.workstation.display import Display, Screen
from anemos.workstation.vm import demo

FRAMES, FRAME_S = 40, 0.6
WIDTH, HEIGHT = 100, 20  # characters and lines
HOME = os.fspath(Path.home())
CHARACTER, LINE, EDGE = 7.8, 18, 12  # in the picture's own unit
STYLE = """
    rect {{ fill: #16181d }}
    text {{ font: 13px monospace; white-space: pre; fill: #c8ccd4 }}
    .live {{ fill: #ffffff; font-weight: bold }}
    g {{ visibility: hidden; animation: shown {whole:.1f}s step-end infinite }}
    @keyframes shown {{ 0% {{ visibility: visible }} {part:.3f}% {{ visibility: hidden }} }}
    @media (prefers-reduced-motion) {{
        g {{ animation: none }}
        g:last-of-type {{ visibility: visible }}
    }}
"""


class Frame(NamedTuple):
    """What the terminal has at AT, in seconds. LIVE: how many lines of it will change."""

    at: float
    lines: list[str]
    live: int


class Recorder(Display):
    def __init__(self) -> None:
        super().__init__()
        nowhere = io.StringIO()
        self.console = Screen(file=nowhere, force_terminal=True, width=WIDTH, height=HEIGHT)
        self.said: list[str] = []
        self.frames: list[Frame] = []

    def line(self, text: str) -> None:
        self.said += text.splitlines()
        super().line(text)

    def draw(self) -> Group:
        group = super().draw()
        drawn = [f"{each}" for each in group.renderables]
        lines = [*self.said, *drawn][-HEIGHT:]
        self.frames.append(Frame(time.monotonic(), lines, len(drawn)))
        return group


def record(host: str) -> list[Frame]:
    recorder = Recorder()
    log.sink = recorder.line
    log.observers.append(recorder)
    demo.demo(hosts.load(host))
    recorder.stop()
    return [*recorder.frames, Frame(time.monotonic(), recorder.said[-HEIGHT:], 0)]


def chosen(frames: list[Frame]) -> list[Frame]:
    """The last one at each of FRAMES equal times."""
    first, last = frames[0].at, frames[-1].at
    ends = [first + (last - first) * number / (FRAMES - 1) for number in range(FRAMES)]
    return [[each for each in frames if each.at <= end][-1] for end in ends[:-1]] + frames[-1:]


def drawn(number: int, frame: Frame) -> str:
    texts = []
    for row, line in enumerate(frame.lines):
        live = ' class="live"' if row >= len(frame.lines) - frame.live else ""
        place = f'x="{EDGE}" y="{EDGE + (row + 1) * LINE - 4}"'
        text = escape(line.replace(HOME, "~")[:WIDTH])
        texts.append(f"<text {place}{live}>{text}</text>\n")
    return f'<g style="animation-delay: {number * FRAME_S:.1f}s">\n{"".join(texts)}</g>\n'


def picture(frames: list[Frame]) -> str:
    wide, high = WIDTH * CHARACTER + 2 * EDGE, HEIGHT * LINE + 2 * EDGE
    style = STYLE.format(whole=len(frames) * FRAME_S, part=100 / len(frames))
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide:.0f} {high}">\n'
    back = f'<rect width="{wide:.0f}" height="{high}" rx="6"/>\n'
    groups = "".join(drawn(number, each) for number, each in enumerate(frames))
    return f"{head}<style>{style}</style>\n{back}{groups}</svg>\n"


if __name__ == "__main__":
    file, *words = sys.argv[1:]
    Path(file).write_text(picture(chosen(record(*words or ["demo"]))))
