#!/bin/sh
# A throw-away VM mounts a share and uses it. Called by `make demo`, which has built the daemon and installed what is
# missing; the guest's image is made here the first time, in .cache/.
set -eu
cd "$(dirname "$0")/.."
scripts/install-deps.sh
# The first time takes minutes, and says so
[ "${SOURCE:-directory}" != s3 ] || scripts/rgw.sh build
[ -f build/test/e2e/demo.js ] || make build
exec node build/test/e2e/demo.js
