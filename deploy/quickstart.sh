#!/usr/bin/env bash
# quickstart.sh - from a fresh Debian 12 to an answer: packages, build, store and worker, one
# sentence, the cache. Leaves both running; stop them with `deploy/pregate down`.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

install_packages "${packages_build[@]}" "${packages_run[@]}"
"$root/deploy/pregate" up

sentence='it is a truth universally acknowledged that a single man in possession of a good fortune must be in want of a wife'
answer=$("$root/deploy/pregate" ask "$sentence")
say
say "A sentence without case and punctuation, and what the model makes of it:"
say "  in   $sentence"
say "  out  $answer"
say
say "What the store did for it:"
"$root/deploy/pregate" stats
say
say "Running. Ask more:  deploy/pregate ask 'call me ishmael'"
say "Watch the cache:    deploy/pregate stats --watch"
say "Stop:               deploy/pregate down"
