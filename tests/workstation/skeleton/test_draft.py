"""What the first definition of a server says, by what the server has said. All of it is pure."""

from base64 import b64encode
from pathlib import Path

import pytest

from anemos.log import BAD_INPUT, FAILED, Failure
from anemos.system import imgbuild
from anemos.system.layout import Layout
from anemos.workstation.deploy import facts
from anemos.workstation.skeleton import choice, draft, layout, provision, seen
from anemos.workstation.skeleton.layout import Drawn
from anemos.workstation.skeleton.seen import Seen
from tests import tree
from tests.tree import ROOT

CAPTURED = ROOT / "tests/data"
MOUNTED = """\
part=vda|vda1|1|2048|2048
part=vda|vda2|2|4096|8388608
part=vdb|vdb1|1|2048|2093056
"""
KERNEL_AND_SSHD = ("linux-image-amd64", "openssh-server")
SYSTEM = "system=debian|13|trixie|BOOT_IMAGE=/vmlinuz root=UUID=1 ro quiet console=ttyS0\n"


def found(text: str = "", name: str = "virtio", more: str = MOUNTED) -> Seen:
    """What a server would say that has TEXT to say, too."""
    facts_said = (CAPTURED / f"facts-{name}").read_text()
    return seen.parse(f"{facts_said}{more}{SYSTEM}{text}seen=end\n")


def drawn(name: str, more: str, tables: dict[str, str], loader: str = "grub") -> Drawn:
    text = (CAPTURED / f"facts-{name}").read_text() + more
    return layout.draw("mx", facts.parse(text), tables, loader)


def loaded(lines: Drawn) -> Layout:
    """As an IMGBUILD has them."""
    text = {"target": "debian", "layout": "\n".join(lines.layout), "keep": "\n".join(lines.keep)}
    return imgbuild.interpret(Path("mx"), text).layout


def test_disks_of_the_stock_server() -> None:
    lines = drawn("virtio", MOUNTED, {"vda": "gpt"})

    assert lines.layout == [
        "disk system serial=demo-system",
        "part bios type=bios size=1M",
        "part root fs=ext4 mount=/",
    ]
    (kept,) = lines.keep
    assert kept.startswith("disk home serial=demo-data part=1 mount=/home options=nofail")
    assert (lines.notes, lines.mounts, lines.kept) == ([], {"/"}, {"/home"})
    assert loaded(lines)


def test_partitions_beside_root() -> None:
    """Data is kept, the system's own and swap are made anew, a logical partition cannot be kept."""
    more = """\
part=vda|vda1|1|2048|2097152
part=vda|vda2|2|4194304|8388608
part=vda|vda5|5|16777216|2048
part=vda|vda3|3|20971520|2097152
part=vda|vda6|6|25165824|2097152
part=vdb|vdb1|1|2048|2093056
content=vda6 swap
mount=/dev/nbd0 /net ext4
mount=/dev/vda1 /var ext4
mount=/dev/vda3 /srv xfs
mount=/dev/vda5 /data ext4
mount=/dev/vda2 /srv/again ext4
mount=/dev/loop0 /snap squashfs
"""
    lines = drawn("virtio", more, {"vda": "dos"})

    assert lines.layout == [
        "disk system serial=demo-system table=msdos",
        "part var fs=ext4 size=1024M mount=/var",
        "part swap type=swap fs=swap size=1024M",
        "part root fs=ext4 mount=/",
    ]
    assert [each.split(" options")[0] for each in lines.keep] == [
        "disk home serial=demo-data part=1 mount=/home",
        "part srv disk=system number=3 mount=/srv",
    ]
    assert lines.notes == [
        "/net (nbd0) is in neither layout nor keep",
        "/data (vda5) lies on vda: a deployment would ERASE it",
    ]
    assert loaded(lines)


def test_uefi_and_a_point_with_a_blank() -> None:
    more = "part=nvme0n1|nvme0n1p1|1|2048|2097152\npart=nvme0n1|nvme0n1p2|2|9999999|9\n"
    more += "part=sda|sda1|1|2048|2048\n"
    lines = drawn("scsi-nvme", more, {})

    assert lines.layout[1:] == [
        "part esp type=esp size=1024M fs=vfat mount=/boot/efi",
        "part root fs=ext4 mount=/",
    ]
    assert lines.notes == [r"/srv/a\040b=c (sda1) is in neither layout nor keep"]
    assert loaded(lines)


def test_root_on_volumes() -> None:
    """It is told that they are not taken over, and what would be lost."""
    more = MOUNTED + "mapped=dm-0|vg0-root\nmapped=dm-1|vg0-srv\nmapped=dm-2|vg1-big\n"
    more += "slave=dm-0|vda2\nslave=dm-1|vda2\nslave=dm-2|vdb1\n"
    more += "mount=/dev/dm-1 /srv ext4\nmount=/dev/dm-2 /big ext4\n"
    text = (CAPTURED / "facts-virtio").read_text() + more
    text = text.replace("mount=/dev/vda2 /", "mount=/dev/mapper/vg0-root /")
    text = text.replace("mount=/dev/vdb1 /home ext4\n", "")
    lines = layout.draw("mx", facts.parse(text), {}, "grub")

    assert lines.notes == [
        "/ is on vg0-root there; the layout here puts it onto a plain partition of vda",
        "/srv (vg0-srv) lies on vda: a deployment would ERASE it",
        "/big (vg1-big) is kept, but nothing mounts it here",
    ]
    assert lines.keep == ["disk kept-vdb serial=demo-data"]
    assert loaded(lines)


PACKAGES = """\
package=dpkg\tinstalled\tyes\trequired\tlibc\t\t
package=libc\tinstalled\tno\toptional\t\t\t
package=libfoo\tinstalled\tno\toptional\tlibc\t\t
package=cron\tinstalled\tno\timportant\tlibfoo\texim | mta\t
package=postfix\tinstalled\tno\toptional\tlibfoo (>= 2), exim | mta\t\tmta (= 1)
package=certs\tinstalled\tno\toptional\t\t\t
package=web\tinstalled\tno\toptional\ttool:any [amd64]\tcerts, linux-image-6.1.0-1-amd64\t
package=tool\tinstalled\tno\toptional\t\tmissing\t
package=old\tconfig-files\tno\toptional\t\t\t
package=leftover\tinstalled\tno\toptional\t\t\t
package=linux-image-amd64\tinstalled\tno\toptional\tlinux-image-6.1.0-1-amd64\t\t
package=linux-image-6.1.0-1-amd64\tinstalled\tno\toptional\t\t\t
package=cloud-init\tinstalled\tno\toptional\t\t\t
manual=dpkg
manual=libc
manual=libfoo
manual=cron
manual=web
manual=tool
manual=old
manual=linux-image-6.1.0-1-amd64
manual=cloud-init
"""


def test_packages() -> None:
    """On purpose: with what is recommended, without libraries and what nobody needs any more."""
    chosen = choice.choose(found(PACKAGES), {"grub-pc"})

    names = ("cron", "grub-pc", "linux-image-amd64", "openssh-server", "tool", "web")
    assert chosen == choice.Choice(names, ("certs", "postfix"))


@pytest.mark.parametrize(
    ("old", "new", "message", "status"),
    [
        ("debian|13", "ubuntu|24.04", "the server runs ubuntu 24.04 on x86_64: only D", BAD_INPUT),
        ("debian|13", "debian|11", "the server runs debian 11 on x86_64: only Debian", BAD_INPUT),
        ("machine=x86_64", "machine=riscv64", "runs debian 13 on riscv64", BAD_INPUT),
        ("user=0", "user=1000", "commands do not run as root there", BAD_INPUT),
        ("place=system", "place=initramfs", "this is the initramfs of deployment", BAD_INPUT),
        ("seen=end", "", "what the server says of itself is not complete", FAILED),
        ("seen=end", "file=/etc/x|644|root\nseen=end", "says of itself makes no sense", FAILED),
        ("seen=end", "link=/etc/../x|y\nseen=end", "makes no sense: path '/etc/../x'", FAILED),
        ("seen=end", "gone=/usr/x\nseen=end", "makes no sense: path '/usr/x'", FAILED),
        ("seen=end", "hidden=/etc/a'b|600|a|b|1|\nseen=end", "makes no sense: path", FAILED),
        ("|trixie|", "|$(reboot)|", "makes no sense: suite", FAILED),
    ],
)
def test_refused(old: str, new: str, message: str, status: int) -> None:
    text = (CAPTURED / "facts-virtio").read_text() + SYSTEM + "seen=end\n"
    assert old in text

    with pytest.raises(Failure, match=message) as caught:
        seen.parse(text.replace(old, new))
    assert caught.value.status == status


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("192.0.2.1", ("192.0.2.1", 22, "root", False)),
        ("debian@mx.example.org:2222", ("mx.example.org", 2222, "debian", True)),
        ("root@[2001:db8::1]", ("2001:db8::1", 22, "root", False)),
    ],
)
def test_address(address: str, expected: tuple[object, ...]) -> None:
    where = draft.endpoint(address, "")

    assert (where.address, where.port, where.user, where.sudo) == expected


@pytest.mark.parametrize("address", ["", "a b", "root@", "2001:db8::g"])
def test_no_address(address: str) -> None:
    with pytest.raises(Failure, match="write \\[USER@\\]ADDRESS"):
        draft.endpoint(address, "")


def test_words_of_the_kernel() -> None:
    assert draft.cmdline(found()) == "console=ttyS0"
    lines = SYSTEM.replace("BOOT_IMAGE=/vmlinuz ", "")
    text = (CAPTURED / "facts-virtio").read_text() + lines + "seen=end\n"
    assert draft.cmdline(seen.parse(text)) == ""  # nobody knows who said them


def test_nothing_that_a_shell_would_run() -> None:
    """A package's or a user's name is not to be trusted with the workstation."""
    text = "package='; reboot '\tinstalled\tno\toptional\t\t\t\nmanual='; reboot '\n"
    text += "account=a;reboot|1000|1000|/home/a b|/bin/sh|$(reboot)\nteam=a;reboot|1000|\n"
    text += f"key=a;reboot|/home/a b/.ssh/authorized_keys|{tree.HOST_KEY}\n"
    text += "disk=x' reboot '|9||naa.1'|\nslave=dm-0|x' reboot '\nmapped=dm-0|vg\n"
    text += "mount=/dev/mapper/vg /srv ext4\n"
    made = draft.make("mx", found(text), draft.endpoint("192.0.2.1", ""))

    said = made.files["IMGBUILD"][0].decode()
    assert "groupadd --gid 1000 'a;reboot'\n" in said
    assert said.count("--comment '$(reboot)' --home-dir '/home/a b'") == 1
    assert "; reboot" not in said
    assert "disk kept-x-reboot wwn=naa.1\\047\n" in said
    assert [path for path in made.files if "reboot" in path or " " in path] == []


def test_people_on_a_kept_disk() -> None:
    """Their homes and keys are there: with the same numbers they own them."""
    text = "account=alice|1000|1000|/home/alice|/bin/sh|\nteam=alice|1000|\n"
    text += f"key=alice|/home/alice/.ssh/authorized_keys|{tree.HOST_KEY}\n"
    made = draft.make("mx", found(text), draft.endpoint("192.0.2.1", ""))

    said = made.files["IMGBUILD"][0].decode()
    assert "--no-create-home alice\n" in said
    assert "chown" not in said
    assert set(made.files) == {"IMGBUILD", "host.toml"}


def test_units() -> None:
    """By somebody's hand, and neither of a package that is gone nor by systemd's own presets."""
    names = ("mine@x.service", "gone.service", "remote-fs.target", "own.service")
    links = [f"a.target.wants/{each}" for each in names]
    text = "".join(f"link=/etc/systemd/system/{each}|x\n" for each in links)
    text += "made=a.target.wants/own.service\nmade=a.target.wants/off.timer\n"
    text += "made=a.target.wants/removed.service\nmade=b.target.wants/own.service\n"
    for each in ("mine@.service", "remote-fs.target", "own.service", "off.timer"):
        text += f"unit={each}\n"

    assert provision.units(found(text)) == ({"mine@x.service"}, {"off.timer"})


def test_files_that_packages_have_made() -> None:
    """What nobody has changed would only be in the way: an initramfs is made anew for it."""
    data = {"environment": b"", "shells": b"/bin/sh\n", "motd": b""}
    text = "".join(
        f"file=/etc/{name}|644|root|root|1|{b64encode(each).decode()}\n"
        for name, each in data.items()
    )

    assert [each.path for each in found(text).files] == ["etc/shells", "etc/motd"]


LISTS = {
    "sources.list": "# deb http://x.example.org/ a\n"
    "deb [arch=amd64] http://deb.debian.org/debian trixie main contrib # of ours\n"
    "deb-src http://src.example.org/debian trixie main\n",
    "sources.list.d/debian.sources": "Types: deb\nURIs: mirror+file:/etc/apt/mirrors/debian.list\n"
    "Suites: trixie trixie-updates\nComponents: main non-free-firmware\n\n"
    "Types: deb\nURIs: https://packages.example.org/debian\nSuites: stable\nComponents: main\n",
    "sources.list.d/php.list": "deb https://php.example.org/php trixie main\n",
}


def test_repositories() -> None:
    lists = {name: b64encode(text.encode()).decode() for name, text in LISTS.items()}
    text = "".join(f"file=/etc/apt/{name}|644|root|root|1|{data}\n" for name, data in lists.items())

    assert choice.sources(found(text)) == (
        ["contrib", "main", "non-free-firmware"],
        ["https://packages.example.org/debian", "https://php.example.org/php"],
    )


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (" dynamic", "", ("10.0.2.15/24", "10.0.2.2")),
        ("", "", None),  # by DHCP
        ("10.0.2.15/24 brd 10.0.2.255 scope global dynamic", "10.0.2.15/32 scope global", None),
    ],
)
def test_network_of_the_vm(old: str, new: str, expected: object) -> None:
    text = (CAPTURED / "facts-virtio").read_text().replace(old, new, 1) + SYSTEM + "seen=end\n"

    assert draft.static(seen.parse(text)) == expected


@pytest.mark.real("run")
def test_what_a_definition_lacks(tmp_path: Path) -> None:
    """It is written all the same, and says so."""
    text = b"# - one\ntarget=debian\nlayout='disk a'\n"
    given = draft.Draft({"IMGBUILD": (text, 0o644)}, {}, ["one"])

    first, *rest = draft.write(tmp_path / "mx", given, "root")
    assert first.startswith("IMGBUILD: 'disk a': which disk?")
    assert rest == ["one"]
    assert (tmp_path / "mx/IMGBUILD").read_text().startswith(f"# - {first}\n# - one\n")
    assert [each.name for each in tmp_path.iterdir()] == ["mx"]


@pytest.mark.real("run")
def test_a_server_that_says_little(tmp_path: Path) -> None:
    """Its definition loads, and tells that nobody could log in."""
    made = draft.make("mx", found(), draft.endpoint("192.0.2.1", ""))

    notes = draft.write(tmp_path / "mx", made, "root")
    assert notes[0].startswith("nobody could log in to the new system as root")
    assert "no file for the network was found: nothing else carries it over" in notes
    assert imgbuild.load(tmp_path / "mx").packages == ("e2fsprogs", "grub-pc", *KERNEL_AND_SSHD)


@pytest.mark.parametrize(
    ("card", "words", "told"),
    [("eth0", "net.ifnames=0", False), ("eth0", "", True), ("ens18", "net.ifnames=0", True)],
)
def test_name_of_the_card(card: str, words: str, told: bool) -> None:
    """It has to be the same in a VM."""
    text = (CAPTURED / "facts-virtio").read_text().replace("eth0", card)
    text += SYSTEM.replace("ro quiet", f"ro {words}") + "seen=end\n"

    notes = [*draft.network(seen.parse(text))]
    assert [each for each in notes if f"no network card {card}: " in each] == (
        notes[1:] if told else []
    )
    assert len(notes) == 1 + told
