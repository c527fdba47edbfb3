# Starts the system's own systemd as the first process of namespaces of its own, in a control group of its own, on a root whose changes are lost.
#
# In the environment: `group`, the control group's name; `out`, a folder that is /out inside; `source`, the repository, which is /source inside; where
# they are set, `lower`, the root that is not this machine's, `files`, which become /etc/tollgate, and `program`, which becomes /usr/local/bin/tollgate.
# In a network namespace already.

if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
  hierarchies=/sys/fs/cgroup
else
  hierarchies="/sys/fs/cgroup/systemd /sys/fs/cgroup/devices /sys/fs/cgroup/pids"
fi
for hierarchy in $hierarchies; do
  mkdir -p "$hierarchy/$group"
  echo $$ >"$hierarchy/$group/cgroup.procs"
done
export hierarchies
exec unshare --cgroup --mount --propagation private --pid --fork --kill-child --uts --ipc sh -ec '
  root=$out/root
  mkdir $root $out/changes
  mount -t tmpfs none $out/changes
  mkdir $out/changes/upper $out/changes/work
  mount -t overlay -o lowerdir=${lower:-/},upperdir=$out/changes/upper,workdir=$out/changes/work none $root
  mount -t proc none $root/proc
  mount -t sysfs -o ro none $root/sys
  if [ "$hierarchies" = /sys/fs/cgroup ]; then
    mount -t cgroup2 none $root/sys/fs/cgroup
  else
    mount -t tmpfs none $root/sys/fs/cgroup
    for name in systemd devices pids; do
      mkdir $root/sys/fs/cgroup/$name
      options=$name
      [ $name = systemd ] && options=none,name=systemd
      mount -t cgroup -o $options none $root/sys/fs/cgroup/$name
    done
  fi
  mount -t tmpfs none $root/run
  mount -t tmpfs none $root/tmp
  mount -t tmpfs none $root/dev
  mkdir $root/dev/shm $root/dev/net $root/out $root/source
  for device in null zero full random urandom tty; do
    touch $root/dev/$device
    mount --bind /dev/$device $root/dev/$device
  done
  mknod -m 666 $root/dev/net/tun c 10 200
  if [ -n "${program:-}" ]; then
    touch $root/usr/local/bin/tollgate
    mount --bind $program $root/usr/local/bin/tollgate
  fi
  if [ -n "${files:-}" ]; then
    mkdir -p $root/etc/tollgate
    cp -r $files/. $root/etc/tollgate/
  fi
  rm -rf $root/etc/systemd/system $root/var/lib/tollgate
  mkdir $root/etc/systemd/system
  printf "[Unit]\nDefaultDependencies=no\n" >$root/etc/systemd/system/ready.target
  mount --bind $out $root/out
  mount --bind $source $root/source
  exec chroot $root env -i container=lxc PATH=/usr/sbin:/usr/bin:/sbin:/bin \
    /lib/systemd/systemd --system --unit=ready.target --log-target=console --show-status=no
'
