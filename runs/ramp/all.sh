#!/usr/bin/env bash
# The same tokens with and without a ramp: three seeds of the preset laptop, half as long, and a
# network of 10.8M parameters, 60 batches. Run it from the root of the repository; one thread.
set -eu
export OMP_NUM_THREADS=1
common="--eval-every 250 --hellaswag none --sample-tokens 0 --print-every 250 --device cpu"
TIMEFORMAT="%U s of the CPU"

run() {  # NAME FLAGS
    name=$1; shift
    out=$(mktemp -d)
    time python train_gpt2.py laptop --B 4 $common --out-dir "$out" "$@" > /dev/null
    cp "$out/log.txt" "runs/ramp/$name.txt"
    echo "$name: $(grep ' val ' "$out/log.txt" | tail -1)"
    rm -r "$out"
}

for seed in 1 2 3; do
    for ramp in none 0.25:0.03,0.5:0.1; do
        run "laptop_${ramp//:/-}_$seed" --max-steps 750 --val-tokens 100000 --seed $seed \
            $([ $ramp = none ] || echo --batch-ramp $ramp)
    done
done
for ramp in 0.25:0.03,0.5:0.1 none; do
    run "10.8M_${ramp//:/-}_1" --n-layer 6 --n-head 6 --n-embd 384 --max-steps 60 --warmup-steps 4 \
        --eval-every 30 --val-tokens 40000 --seed 1 \
        $([ $ramp = none ] || echo --batch-ramp $ramp)
done
