#!/usr/bin/env bash
# A real S3 server on loopback for the tests: Ceph RGW 20 from Debian's suite forky, in a chroot.
#   scripts/rgw.sh build                            make the root, which takes some minutes the first time, and say how far it is
#   scripts/rgw.sh up [PORT] [memstore|bluestore]   build if need be, start, print endpoint and keys, return
#   scripts/rgw.sh down [PORT]                      stop what `up` started
# PORT and PORT + 1 are used. Needs root, and mmdebstrap for the first time. RGW_ROOT: where the root lives (600 MB, kept).
# RGW_FOR: process id of whom the server is started for; it ends with that process, however that ends.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cmd=${1:?build, up or down} port=${2:-7480} store=${3:-memstore}
root=${RGW_ROOT:-/var/cache/bucketfsd-test/rgw-root}
pidfile=/run/rgw-$port.pid log=/run/rgw-$port.log

# Whoever ends us, nothing of an unfinished root stays: no process, no mount, no gigabytes.
making=
give_up() {
  [ -z "$making" ] || { kill -9 "$making" 2>/dev/null || true; wait "$making" 2>/dev/null || true; }
  rm -rf "$root.new"
  echo "rgw.sh: the S3 server's root is not finished, and was removed again" >&2
}

build() {
  mkdir -p "$(dirname "$root")"
  # Two at a time would build over each other
  exec 9>"$root.lock"
  flock 9
  if [ ! -x "$root/usr/bin/radosgw" ]; then
    if ! command -v mmdebstrap >/dev/null; then
      echo "rgw.sh: mmdebstrap is missing: run scripts/install-deps.sh as root" >&2
      exit 1
    fi
    local mirror
    mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | grep -v security | sort -u | head -n1)
    if [ -z "$mirror" ]; then
      echo "rgw.sh: apt knows no mirror of Debian: run apt-get update first" >&2
      exit 1
    fi
    rm -rf "$root.new"
    echo "rgw.sh: making the root of the S3 server (Ceph RGW) in $root: 600 MB from $mirror, once, some minutes" >&2
    trap 'exit 1' INT TERM HUP
    trap give_up EXIT
    # Processes and mounts of its own, which go with it. The lock is ours alone
    setpriv --pdeathsig KILL unshare -m -p -f --kill-child --mount-proc ${RGW_MMDEBSTRAP:-mmdebstrap} --quiet --mode=root --variant=apt --include=ceph-mon,ceph-osd,ceph-common,radosgw \
      --aptopt='APT::Install-Recommends "false"' --aptopt='APT::Sandbox::User "root"' \
      --aptopt='Acquire::Check-Valid-Until "false"' forky "$root.new" \
      "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror forky main" >&2 9>&- &
    making=$!
    local before=$SECONDS next=10
    while kill -0 "$making" 2>/dev/null; do
      sleep 0.5 9>&-
      if ((SECONDS - before >= next)); then
        echo "rgw.sh: $(du -sm "$root.new" 2>/dev/null | cut -f1) MB after $((SECONDS - before)) s" >&2
        next=$((next + 10))
      fi
    done
    wait "$making" || exit 1
    making=
    trap - INT TERM HUP EXIT
    rm -rf "$root"
    mv "$root.new" "$root"
    echo "rgw.sh: the root is made, after $((SECONDS - before)) s" >&2
  fi
  cp "$here/rgw-in.sh" "$root/root/"
  exec 9>&-
}

case $cmd in
build)
  build
  ;;
up)
  build
  : >"$log"
  setsid unshare -m -p -f --kill-child --mount-proc="$root/proc" chroot "$root" \
    bash /root/rgw-in.sh "/run/rgw-$port" "$port" "$store" >"$log" 2>&1 </dev/null &
  server=$!
  echo "$server" >"$pidfile"
  if [ -n "${RGW_FOR:-}" ]; then
    setsid bash -c 'tail --pid="$1" -f /dev/null; [ "$(cat "$2" 2>/dev/null)" != "$3" ] || exec "$4" down "$5"' \
      - "$RGW_FOR" "$pidfile" "$server" "$here/rgw.sh" "$port" >/dev/null 2>&1 </dev/null &
  fi
  for _ in $(seq 1200); do
    grep -q '^ready' "$log" && break
    kill -0 "$(cat "$pidfile")" 2>/dev/null || { cat "$log" >&2; exit 1; }
    sleep 0.05
  done
  grep -q '^ready' "$log" || { cat "$log" >&2; exit 1; }
  echo "S3_ENDPOINT=http://127.0.0.1:$port AWS_ACCESS_KEY_ID=AKIATEST AWS_SECRET_ACCESS_KEY=sekret1234567890 AWS_REGION=us-east-1"
  ;;
down)
  [ -f "$pidfile" ] || exit 0
  # unshare --kill-child takes the whole pid namespace with it
  kill -9 "$(cat "$pidfile")" 2>/dev/null || true
  rm -rf "$pidfile" "$log" "$root/run/rgw-$port"
  ;;
*)
  echo "rgw.sh build|up|down [PORT] [memstore|bluestore]" >&2
  exit 2
  ;;
esac
