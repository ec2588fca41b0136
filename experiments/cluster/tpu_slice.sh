#!/bin/bash
# Training on one TPU slice of several hosts: the same command on every host, one mesh over all chips. Then one host measures.
#
#   gcloud compute tpus tpu-vm ssh NAME --zone=ZONE --worker=all \
#     --command="cd repbias_jax && EXPERIMENT=complexity WORKDIR=/shared/repbias bash experiments/cluster/tpu_slice.sh train"
#   gcloud compute tpus tpu-vm ssh NAME --zone=ZONE --worker=all --command="... tpu_slice.sh measure"
#
# Processes of a slice share fate: when one is lost the others stop, and the same command on every host goes on from the last
# checkpoint. WORKDIR has to be on a file system that all hosts share.
set -eu
PYTHON=${PYTHON:-.venv/bin/python}
common=(--experiment="$EXPERIMENT" --workdir="$WORKDIR")

case ${1:-} in
  train)
    status=75
    while [ $status -eq 75 ]; do # interrupted, for maintenance say: saved, and goes on
      status=0
      $PYTHON -m experiments.run "${common[@]}" ${ARGUMENTS:-} --distributed --stage=train || status=$?
    done
    exit $status
    ;;
  measure)
    # Probes take a minute or two: one host's processor does.
    [ "${TPU_WORKER_ID:-0}" = 0 ] || exit 0
    export JAX_PLATFORMS=cpu
    exec $PYTHON -m experiments.run "${common[@]}" ${ARGUMENTS:-} --stage=measure,report
    ;;
  *)
    echo "usage: tpu_slice.sh train|measure" >&2
    exit 2
    ;;
esac
