#!/bin/sh
# QEMU with one share. Start the daemon first: systemctl start bucketfsd@NAME, or by hand:
#   bucketfsd --socket-path /run/bucketfsd/share.sock --source /srv/share
# Usage: qemu.sh DISK-IMAGE [more QEMU arguments]
#   SOCKET=/run/bucketfsd/share.sock  TAG=share  MEMORY=2G  CPUS=2  QUEUES=1  ACCEL=kvm  DRY_RUN= (1: only print the command)
set -eu

disk=${1:?usage: qemu.sh DISK-IMAGE [more QEMU arguments]}
shift

# The daemon reads and writes the guest's memory, so it must be shareable: memory-backend-memfd,share=on.
# queue-size=1024 lets the guest send requests of 1 MiB; with the default of 128 they are smaller.
# num-request-queues above 1 is of use to Linux 6.11 and later, with one queue for each CPU.
set -- qemu-system-x86_64 \
  -machine "q35,accel=${ACCEL:-kvm}" -cpu max -smp "${CPUS:-2}" -m "${MEMORY:-2G}" \
  -object "memory-backend-memfd,id=mem,size=${MEMORY:-2G},share=on" -numa node,memdev=mem \
  -drive "file=$disk,if=virtio" \
  -chardev "socket,id=share,path=${SOCKET:-/run/bucketfsd/share.sock}" \
  -device "vhost-user-fs-pci,chardev=share,tag=${TAG:-share},queue-size=1024,num-request-queues=${QUEUES:-1}" \
  -nographic "$@"

if [ -n "${DRY_RUN:-}" ]; then
  echo "$*"
else
  exec "$@"
fi
