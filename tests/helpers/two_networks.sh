# Runs a command on two nodes, node0 and node1, each with a network of its own, joined by a cable:
#
#   unshare --user --map-root-user --net --mount sh tests/helpers/two_networks.sh COMMAND…
#
# Networks and mounts are those of the process that unshare starts, and end with it.
set -e
mount -t tmpfs tmpfs /run
printf '127.0.0.1 localhost\n10.0.0.1 node0\n10.0.0.2 node1\n' > /run/hosts
mount --bind /run/hosts /etc/hosts
ip netns add node0
ip netns add node1
ip link add eth0 netns node0 type veth peer name eth0 netns node1
for node in 0 1; do
  ip -n node$node address add 10.0.0.$((node + 1))/24 dev eth0
  ip -n node$node link set eth0 up
  ip -n node$node link set lo up
done
pids=
for node in 0 1; do
  timeout 280 ip netns exec node$node unshare --uts sh -c "hostname node$node && exec \"\$@\"" - "$@" &
  pids="$pids $!"
done
for pid in $pids; do
  wait $pid
done
