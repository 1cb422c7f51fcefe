# Boots a host: gives it a root directory of its own, then runs its user data as cloud-init does. Runs in fresh mount,
# pid, uts and ipc namespaces, as their first process: when this ends, everything on the host ends.
#   $1 directory of its disk   $2 its name   $3 whether user data runs "once", as with machines, or "always", as the
#   command of a container
# Standard input is a pipe from the test: its end means that nobody needs the host any more.
set -eu
disk=$1 name=$2 command=$3
root=$disk/root
mount --make-rprivate /
mount -t overlay overlay -o "lowerdir=/,upperdir=$disk/upper,workdir=$disk/work" "$root"
mount --rbind /dev "$root/dev"
mount -t tmpfs -o mode=1777 shm "$root/dev/shm"
mount --rbind /sys "$root/sys"
mount -t proc proc "$root/proc"
mount -t tmpfs -o mode=755 run "$root/run"
mkdir "$root/run/sshd" "$root/run/lock"
for own in root tmp etc/ssh; do mount --bind "$disk/own/$own" "$root/$own"; done
hostname "$name"
cd "$root"
pivot_root . mnt
umount -l /mnt
cd /root

run() { setsid "$@" </dev/null >>/var/log/cloud-init-output.log 2>&1 & }
for script in /var/lib/cloud/scripts/per-boot/*; do
  if [ -x "$script" ]; then run "$script"; fi
done
if [ "$command" = always ] || [ ! -e /var/lib/cloud/instance/booted ]; then
  touch /var/lib/cloud/instance/booted
  run /var/lib/cloud/instance/user-data.txt
fi
while read -r _; do :; done
