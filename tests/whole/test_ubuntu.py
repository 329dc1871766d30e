"""A server as clouds rent it out with Ubuntu 24.04, as far as Debian has what it is made of:
netplan, cloud-init, AppArmor, sshd started by a socket, a user with sudo, no login for root."""

from pathlib import Path

import pytest

from tests import story

pytestmark = [pytest.mark.vm, pytest.mark.root, pytest.mark.real("run", "ssh"), pytest.mark.all]

PACKAGES = "\napparmor\ncloud-init\nnetplan.io\nsudo\nsystemd-resolved\n"
PROVISION = """\
provision() {
    printf '%s\\n' 'NAME="Ubuntu"' ID=ubuntu ID_LIKE=debian 'VERSION_ID="24.04"' \\
        VERSION_CODENAME=noble 'PRETTY_NAME="Ubuntu 24.04 LTS"' >/usr/lib/os-release
    printf '%s\\n' 'datasource_list: [None]' 'ssh_deletekeys: false' 'disable_root: true' \\
        'system_info: {default_user: {name: ubuntu}}' >/etc/cloud/cloud.cfg.d/90-test.cfg
    printf '%s\\n' 'network:' '  version: 2' '  ethernets:' \\
        '    eth0: {addresses: [10.0.2.15/24], nameservers: {addresses: [10.0.2.3]},' \\
        '      routes: [{to: default, via: 10.0.2.2}]}' >/etc/netplan/50-cloud-init.yaml
    chmod 600 /etc/netplan/50-cloud-init.yaml
    echo 'network: {config: disabled}' >/etc/cloud/cloud.cfg.d/99-network.cfg
    rm -r /etc/network
    ln -sf ../run/systemd/resolve/stub-resolv.conf /etc/resolv.conf
    useradd --create-home --shell /bin/bash ubuntu
    install -d -o ubuntu -g ubuntu -m 700 /home/ubuntu/.ssh
    install -o ubuntu -g ubuntu -m 600 /root/.ssh/authorized_keys /home/ubuntu/.ssh
    echo 'ubuntu ALL=(ALL) NOPASSWD:ALL' >/etc/sudoers.d/90-cloud-init-users
    sed -i 's/^/no-pty,command="echo Please login as the user ubuntu; exit 142" /' \\
        /root/.ssh/authorized_keys
    systemctl disable ssh.service
    systemctl enable ssh.socket systemd-networkd systemd-resolved
"""


@pytest.mark.proves("VM", source="Ubuntu 24.04", target="Debian 13", login="sudo")
def test_cloud_server(tmp_path: Path) -> None:
    with story.begun("demo", tmp_path) as server:
        server.change("IMGBUILD", "\nifupdown\n", PACKAGES, "stock")
        server.change("IMGBUILD", "provision() {\n", PROVISION, "stock")
        server.change("host.toml", "ports = ", 'user = "ubuntu"\nports = ')
        server.change("host.toml", "\n[timeouts]", '\n[after]\nuser = "root"\n\n[timeouts]')
        server.deploy()
        assert server.reports[-1]["kept_disks"] == [{"serial": "demo-data", "unchanged": True}]
        assert server.sh("ls -A /home/ubuntu/.ssh") == "authorized_keys\n"
