"""Tables for people."""

import pytest

from anemos.workstation import report


def test_table_in_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    """A line stays one, for grep(1); what servers say is shown as text."""
    report.table({"host": True, "what": False}, [["mx", "word " * 60], ["w\x1b[2J", "[red]x"]])
    drawn = capsys.readouterr().err.splitlines()
    assert sum("word" in line for line in drawn) == 1
    assert "\x1b" not in "".join(drawn)
    assert any("[red]x" in line for line in drawn)
