"""Boot entries: what efibootmgr is told."""

from pathlib import Path

import pytest

from anemos.initramfs import firmware

# As efibootmgr 17 prints it; 18 adds the device's path behind a tab.
LISTING = """\
BootCurrent: 0001
Timeout: 0 seconds
BootOrder: 0001,0000,0003,0002
Boot0000* UiApp
Boot0001* anemos
Boot0002* anemos too
Boot0003  anemos\tHD(2,GPT,b0a2)/File(\\EFI\\BOOT\\BOOTX64.EFI)
Boot000A* debian
"""


def test_commands() -> None:
    """Our old entries go; of the new ones, the first disk's is made last, and so stands first."""
    partitions = [(Path("/dev/sda"), 2), (Path("/dev/sdb"), 1)]
    deleted, again, second, first = firmware.commands(LISTING, partitions)
    assert [argv[-1] for argv in (deleted, again)] == ["0001", "0003"]
    assert deleted[:-1] == ["efibootmgr", "--quiet", "--delete-bootnum", "--bootnum"]
    assert second[2:7] == ["--create", "--disk", "/dev/sdb", "--part", "1"]
    assert first[2:7] == ["--create", "--disk", "/dev/sda", "--part", "2"]
    assert first[7:] == ["--label", "anemos", "--loader", "\\EFI\\BOOT\\BOOTX64.EFI"]


def test_machine_without_uefi(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(firmware, "FIRMWARE", tmp_path / "efi")
    firmware.register([])
    assert capsys.readouterr().err == ""
    firmware.register([(Path("/dev/sda"), 1)])
    assert "UEFI firmware has to find EFI/BOOT by itself" in capsys.readouterr().err


@pytest.mark.real("run")
def test_firmware_that_takes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(firmware, "FIRMWARE", tmp_path)  # nothing can be mounted there
    firmware.register([(Path("/dev/sda"), 1)])
    assert "warning: the firmware does not take a boot entry: mount -t" in capsys.readouterr().err
