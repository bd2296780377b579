#!/bin/bash
# Makes a kernel and an initramfs for the test guest: .cache/guest/<series>/vmlinuz and initrd.
# Usage: scripts/guest-image.sh [SERIES]     SERIES is 6.1 (default) or 6.12; prints the directory
#
# The kernel is Debian's cloud kernel, downloaded and unpacked but not installed. The initramfs holds busybox, the
# modules that virtiofs and a disk with ext4 need, scripts/guest-init.sh and the fact program of test/e2e/posix. Whatever is up to date
# is not made again.
set -euo pipefail

series=${1:-6.1}
root=$(cd "$(dirname "$0")/.." && pwd)
cache=$root/.cache/guest
dir=$cache/$series
busybox=/bin/busybox

fail() { echo "guest-image: $*" >&2; exit 1; }
[[ $series =~ ^[0-9]+\.[0-9]+$ ]] || fail "not a kernel series: $series (6.1 or 6.12, say)"
[[ $(uname -m) = x86_64 ]] || fail "the test guest is x86-64 only"
export PATH=$PATH:/usr/sbin:/sbin
for tool in cpio gcc modprobe depmod apt-get dpkg-deb flock "$busybox"; do
  command -v "$tool" >/dev/null || fail "$tool is missing: run scripts/install-deps.sh"
done

mkdir -p "$dir"
exec 9>"$cache/lock"
flock 9

# The package with the image itself, of the wanted series: meta-packages depend on it; failing that, the newest name.
resolve_package() {
  local meta found
  for meta in "linux-image-$series-cloud-amd64" linux-image-cloud-amd64; do
    found=$(apt-cache depends --important "$meta" 2>/dev/null |
      sed -n "s/^ *Depends: \(linux-image-${series/./\\.}\.[0-9].*\)$/\1/p" | head -n 1)
    [[ -n $found ]] && break
  done
  if [[ -z $found ]]; then
    found=$(apt-cache search --names-only "^linux-image-${series/./\\.}\.[0-9].*-cloud-amd64$" |
      cut -d' ' -f1 | sort -V | tail -n 1)
  fi
  echo "$found"
}

download_package() { # into the current directory
  local package
  package=$(resolve_package)
  [[ -n $package ]] || return 1
  apt-get -qq -o APT::Sandbox::User=root download "$package" >&2 || return 1
}

make_kernel() {
  local work deb release
  work=$(mktemp -d "$cache/unpack.XXXXXX")
  # shellcheck disable=SC2064
  trap "rm -rf '$work'" EXIT
  cd "$work"
  echo "guest-image: fetching and unpacking Debian's kernel $series for the test guest, once" >&2
  if ! download_package 2>download.log; then
    # The package lists are absent or older than the mirror.
    [[ $(id -u) -eq 0 ]] && { apt-get update -qq >/dev/null 2>&1 || true; }
    download_package || fail "no cloud kernel of series $series could be downloaded with apt-get"
  fi
  deb=$(ls ./*.deb)
  dpkg-deb -x "$deb" tree
  [[ -d tree/lib/modules ]] || { mkdir -p tree/lib; ln -s ../usr/lib/modules tree/lib/modules; }
  release=$(ls tree/lib/modules)
  depmod -b "$work/tree" "$release"
  rm -rf "$dir/modules"
  mkdir "$dir/modules"
  # modprobe lists each module after those that it depends on; what is built in is not listed as insmod.
  local path name
  for module in virtio_pci virtiofs virtio_blk ext4; do
    modprobe -d "$work/tree" -S "$release" --show-depends "$module"
  done | sed -n 's/^insmod \([^ ]*\).*/\1/p' | awk '!seen[$0]++' | while read -r path; do
    name=$(basename "${path%.xz}")
    case $path in
      *.xz) "$busybox" xzcat "$path" >"$dir/modules/$name" ;;
      *) cp "$path" "$dir/modules/$name" ;;
    esac
    echo "$name"
  done >"$dir/modules/order"
  grep -q '^virtiofs\.ko$' "$dir/modules/order" || grep -q '/virtiofs\.ko$' "tree/lib/modules/$release/modules.builtin" ||
    fail "kernel $release has no virtiofs"
  echo "$release" >"$dir/release"
  cp tree/boot/vmlinuz-* "$dir/vmlinuz.new"
  cd "$root"
  rm -rf "$work"
  trap - EXIT
  mv "$dir/vmlinuz.new" "$dir/vmlinuz"
}

newer() { # target, sources: is the target missing, or older than one of them?
  local target=$1 source
  shift
  [[ -e $target ]] || return 0
  for source in "$@"; do [[ $source -nt $target ]] && return 0; done
  return 1
}

make_initrd() {
  local work
  work=$(mktemp -d "$cache/initrd.XXXXXX")
  # shellcheck disable=SC2064
  trap "rm -rf '$work'" EXIT
  mkdir "$work/bin"
  cp "$busybox" "$work/bin/busybox"
  cp "$cache/posix" "$work/bin/posix"
  cp -r "$dir/modules" "$work/modules"
  install -m 755 "$root/scripts/guest-init.sh" "$work/init"
  # Not compressed: unpacking in an emulated processor costs more than reading.
  (cd "$work" && find . | cpio --quiet -o -H newc -R 0:0) >"$dir/initrd.new"
  rm -rf "$work"
  trap - EXIT
  mv "$dir/initrd.new" "$dir/initrd"
}

[[ -s $dir/vmlinuz && $dir/modules/order -nt $root/scripts/guest-image.sh ]] || make_kernel

sources=("$root"/test/e2e/posix/*.c "$root"/test/e2e/posix/*.h)
if newer "$cache/posix" "${sources[@]}"; then
  gcc -std=gnu17 -O1 -fno-toplevel-reorder -Wall -Wextra -static -o "$cache/posix.new" "$root"/test/e2e/posix/*.c
  mv "$cache/posix.new" "$cache/posix"
fi
if newer "$dir/initrd" "$dir/vmlinuz" "$cache/posix" "$root/scripts/guest-init.sh" "$root/scripts/guest-image.sh" "$busybox"; then
  make_initrd
fi
echo "$dir"
