#!/usr/bin/env bash
# What a quarter of an hour on a GPU is for, in this order, each step within its time and leaving its JSON:
#     benchmarks/gpu_session.sh [--quick] [--minutes 9] FILES OUT [STEP ...]
# FILES: the folders that gpu_files.py made, all or some of them; no network is asked. OUT: gets summary.md and
# results.tar.gz (JSON files and logs), written anew after each step. STEP: tests images graphs launches chunked text
# features segmentation full; left out, all. The networks of `full` (240 epochs of KD, then of EA-KD) are kept in
# runs/gpu_session: the same command takes them up again. --quick shows that all runs, also on a CPU; no figures.
set -uo pipefail
quick=""; minutes=9; stretch=1
while [[ ${1:-} == --* ]]; do
  case $1 in
    --quick) quick=--quick; stretch=10; shift ;;  # a CPU may take its time
    --minutes) minutes=$2; shift 2 ;;
    *) sed -n '2,8p' "$0"; [[ $1 == --help ]]; exit ;;
  esac
done
[[ $# -ge 2 ]] || { sed -n '2,8p' "$0"; exit 2; }
files=$(realpath "$1"); out=$(realpath -m "$2"); shift 2
steps=${*:-tests images graphs launches chunked text features segmentation full}
cd "$(dirname "$0")/.." || exit
mkdir -p "$out"; work=$PWD/runs/gpu_session; mkdir -p "$work/json" "$work/images"
started=$SECONDS
export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=false
export HF_DATASETS_DISABLE_PROGRESS_BARS=1

if compgen -G "$files/*/wheels/*.whl" > /dev/null && [[ ! -d $work/site ]]; then
  python3 -m pip install -q --no-index --no-deps --no-compile --target "$work/site" "$files"/*/wheels/*.whl || exit
fi
export PYTHONPATH=$PWD:$work/site${PYTHONPATH:+:$PYTHONPATH}
ln -sf "$files"/*/images/*.parquet "$work/images/"
teacher=$(echo "$files"/*/teacher.pth); text=$(echo "$files"/*/text.jsonl); tokenizer=$(echo "$files"/*/tokenizer)
data=(--dataset_name "$work/images")
shards=$(find -L "$work/images" -name 'train-*' | wc -l); missing=""
for name in $(cat "$files"/*/images.txt 2> /dev/null || echo images.txt); do
  [[ -e $work/images/$name ]] || missing=$name
done
splits=(); [[ $shards -gt 0 ]] || splits=(--train_split test --test_split test)  # a step costs the same on any images
: > "$work/steps.txt"

step() {  # NAME SECONDS COMMAND...: what was left of the time at most; the next one runs whatever became of it
  local name=$1 box=$(($2 * stretch)) left=$((60 * minutes - SECONDS + started)) begun=$SECONDS code word flag=; shift 2
  [[ " $steps " == *" $name "* ]] || return 0
  if ((left < 15)); then echo "| $name | no time left | |" >> "$work/steps.txt"; return; fi
  ((box < left)) || box=$left
  for word in "$@"; do  # figures of an earlier session are not those of a step that fails now
    [[ $flag != --json ]] || rm -f "$word"
    flag=$word
  done
  printf '\n== %s, %s s at most: %s\n\n' "$name" "$box" "$*"
  timeout --signal=INT --kill-after=5 "$box" "$@" 2>&1 | tee "$work/json/$name.log"
  code=${PIPESTATUS[0]}
  case $code in 0) code=done ;; 124 | 137) code="stopped after $box s" ;; *) code="failed, exit status $code" ;; esac
  echo "| $name | $code | $((SECONDS - begun)) |" >> "$work/steps.txt"
  gather
}

gather() {
  { echo '| step | | seconds |'; echo '|---|---|---:|'; cat "$work/steps.txt"; echo
    python3 benchmarks/run_all.py --from_json "$work/json" 2>&1; } > "$out/summary.md"
  tar -czf "$out/results.tar.gz" -C "$work" json steps.txt $(cd "$work" && ls -d full/*/results.json 2> /dev/null)
}

one() { echo python3 benchmarks/run_all.py --output_dir "$work/json" --only "$1" $quick "${data[@]}"; }
small="--rounds 2 --steps 40 ${splits[*]}"
shapes=(--student 768x12 --teacher 1600x48 --batch_size 8 --steps 8 --rounds 2 --bf16)
tokens=(--tokens 8192); peers=(--peers trl liger)
[[ -z $quick ]] || { shapes=(--quick); tokens=(--quick); peers=(--peers trl); small="${splits[*]}"; }

# Warnings are errors in the newest versions only.
step tests 150 python3 -m pytest -m gpu -q -W default -p no:cacheprovider tests/test_gpu.py
step images 100 $(one image_step) --teacher_checkpoint "$teacher" --flags "image_step=$small"
step graphs 80 $(one image_step_graphs) --teacher_checkpoint "$teacher" --flags "image_step_graphs=$small"
step launches 40 python3 benchmarks/launches.py "${data[@]}" "${splits[@]}" --json "$work/json/launches.json"
step chunked 70 python3 benchmarks/chunked_loss.py "${tokens[@]}" "${peers[@]}" --json "$work/json/chunked_loss.json"
step text 120 python3 benchmarks/text_step.py "${shapes[@]}" --dataset_name "$text" --tokenizer "$tokenizer" \
  --json "$work/json/text_step.json"
step features 60 python3 benchmarks/feature_step.py $quick --batch_size 64 --steps 20 --rounds 1 \
  --json "$work/json/feature_step.json"
step segmentation 50 python3 benchmarks/segmentation_step.py $quick --json "$work/json/segmentation_step.json"
if [[ -z $missing || -n $quick ]]; then
  full=(python3 recipes/cifar100_energy_kd.py "${data[@]}" "${splits[@]}" --teacher_name cifar_wrn_16_2
    --teacher_checkpoint "$teacher" --student_name cifar_resnet20 --teacher_cache_dir "$work/cache"
    --seed 42 --save_total_limit 1 --disable_tqdm true)
  [[ -z $quick ]] || full+=(--num_train_epochs 1 --max_train_images 320 --max_test_images 64)
  for way in kd ea_kd; do
    step full 600 "${full[@]}" --config recipes/configs/$way.yaml --output_dir "$work/full/$way"
  done
else
  [[ " $steps " != *" full "* ]] || echo "| full | needs all folders of gpu_files.py: $missing is missing | |" >> "$work/steps.txt"
fi
gather
cat "$out/summary.md"
