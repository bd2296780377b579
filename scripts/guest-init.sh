#!/bin/busybox sh
# /init of the test guest. Two serial ports: ttyS0 is the kernel's console, ttyS1 carries commands and results, so
# that a kernel message can never land in the middle of a result.
#
# Kernel command line:
#   e2e.tag=TAG    mount this virtiofs tag on /mnt before anything runs
#   e2e.run=BASE64 run this shell text once, then power off; without it, commands come over ttyS1
#
# On ttyS1, from the host, a line "NUMBER BASE64" runs the decoded shell text. To the host:
#   @@e2e init                         (before any driver that is a module is there)
#   @@e2e ready KERNEL_RELEASE
#   @@e2e mount EXIT_CODE              (only with e2e.tag)
#   @@e2e NUMBER begin
#   ... output, standard error included, then one newline that is not part of it ...
#   @@e2e NUMBER exit EXIT_CODE
/bin/busybox mkdir -p /proc /sys /dev /run /tmp /mnt /root
/bin/busybox --install -s /bin
export PATH=/bin HOME=/root
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
echo "@@e2e init" >/dev/ttyS1
mount -t tmpfs tmpfs /tmp
ip link set lo up 2>/dev/null

while read -r module; do
  insmod "/modules/$module" || echo "e2e: cannot load $module"
done </modules/order

tag=""
run=""
for word in $(cat /proc/cmdline); do
  case $word in
    e2e.tag=*) tag=${word#e2e.tag=} ;;
    e2e.run=*) run=${word#e2e.run=} ;;
  esac
done

# Raw: no echo of what the host sends, no line endings changed.
stty -F /dev/ttyS1 raw -echo
exec </dev/ttyS1 >/dev/ttyS1 2>&1

run_one() { # number, base64 text
  echo "@@e2e $1 begin"
  echo "$2" | base64 -d >/run/command
  # A session of its own, so that what the command leaves running does not end with the shell that read it.
  (cd / && sh /run/command </dev/null)
  printf '\n@@e2e %s exit %s\n' "$1" "$?"
}

echo "@@e2e ready $(uname -r)"
if [ -n "$tag" ]; then
  mount -t virtiofs "$tag" /mnt
  echo "@@e2e mount $?"
fi

if [ -n "$run" ]; then
  run_one 0 "$run"
  sync
  poweroff -f
fi

while read -r number encoded; do
  run_one "$number" "$encoded"
done
# The host closed the line: nothing is left to do.
poweroff -f
