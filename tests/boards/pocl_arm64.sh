#!/usr/bin/env bash
# Makes a folder with PoCL for AArch64 out of Debian's packages, for the tests of emulated boards with an
# OpenCL device:  tests/boards/pocl_arm64.sh build/pocl-arm64
#
# Nothing is installed: apt only fetches, with books of its own. 90 MB to fetch, 350 MB unpacked. The C
# library, GCC's and the linker are this machine's for AArch64 (`make emulator opencl`).
set -euo pipefail
folder=$(realpath -m "${1:?the folder to make}")
test -e "$folder/vendors/pocl.icd" && exit 0
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
mkdir -p "$scratch"/{state/lists/partial,cache/archives/partial,root}
touch "$scratch/state/status"
apt=(apt-get -qq -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o Dir::State="$scratch/state"
  -o Dir::State::status="$scratch/state/status" -o Dir::Cache="$scratch/cache" -o APT::Sandbox::User=root)
"${apt[@]}" update
"${apt[@]}" install -y --no-install-recommends --download-only libpocl2 ocl-icd-libopencl1
for package in "$scratch"/cache/archives/*.deb; do
  case $(basename "$package") in
    libc6_* | libc6-dev_* | libstdc++* | libgcc-* | binutils* | linux-libc-dev_*) ;;
    *) dpkg-deb -x "$package" "$scratch/root" ;;
  esac
done
made=$scratch/root
mkdir -p "$made"/{bin,vendors}
rm -rf "$made"/usr/{include,share/doc,share/man}
# The emulated compiler starts a linker of this machine, by the name of `ld`.
cat >"$made/bin/ld" <<'LD'
#!/bin/sh
gcc=$(dirname "$(aarch64-linux-gnu-gcc -print-libgcc-file-name)")
exec aarch64-linux-gnu-ld -L/usr/aarch64-linux-gnu/lib -L"$gcc" "$@"
LD
chmod +x "$made/bin/ld"
echo "$folder/usr/lib/aarch64-linux-gnu/libpocl.so.2" >"$made/vendors/pocl.icd"
mkdir -p "$(dirname "$folder")"
rm -rf "$folder"
mv "$made" "$folder"
