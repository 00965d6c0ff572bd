#!/bin/bash
# Bare Debian root file systems, made once with debootstrap, and commands in them. Read by scripts/fresh and scripts/vm,
# which set `cache` (where the roots are stored), `say` and `fail`.
#
# shellcheck shell=bash disable=SC2154

# ------------------------------------------------------------------------------------- how packages are reached here

# The addresses from which this machine has its own Debian packages; the label is Debian or Debian-Security.
mirror_of() {
    apt-get indextargets --format "\$(LABEL) \$(REPO_URI)" "Created-By: Packages" 2>/dev/null |
        awk -v label="$1" '$1 == label { print $2; exit }'
}

carry_apt() {
    local root=$1 suite=$2 security
    {
        echo "deb $(mirror_of Debian) $suite main"
        echo "deb $(mirror_of Debian) $suite-updates main"
        security=$(mirror_of Debian-Security)
        [ -z "$security" ] || echo "deb $security $suite-security main"
    } >"$root/etc/apt/sources.list"
    apt-config dump | grep -E '^Acquire::(https?::|Check-|Retries|Allow|ForceIPv)' >"$root/etc/apt/apt.conf.d/00host" || true
}

pip_settings=(/etc/pip.conf /etc/xdg/pip "$HOME/.config/pip" "$HOME/.pip")

# Paths on this machine that its settings of pip name: folders to show read-only, files to copy.
pip_places() {
    { cat /etc/pip.conf /etc/xdg/pip/* "$HOME"/.config/pip/* "$HOME"/.pip/* 2>/dev/null && env | grep '^PIP_'; } |
        grep -oE '/[^[:space:]"'\'']+' | sed -E 's,^/+(/|$),/,; s,/simple/?$,,' | sort -u |
        while read -r place; do [ -e "$place" ] && echo "$place"; done || true
}

carry_settings() {
    local root=$1 place
    cp -L /etc/resolv.conf /etc/hosts "$root/etc/"
    for place in "${pip_settings[@]}" "${SSL_CERT_FILE:-}" "${REQUESTS_CA_BUNDLE:-}" "${CURL_CA_BUNDLE:-}" $(pip_places); do
        if [ -f "$place" ]; then
            install -D -m 644 "$place" "$root$place"
        elif [ -d "$place" ] && [[ " ${pip_settings[*]} " == *" $place "* ]]; then
            mkdir -p "$root$place"
            cp -rL "$place/." "$root$place/"
        fi
    done
}

carried_environment() { env | grep -E '^(PIP_|SSL_CERT_|REQUESTS_CA_|CURL_CA_|https?_proxy=|HTTPS?_PROXY=|no_proxy=|NO_PROXY=)' || true; }

# ------------------------------------------------------------------------------------------------------- bare roots

make_bare_root() {
    local suite=$1 root=$cache/$1 new=$cache/.$1.new
    [ ! -d "$root" ] || return 0
    command -v debootstrap >/dev/null || fail "debootstrap is missing: apt-get install debootstrap"
    [ -n "$(mirror_of Debian)" ] || apt-get --quiet=2 update
    [ -n "$(mirror_of Debian)" ] || fail "the apt sources of this machine name no Debian archive"
    say "making a bare $suite in $root (once)"
    rm -rf "$new"
    mkdir -p "$cache"
    debootstrap --variant=minbase "$suite" "$new" "$(mirror_of Debian)" >"$cache/$suite-debootstrap.log" 2>&1 ||
        fail "debootstrap failed, see $cache/$suite-debootstrap.log"
    carry_apt "$new" "$suite"
    enter "$new" bash -c "
        export DEBIAN_FRONTEND=noninteractive
        apt-get --quiet=2 update && apt-get --quiet=2 --yes --no-install-recommends install python3 python3-pip
        apt-get clean && rm -rf /var/lib/apt/lists/*" >>"$cache/$suite-debootstrap.log" 2>&1 ||
        fail "Python could not be installed in $new, see $cache/$suite-debootstrap.log"
    mv "$new" "$root"
}

# enter ROOT COMMAND...: runs it there as on a machine of its own (but for the network and the kernel).
enter() {
    local root=$1 places environment
    shift
    carry_settings "$root"
    mapfile -t places < <(pip_places)
    mapfile -t environment < <(carried_environment)
    # shellcheck disable=SC2016 # expanded in the namespace
    unshare --mount --pid --ipc --uts --fork --kill-child bash -c '
        set -euo pipefail
        root=$1 && shift
        mount --make-rprivate /
        mount --bind "$root" "$root"
        while [ "$1" != -- ]; do
            if [ -d "$1" ]; then
                mkdir -p "$root$1"
                mount --bind -o ro "$1" "$root$1"
            fi
            shift
        done
        shift
        mount -t proc proc "$root/proc"
        mount --rbind /sys "$root/sys"
        mount --rbind /dev "$root/dev"
        mount -t tmpfs -o mode=755,nosuid tmpfs "$root/run"
        mkdir -p "$root/run/lock" "$root/.outside"
        cd "$root"
        pivot_root . .outside
        cd /
        umount -l /.outside
        rmdir /.outside
        hostname bare
        exec env -i "$@"
    ' enter "$root" "${places[@]}" -- HOME="$HOME" TERM="${TERM:-dumb}" LANG=C.UTF-8 \
        PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "${environment[@]}" "$@" </dev/null
}
