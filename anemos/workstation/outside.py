"""For a host's own tests: which ports of the machine answer, asked from beyond its firewall.

@pytest.mark.parametrize("address", ADDRESSES)
def test_ports(outside, address):
    assert outside.answering_inside(address) == {22, 443, LISTENS}
    assert outside.answering(address) == {22, 443}
"""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from testinfra.host import Host

from anemos.workstation.machine import Machine

ADDRESSES = ("198.51.100.1", "2001:db8:1::1")  # the machine's, on an interface of its own
LISTENS = 4000  # a port where something listens that no firewall should let through
# Those that services like to use.
PORTS = (*range(1, 700), 993, 995, 2000, 3306, LISTENS, 4190, 5432, 6379, 8953, 11334)
EPHEMERAL = range(32768, 61000)  # ip(7), ip_local_port_range
NETWORK = (
    "netns add outside",
    "link add inside type veth peer name eth0 netns outside",
    "address add 198.51.100.1/24 dev inside",
    "address add 2001:db8:1::1/64 dev inside nodad",
    "link set inside up",
    "-n outside address add 198.51.100.2/24 dev eth0",
    "-n outside address add 2001:db8:1::2/64 dev eth0 nodad",
    "-n outside link set eth0 up",
)
LISTENER = """
import socket, sys
here = "::", int(sys.argv[1])
with socket.create_server(here, family=socket.AF_INET6, dualstack_ipv6=True) as server:
    while True:
        server.accept()
"""
# Prints which of the ports answer.
SCAN = """
import select, socket, sys
address, *ports = sys.argv[1:]
family = socket.AF_INET6 if ":" in address else socket.AF_INET
waiting, poll = {}, select.poll()
for port in ports:
    one = socket.socket(family)
    one.setblocking(False)
    one.connect_ex((address, int(port)))
    poll.register(one, select.POLLOUT)
    waiting[one.fileno()] = one, port
while ready := poll.poll(5000):
    for number, _ in ready:
        one, port = waiting.pop(number)
        poll.unregister(number)
        if not one.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            print(port)
        one.close()
"""


@dataclass(frozen=True)
class Outside:
    """A network namespace of HOST's: its packets go through the firewall, as a stranger's do."""

    host: Host

    def answering(self, address: str) -> set[int]:
        """Which of PORTS answer at ADDRESS."""
        return self._scan("ip netns exec outside", address)

    def answering_inside(self, address: str) -> set[int]:
        """The same, asked by the machine itself."""
        return self._scan("env", address)

    def _scan(self, prefix: str, address: str) -> set[int]:
        ports = " ".join(map(str, PORTS))
        said = self.host.check_output(f"{prefix} python3 -c %s {address} {ports}", SCAN)
        return set(map(int, said.split()))


@pytest.fixture
def outside(host: Host, throwaway: Machine) -> Iterator[Outside]:
    host.check_output(" && ".join(f"ip {words}" for words in NETWORK))
    listen = f"systemd-run --quiet --unit=listener python3 -c %s {LISTENS}"
    host.check_output(listen, LISTENER)
    yield Outside(host)
    host.check_output("systemctl stop listener && ip netns delete outside")


def listening(host: Host) -> set[tuple[str, int]]:
    """What listens beyond loopback on HOST: ("tcp", 22). Clients' sockets of UDP are left out."""
    found = set()
    for each in host.socket.get_listening_sockets():
        kind, _, place = each.partition("://")
        address, _, port = place.rpartition(":")
        client = kind == "udp" and int(port) in EPHEMERAL
        if kind != "unix" and not (client or address.startswith("127.") or address == "::1"):
            found.add((kind, int(port)))
    return found
