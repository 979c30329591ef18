EXPERIMENT_NAME="$MODEL_TYPE-cmrc"
TASK_NAME=cmrc
DATA_PATH="$DATA_ROOT/cmrc"
TRAIN_ARGS=(--epochs 10 --batch-size 8 --lr 2e-5 --lr-decay-style linear --warmup 0.06
    --weight-decay 0.1 --label-smoothing 0.1)
COMMON_ARGS=(--save-interval 10000 --eval-epoch 2)
TASK_ARGS=(--src-seq-length 464 --tgt-seq-length 48 --min-tgt-length 0 --length-penalty 0.7
    --no-repeat-ngram-size 0 --num-beams 5 --select-topk --eval-batch-size 1)
