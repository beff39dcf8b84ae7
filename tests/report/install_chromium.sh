#!/bin/sh
# Brings Chromium and its driver where they are missing (Debian and its kin; as root or with sudo), for the test of the report in a browser.
# Where they cannot be brought this says so, and the test skips.
set -u
as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }

install() {
	command -v apt-get >/dev/null || return 1
	as_root apt-get update -qq
	as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium chromium-driver >/dev/null
}

command -v chromedriver >/dev/null || install || echo "test of the report: wanted chromium and chromedriver, found none and could not install them" >&2
