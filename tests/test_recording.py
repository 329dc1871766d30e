"""The recording of a deployment: what the terminal had at which time, as a picture."""

from xml.etree import ElementTree

import pytest

from anemos import log
from bench import recording
from bench.recording import Frame

SVG = "{http://www.w3.org/2000/svg}"


def test_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each moment has the newest lines, and shows which of them will change."""
    recorder = recording.Recorder()
    monkeypatch.setattr(log, "sink", recorder.line)
    monkeypatch.setattr(log, "observers", [recorder])
    with log.step("plan <mx>"):
        for number in range(recording.HEIGHT):
            log.info(f"line {number}")
        recorder.draw()
        first = recorder.frames[-1]
    frames = [first, first._replace(at=first.at + 1), Frame(first.at + 60, ["done"], 0)]

    made = ElementTree.fromstring(recording.picture(recording.chosen(frames)))  # noqa: S314 (our own)

    groups = [[each.text for each in group] for group in made.iter(f"{SVG}g")]
    assert len(groups) == recording.FRAMES
    assert len(groups[0]) == recording.HEIGHT
    assert groups[0][-2:] == [f"  line {recording.HEIGHT - 1}", "plan <mx>  00:00  "]
    assert groups[-1] == ["done"]
    assert [each.get("class") for each in next(made.iter(f"{SVG}g"))][-2:] == [None, "live"]
