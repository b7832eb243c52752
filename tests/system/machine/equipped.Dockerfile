# A machine with what some have besides: a Docker Engine, and the ssh server of a member of a cluster.
ARG SUITE
FROM simagent/machine:${SUITE}
ENV DEBIAN_FRONTEND=noninteractive
# Nothing starts while it is built. Docker's networks and firewall rules are the host's of the lab.
RUN printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d && chmod +x /usr/sbin/policy-rc.d \
    && apt-get update -qq \
    && apt-get install -qq -y --no-install-recommends docker.io openssh-server >/dev/null \
    && rm -rf /var/lib/apt/lists/* /usr/sbin/policy-rc.d /etc/ssh/ssh_host_* \
    && systemctl disable docker.service docker.socket containerd.service ssh.service \
    && mkdir -p /etc/docker \
    && echo '{"bridge": "none", "iptables": false, "ip6tables": false}' >/etc/docker/daemon.json
# Of overlays the engine makes overlays: not upon one that the lab's engine made.
VOLUME /var/lib/docker
