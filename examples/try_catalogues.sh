#!/bin/sh
# Tries the public catalogues from this machine: of each the scenes of one place, and one chip of them embedded with
# seeded weights (about 10 MB are read of each). Says which could be reached, how long it took, and where the rest is.
#
#   sh examples/try_catalogues.sh [FOLDER [W,S,E,N [START/END]]]
#
# cdse reads files with the keys of an account, in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; searching needs none.
set -u
folder=${1:-catalogues}
region=${2:-12.70,45.60,12.71,45.61}
dates=${3:-2024-05-01/2024-09-30}
mkdir -p "$folder" || exit 2
report=$folder/report.txt
: >"$report"

tell() {
  echo "$@" | tee -a "$report"
}

# NAME of a log, then the command: how it ended, and in how many seconds.
try() {
  log=$folder/$1.log
  shift
  begun=$(date +%s)
  "$@" >"$log" 2>&1
  status=$?
  took=$(($(date +%s) - begun))
  if [ "$status" -eq 0 ]; then
    tell "  ok      ${took} s: $*"
  else
    tell "  status $status, ${took} s: $*"
    tell "          $(grep -v '^ *$' "$log" | tail -n 1)"
    tell "          all that was said: $log"
    failed=1
  fi
  return "$status"
}

# A catalogue, then the encoder and its sensor: what is chosen, one chip of it, and whether the file is sound.
catalogue() {
  name=$1-$2
  output=$folder/$name
  tell "$1, $2:"
  try "$name-scenes" daskembed scenes --region "$region" --source "$1" --dates "$dates" --encoder "$2" || return
  if [ "$1" = cdse ] && [ -z "${AWS_ACCESS_KEY_ID:-}" ]; then
    tell "  not tried: its files need AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY of an account"
    return
  fi
  try "$name-run" daskembed run --region "$region" --source "$1" --dates "$dates" --encoder "$2" \
    --checkpoint untrained:tiny --cluster local --output "$output" || return
  try "$name-validate" daskembed validate "$output"
}

failed=0
tell "$(date -u +%Y-%m-%dT%H:%MZ), region $region, dates $dates"
catalogue earth-search clay-v1.5
catalogue planetary-computer clay-v1.5
catalogue planetary-computer clay-v0
catalogue cdse clay-v1.5
tell "this report: $report"
exit "$failed"
