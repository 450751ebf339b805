# Sourced by scripts/run, scripts/test and scripts/check from the root of the repository:
# makes the virtual environment .venv with pinned dependencies, unless it is there already.

unset PYTHONDONTWRITEBYTECODE # without .pyc files every start compiles 6,000 modules

find_python() {
  local candidate
  for candidate in "${PYTHON:-python3}" python3.13 python3.12 python3.11; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "error: Python 3.11 or newer was not found; install it, or set PYTHON" >&2
  return 1
}

set_up() {
  local python stamp
  stamp=$(cat setup.py constraints.txt | cksum)
  if [ "$(cat .venv/stamp 2>/dev/null)" = "$stamp" ]; then
    echo "set-up: .venv is up to date"
    return
  fi
  python=$(find_python) || return 1
  echo "set-up: making .venv with $("$python" --version) (about a minute)"
  "$python" -m venv .venv
  .venv/bin/python -m pip install --quiet --disable-pip-version-check \
    -c constraints.txt -e ".[test]"
  echo "$stamp" >.venv/stamp
}

set_up
