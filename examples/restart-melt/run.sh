#!/bin/sh
# Start, or go on from the newest restart file that an earlier attempt has left.
set -e
from=none
if [ "$SIMAGENT_RESTART" = 1 ]; then
    from=$(ls melt.*.restart | sort -t . -k 2 -n | tail -n 1)
fi
echo "attempt $SIMAGENT_EPOCH starts from $from"
exec lmp -in in.melt -log "log.$SIMAGENT_EPOCH.lammps" -var restart "$SIMAGENT_RESTART" -var from "$from"
