#!/bin/sh
# Run one of the README's commands exactly as it stands there.
#   sh tools/readme_command.sh compress|test
set -eu
cd "$(dirname "$0")/.."
case "$1" in
    compress) block=1 ;;
    test) block=2 ;;
    *) echo "usage: $0 compress|test" >&2; exit 2 ;;
esac
awk -v want="$block" '/^```sh$/ { n++; on = (n == want); next } /^```/ { on = 0 } on' README.md | sh -eu
