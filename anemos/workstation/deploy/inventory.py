"""A dynamic inventory for Ansible: the servers of hosts/, in groups by their tags.

Its form: Ansible's developer guide, "Developing dynamic inventory". Ansible calls a program with
--list, or with --host NAME, and reads JSON.
"""

import os
import shlex

from anemos.log import die
from anemos.workstation import Result, hosts, places
from anemos.workstation.deploy import reach
from anemos.workstation.hosts import Host

Variables = dict[str, str | int | bool]


def listed() -> Result:
    """All servers. Raises Failure for one that is not complete: nobody shall miss it in `all`."""
    servers = [hosts.load(name) for name in hosts.known() if is_server(name)]
    groups: dict[str, list[str]] = {}
    for host in servers:
        for tag in host.tags or ["ungrouped"]:
            groups.setdefault(tag, []).append(host.name)
    for name in groups.keys() & set(hosts.known()):
        die(f"{name} is a tag and a host", hint="Ansible could not tell them apart")
    tagged = {tag: {"hosts": names} for tag, names in sorted(groups.items())}
    meta = {"hostvars": {host.name: variables(host) for host in servers}}
    return {"_meta": meta, "all": {"children": sorted({"ungrouped", *groups})}, **tagged}


def is_server(name: str) -> bool:
    """It has an address, and so is no local VM."""
    return bool(hosts.incomplete(name).get("address"))


def variables(host: Host) -> Variables:
    """How Ansible reaches HOST: as we do, under the pinned key (ansible.builtin.ssh)."""
    where = reach.endpoint(host)
    _ssh, *words, _login = reach.login(where, places.state(host.name) / "known_hosts")
    identity = {"ansible_ssh_private_key_file": os.fspath(where.identity)} if where.identity else {}
    return {
        "ansible_connection": "ssh",
        "ansible_host": where.address,
        "ansible_port": where.port,
        "ansible_user": where.user,
        "ansible_ssh_common_args": shlex.join(words),
        # ssh(1) obeys the first of several options, and Ansible's own come first.
        "ansible_host_key_checking": True,
        **identity,
    }
