#!/bin/sh
# install.sh PACKAGE... - installs Debian packages without starting, or enabling, the services in them.
# Needs root. Run it in its own session: dpkg must not be interrupted half-way.
set -eu
exec 9>/var/lock/task-activity-log-sandbox.lock
flock 9

# Maintainer scripts ask policy-rc.d before they start a service; 101 means "forbidden".
policy=/usr/sbin/policy-rc.d
# postgresql-common creates a cluster, `main`, unless this file forbids it.
clusters=/etc/postgresql-common/createcluster.d/zz-sandbox.conf

restore() {
  rm -f "$policy" "$clusters"
  rmdir "$(dirname "$clusters")" 2>/dev/null || true
  if [ -e "$policy.sandbox-saved" ]; then mv "$policy.sandbox-saved" "$policy"; fi
}
# Clean up after a run that was killed.
if grep -qs 'made by install.sh' "$policy"; then rm -f "$policy"; fi
if [ -e "$policy.sandbox-saved" ]; then mv -f "$policy.sandbox-saved" "$policy"; fi
if [ -e "$policy" ]; then mv "$policy" "$policy.sandbox-saved"; fi
trap restore EXIT
trap '' INT TERM HUP
printf '#!/bin/sh\n# made by install.sh for as long as it runs\nexit 101\n' >"$policy"
chmod 755 "$policy"

export DEBIAN_FRONTEND=noninteractive
get='apt-get -q -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3'
echo 'apt-get update'
$get update
new=
for package in "$@"; do
  dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q ' installed$' || new="$new $package"
done
case " $new " in *' postgresql '*)
  echo 'apt-get install postgresql-common'
  $get -y --no-install-recommends install postgresql-common
  mkdir -p "$(dirname "$clusters")"
  echo 'create_main_cluster = false' >"$clusters"
  ;;
esac
echo "apt-get install$new"
$get -y --no-install-recommends install $new

# Do not start them at the next boot either: whoever wants the system's own instance can enable it.
if [ -d /run/systemd/system ]; then
  for package in $new; do systemctl --quiet disable "$package.service" 2>/dev/null || true; done
fi
