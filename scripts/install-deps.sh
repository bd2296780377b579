#!/bin/sh
# Installs the Debian packages that the tests and the demo need. Does nothing, quickly, when all are there.
# Usage: scripts/install-deps.sh [PACKAGE...]   these too; exit 0: everything is there; 1: it is not, and stderr says why
set -eu

# qemu-system-common also brings the C virtiofsd that the benchmark compares with; systemd checks the units; kmod resolves the order of
# the guest's modules; gcc and libc6-dev build the static programs that run in the guest; mmdebstrap makes
# the root in which the S3 server of the tests runs; the others make and mount the file systems on which tests let power fail.
PACKAGES="qemu-system-x86 qemu-system-common busybox-static cpio gcc libc6-dev make kmod systemd mmdebstrap mount e2fsprogs xfsprogs btrfs-progs $*"

missing=""
for package in $PACKAGES; do
  status=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
  [ "$status" = installed ] || missing="$missing $package"
done

if [ -n "$missing" ]; then
  if [ "$(id -u)" -ne 0 ]; then
    echo "install-deps: missing packages:$missing; run as root, or: apt-get install$missing" >&2
    exit 1
  fi
  echo "install-deps: installing$missing" >&2
  export DEBIAN_FRONTEND=noninteractive
  log=$(mktemp)
  trap 'rm -f "$log"' EXIT
  # A third-party list that cannot be reached must not stop us: only the installation itself decides.
  apt-get update -qq >"$log" 2>&1 || true
  # shellcheck disable=SC2086
  if ! apt-get install -y -qq --no-install-recommends $missing >>"$log" 2>&1; then
    cat "$log" >&2
    echo "install-deps: apt-get could not install$missing" >&2
    exit 1
  fi
fi

if ! command -v node >/dev/null || ! node -e '
  const [major, minor] = process.versions.node.split(".").map(Number);
  process.exit(major > 20 || (major === 20 && minor >= 19) ? 0 : 1)'; then
  echo "install-deps: Node.js 20.19 or later is needed (found: $(node --version 2>/dev/null || echo none))" >&2
  exit 1
fi
