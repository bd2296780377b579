#!/usr/bin/env bash
# A real S3 server on loopback for the tests: Ceph RGW 20 from Debian's suite forky, in a chroot.
#   scripts/rgw.sh up [PORT] [memstore|bluestore]   build the root once, start, print endpoint and keys, return
#   scripts/rgw.sh down [PORT]                      stop what `up` started
# PORT and PORT + 1 are used. Needs root, and mmdebstrap for the first time. RGW_ROOT: where the root lives (600 MB, kept).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cmd=${1:?up or down} port=${2:-7480} store=${3:-memstore}
root=${RGW_ROOT:-/var/cache/bucketfsd-test/rgw-root}
pidfile=/run/rgw-$port.pid log=/run/rgw-$port.log

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
    mmdebstrap --mode=root --variant=apt --include=ceph-mon,ceph-osd,ceph-common,radosgw \
      --aptopt='APT::Install-Recommends "false"' --aptopt='APT::Sandbox::User "root"' \
      --aptopt='Acquire::Check-Valid-Until "false"' forky "$root.new" \
      "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror forky main" >&2
    rm -rf "$root"
    mv "$root.new" "$root"
  fi
  cp "$here/rgw-in.sh" "$root/root/"
  exec 9>&-
}

case $cmd in
up)
  build
  : >"$log"
  setsid unshare -m -p -f --kill-child --mount-proc="$root/proc" chroot "$root" \
    bash /root/rgw-in.sh "/run/rgw-$port" "$port" "$store" >"$log" 2>&1 </dev/null &
  echo $! >"$pidfile"
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
  echo "rgw.sh up|down [PORT] [memstore|bluestore]" >&2
  exit 2
  ;;
esac
