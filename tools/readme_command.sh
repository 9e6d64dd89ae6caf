#!/bin/sh
# Run one of the README's commands exactly as it stands there.
#   sh tools/readme_command.sh compress|test
set -eu
cd "$(dirname "$0")/.."
case "${1:-}" in
    compress) block=1 ;;
    test) block=2 ;;
    *) echo "usage: $0 compress|test" >&2; exit 2 ;;
esac
command=$(awk -v want="$block" '
    /^```sh$/ { n++; on = (n == want); next }
    /^```/ { on = 0 }
    on' README.md)
if [ -z "$command" ]; then
    echo "README.md has no sh block number $block" >&2
    exit 1
fi
exec sh -eu -c "$command"
