#!/bin/sh
# Cloud Hypervisor with one share. Start the daemon first: systemctl start bucketfsd@NAME, or by hand:
#   bucketfsd --socket-path /run/bucketfsd/share.sock --source /srv/share
# Usage: cloud-hypervisor.sh KERNEL DISK-IMAGE [more arguments]
#   SOCKET=/run/bucketfsd/share.sock  TAG=share  MEMORY=2G  CPUS=2  DRY_RUN= (1: only print the command)
set -eu

kernel=${1:?usage: cloud-hypervisor.sh KERNEL DISK-IMAGE [more arguments]}
disk=${2:?usage: cloud-hypervisor.sh KERNEL DISK-IMAGE [more arguments]}
shift 2

# shared=on: the daemon reads and writes the guest's memory. queue_size=1024 allows requests of 1 MiB.
# When the daemon is restarted, Cloud Hypervisor connects again by itself.
set -- cloud-hypervisor \
  --kernel "$kernel" --cmdline "console=ttyS0 root=/dev/vda1 rw" \
  --disk "path=$disk" \
  --cpus "boot=${CPUS:-2}" --memory "size=${MEMORY:-2G},shared=on" \
  --fs "tag=${TAG:-share},socket=${SOCKET:-/run/bucketfsd/share.sock},num_queues=1,queue_size=1024" \
  --serial tty --console off "$@"

if [ -n "${DRY_RUN:-}" ]; then
  echo "$*"
else
  exec "$@"
fi
