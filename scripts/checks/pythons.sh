#!/usr/bin/env bash
# The README's two commands and the thorough half of the tests, with the Pythons of Debian's suites:
#
#     bash scripts/checks/pythons.sh [SUITE[:python3.N] ...]      sid, unless said otherwise
#
# `sid` has the newest Python there is; `trixie`, the stable suite, has 3.13 and is for before a
# release. Each suite is unpacked by debootstrap in a directory of its own, which goes away again,
# and the tracked files are copied into it. Of a suite with several Pythons the newest is taken for
# which the registry has all that the tests need as wheels: a Python that is new lacks some for
# months, and nobody who only follows the README should need other compilers than C's.
# Needs root, on Debian or a relative of it. What this machine says about the network (resolv.conf,
# certificates, settings of apt and pip) holds inside too. Exit status 3: not k2ref's fault.
set -euo pipefail
cd "$(dirname "$0")/../.."
[ "$(id -u)" -eq 0 ] || { echo "check_pythons.sh: expected to be run by root, who may chroot"; exit 2; }
[ $# -gt 0 ] || set -- sid
command -v debootstrap > /dev/null || apt-get install -y -q --no-install-recommends debootstrap

place=$(mktemp -d)
trap 'rm -rf --one-file-system "$place"' EXIT
certificates=/etc/ssl/certs/ca-certificates.crt

# In a mount namespace of its own: /dev, /proc and /sys of the new root are gone when this ends,
# however it ends, and are not there for the `rm` above.
inside() {
    unshare --mount --propagation private bash -euo pipefail -c '
        mount --rbind /dev "$0/dev"
        mount -t proc proc "$0/proc"
        mount --rbind /sys "$0/sys"
        unset PYTHONPATH PYTHONHOME VIRTUAL_ENV TMPDIR
        export HOME=/root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
        export LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive
        exec chroot "$0" "$@"' "$root" "$@"
}

unpack() {  # SUITE: into $root, with all of its Pythons
    mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | head -n 1)
    debootstrap --variant=minbase --include=ca-certificates "$1" "$root" $mirror > "$root.log" 2>&1 \
        || { tail -n 20 "$root.log"; return 1; }
    cp -L /etc/resolv.conf "$root/etc/resolv.conf"
    apt-config dump | grep '^Acquire::' > "$root/etc/apt/apt.conf.d/99host" || true
    for settings in /etc/pip.conf /etc/xdg/pip "$HOME/.config/pip" "$HOME/.pip"; do
        [ ! -e "$settings" ] || { mkdir -p "$root$(dirname "$settings")"; cp -rL "$settings" "$root$settings"; }
    done
    inside apt-get update -q > "$root.log" 2>&1
    inside apt-cache pkgnames python3. | sed -n 's/^\(python3\.[0-9]*\)-venv$/\1/p' \
        | sort -rV > "$root.pythons"
    inside apt-get install -y -q --no-install-recommends gcc libc6-dev \
        $(sed 's/.*/&-venv &-dev/' "$root.pythons") >> "$root.log" 2>&1 \
        || { tail -n 20 "$root.log"; return 1; }
    [ ! -e $certificates ] || cp -L $certificates "$root$certificates"
    mkdir "$root/k2ref"
    git ls-files -z | tar -c --null -T - | tar -x -C "$root/k2ref"
}

has_wheels() {  # PYTHON
    inside sh -c "cd /k2ref && rm -rf /venv && $1 -m venv /venv &&
        /venv/bin/pip install -q --dry-run --only-binary :all: '.[test]'" > "$root.log" 2>&1
}

for wanted in "$@"; do
    suite=${wanted%%:*} root=$place/${wanted%%:*}
    if [ ! -e "$root" ]; then
        unpack "$suite" &  # not `unpack || ...`, in which bash would go on after an error
        wait $! || { echo "$suite cannot be installed today"; exit 3; }
    fi
    if [[ $wanted == *:* ]]; then
        python=${wanted#*:}
    else
        for python in $(cat "$root.pythons") none; do
            [ "$python" != none ] || exit 3
            has_wheels "$python" && break
            echo "$suite: $python: not all that the tests need can be had as wheels yet:"
            grep ERROR "$root.log" || tail -n 3 "$root.log"
        done
    fi
    echo "$suite: $(inside "$python" --version) (of $(tr '\n' ' ' < "$root.pythons")) after $SECONDS s"
    mapfile -t commands < <(grep -m 2 '^pip install' README.md; echo 'python -m pytest -m thorough')
    inside sh -c "rm -rf /venv && $python -m venv /venv"
    for command in "${commands[@]}"; do
        echo "$suite: $command (after $SECONDS s)"
        inside bash -euo pipefail -c "cd /k2ref; . /venv/bin/activate; $command"
    done
    echo "$suite: done after $SECONDS s"
done
