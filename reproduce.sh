#!/usr/bin/env bash
# The make targets for people without make; the Makefile calls this file, so both always do the same.
#
#   ./reproduce.sh table2 [--profile smoke|short|paper] [--data-dir DIR] [--seeds N] [--jobs N] [--device auto]
#   ./reproduce.sh all | report | setup | test | lint | bench | lock | clean | help
#
# Arguments after the first go to the command behind the target. PYTHON chooses the interpreter (3.11 or newer).

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

VENV=.venv
STAMP=$VENV/.setup-done
BIN=$VENV/bin

say() { printf '==> %s\n' "$*" >&2; }
die() { printf 'fractrain: error: %s\n' "$*" >&2; exit 2; }

usage() {
  cat <<'TEXT'
./reproduce.sh TARGET [ARGUMENTS]     (the same as make reproduce-TARGET or make TARGET)

  table1 .. table7   run what is missing for a table, print it, write it to results/tables/
  overview, formats  every method on every model; number formats beside FP32, likewise
  figure-pfq, -dfq   the two figures, drawn to results/figures/
  all                every table and figure
  report             every run, table and figure on one HTML page, results/report/index.html
  setup              prepare .venv/ (every other target does so by itself on first use)
  test               run the tests
  lint               ruff, format check, mypy
  bench              the speed benchmarks
  lock               refresh requirements.lock
  clean              remove .venv/ and caches (results stay)

ARGUMENTS of a table: --profile smoke|short|paper  --data-dir DIR  --seeds N  --jobs N  --device auto  --dry-run
TEXT
}

# -- set-up ------------------------------------------------------------------------------------------------------------

version_ok() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2])' >/dev/null 2>&1; }

# Print the interpreter to use: PYTHON when given, else the first of the usual names that is new enough.
find_python() {
  local candidate names=(python3 python3.13 python3.12 python3.11 python)
  [ -z "${PYTHON:-}" ] || names=("$PYTHON")
  for candidate in "${names[@]}"; do
    if version_ok "$candidate"; then
      printf '%s\n' "$candidate"
      return
    fi
  done
  local found
  found=$("${names[0]}" --version 2>/dev/null || echo "not found")
  die "Python 3.11 or newer is needed (${names[0]}: $found); install one, or name it: PYTHON=/path/to/python3.12"
}

# What the environment depends on. The folder counts because a venv cannot be moved.
fingerprint() { { cksum requirements.lock pyproject.toml; pwd; } 2>&1; }

is_set_up() { [ -x "$BIN/python" ] && [ -f "$STAMP" ] && [ "$(cat "$STAMP")" = "$(fingerprint)" ]; }

# A complete environment of this folder whose packages have only changed: pip installs the difference.
is_reusable() { "$BIN/python" --version >/dev/null 2>&1 && [ -f "$STAMP" ] && [ "$(tail -n 1 "$STAMP")" = "$PWD" ]; }

# On Linux PyTorch comes with its GPU libraries: packages of 3 GB, and 6.5 GB once they are unpacked.
NEEDED_GB=10
free_gb() { df -Pk "$1" 2>/dev/null | awk 'NR == 2 { printf "%d", $4 / 1048576 }'; }

# Say so before the minutes are spent; it is no error, because who has most packages already needs less.
warn_of_full_disk() {
  local place free disk seen=
  for place in "$PWD" "${TMPDIR:-/tmp}"; do
    disk=$(df -P "$place" 2>/dev/null | awk 'NR == 2 { print $NF }')
    [ "$disk" != "$seen" ] || continue
    seen=$disk free=$(free_gb "$place")
    if [ -n "$free" ] && [ "$free" -lt "$NEEDED_GB" ]; then
      say "Only $free GB are free in $place: installing takes up to $NEEDED_GB GB (on Linux)"
    fi
  done
}

# Run a command and print a sign of life every few seconds: unpacking packages of several hundred MB is silent.
with_heartbeat() {
  local start=$SECONDS status=0
  "$@" &
  local job=$!
  (
    while sleep 5 </dev/null >/dev/null 2>&1; do # it outlives the loop and must hold no pipe of ours open
      printf '    ... %d s, %s in %s\n' "$((SECONDS - start))" "$(du -sh "$VENV" 2>/dev/null | cut -f1)" "$VENV" >&2
    done
  ) &
  local beat=$!
  # shellcheck disable=SC2064
  trap "kill $job $beat 2>/dev/null || true; exit 130" INT TERM
  wait "$job" || status=$?
  kill "$beat" 2>/dev/null || true
  wait "$beat" 2>/dev/null || true
  trap - INT TERM
  return "$status"
}

make_venv() {
  local python
  python=$(find_python) || exit 2
  "$python" -c 'import ensurepip, venv' 2>/dev/null ||
    die "$python cannot make virtual environments; install its venv module (Debian, Ubuntu: apt install python3-venv)"
  say "Preparing $VENV/ with $("$python" --version) (once; PyTorch is large: minutes and several GB)"
  "$python" -m venv --clear "$VENV"
}

setup() {
  if is_set_up; then
    return
  fi
  local start=$SECONDS
  if is_reusable; then
    say "Bringing $VENV/ up to date"
  else
    make_venv
  fi
  rm -f "$STAMP"
  warn_of_full_disk
  say "1/2 Installing the pinned packages of requirements.lock"
  with_heartbeat "$BIN/python" -m pip install --disable-pip-version-check --require-hashes -r requirements.lock ||
    die "installing requirements.lock failed (see above; $(free_gb "$PWD") GB are free in $PWD, up to $NEEDED_GB are" \
      "needed); check network and disk space, then run the same command again"
  say "2/2 Installing fractrain itself (editable)"
  "$BIN/python" -m pip install --disable-pip-version-check --quiet --no-deps --no-build-isolation -e . ||
    die "installing fractrain into $VENV/ failed (see above)"
  fingerprint >"$STAMP"
  say "$VENV/ is ready after $((SECONDS - start)) s"
}

# -- targets -----------------------------------------------------------------------------------------------------------

table_file() { find benchmarks/tables benchmarks/figures -maxdepth 1 -name "$1.*" 2>/dev/null | head -n 1; }

reproduce() {
  local table=$1
  shift
  [ -n "$(table_file "$table")" ] || die "$table is not in this release (there: $(known_tables))"
  setup
  say "Reproducing $table"
  "$BIN/fractrain" reproduce "$table" "$@"
}

known_tables() {
  find benchmarks/tables benchmarks/figures -maxdepth 1 -name '*.*' ! -name '.*' 2>/dev/null |
    sed 's|.*/||; s|\.[^.]*$||' | sort -u | tr '\n' ' ' | sed 's/ $//'
}

reproduce_all() {
  setup
  say "Reproducing all: $(known_tables)"
  "$BIN/fractrain" reproduce all "$@"
}

lint() {
  setup
  say "ruff check" && "$BIN/ruff" check .
  say "ruff format --check" && "$BIN/ruff" format --check .
  say "mypy" && "$BIN/mypy"
}

run_tests() {
  setup
  say "Running the tests"
  # All of them on several cores, file by file; a part is quicker in one process, and easier to follow.
  [ $# -gt 0 ] || set -- --numprocesses auto --maxprocesses 4 --dist loadfile
  "$BIN/python" -m pytest "$@"
}

report() {
  setup
  "$BIN/fractrain" report "$@"
}

bench() {
  setup
  "$BIN/fractrain" bench "$@"
}

# Resolve for every supported Python and platform at once. No index is written: each user's own pip settings decide.
lock() {
  setup
  local new=requirements.lock.new
  "$BIN/python" -m pip install --disable-pip-version-check --quiet uv
  {
    echo "# Pinned, hashed packages for Python 3.11 to 3.13 (markers choose by version and platform): what make setup"
    echo "# installs. Written by 'make lock' from pyproject.toml with the extras dev and plots; do not edit by hand."
    echo "# torch and torchvision must stay a matching pair."
    "$BIN/uv" pip compile pyproject.toml --universal --python-version 3.11 --extra dev --extra plots --upgrade \
      --generate-hashes --no-emit-index-url --no-header --quiet "$@"
  } >"$new" || { rm -f "$new"; die "resolving failed (see above); requirements.lock is unchanged"; }
  mv "$new" requirements.lock
  say "requirements.lock is written; the next make setup installs it"
}

clean() {
  rm -rf "$VENV" .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
  find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
}

main() {
  local target=${1:-help}
  [ $# -eq 0 ] || shift
  case $target in
    setup) if is_set_up; then say "$VENV/ is ready"; else setup; fi ;;
    test) run_tests "$@" ;;
    lint) lint ;;
    report) report "$@" ;;
    bench) bench "$@" ;;
    lock) lock "$@" ;;
    clean) clean ;;
    all) reproduce_all "$@" ;;
    help | -h | --help) usage ;;
    *) reproduce "$target" "$@" ;;
  esac
}

main "$@"
