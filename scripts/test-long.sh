#!/bin/bash
# Usage: scripts/test-long.sh [suite ...]
# The random suites with many more cases than in `make test`, one after the other; hours in all. Each takes its seed from SEED.
# Prints what each suite says of itself, and its totals; ends with 1 if any has failed.
set -uo pipefail
cd "$(dirname "$0")/.."
node=${NODE:-node}

# Suite | environment | test files below build/test
suites='
simulation   | BUCKETFSD_SIMULATION_SEEDS=10000                          | simulation/simulation
power        | BUCKETFSD_POWER_STATES=3000                               | storage/power storage/power-cases storage/late-errors
races        | BUCKETFSD_RACES=1000                                      | storage/races storage/conditional-copy
kills        | BUCKETFSD_KILL_POINTS=125                                 | storage/kill
renames      | BUCKETFSD_KILLED_RENAMES=100                              | storage/killed-rename
histories    | BUCKETFSD_HISTORIES=5000                                  | storage/staged-file
failing-disk | BUCKETFSD_FAILING_RUNS=all                                | storage/failing-disk
objects      | BUCKETFSD_OBJECT_SEQUENCES=1000 BUCKETFSD_FSX_SECONDS=600 | storage/object-model storage/fsx
model        | BUCKETFSD_MODEL_SEQUENCES=1500                            | model/model
differential | BUCKETFSD_LONG=1                                          | differential/differential e2e/differential
nodes        | BUCKETFSD_NODES=1000000                                   | storage/node-memory
fuzz         | BUCKETFSD_FUZZ_SECONDS=1200                               | fuzz/fuzz
'

wanted=" ${*:-} "
[ "$wanted" = "  " ] && wanted=" $(sed -nE 's/^([a-z-]+) .*/\1/p' <<<"$suites" | tr '\n' ' ') "
for suite in $wanted; do
  grep -qE "^$suite +\|" <<<"$suites" || { echo "test-long: no suite is called $suite" >&2; exit 2; }
done

status=0
while IFS='|' read -r name environment files; do
  name=${name// /}
  [[ -n $name && $wanted == *" $name "* ]] || continue
  echo "== $name: $environment"
  paths=()
  for file in $files; do paths+=("build/test/$file.test.js"); done
  # shellcheck disable=SC2086
  env BUCKETFSD_NO_SKIP=1 $environment "$node" --test --test-timeout=14400000 --enable-source-maps --test-reporter=spec "${paths[@]}" || { status=1; echo "== $name has FAILED"; }
done <<<"$suites"
exit $status
