"""The network that the old system had, as boot.json carries it over (server/network.py says how).

Addresses and routes are ip-address(8)'s and ip-route(8)'s JSON, cut down to what is carried.
"""

from typing import Literal, NotRequired, Required, TypedDict

Family = Literal["inet", "inet6"]


class Address(TypedDict, total=False):
    family: Required[Family]
    local: Required[str]
    prefixlen: Required[int]
    address: str  # the other end's
    scope: str
    metric: int
    noprefixroute: bool
    deprecated: bool


class Hop(TypedDict, total=False):
    family: str
    host: str


class Route(TypedDict, total=False):
    family: Required[Literal["-4", "-6"]]
    dst: Required[str]
    gateway: str
    via: Hop  # a gateway of the other family
    prefsrc: str
    tos: str
    scope: str
    pref: str
    metric: int
    metrics: list[dict[str, str | int]]
    flags: list[str]


class Common(TypedDict):
    name: str
    bears: NotRequired[list[str]]  # the interfaces whose addresses it has
    mtu: int
    needed: bool  # by the operator
    ipv6: bool  # whether it has any
    addresses: list[Address]
    routes: list[Route]
    dhcp: bool  # whether a lease wants to be kept alive
    mac: str  # a card's own; of a VLAN, "" for its parent's


class Ether(Common):
    kind: Literal["ether"]
    address: str  # another one than MAC, set by hand
    bus: str


class Bond(Common):
    kind: Literal["bond"]
    members: list[str]
    options: dict[str, str | int]


class Vlan(Common):
    kind: Literal["vlan"]
    parent: str
    id: int
    protocol: str
    options: list[str]


Interface = Ether | Bond | Vlan


class Network(TypedDict):
    interfaces: list[Interface]  # those that others need come before them, the operator's first
    left: NotRequired[list[str]]  # what is not carried over
    dns: list[str]
    operator: Family
