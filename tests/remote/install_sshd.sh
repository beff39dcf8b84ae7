#!/bin/sh
# Brings OpenSSH's server where it is missing (Debian and its kin; as root or with sudo). The test starts its own servers
# on free ports and stops them; none is left running here. Where it cannot be brought this says so, and the test skips.
set -u
as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }
PATH="$PATH:/usr/sbin:/sbin"

install() {
	command -v apt-get >/dev/null || return 1
	as_root apt-get update -qq
	as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends openssh-server >/dev/null || return 1
	# the package starts a server on port 22, which nobody asked for
	if [ -d /run/systemd/system ]; then as_root systemctl disable --quiet --now ssh; fi
}

command -v sshd >/dev/null || install || { echo "test-remote: wanted sshd, found none and could not install openssh-server" >&2; exit 0; }
# a server that runs as root wants this empty folder, which a boot makes
[ "$(id -u)" != 0 ] || mkdir -p -m 0755 /run/sshd
