# What a build needs besides Rust, installed from Debian's packages where it is missing. Sourced by ./dosql and ./test.

# provide PACKAGE COMMAND...: installs the Debian package where the command does not run.
provide() {
  local package=$1
  shift
  "$@" >/dev/null 2>&1 && return
  if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "please install the Debian package $package" >&2
    return 1
  fi
  echo "installing the Debian package $package" >&2
  apt-get install -y -qq "$package" >/dev/null 2>&1 \
    || { apt-get update -qq >&2 && apt-get install -y -qq "$package" >/dev/null; }
}

# bindgen reads SQLite's header for the pre-update hook through this library.
libclang_is_there() {
  [ -n "${LIBCLANG_PATH:-}" ] || [ "$(uname)" = Darwin ] \
    || compgen -G '/usr/lib*/llvm-*/lib/libclang[.-][s0-9]*' || compgen -G '/usr/lib*/*/libclang[.-][s0-9]*' || compgen -G '/usr/lib*/libclang.so*'
}

provide_build_tools() {
  provide build-essential cc --version && provide libclang-dev libclang_is_there
}
