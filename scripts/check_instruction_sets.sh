#!/usr/bin/env bash
# Runs the CPU kernels on instruction sets that this machine lacks, in emulators, and compares with
# the float64 oracle: scripts/check_instruction_sets.sh [neon] [avx512] (both). One line a check;
# ends with status 0 if all of them passed.
#
# Needed, as Debian calls them: cmake and a Python with erd_cuda built (PYTHON, python3);
#   neon     g++-aarch64-linux-gnu qemu-user
#   avx512   nothing where the processor has it, else bochs bochs-term vgabios isolinux
#            syslinux-common xorriso cpio busybox-static and a Linux kernel for x86-64 (KERNEL,
#            the newest of /boot/vmlinuz-*; the package linux-image-cloud-amd64 has a small one)
# BUILD is the directory to work in (build/instruction_sets). Takes some ten minutes on one core.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
sources=$root/scripts/instruction_sets
build=$(realpath -m "${BUILD:-$root/build/instruction_sets}")
python=${PYTHON:-python3}
checks=("$@")
[ $# -gt 0 ] || checks=(neon avx512)
failed=0

say() { # say CHECK STATUS: one line, with what a run of the cases said last
  if [ "$2" = 0 ]; then echo "$1: right ($(tail -n 1 "$build/$1.txt"))"; else
    echo "$1: WRONG, see $build/$1.txt"
    grep -aE 'WRONG|killed' "$build/$1.txt" | head -n 5 || true
    failed=1
  fi
}

missing() { # missing COMMAND...: the first that is not there
  for name in "$@"; do command -v "$name" >/dev/null || { echo "$name"; return; }; done
}

compile() { # compile NAME OPTION...: the runner
  local name=$1
  shift
  cmake -S "$sources" -B "$build/$name" "$@" >"$build/$name.build.txt" &&
    cmake --build "$build/$name" --target instruction_sets >>"$build/$name.build.txt" 2>&1 ||
    { tail -n 20 "$build/$name.build.txt"; exit 1; }
}

tiles() { # tiles NAME OBJDUMP DIRECTORIES: the innermost loops keep their sums in registers
  local status=0
  "$2" -dC "$3"/*.o "$4"/refine_bf16.cpp.o | "$python" "$sources/tiles.py" >"$build/$1.txt" ||
    status=$?
  say "$1" $status
}

check_neon() {
  local lacks
  lacks=$(missing aarch64-linux-gnu-g++ aarch64-linux-gnu-objdump qemu-aarch64)
  if [ -n "$lacks" ]; then echo "neon: not checked, needs $lacks"; failed=1; return; fi
  compile neon -DCMAKE_TOOLCHAIN_FILE="$sources/aarch64.cmake"
  tiles neon-tiles aarch64-linux-gnu-objdump \
    "$build"/neon/erd_cuda/CMakeFiles/erd_cpu_{portable,neon_bf16}.dir/csrc/cpu
  local status=0
  qemu-aarch64 "$build/neon/instruction_sets" "$build/cases" portable neon_bf16 \
    >"$build/neon.txt" || status=$?
  say neon $status
}

# A guest that runs the cases and says so on its serial line, which is a file.
boot_guest() { # boot_guest RUNNER KERNEL
  local guest=$build/guest
  rm -rf "$guest" && mkdir -p "$guest"/{files/bin,files/dev,disc/isolinux}
  cp "$1" "$guest/files/instruction_sets"
  cp "$build/cases" "$guest/files/cases"
  cp "$(command -v busybox)" "$guest/files/bin/busybox"
  install -m 755 "$sources/guest_init" "$guest/files/init"
  (cd "$guest/files" && find . | cpio --quiet -o -H newc | gzip -1) >"$guest/disc/initrd.gz"
  cp "$2" "$guest/disc/vmlinuz"
  cp /usr/lib/ISOLINUX/isolinux.bin /usr/lib/syslinux/modules/bios/ldlinux.c32 "$guest/disc/isolinux"
  cp "$sources/isolinux.cfg" "$guest/disc/isolinux"
  xorriso -as mkisofs -quiet -o "$guest/disc.iso" -b isolinux/isolinux.bin -c isolinux/boot.cat \
    -no-emul-boot -boot-load-size 4 -boot-info-table "$guest/disc" 2>/dev/null
  echo c >"$guest/start"
  mkfifo "$guest/keyboard"
  touch "$build/avx512.txt"
  # It reads commands if its debugger is compiled in, and must not see an end of them.
  (cd "$guest" && exec bochs -q -f "$sources/bochsrc" -rc start <>keyboard >bochs.txt 2>&1) &
  local emulator=$! waited=0
  trap "kill $emulator 2>/dev/null || true" EXIT
  until grep -qa 'ended with status' "$guest/serial.txt" 2>/dev/null; do
    sleep 2
    waited=$((waited + 2))
    kill -0 $emulator 2>/dev/null && [ $waited -lt "${GUEST_SECONDS:-1800}" ] || break
  done
  kill $emulator 2>/dev/null || true
  wait $emulator 2>/dev/null || true
  tr -d '\r' <"$guest/serial.txt" | grep -aE '^(avx512|ended)' >"$build/avx512.txt" || true
  grep -q 'ended with status 0' "$build/avx512.txt" || return 1
  sed -i '/^ended/d' "$build/avx512.txt"
}

check_avx512() {
  compile avx512
  tiles avx512-tiles objdump "$build"/avx512/erd_cuda/CMakeFiles/erd_cpu_avx512{,_bf16}.dir/csrc/cpu
  local status=0
  if grep -qw avx512vl /proc/cpuinfo; then
    "$build/avx512/instruction_sets" "$build/cases" avx512 >"$build/avx512.txt" || status=$?
  else
    local lacks kernel
    lacks=$(missing bochs xorriso cpio busybox)
    kernel=${KERNEL:-$(ls -v /boot/vmlinuz-* 2>/dev/null | tail -n 1)}
    [ -n "$lacks" ] || [ -n "$kernel" ] || lacks="a Linux kernel, KERNEL"
    if [ -n "$lacks" ]; then echo "avx512: not checked, needs $lacks"; failed=1; return; fi
    boot_guest "$build/avx512/instruction_sets" "$kernel" || status=$?
  fi
  say avx512 $status
}

mkdir -p "$build"
"$python" "$sources/make_cases.py" "$build/cases"
for check in "${checks[@]}"; do
  case $check in
    neon | avx512) check_$check ;;
    *) echo "there is no check '$check', only neon and avx512"; exit 2 ;;
  esac
done
exit $failed
