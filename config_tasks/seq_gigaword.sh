EXPERIMENT_NAME="$MODEL_TYPE-gigaword"
TASK_NAME=gigaword
DATA_PATH="$DATA_ROOT/gigaword"
TRAIN_ARGS=(--epochs 10 --batch-size 8 --lr 3e-5 --lr-decay-style linear --warmup 0.06
    --weight-decay 0.1 --label-smoothing 0.1)
COMMON_ARGS=(--save-interval 10000 --eval-epoch 2)
TASK_ARGS=(--src-seq-length 192 --tgt-seq-length 32 --min-tgt-length 0 --length-penalty 0.6
    --no-repeat-ngram-size 3 --num-beams 5 --select-topk --eval-batch-size 1)
