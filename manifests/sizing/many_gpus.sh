#!/bin/bash
# Measures many GPUs of one host, and the driver that feeds them, in calls of limited length. From anywhere:
#
#   OUT=/tmp/many manifests/sizing/many_gpus.sh PART ...
#
#   scale[:MODEL]   1, 2, 4 ... GPUs of this host: rates, against the sum of what each does alone, p99, idle time
#   split[:MODEL]   the same GPUs as two Ray nodes in network namespaces (root and the command `ip`)
#   slowed[:MODEL]  one worker SLOWED times slower beside the others, which must not wait for it
#   roofline[:W[@C]]  null model, W workers, held to the first C cores: the highest VALID rate, sought from START_QPS
#   rates[:W[@C]]   the same at each of RATES: p99, and LoadGen alone beside it
#   full            begins a run of full length in a process session of its own; it outlives this command
#   poll            waits for it for at most POLL_S seconds, and copies what it has found to OUT
#
# A part without a colon does all of MODELS (slowed: SLOWED_MODEL), or all of ROOFLINES. Parts run in the order
# given: put first what you want most. Every step has a limit of its own and leaves no process behind, also when
# this command is interrupted; one that LIMIT_S, counted from the start, no longer has room for is skipped, and
# said so. OUT gets a JSON file and the error output of each step. Relative paths are taken from where you are.
#
# Exit status: 0 all done; 1 a step failed, or was skipped; 2 it could not begin; 130 interrupted.

set -u
OUT=${OUT:-/tmp/loadgrid-many-gpus}          # figures and logs
GPUS=${GPUS:-$(nvidia-smi -L 2>/dev/null | grep -c .)}
[[ $GPUS =~ ^[0-9]+$ ]] || { echo "GPUS is '$GPUS', which is no number" >&2; exit 2; }
COUNTS=${COUNTS:-$(for n in 1 2 4; do [ "$n" -lt "$GPUS" ] && printf '%s,' "$n"; done)$GPUS} # workers measured
SPLIT=${SPLIT:-$((GPUS / 2)),$((GPUS - GPUS / 2))}  # GPUs of each Ray node
SPLIT_COUNTS=${SPLIT_COUNTS:-$GPUS}
MODELS=${MODELS:-resnet50 bert}              # manifests of this folder, or paths of others (with spaces: PART:PATH)
QPS_resnet50=${QPS_resnet50:-12000}          # Server: queries/s for each GPU; several: "11000 12000"
QPS_bert=${QPS_bert:-2400}
SECONDS_resnet50=${SECONDS_resnet50:-3}      # about how long a test lasts: many times a batch's time, for in
SECONDS_bert=${SECONDS_bert:-6}              # Offline the last batches are part of the tail
QPS=${QPS:-}                                 # the same for other manifests
TEST_S=${TEST_S:-4}
ROUNDS=${ROUNDS:-1}
SLOWED=${SLOWED:-10}
SLOWED_MODEL=${SLOWED_MODEL:-resnet50}
ROOFLINES=${ROOFLINES:-4@16 64 4 8 32}
START_QPS=${START_QPS:-100000}
RATES=${RATES:-100000 650000 1000000}
SWEEP_S=${SWEEP_S:-2}                        # seconds of each test of a sweep, and at each of RATES
STEP_S=${STEP_S:-280} NULL_STEP_S=${NULL_STEP_S:-100}  # most seconds of one step with GPUs, of one without
NEED_S=${NEED_S:-85} NULL_NEED_S=${NULL_NEED_S:-40}    # a step that has less time than this is not begun
LIMIT_S=${LIMIT_S:-570}                      # most seconds of the whole call
STATE=${STATE:-/tmp/loadgrid-many-gpus-full} # where the run of full length lives
FULL_MODEL=${FULL_MODEL:-resnet50} FULL_S=${FULL_S:-600} FULL_OFFLINE_QPS=${FULL_OFFLINE_QPS:-25000}
FULL_SCENARIOS=${FULL_SCENARIOS:-Server Offline} # no faster than the GPUs: LoadGen sets the length by it
POLL_S=${POLL_S:-540}

# Idle Pythons that Ray starts ahead, one a core, would share the cores with the measurement; and in a guest whose
# memory grows as it is used, Ray sees a full one.
export RAY_prestart_worker_first_driver=0 RAY_enable_worker_prestart=0 RAY_memory_monitor_refresh_ms=0
export RAY_USAGE_STATS_ENABLED=0 PYTHONUNBUFFERED=1

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
from=$PWD
OUT=$(realpath -m -- "$OUT") STATE=$(realpath -m -- "$STATE")
mkdir -p "$OUT" && cd "$root" || exit 2
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
if command -v loadgrid >/dev/null; then LOADGRID=(loadgrid); else
  LOADGRID=(python3 -c 'from orchestrator.cli import main; main()')
fi

log() { printf '%4d s  %s\n' "$SECONDS" "$*" | tee -a "$OUT/log.txt"; }

manifest_of() { # a path, relative to where the command was given, or a name of this folder
  local path=$1
  [[ $path = /* ]] || path=$from/$path
  if [ -f "$path" ]; then echo "$path"; else echo "$here/$1.yaml"; fi
}
name_of() { basename "$1" .yaml; }
setting() { local name=$1_$(name_of "$2" | tr -c 'A-Za-z0-9\n' _); echo "${!name:-$3}"; }

# step NAME NEED_S MOST_S COMMAND ...: run it into OUT/NAME.json for at most so long, and as long as LIMIT_S allows.
# SIGTERM lets LoadGrid end its workers and Ray; who does not listen is killed. Rounds that were done are kept.
# In the background, for bash attends to a signal only between its commands, or while it waits.
step() {
  local name=$1 need=$2 most=$3 left=$((LIMIT_S - SECONDS - 15)) began=$SECONDS rc=0
  shift 3
  if [ "$left" -lt "$need" ]; then log "$name: SKIPPED, $left s are left"; failed=1; return 1; fi
  [ "$most" -gt "$left" ] && most=$left
  "${UNDER[@]}" timeout --kill-after=12 "$most" "$@" >"$OUT/$name.json" 2>"$OUT/$name.err" </dev/null &
  wait $! || rc=$?
  log "$name: exit $rc after $((SECONDS - began)) s$([ $rc = 124 ] && echo ' (its limit)')"
  if [ $rc -ne 0 ]; then failed=1; tail -n 5 "$OUT/$name.err" | cut -c1-300; fi
  return 0
}
UNDER=() failed=0

interrupted() { # `timeout`, in a process group of its own, hears of it from here only, and passes it on
  trap '' INT TERM HUP
  local step
  step=$(jobs -p)
  if [ -n "$step" ]; then kill "$step" 2>/dev/null; wait "$step"; fi
  log "interrupted"
  exit 130
}
trap interrupted INT TERM HUP

scale_options() { # MODEL COUNTS
  local rate
  printf '%s\n' "$(manifest_of "$1")" --workers "$2" --rounds "$ROUNDS" --json
  printf '%s\n' --seconds "$(setting SECONDS "$1" "$TEST_S")"
  for rate in $(setting QPS "$1" "$QPS"); do printf '%s\n' --qps "$rate"; done
}

scale() {
  local options
  mapfile -t options < <(scale_options "$1" "$COUNTS")
  step "scale-$(name_of "$1")" "$NEED_S" "$STEP_S" "${LOADGRID[@]}" bench scale "${options[@]}" && table scale
}

split() {
  local options
  mapfile -t options < <(scale_options "$1" "$SPLIT_COUNTS")
  step "split-$(name_of "$1")" "$NEED_S" "$STEP_S" python3 -c "$TWO_NODES" "$SPLIT" "${LOADGRID[@]}" bench scale "${options[@]}" \
    && table split
}

slowed() {
  local seconds
  seconds=$(setting SECONDS "$1" "$TEST_S")
  step "slowed-$(name_of "$1")" "$NEED_S" "$STEP_S" "${LOADGRID[@]}" bench scale "$(manifest_of "$1")" --workers "$GPUS" \
    --seconds "$seconds" --rounds "$ROUNDS" --slowed "$SLOWED" --json && table slowed
}

null_model() { # NAME WORKERS[@CORES] COMMAND ...
  local name=$1 workers=${2%@*} cores
  cores=$(nproc)
  [[ $2 = *@* && ${2#*@} -lt $cores ]] && cores=${2#*@}
  shift 2
  [ "$cores" -lt "$(nproc)" ] && UNDER=(taskset --cpu-list "0-$((cores - 1))")
  step "$name-$workers-workers-$cores-cores" "$NULL_NEED_S" "$NULL_STEP_S" "${LOADGRID[@]}" bench "$@" \
    --workers "$workers" --duration-s "$SWEEP_S" --json && table "$name"
  UNDER=()
}

roofline() { null_model roofline "$1" sweep --start-qps "$START_QPS"; }

rates() {
  local rate options=()
  for rate in $RATES; do options+=(--qps "$rate"); done
  null_model rates "$1" null "${options[@]}"
}

# Two Ray nodes on this machine, each in a network namespace of its own with its share of the GPUs, and the
# command on the first of them. Arguments: GPUs of each node, then the command.
TWO_NODES=$(cat <<'P'
import os, secrets, signal, sys
from tests import two_hosts

def stopped(number, frame):
    raise SystemExit(128 + number)

if fault := two_hosts.why_not():
    sys.exit(fault)
shares = [int(word) for word in sys.argv[1].split(",")]
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, stopped)
two_hosts.remove_leftovers()
hosts = two_hosts.Hosts(len(shares), secrets.token_hex(16))
try:
    hosts.lay_cables()
    for number, host in enumerate(hosts.hosts):
        first = sum(shares[:number])
        host.env["CUDA_VISIBLE_DEVICES"] = ",".join(str(first + gpu) for gpu in range(shares[number]))
        host.env["RAY_memory_monitor_refresh_ms"] = "0"
        host.ray_options = ["--num-gpus", str(shares[number]), "--num-cpus", str(max(os.cpu_count() or 2, 8))]
    hosts.form_cluster()
    print("nodes", *hosts.wait_for_nodes(len(shares)), file=sys.stderr, flush=True)
    command = [*sys.argv[2:], "--address", hosts.ray_address]
    own = {"TMPDIR": str(hosts.folder)}  # removed with the hosts, also when the command is killed with them
    sys.exit(hosts.run_in(hosts.hosts[0], command, own, stdout=sys.stdout, stderr=sys.stderr).wait())
finally:
    hosts.remove()
P
)

# The manifest at full length on all GPUs, with one Server rate for each.
FULL_MANIFEST=$(cat <<'P'
import sys, yaml
from orchestrator.manifest import ManifestError, load_manifest
from orchestrator.peak_manifest import resolve_paths

source, gpus, seconds, server_qps, offline_qps, scenarios = sys.argv[1:]
try:
    manifest = load_manifest(source)
except ManifestError as error:
    sys.exit(str(error))
body = yaml.safe_load(manifest.raw)
resolve_paths(manifest, body)
body["name"] = manifest.name + "-full"
body["scenarios"] = scenarios.split()
body.setdefault("workers", {})["count"] = int(gpus)
known = body.setdefault("loadgen", {})
known["min_duration"] = int(float(seconds) * 1000)
for scenario, qps in (("Server", server_qps), ("Offline", offline_qps)):
    known.setdefault(scenario, {}).update(target_qps=float(qps) * int(gpus))
    known[scenario].pop("min_duration", None)
print(yaml.safe_dump(body, sort_keys=False))
P
)

# Whether a process of the run of full length lives: all hold its lock. A pid may be another's by now, or a zombie's.
running() { [ ! -e "$STATE/rc" ] && ! flock -n "$STATE/lock" true; }

# Of two that begin at once one runs; poll's look takes the lock for a moment, too. A signal to the whole group is the
# run's to obey: what waits for it lives on and writes its exit status, which poll waits for.
HOLD_AND_RUN=$(cat <<'P'
state=$0 manifest=$1
shift
exec 9>"$state/lock"
flock -w 2 9 && [ ! -e "$state/pid" ] && mv "$manifest" "$state/full.yaml" && echo $$ >"$state/pid" || exit 1
trap : TERM INT HUP
"$@" >"$state/log" 2>&1 </dev/null
echo $? >"$state/rc.new"
mv "$state/rc.new" "$state/rc"
P
)

full() {
  local rates begun manifest=$STATE/full.yaml.$$
  if [ -e "$STATE/rc" ] || { [ -e "$STATE/pid" ] && running; }; then
    log "full: $STATE has one already; poll it, or remove the folder"
    return 1
  fi
  if [ -e "$STATE/pid" ]; then # it was killed
    mv "$STATE" "$(mktemp -d "$STATE.died-XXXXXX")/" && log "full: one that died was moved beside $STATE" || return 1
  fi
  read -ra rates <<<"$(setting QPS "$FULL_MODEL" "$QPS")"
  mkdir -p "$STATE/runs"
  python3 -c "$FULL_MANIFEST" "$(manifest_of "$FULL_MODEL")" "$GPUS" "$FULL_S" "${FULL_QPS:-${rates[0]:-1}}" \
    "$FULL_OFFLINE_QPS" "$FULL_SCENARIOS" >"$manifest" || return 1
  setsid bash -c "$HOLD_AND_RUN" "$STATE" "$manifest" "${LOADGRID[@]}" run "$STATE/full.yaml" --runs-dir "$STATE/runs" \
    </dev/null >/dev/null 2>&1 &
  begun=$!
  disown
  until [ "$(cat "$STATE/pid" 2>/dev/null)" = "$begun" ]; do
    if ! kill -0 "$begun" 2>/dev/null; then
      rm -f "$manifest"
      log "full: it could not begin, or another did at the same time in $STATE"
      return 1
    fi
    sleep 0.1
  done
  log "full: begun; its state is in $STATE"
}

evidence() { # LoadGen's own logs come along, the large trace excepted; of a test that still runs as far as they go
  [ ! -d "$OUT/full" ] || find "$OUT/full" -depth -name '*.partial' -exec rm -rf {} +
  mkdir -p "$OUT/full" && cp "$STATE/full.yaml" "$STATE/log" "$OUT/full/" || return 1
  (set -o pipefail; cd "$STATE/runs" && find . -name '*trace.json' -prune -o -type f -print0 \
    | tar --null -cf - -T - | tar -xf - -C "$OUT/full")
}

poll() {
  local most=$((LIMIT_S - SECONDS - 15)) end told
  if [ ! -e "$STATE/pid" ]; then log "poll: no run was begun in $STATE"; return 1; fi
  [ "$POLL_S" -lt "$most" ] && most=$POLL_S
  end=$((SECONDS + most))
  while running && [ "$SECONDS" -lt "$end" ]; do sleep 1; done
  if running; then told="still runs"; elif [ -e "$STATE/rc" ]; then told="ended, exit $(cat "$STATE/rc")"; else told=died; fi
  tail -n 6 "$STATE/log" | cut -c1-200
  if ! evidence && [ "$told" != "still runs" ]; then told+=", and its files could not be copied to $OUT/full"; fi
  log "poll: $told"
  table full
  [[ $told = "still runs" || $told = "ended, exit 0" ]]
}

# The figures of a part so far, from its files.
TABLE=$(cat <<'P'
import json, sys
from pathlib import Path

part, out = sys.argv[1], Path(sys.argv[2])

def read(file):
    """The last line that is JSON; None if there is none."""
    found = None
    for line in file.read_text(errors="replace").splitlines():
        try:
            found = json.loads(line)
        except ValueError:
            continue
    return found

def said(value, unit=""):
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "VALID" if value else "INVALID"
    if unit == "%":
        return f"{value:.2%}"
    if isinstance(value, list):
        return f"{sum(value)} of {len(value)} VALID"
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"

def listed(values):
    return " ".join(map(said, values or []))

def show(names, rows):
    lines = [names, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(names))]
    for line in lines:
        print("  " + "  ".join(word.rjust(width) for word, width in zip(line, widths)), flush=True)

def scaled():
    rows = []
    for file in sorted(out.glob(f"{part}-*.json")):
        found = read(file) or []
        # What one worker can take lies between the highest rate at which it was VALID in every round and the
        # next at which it was not; without that next one nobody knows, and the rate is shown for what it is.
        server = [r for r in found if r["scenario"] == "Server"]
        one = max((r["offered_qps"] for r in server if r["workers"] == 1 and all(r["valid"])), default=None)
        failed = [r["offered_qps"] for r in server if r["workers"] == 1 and not all(r["valid"])]
        bracket = min((qps for qps in failed if one and qps > one), default=None)
        for r in found:
            linear, spread, held = r["efficiency"], "", None
            if linear is not None:
                spread = f"{r['efficiency_lowest']:.4f}-{r['efficiency_highest']:.4f}"
            elif one and all(r["valid"]):
                each = r["offered_qps"] / r["workers"]
                held = each / one
                if bracket:  # more than that for each is more than one can take, whatever it is
                    linear = f"{min(each / bracket, 1):.4g}-{min(each, bracket) / one:.4g}"
            rows.append([file.stem, r["scenario"], said(r["workers"]), said(r["offered_qps"]),
                         said(r["samples_per_s"]), said(linear), spread, said(held), said(r["valid"]),
                         said(r["p99_ms"]), listed(r["p99s_ms"]), listed(r["stood_still_ms"]),
                         said(r["idle"], "%"), said(r["tail"], "%"), said(r["driver_cpu"])])
    show(["step", "scenario", "workers", "offered/s", "samples/s", "of linear", "rounds", "x one alone, held",
          "verdict", "p99 ms", "each", "host stood still ms", "idle", "tail", "driver cores"], rows)

def rates():
    rows = []
    for file in sorted(out.glob("rates-*.json")):
        for line in file.read_text().splitlines():
            t = json.loads(line)
            alone, still = t.get("inprocess") or {}, t["pauses"] and t["pauses"]["stood_still"]["sum_ms"]
            rows.append([said(t["workers"]), file.stem.split("-")[3], said(t["offered_qps"]), said(t["valid"]),
                         said(t["p50_ms"]), said(t["p99_ms"]), said(still), said(t["driver_cpu_share"]),
                         said(alone.get("valid")), said(alone.get("p99_ms"))])
    show(["workers", "cores", "offered/s", "verdict", "p50 ms", "p99 ms", "host stood still ms", "driver cores",
          "LoadGen alone", "p99 ms alone"], rows)

def rooflines():
    rows, best = [], {}
    for file in sorted(out.glob("roofline-*.json"), key=lambda file: file.stat().st_mtime):
        found = read(file) or {"tests": [], "highest_valid_qps": 0}
        words = file.stem.split("-")
        workers, cores = int(words[1]), int(words[3])
        best[workers, cores] = found["highest_valid_qps"]
        first = found["tests"][0] if found["tests"] else {}
        held = [t for t in found["tests"] if t["offered_qps"] == found["highest_valid_qps"] and t["valid"]]
        top = held[-1] if held else {}
        under = [t["offered_qps"] for t in found["tests"] if t["valid"] and (t["p99_ms"] or 9) <= 2]
        four = best.get((4, cores))
        rows.append([said(workers), said(cores), said(best[workers, cores]), said(top.get("p50_ms")),
                     said(top.get("p99_ms")), said(max(under, default=None)), said(first.get("offered_qps")),
                     said(first.get("p99_ms")), said(top.get("driver_cpu_share")),
                     said(best[workers, cores] / four if four else None)])
    show(["workers", "cores", "highest VALID/s", "p50 ms", "p99 ms", "highest at p99 <= 2 ms", "first rate/s",
          "p99 ms there", "driver cores", "of 4 workers"], rows)

def full():
    rows = []
    for file in sorted(out.glob("full/**/record.json")):
        r = read(file) or json.loads(file.read_text())
        result = r.get("result") or {}
        rows.append([str(file.parent.relative_to(out / "full")), r["status"], said(result.get("valid")),
                     said(result.get("value")), said((result.get("percentiles_ms") or {}).get("p99")),
                     said(r.get("wall_s")), said((r.get("driver") or {}).get("cpu_share"))])
    show(["test", "status", "verdict", "result/s", "p99 ms", "wall s", "driver cores"], rows)

{"roofline": rooflines, "rates": rates, "full": full}.get(part, scaled)()
P
)
table() { python3 -c "$TABLE" "$1" "$OUT" | tee "$OUT/table-$1.txt"; }

if [ $# = 0 ]; then sed -n '2,/^$/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 2; fi
for part in "$@"; do
  case ${part%%:*} in
    scale | split | slowed | full)
      if [ "$GPUS" -eq 0 ]; then echo "$part needs GPUs, and GPUS is 0: there are none here, or set it" >&2; exit 2; fi ;;
    roofline | rates | poll) ;;
    *) echo "$part is no part: scale, split, slowed, roofline, rates, full or poll" >&2; exit 2 ;;
  esac
done
for part in "$@"; do
  what=${part%%:*}
  case $what in
    scale | split) read -d '' -ra each <<<"$MODELS" ;;
    slowed) each=("$SLOWED_MODEL") ;;
    roofline | rates) read -d '' -ra each <<<"$ROOFLINES" ;;
    full | poll) "$what" || failed=1; continue ;;
  esac
  case $part in *:?*) each=("${part#*:}") ;; esac
  for one in "${each[@]}"; do "$what" "$one"; done
done
log "done"
exit "$failed"
