#!/usr/bin/env bash
# Builds the Worker into deploy/worker/build/ and installs wrangler beside it. Needs Rust and npm. What else it needs it
# installs: the wasm target by rustup, or where rustup's server cannot be reached a toolchain from Debian's packages (as root),
# a C compiler for wasm, wasm-bindgen. CARGO_TARGET_DIR is honoured; tools are kept below it.
set -euo pipefail
cd "$(dirname "$0")"
target=wasm32-unknown-unknown
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$(cd ../.. && pwd)/target}"
tools=$CARGO_TARGET_DIR/worker-tools

say() { echo "build.sh: $*" >&2; }

# packages NAME...: installs Debian packages.
packages() {
  if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    say "please install the Debian packages $*"
    return 1
  fi
  say "installing the Debian packages $*"
  apt-get install -y -qq --no-install-recommends "$@" >/dev/null 2>&1 \
    || { apt-get update -qq && apt-get install -y -qq --no-install-recommends "$@" >/dev/null; }
}

# newest NAME: the command NAME, or NAME-22 and the like as Debian names it.
newest() {
  local candidate
  for candidate in "$1" "$1"-{30..14}; do
    command -v "$candidate" && return
  done
  return 1
}

compiles_to_wasm() { echo 'int x;' | "$1" --target=$target -x c -c - -o /dev/null 2>/dev/null; }

# SQLite and zstd are C.
clang=$(newest clang || true)
[ -n "$clang" ] && compiles_to_wasm "$clang" || { packages clang; clang=$(newest clang); }
ar=$(newest llvm-ar || true)
[ -n "$ar" ] || { packages llvm; ar=$(newest llvm-ar); }
export CC_wasm32_unknown_unknown=$clang AR_wasm32_unknown_unknown=$ar
export RUSTFLAGS='--cfg getrandom_backend="wasm_js" --cfg tokio_unstable'

version=$(awk '/^name = "wasm-bindgen"$/ { getline; gsub(/"/, "", $3); print $3; exit }' ../../Cargo.lock)
bindgen=$tools/wasm-bindgen-$version/bin/wasm-bindgen
if [ ! -x "$bindgen" ]; then
  say "installing wasm-bindgen $version"
  RUSTFLAGS='' CARGO_PROFILE_RELEASE_OPT_LEVEL=1 CARGO_TARGET_DIR=$tools/target \
    cargo install wasm-bindgen-cli --quiet --version "$version" --root "$tools/wasm-bindgen-$version"
fi

build=(cargo build --package dosql-worker --target $target --profile worker)
if rustc --print target-libdir --target $target 2>/dev/null | xargs test -d \
  || (command -v rustup >/dev/null && timeout 300 rustup target add $target >&2); then
  "${build[@]}"
else
  say "rustup cannot provide $target; using Debian's toolchain, which builds the standard library itself"
  for package in rustc-web cargo-web rust-web-src; do
    dpkg -s $package >/dev/null 2>&1 || packages $package
  done
  linker=$(newest wasm-ld || true)
  [ -n "$linker" ] || { packages lld; linker=$(newest wasm-ld); }
  build[0]=/usr/bin/cargo
  RUSTC_BOOTSTRAP=1 RUSTC=/usr/bin/rustc CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER=$linker \
    "${build[@]}" -Z build-std=std,panic_abort
fi

"$bindgen" --target web --no-typescript --experimental-reset-state-function --out-dir build \
  "$CARGO_TARGET_DIR/$target/worker/dosql_worker.wasm"
say "$(wc -c <build/dosql_worker_bg.wasm) bytes of wasm, $(gzip -c build/dosql_worker_bg.wasm | wc -c) compressed"

if ! cmp -s package-lock.json node_modules/.package-lock.seen; then
  say "installing wrangler"
  npm ci --no-audit --no-fund --silent
  cp package-lock.json node_modules/.package-lock.seen
fi
