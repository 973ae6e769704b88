#!/bin/sh
# The same as ./manage.py, with the newest Python that is there.
for python in python3.14 python3.13 python3.12 python3.11 python3; do
  "$python" -c 'pass' 2>/dev/null && exec "$python" "$(dirname "$0")/manage.py" "$@"
done
echo "manage.sh: python3 is missing. Debian/Ubuntu: apt-get install python3 python3-venv; macOS: brew install python@3.13" >&2; exit 1
